"""The torch side of the pool: components from weights on disk, held once, forked for each model.

Importing this imports no torch.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import hashlib
import inspect
import json
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from iopaint_core.entries import Component, raise_if_cancelled
from iopaint_core.errors import WeightsError
from iopaint_core.identity import IdentityIndex
from iopaint_core.tensorfiles import OpaqueFile, TensorFiles, without_common_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from iopaint_core.schema import LoadContext

T = TypeVar("T")

_assembling = threading.Lock()
"""Held while a module is put together, which is Python's work, of which it does one thing at a time: three modules
side by side take twice as long as one after the other. And transformers replaces functions of `torch.nn.init` in
the whole process while it builds one."""


class ComponentKey(NamedTuple):
    """What makes two components the same."""

    kind: str
    """The class, with its module."""
    weights: str
    """The name that equal weights have in common; see `IdentityIndex`."""
    config: str = ""
    """Digest of the config without what says nothing of the module, and with its defaults."""
    dtype: str | None = None
    """What floating-point values are cast to; None as they are stored."""
    device: str = "cpu"

    def __str__(self) -> str:
        cast = f" as {self.dtype}" if self.dtype else ""
        return f"{self.kind.rpartition('.')[2]} {self.weights[:19]}{cast} on {self.device}"


def module_component(
    cls: type[nn.Module],
    source: Path | TensorFiles,
    context: LoadContext,
    *,
    config: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    variant: str | None = None,
) -> Component[Any]:
    """A torch module whose weights are safetensors: a folder of diffusers or transformers, one file, or shards.

    `config` makes the module: `cls.from_config(config)` for diffusers, `cls(cls.config_class(**config))` for
    transformers, `cls(**config)` for others; without it, `config.json` in the folder. `dtype` (torch's name; by
    default the context's) is what floating-point weights are cast to, None as they are stored. Each model gets a
    fork, on the context's device, in `eval` mode and without gradients.

    Raises `WeightsError` for files that can't be read.
    """
    files = source if isinstance(source, TensorFiles) else TensorFiles.find(source, variant=variant)
    settings = _read_config(files.paths[0].parent) if config is None else dict(config)
    dtype = context.dtype if dtype is None else dtype
    index = _index_of(context)
    key = ComponentKey(
        f"{cls.__module__}.{cls.__qualname__}", index.name(files), _config_digest(cls, settings), dtype
    )

    def load() -> Canonical:
        canonical = _load_module(cls, files, settings, dtype)
        index.digest_later(files)
        return canonical

    host = Component(
        key=key,
        load=load,
        nbytes=sum(spec.nbytes(_kept_dtype(cls, name, dtype)) for name, spec in files.specs.items()),
        fork=Canonical.fork,
        measure=Canonical.nbytes,
        check=Canonical.intact,
        stamp=functools.partial(_stamp_or_none, files),
    )
    return host if context.device == "cpu" else on_device(host, context.device)


def on_device(host: Component[Canonical], device: str, place: str | None = None) -> Component[Canonical]:
    """A copy of a component on a device (as torch spells it); the host's stays, and is what it is copied from.

    `place` is the torch device, if `device` only names a budget.
    """

    def load(module: nn.Module) -> Canonical:
        with _memory_errors():
            for tensor in _tensors(module):
                raise_if_cancelled()
                tensor.data = tensor.data.to(place or device, copy=True)
        return Canonical(module)

    key = host.key._replace(device=device) if isinstance(host.key, ComponentKey) else (host.key, device)
    return replace(host, key=key, load=load, device=device, parts=(host,))


def file_component(
    path: Path,
    load: Callable[[Path], T],
    context: LoadContext,
    *,
    kind: str,
    exclusive: bool = False,
    nbytes: int | None = None,
    close: Callable[[T], None] | None = None,
) -> Component[T]:
    """What can't be forked, and is one file on disk: an ONNX session, a TorchScript module; shared as it is.

    `kind` tells apart what is loaded from one file in several ways. `exclusive` if it keeps state during a call.
    `nbytes` is what it takes on the context's device, by default the size of the file.

    Raises `WeightsError` for a file that is missing.
    """
    file = OpaqueFile(path)
    index = _index_of(context)

    def load_file() -> T:
        with _memory_errors():
            value = load(path)
        index.digest_later(file)
        return value

    return Component(
        key=ComponentKey(kind, index.name(file), dtype=context.dtype, device=context.device),
        load=load_file,
        nbytes=path.stat().st_size if nbytes is None else nbytes,
        device=context.device,
        close=close,
        stamp=functools.partial(_stamp_or_none, file),
        exclusive=exclusive,
    )


class Canonical:
    """A module that nobody computes with: its tensors are shared by the forks that models get."""

    def __init__(self, module: nn.Module) -> None:
        module.eval().requires_grad_(False)
        self.module = module
        self._fingerprint = _Fingerprint(module)

    def fork(self) -> nn.Module:
        """A module of its own on the same tensors: see `fork`."""
        forked = fork(self.module)
        forked.__dict__["_iopaint_canonical"] = self  # so that the pool sees it gone when the last fork is
        return forked

    def nbytes(self) -> int:
        """Bytes of memory that its tensors take; see `footprint`."""
        return footprint([self.module])

    def intact(self) -> bool:
        """Whether the sampled bytes of its weights are as they were loaded."""
        return self._fingerprint.matches()


def fork(module: nn.Module) -> nn.Module:
    """A module with the same parameters in storage, and all else its own.

    `.to()`, `requires_grad_`, hooks, processors, adapters and attributes of the fork never reach the original;
    only what writes into a tensor in place does. Buffers are copied: modules write into them.
    """
    memo: dict[int, Any] = {}
    originals = list(module.modules())
    for original in originals:
        if "forward" in original.__dict__:
            raise WeightsError(
                f"{type(original).__name__} can't be forked: its forward was replaced on the instance",
                "Fork before hooks are added",
            )
        memo[id(original)] = type(original).__new__(type(original))
    for original in originals:
        _fork_into(memo[id(original)], original, memo)
    return memo[id(module)]  # type: ignore[no-any-return] # the memo holds all kinds of things


def footprint(modules: Iterable[nn.Module]) -> int:
    """Bytes of memory that parameters and buffers take, each storage counted once."""
    storages = {}
    for module in modules:
        for tensor in _tensors(module):
            storage = tensor.untyped_storage()
            storages[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, on the host or on a device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch may not be imported
        return True
    signs = ("can't allocate memory", "out of memory")  # of torch's allocators on a CPU, and on MPS
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def reclaim(device: str) -> None:
    """Give back to a device what torch's allocator keeps for later."""
    torch = sys.modules.get("torch")
    backend = None if torch is None else getattr(torch, device.partition(":")[0], None)
    if backend is not None and hasattr(backend, "empty_cache"):
        backend.empty_cache()


class _ProcessDefaults:
    """Keeps loaders from leaving torch's process-wide settings changed, however they end.

    diffusers' `from_pretrained` sets torch's default dtype, and leaves it so if building the module fails;
    accelerate's `init_empty_weights` replaces `nn.Module.register_parameter`, for good if two uses overlap. Loads
    may overlap: what was so before the first is restored after the last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loads = 0
        self._before: list[tuple[Any, str, Any]] = []
        self._dtype: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._loads:
                self._note()
            self._loads += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._loads -= 1
            if not self._loads:
                self._restore()

    def _note(self) -> None:
        self._before, self._dtype = [], None
        torch = sys.modules.get("torch")
        if torch is None:
            return
        self._dtype = torch.get_default_dtype()
        self._before = [(torch.nn.Module, "register_parameter", torch.nn.Module.register_parameter)]
        self._before += [
            (torch.nn.init, name, value) for name, value in vars(torch.nn.init).items() if callable(value)
        ]

    def _restore(self) -> None:
        torch = sys.modules.get("torch")
        if torch is None:
            return
        torch.set_default_dtype(self._dtype or torch.float32)
        for owner, name, value in self._before:
            if getattr(owner, name) is not value:
                setattr(owner, name, value)


process_defaults = _ProcessDefaults()
"""Of this process, so there is one; enter it around code that loads models."""


def _load_module(
    cls: type[nn.Module], files: TensorFiles, config: Mapping[str, Any], dtype: str | None
) -> Canonical:
    files.read_ahead()
    with _assembling:
        module = _build(cls, config)
        expected = list(module.state_dict())
        tensors = _named_as(expected, files.open())
        rename = getattr(module, "_fix_state_dict_keys_on_load", None)  # names before diffusers 0.17, still in use
        if rename is not None:
            rename(tensors)
    with _memory_errors():
        given = {name: _cast(tensors[name], _kept_dtype(cls, name, dtype)) for name in expected if name in tensors}
    with _assembling:
        _assign(module, given, files)
        return Canonical(module)


def _assign(module: nn.Module, given: Mapping[str, Tensor], files: TensorFiles) -> None:
    name_of_class = type(module).__name__
    try:
        missing = module.load_state_dict(given, strict=False, assign=True).missing_keys
    except RuntimeError as error:
        raise WeightsError(
            f"{_names(files)} does not fit {name_of_class}: {' '.join(str(error).split())}",
            "The config and the weights belong to different models",
        ) from error
    tie = getattr(module, "tie_weights", None)
    if missing and tie is not None:
        tie()
    state = module.state_dict(keep_vars=True)
    loaded = {id(state[name]) for name in given}
    lacking = [name for name in missing if id(state[name]) not in loaded]
    if lacking:
        raise WeightsError(
            f"{_names(files)} lacks {len(lacking)} of the {len(state)} tensors of {name_of_class}: "
            f"{', '.join(lacking[:3])} …",
            "The file is incomplete, or the weights are those of another model",
        )


def _build(cls: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    """A module with its parameters on `meta`: nothing is allocated, nothing initialised.

    Only `torch.empty` is sent there, in this thread alone, so that buffers which are not saved get their values.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class EmptyOnMeta(TorchFunctionMode):
        def __torch_function__(
            self,
            function: Callable[..., object],
            types: object,
            args: tuple[object, ...] = (),
            kwargs: Mapping[str, object] | None = None,
        ) -> object:
            kwargs = dict(kwargs or {})
            if function is torch.empty:
                kwargs["device"] = "meta"
            return function(*args, **kwargs)

    try:
        with EmptyOnMeta():
            if getattr(cls, "config_class", None) is not None:
                return cls(cls.config_class(**_telling(config)))  # type: ignore[attr-defined] # transformers' classes have it
            if hasattr(cls, "from_config"):
                return cls.from_config(dict(config))  # type: ignore[no-any-return] # diffusers' classes have it
            return cls(**config)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(
            f"The config does not make a {cls.__name__}: {type(error).__name__}: {error}",
            "The config belongs to another model, or to another version of the library",
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} can't be read: {error}", "Get it again, or pass config={...}") from error
    return config


def _telling(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what says nothing of the module: versions, where it came from, the dtype it was saved in."""
    volatile = {"architectures", "dtype", "model_type", "name_or_path", "torch_dtype", "transformers_version"}
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in volatile}


def _config_digest(cls: type[nn.Module], config: Mapping[str, Any]) -> str:
    """Equal for configs that make equal modules: a default counts as much when it is left out."""
    if getattr(cls, "config_class", None) is not None:
        full = _telling(cls.config_class(**_telling(config)).to_dict())  # type: ignore[attr-defined] # transformers' classes have it
    else:
        parameters = inspect.signature(cls.__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        full = {**defaults, **_telling(config)}
    text = json.dumps(full, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _named_as(expected: list[str], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names that the module has, if those differ by a prefix that all have."""
    if not tensors.keys().isdisjoint(expected):
        return tensors
    given = without_common_prefix(tensors)
    wanted = without_common_prefix(expected)
    return {wanted[short]: tensors[name] for short, name in given.items() if short in wanted}


def _kept_dtype(cls: type[nn.Module], name: str, dtype: str | None) -> str | None:
    """What to cast a tensor to; some classes name modules that do not bear half precision."""
    kept = getattr(cls, "_keep_in_fp32_modules", None) or ()
    return "float32" if dtype in {"float16", "bfloat16"} and set(name.split(".")) & set(kept) else dtype


def _cast(tensor: Tensor, dtype: str | None) -> Tensor:
    import torch

    raise_if_cancelled()
    return tensor.to(getattr(torch, dtype)) if dtype is not None and tensor.is_floating_point() else tensor


def _fork_into(new: nn.Module, original: nn.Module, memo: dict[int, Any]) -> None:
    for name, value in original.__dict__.items():
        if name == "_modules":
            copied: Any = type(value)(
                (key, memo[id(child)] if child is not None else None) for key, child in value.items()
            )
        elif name == "_parameters":
            copied = type(value)((key, _same_storage(tensor, memo)) for key, tensor in value.items())
        elif name == "_buffers":
            copied = type(value)((key, _copied(tensor, memo)) for key, tensor in value.items())
        elif isinstance(value, (bool, int, float, str, type(None))):
            copied = value
        elif isinstance(value, (dict, set, list)) and not value:
            copied = value.copy()
        else:
            copied = copy.deepcopy(value, memo)
        new.__dict__[name] = copied


def _same_storage(parameter: nn.Parameter | None, memo: dict[int, Any]) -> nn.Parameter | None:
    from torch import nn

    if parameter is None:
        return None
    if id(parameter) not in memo:
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    return memo[id(parameter)]  # type: ignore[no-any-return] # the memo holds all kinds of things


def _copied(buffer: Tensor | None, memo: dict[int, Any]) -> Tensor | None:
    if buffer is None:
        return None
    if id(buffer) not in memo:
        memo[id(buffer)] = buffer.detach().clone()
    return memo[id(buffer)]  # type: ignore[no-any-return] # the memo holds all kinds of things


class _Fingerprint:
    """A few bytes of every parameter, to notice weights that are written into.

    On the host, of each the first and the middle `_BYTES`, read where they stand; on a device, of `_TENSORS` of
    them. A change that touches none of these is not noticed.
    """

    _BYTES = 32
    _TENSORS = 32

    def __init__(self, module: nn.Module) -> None:
        tensors = [tensor for tensor in module.parameters() if tensor.numel()]
        self._views: list[Any] = []
        self._sampled = [tensor for tensor in tensors if tensor.device.type != "cpu"]
        self._sampled = self._sampled[:: -(-len(self._sampled) // self._TENSORS) or 1]
        for tensor in tensors:
            if tensor.device.type == "cpu":
                size = tensor.numel() * tensor.element_size()
                view = ctypes.c_char * min(self._BYTES, size)
                places = {0, size // 2 if size >= 2 * self._BYTES else 0}
                self._views += [view.from_address(tensor.data_ptr() + place) for place in places]
        self._before = self._read()

    def matches(self) -> bool:
        return self._read() == self._before

    def _read(self) -> bytes:
        content = b"".join([view.raw for view in self._views])
        for tensor in self._sampled:
            flat = tensor.detach().reshape(-1)
            content += bytes(flat[flat.numel() // 2 :][: self._BYTES].cpu().view(-1).untyped_storage())
        return hashlib.sha256(content).digest()


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _stamp_or_none(files: TensorFiles | OpaqueFile) -> object:
    try:
        return files.stamp()
    except WeightsError:
        return None


def _index_of(context: LoadContext) -> IdentityIndex:
    return IdentityIndex() if context.index is None else context.index


def _names(files: TensorFiles) -> str:
    return ", ".join(map(str, files.paths[:3]))


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """What torch raises when a device runs out of memory, as the `MemoryError` that the pool knows."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise
