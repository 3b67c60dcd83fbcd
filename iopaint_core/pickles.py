"""Pickles of tensors, as `torch.save` writes them: what is in them, and the tensors; no code of theirs is run.

Since torch 1.6 such a file is a zip archive with the pickle in `data.pkl` and the bytes of each storage in an entry
of its own; before, it was a sequence of pickles with the bytes behind them (torch/serialization.py).

Importing this imports no torch.
"""

from __future__ import annotations

import pickle
import re
import stat
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from iopaint_core.errors import WeightsError
from iopaint_core.torch_process import memory_errors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

T = TypeVar("T")

WRAPPERS = ("model_state_dict", "state_dict", "params_ema", "params-ema", "params", "model", "net")
"""Under which names published files hold their state dict, the averaged one first, since it is the better one."""
_DEPTH = 4
"""Of wrappers in wrappers; a pickle may hold itself."""
_MAX_PICKLE = 64_000_000
"""Bytes of what says where the tensors are; 1,000 tensors take 100 kB."""
_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Torch's names of dtypes by those of the classes of storage that stand in a pickle."""


class PickledTensor(NamedTuple):
    """What a pickle says of a tensor."""

    dtype: str
    """As torch spells it: `float32`."""
    shape: tuple[int, ...]


def pickled_tensors(path: Path) -> dict[str, PickledTensor]:
    """Return what tensors a file holds, by name in its state dict; only the pickle is read, without torch.

    Raises `WeightsError` for a file that is damaged, no pickle of tensors by name, or can't be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for its other end
            raise WeightsError(f"{path} is no file", "Name a file of weights")
        with path.open("rb") as file:
            if _is_zip(path):
                with zipfile.ZipFile(file) as archive:
                    entry = next(info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
                    if entry.file_size > _MAX_PICKLE:
                        raise ValueError(f"its pickle has {entry.file_size} bytes")
                    with archive.open(entry) as content:
                        found = _Reader(content).load()
            else:
                for _ in range(3):  # a magic number, the version of the format, and sizes on the system it is from
                    _Reader(file).load()
                found = _Reader(file).load()
    except WeightsError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise _damaged(path, error) from error
    return _state_dict(path, found, PickledTensor)


def load_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name in its state dict, memory-mapped if it is a zip archive of torch's.

    Raises `WeightsError` for a file that is damaged, can't be read, or refers to more than tensors and plain
    values.
    """
    import torch

    try:
        with memory_errors():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_mappable(path))
    except OSError as error:
        raise _unreadable(path, error) from error
    except MemoryError:
        raise
    except Exception as error:
        if named := re.search(r"unsupported (?:global: )?global (\S+)", str(error), re.IGNORECASE):
            raise WeightsError(
                f"{path} refers to {named[1]}, and could run code if that were called: expected tensors and plain "
                "values alone",
                "Get the weights as safetensors; or, where you trust the file, load it, and write its state dict "
                "anew: torch.save(module.state_dict(), path)",
            ) from error
        raise _damaged(path, error) from error
    return _state_dict(path, content, torch.Tensor)


class _Reader(pickle.Unpickler):
    """Reads a pickle without what it refers to: of tensors dtype and shape, of all else nothing."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - as the base class has it
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in {"_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"}:
            return getattr(self, name)
        return type(name, (_Unread,), {})

    def persistent_load(self, identifier: Any) -> Any:  # noqa: ANN401 - as the base class has it
        return identifier[1]  # of ("storage", its class, key, device, size)

    def _rebuild_tensor_v2(self, *arguments: Any) -> PickledTensor:  # noqa: ANN401 - a pickle has them
        storage, _, shape, *_ = arguments
        return PickledTensor(_DTYPES.get(storage.__name__, storage.__name__), _checked(shape))

    def _rebuild_tensor_v3(self, *arguments: Any) -> PickledTensor:  # noqa: ANN401 - a pickle has them
        _, _, shape, _, _, _, dtype, *_ = arguments
        return PickledTensor(dtype.__name__, _checked(shape))

    def _rebuild_parameter(self, tensor: PickledTensor, *_: object) -> PickledTensor:
        return tensor


class _Unread:
    """Stands for an object of any class, which is not made."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass


def _checked(shape: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"a tensor has the shape {shape!s:.100}")
    return shape


def _state_dict(path: Path, content: object, kind: type[T]) -> dict[str, T]:
    """Take the tensors out of the wrappers around them; see `WRAPPERS`. A lone dict in a dict is a wrapper too."""
    for _ in range(_DEPTH):
        wrapped = content if isinstance(content, Mapping) else {}
        names = [*WRAPPERS, *(wrapped if len(wrapped) == 1 else ())]
        content = next((wrapped[name] for name in names if isinstance(wrapped.get(name), Mapping)), content)
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {name: value for name, value in items if isinstance(name, str) and isinstance(value, kind)}
    if not tensors:
        held = ", ".join(f"{name!s:.40}" for name, _ in [*items][:5]) or f"a {type(content).__name__}"
        raise WeightsError(
            f"{path} holds no tensors by name, but {held}",
            "Take a file with a state dict, by itself or under one of these names: " + ", ".join(WRAPPERS),
        )
    return tensors


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _is_mappable(path: Path) -> bool:
    """Return whether storages stand in the file as they are in memory: torch maps what is compressed as well."""
    if not _is_zip(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _unreadable(path: Path, error: OSError) -> WeightsError:
    what = error.strerror or error
    return WeightsError(f"{path} can't be read: {what}", "Look whether it is there, and may be read")


def _damaged(path: Path, error: Exception) -> WeightsError:
    what = " ".join(str(error).rpartition("WeightsUnpickler error: ")[2].split())[:200]
    return WeightsError(
        f"{path} can't be read as a pickle of tensors: {type(error).__name__}: {what}",
        "It may be cut off, damaged, or of another format, such as TorchScript: get it again",
    )
