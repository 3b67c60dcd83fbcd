"""Tensors on disk: what the headers of files say, and the tensors themselves, memory-mapped.

Files are safetensors (github.com/huggingface/safetensors, "Format"); or, by their suffix, pickles, of which no code
is run: see `pickles`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from iopaint_core.errors import InputError, WeightsError
from iopaint_core.schema import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    Bytes = npt.NDArray[np.uint8]
    Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]

Stamp = tuple[tuple[int, ...], ...]
"""For each file: device, inode, size, and the nanoseconds of its last change and last change of state."""

_FLOATS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}
_TORCH_NAMES = _FLOATS | {
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_ITEM_BYTES = dict.fromkeys(("F64", "C64", "I64", "U64"), 8)
_ITEM_BYTES |= dict.fromkeys(("F32", "I32", "U32"), 4)
_ITEM_BYTES |= dict.fromkeys(("F16", "BF16", "I16", "U16"), 2)
_STEMS = ("model", "*_model")
"""Under which libraries save a model, some with words of their own before it."""
_PICKLES = {".bin", ".ckpt", ".pt", ".pth"}
"""Suffixes of files that are read as pickles."""
_MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""


class _Safetensors(Protocol):
    """What is used of `safetensors.safe_open`, which is not typed."""

    def keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> Any: ...  # noqa: ANN401 - not typed either
    def get_tensor(self, name: str) -> Tensor: ...


class TensorSpec(NamedTuple):
    """What a header says of a tensor."""

    dtype: str
    """As in the format: F16, BF16, F32 …"""
    shape: tuple[int, ...]

    def nbytes(self, dtype: str | None = None) -> int:
        """Bytes in memory; with `dtype` (torch's name), once its floating-point values are cast to that."""
        cast = _TORCH_NAMES[dtype] if dtype is not None and self.changes_in(dtype) else self.dtype
        return math.prod(self.shape) * _ITEM_BYTES.get(cast, 1)

    def changes_in(self, dtype: str | None) -> bool:
        """Whether casting floating-point values to that (torch's name; None: not at all) changes them."""
        return dtype is not None and self.dtype in _FLOATS.values() and self.dtype != _FLOATS[dtype]


class TensorFiles:
    """The weights of one component: all tensors of some files, or those whose names begin with `prefix`.

    `convert` brings them from another layout into the component's own; it renames, reshapes, slices. `layout` names
    what it does: what is told of files in one layout is believed of the same files in a layout of that name.
    """

    def __init__(
        self, paths: tuple[Path, ...], *, prefix: str = "", convert: Convert | None = None, layout: str = ""
    ) -> None:
        if convert is not None and not layout:
            raise InputError("Weights are converted from a layout without a name", "Pass layout=..., and convert")
        self.paths = paths
        self.prefix = prefix
        self.part = f"{prefix}|{layout}"
        self._convert = convert

    @classmethod
    def find(cls, source: Path, *, variant: str | None = None) -> TensorFiles:
        """The weights in a folder as libraries of models save it, in shards or not; or one file.

        Raises `WeightsError` if there are none, or only pickles.
        """
        if source.is_file():
            return cls((source,))
        if not source.is_dir():
            raise WeightsError(f"{source} does not exist", "Name a folder with weights, or a file of them")
        dot = "" if variant is None else f".{variant}"
        endings = (f"{dot}.safetensors", f"{dot}.safetensors.index.json", f".safetensors.index{dot}.json")
        for stem in _STEMS:
            found = {path.name.partition(".")[0]: path for end in endings for path in source.glob(f"{stem}{end}")}
            if len(found) == 1:
                (path,) = found.values()
                return cls(_shards(path) if path.suffix == ".json" else (path,))
        others = sorted(source.glob("*.safetensors"))
        if len(others) == 1 and variant is None:
            return cls((others[0],))
        for pickle in sorted(path for path in source.iterdir() if path.suffix.lower() in _PICKLES):
            raise _pickle_error(pickle)
        names = ", ".join(path.name for path in others) or "none"
        raise WeightsError(
            f"{source} has no model{dot}.safetensors and no single *_model{dot}.safetensors, but these: {names}",
            "Name the file, or another variant",
        )

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """The tensors in the component's own layout, by name. Without `convert`, headers alone are read."""
        if self._convert is not None:
            return {
                name: TensorSpec(_TORCH_NAMES[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape))
                for name, tensor in self.open().items()
            }
        specs = {}
        for path in self.paths:
            if path.suffix.lower() in _PICKLES:
                pickled = _pickled_specs(path)
                specs.update({name: pickled[name] for name in self._wanted(pickled)})
                continue
            with _opened(path, "numpy") as file:
                for name in self._wanted(file.keys()):
                    part = file.get_slice(name)
                    specs[name] = TensorSpec(part.get_dtype(), tuple(part.get_shape()))
        if not specs:
            raise self._empty()
        return specs

    def open(self) -> dict[str, Tensor]:
        """The tensors in the component's own layout, memory-mapped: pages are read when they are touched.

        A pickle of before torch 1.6, or one that was compressed, can't be mapped, and is read as a whole. Each call
        maps anew; writing to a tensor changes neither the file nor another mapping.
        """
        tensors = {}
        for path in self.paths:
            if path.suffix.lower() in _PICKLES:
                from iopaint_core.pickles import load_pickle

                pickled = load_pickle(path)
                tensors.update({name: pickled[name] for name in self._wanted(pickled)})
                continue
            with _opened(path, "pt") as file:
                tensors.update({name: file.get_tensor(name) for name in self._wanted(file.keys())})
        if not tensors:
            raise self._empty()
        return tensors if self._convert is None else self._convert(tensors)

    def read_ahead(self) -> None:
        """Have the system begin to read, in order, what will soon be read here and there; where it knows how."""
        if hasattr(os, "posix_fadvise"):
            for path in self.paths:
                with contextlib.suppress(OSError), path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def canonical(self) -> dict[str, str]:
        """Names in the files by what they are without the prefix that all share.

        `CLIPTextModel` is published with `text_model.` before every name, and saved without it by transformers 5.
        Its `position_ids` count from 0 and are saved by some versions only.
        """
        return without_common_prefix(name for name in self.specs if not name.endswith("position_ids"))

    def signature(self) -> tuple[tuple[str, TensorSpec], ...]:
        """Equal for all weights that may be equal: names, dtypes and shapes."""
        return tuple((canonical, self.specs[name]) for canonical, name in self.canonical().items())

    def content(self) -> dict[str, Bytes]:
        """All tensors as flat `uint8` arrays, in the order of their canonical names; memory-mapped."""
        import torch

        def flat(tensor: Tensor) -> Bytes:
            tensor = tensor.detach().contiguous()
            values: Bytes = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()  # strides may be 0
            return values

        tensors = self.open()
        return {canonical: flat(tensors[name]) for canonical, name in self.canonical().items()}

    def stamp(self) -> Stamp:
        """Changes when a file is written to or replaced."""
        return tuple(file_stamp(path) for path in self.paths)

    def _wanted(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name.startswith(self.prefix)]

    def _empty(self) -> WeightsError:
        files = ", ".join(map(str, self.paths))
        return WeightsError(
            f"{files} has no tensor whose name begins with {self.prefix!r}" if self.prefix else f"{files} is empty",
            "It may belong to another kind of model",
        )


class OpaqueFile:
    """Weights in a file that is equal to another only as a whole: TorchScript, ONNX."""

    part = ""

    def __init__(self, path: Path) -> None:
        self.paths: tuple[Path, ...] = (path,)

    def signature(self) -> tuple[int, ...]:
        """Its size."""
        return self.stamp()[0][2:3]

    def content(self) -> dict[str, Bytes]:
        """The whole file as a `uint8` array, memory-mapped."""
        import numpy as np

        path = self.paths[0]
        empty = not self.stamp()[0][2]  # which can't be mapped
        return {"": np.empty(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")}

    def stamp(self) -> Stamp:
        """Changes when the file is written to or replaced."""
        return (file_stamp(self.paths[0]),)


def without_common_prefix(names: Iterable[str]) -> dict[str, str]:
    """Dotted names by what they are without the parts that all begin with, in order."""
    ordered = sorted(names)
    common = ordered[0].split(".")[:-1] if ordered else []
    while common and not all(name.startswith(".".join(common) + ".") for name in ordered):
        common.pop()
    skip = len(".".join(common)) + 1 if common else 0
    return {name[skip:]: name for name in ordered}


def tensor_shapes(path: Path) -> Mapping[str, list[int]]:
    """Return the shapes of the tensors in a safetensors file, by name.

    Only its header is read, and checked, without torch or safetensors: plugins tell by it what a file is when they
    are asked for their models.

    Raises `WeightsError` for a file that is damaged, a pickle, or can't be read.
    """
    from pydantic_core import from_json  # faster than json, and there may be hundreds of headers of 200 kB

    raw, room = _header(path)
    try:
        header: Any = from_json(raw)
    except ValueError as error:
        raise _damaged(path, "its header is no JSON") from error
    header.pop("__metadata__", None)
    if not _is_sound(header.values(), room):
        name = next(name for name, entry in header.items() if not _is_sound([entry], room))
        raise _damaged(path, f"{name[:200]!r} lies outside of it, or has a wrong shape: {header[name]!s:.200}")
    return {name: entry["shape"] for name, entry in header.items()}


def _is_sound(entries: Iterable[Any], room: int) -> bool:
    """Return whether shapes are not negative, and offsets within the file."""
    entries = list(entries)
    try:
        offsets = [entry["data_offsets"] for entry in entries]
        sizes = chain.from_iterable([entry["shape"] for entry in entries])
        return (
            {*map(len, offsets)} <= {2}
            and min(chain.from_iterable(offsets), default=0) >= 0
            and max(chain.from_iterable(offsets), default=0) <= room
            and min(sizes, default=0) >= 0
        )
    except (TypeError, KeyError):
        return False


def _header(path: Path) -> tuple[bytes, int]:
    """Return the header, and how many bytes follow it."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for its other end
            raise WeightsError(f"{path} is no file", "Name a safetensors file")
        with path.open("rb", buffering=0) as file:
            total = os.fstat(file.fileno()).st_size
            start = file.read(9)
            length = int.from_bytes(start[:8], "little")
            if length > _MAX_HEADER:
                raise _damaged(path, f"it claims a header of {format_bytes(length)}, and the format allows 100 MB")
            if len(start) < 9 or length > total - 8:
                raise _damaged(path, "it ends within its header")
            if start[8:] != b"{":  # which spares reading what is something else
                raise _damaged(path, "its header is no object")
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise WeightsError(
            f"{path} can't be read: {error.strerror}", "Look whether it is there, and may be read"
        ) from error
    return raw, total - 8 - length


def _damaged(path: Path, what: str) -> WeightsError:
    if _is_pickle(path):
        return _pickle_error(path)
    return WeightsError(
        f"{path} can't be read as safetensors: {what}", "It may be cut off or damaged: get it again"
    )


def file_stamp(path: Path) -> tuple[int, ...]:
    """What tells a file apart from all others, and from itself once it is changed; see `Stamp`."""
    try:
        state = path.stat()
    except OSError as error:
        raise WeightsError(f"{path} can't be read: {error.strerror}", "Look whether it is still there") from error
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is no index of shards", "Get it again") from error
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise WeightsError(f"{index} names {name!r}, which is not beside it", "Get the missing file")
    return tuple(index.parent / name for name in names)


@contextlib.contextmanager
def _opened(path: Path, framework: str) -> Iterator[_Safetensors]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error


def _pickled_specs(path: Path) -> dict[str, TensorSpec]:
    from iopaint_core.pickles import pickled_tensors  # as it imports more than lists of models need

    tensors = pickled_tensors(path)
    unknown = next((name for name, tensor in tensors.items() if tensor.dtype not in _TORCH_NAMES), None)
    if unknown is not None:
        raise WeightsError(
            f"{path} has {unknown} in {tensors[unknown].dtype}, expected one of {', '.join(_TORCH_NAMES)}",
            "Get the weights in another dtype",
        )
    return {name: TensorSpec(_TORCH_NAMES[tensor.dtype], tensor.shape) for name, tensor in tensors.items()}


def _is_pickle(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError:
        return False
    return start in {b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}


def _pickle_error(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} is a pickle, which can run code when it is loaded, and no safetensors file",
        "Convert it where you trust it: safetensors.torch.save_file(torch.load(path, weights_only=True), new_path)",
    )
