"""Pickles of tensors, as `torch.save` writes them: what is in them, and the tensors; no code of theirs is run.

Since torch 1.6 such a file is a zip archive with the pickle in `data.pkl` and the bytes of each storage in an entry
of its own; before, it was a sequence of pickles with the bytes behind them (torch/serialization.py).

Importing this imports no torch.
"""

from __future__ import annotations

import io
import pickle
import re
import stat
import zipfile
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from iopaint_core.errors import WeightsError
from iopaint_core.torch_process import memory_errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from torch import Tensor

T = TypeVar("T")

WRAPPERS = ("model_state_dict", "state_dict", "params_ema", "params-ema", "params", "model", "net")
"""Under which names published files hold their state dict, the averaged one first, since it is the better one."""
_DEPTH = 4
"""Of wrappers in wrappers; a pickle may hold itself."""
_MAX_PICKLE = 64_000_000
"""Bytes of what says where the tensors are; 1,000 tensors take 100 kB."""
_START = 1_000_000
"""Bytes that are read at first of a file that has the tensors behind its pickles."""
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
            raise WeightsError(f"{path} is not a regular file", "Name a file of weights")
        with path.open("rb") as file:
            if _is_zip(path):
                with zipfile.ZipFile(file) as archive:
                    entry = next(info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
                    if entry.file_size > _MAX_PICKLE:
                        raise ValueError(f"its pickle has {entry.file_size} bytes")
                    found = _Reader(io.BytesIO(archive.read(entry))).load()
            else:
                found = _read_start(file)
        return _state_dict(path, found, PickledTensor)
    except WeightsError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise _damaged(path, error) from error


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


def _read_start(file: BinaryIO) -> object:
    """Read the pickles that a file of before torch 1.6 begins with, and of its tensors little."""
    for limit in (_START, _MAX_PICKLE):
        file.seek(0)
        start = io.BytesIO(file.read(limit))
        try:
            for _ in range(3):  # a magic number, the version of the format, and sizes on the system it is from
                _Reader(start).load()
            return _Reader(start).load()
        except Exception:
            if start.read(1):  # it did not end where reading did
                raise
    raise ValueError(f"its pickles end nowhere in its first {_MAX_PICKLE} bytes")


class _Dict(dict[object, object]):
    """Any dict of a pickle. Tuples in tuples are no keys: their hash could overflow the stack, or take for ever."""

    def __init__(self, items: Iterable[tuple[object, object]] = ()) -> None:
        super().__init__()
        for key, value in items:
            self[key] = value

    def __setitem__(self, key: object, value: object) -> None:
        if isinstance(key, tuple) and any(isinstance(part, tuple) for part in key):
            raise ValueError("a key is a tuple in a tuple")
        super().__setitem__(key, value)


class _Reader(pickle._Unpickler):
    """Reads a pickle without what it refers to: of tensors dtype and shape, of all else nothing.

    The one written in C believes whatever the pickle says of its memo and its lengths, and hashes any key: a few
    bytes could take all memory, or end the process. For 700 tensors it takes 6 milliseconds, this takes 27, and
    `pickletools.genops` 27 before the one in C could begin.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._file = file

    def load(self) -> Any:  # noqa: ANN401 - as the base class has it
        """Do as the base class does, but for frames, which are read through: that takes 10 milliseconds less."""
        self.read, self.readline = self._file.read, self._file.readline
        self.metastack: list[Any] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.proto = 0
        read, steps = self.read, self._steps
        try:
            while step := steps.get(read(1)):
                step(self)
        except pickle._Stop as stop:  # type: ignore[attr-defined] # typeshed leaves it out
            return stop.value
        raise pickle.UnpicklingError("it ends, or goes on with what is no pickle")

    def _skip_frame(self) -> None:
        self.read(8)

    def _put_dict(self) -> None:
        self.append(_Dict())

    def _put_full_dict(self) -> None:
        items = self._since_mark()
        self.append(_Dict(zip(items[::2], items[1::2], strict=True)))

    def _put_set(self) -> None:
        self.append(_Unread())

    def _put_full_set(self) -> None:
        self._fill_set()
        self._put_set()

    def _fill_set(self) -> None:
        _Dict((item, None) for item in self._since_mark())  # which looks at them

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.metastack.pop()
        self.append = self.stack.append
        return items

    _steps: ClassVar[dict[bytes, Callable[[Any], None]]] = {
        **{bytes((code,)): step for code, step in pickle._Unpickler.dispatch.items()},
        pickle.FRAME: _skip_frame,
        pickle.EMPTY_DICT: _put_dict,
        pickle.DICT: _put_full_dict,
        pickle.EMPTY_SET: _put_set,
        pickle.FROZENSET: _put_full_set,
        pickle.ADDITEMS: _fill_set,
        pickle.BYTEARRAY8: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],  # its own allocates before it reads
    }

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - as the base class has it
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
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
    return WeightsError(f"{path} can't be read: {what}", "Check that it exists and is readable")


def _damaged(path: Path, error: Exception) -> WeightsError:
    what = " ".join(str(error).rpartition("WeightsUnpickler error: ")[2].split())[:200]
    return WeightsError(
        f"{path} can't be read as a pickle of tensors: {type(error).__name__}" + (f": {what}" if what else ""),
        "It may be cut off, damaged, or of another format, such as TorchScript: get it again",
    )
