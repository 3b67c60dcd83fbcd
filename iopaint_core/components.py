"""The torch side of the pool: components from weights on disk, held once, forked for each model.

Importing this imports no torch.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from iopaint_core.entries import Component, device_name, raise_if_cancelled
from iopaint_core.errors import InputError, WeightsError
from iopaint_core.forks import Canonical, disown, tensors_of
from iopaint_core.identity import IdentityIndex
from iopaint_core.modules import is_of_transformers, kept_dtype, load_made, load_module, telling
from iopaint_core.schema import DTYPES
from iopaint_core.tensorfiles import OpaqueFile, TensorFiles, file_stamp
from iopaint_core.torch_process import memory_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from iopaint_core.schema import LoadContext
    from iopaint_core.tensorfiles import Stamp

T = TypeVar("T")

_logger = logging.getLogger(__name__)


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
    cls: type[nn.Module] | Callable[[Mapping[str, Tensor]], nn.Module],
    source: Path | TensorFiles,
    context: LoadContext,
    *,
    config: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    variant: str | None = None,
) -> Component[Any]:
    """A torch module whose weights are on disk: a folder as a library of models saves it, one file, or shards.

    Files are safetensors, or pickles of tensors (`.pth`, `.pt`, `.ckpt`, `.bin`), whose state dict may be wrapped,
    as in `{"params_ema": ...}`; equal tensors are held once, whatever file they are in.

    `cls` may be a function that makes the module from its tensors, for libraries that tell the architecture from
    these. It has a name of its own in its module, which is part of the key, and there is no `config` for it.

    `config` makes the module: `cls(cls.config_class(**config))` if the class has that, `cls.from_config(config)` if
    it has this, else `cls(**config)`; without it, `config.json` in the folder. `dtype` (torch's name; by default
    the context's) is what floating-point weights are cast to, None as they are stored. Each model gets a fork, on
    the context's device, in `eval` mode and without gradients.

    Raises `WeightsError` for files that can't be read, or could run code.
    """
    files = source if isinstance(source, TensorFiles) else TensorFiles.find(source, variant=variant)
    dtype = context.dtype if dtype is None else dtype
    if dtype not in {None, *DTYPES}:
        raise InputError(f"{dtype!r} is no dtype for weights", f"Use None or one of: {', '.join(DTYPES)}")
    make: Callable[[], Canonical]
    if isinstance(cls, type):
        settings = _read_config(files.paths[0].parent) if config is None else dict(config)
        digest = _config_digest(cls, settings)
        make = functools.partial(load_module, cls, files, settings, dtype)
    elif config is not None or "<" in getattr(cls, "__qualname__", "<"):
        raise InputError(
            f"{cls!r} makes no component: expected a class, or a named function and no config",
            "Define the function in a module, and have it tell all from the tensors",
        )
    else:
        digest = ""
        make = functools.partial(load_made, cls, files, dtype)
    index, named = _index_of(context), files.stamp()
    casts = any(spec.changes_in(kept_dtype(cls, name, dtype)) for name, spec in files.specs.items())
    key = ComponentKey(
        f"{cls.__module__}.{cls.__qualname__}",
        index.name(files),
        digest,
        dtype if casts else None,
    )

    def load() -> Canonical:
        canonical = make()
        _raise_if_replaced(files, named)
        index.digest_later(files)
        return canonical

    nbytes = sum(spec.nbytes(kept_dtype(cls, name, dtype)) for name, spec in files.specs.items())
    # a function copies the tensors into its module: the file's and these are held until all are cast
    stored = sum(spec.nbytes() for spec in files.specs.values())
    host = Component(
        key=key,
        load=load,
        nbytes=nbytes,
        load_nbytes=0 if isinstance(cls, type) else 2 * stored + (nbytes if casts else 0),
        fork=Canonical.fork,
        measure=Canonical.nbytes,
        check=lambda canonical: not _rewritten(files, named) and canonical.intact(),
        stamp=functools.partial(_stamp_if, files, named),
    )
    return host if context.device == "cpu" else on_device(host, context.device)


def on_device(host: Component[Canonical], device: str, place: str | None = None) -> Component[Canonical]:
    """A copy of a component on a device (as torch spells it); the host's stays, and is what it is copied from.

    `place` is the torch device, if `device` only names a budget.
    """

    def load(module: nn.Module) -> Canonical:
        with memory_errors():
            for tensor in tensors_of(module):
                raise_if_cancelled()
                tensor.data = tensor.data.to(place or device, copy=True)
        disown(module)
        return Canonical(module)

    name = device_name(device)
    key = host.key._replace(device=name) if isinstance(host.key, ComponentKey) else (host.key, name)
    return replace(host, key=key, load=load, device=device, parts=(host,), check=Canonical.intact)


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
    """What can't be forked, and is one file on disk, such as a TorchScript module; shared as it is.

    `kind` tells apart what is loaded from one file in several ways. `exclusive` if it keeps state during a call.
    `nbytes` is what it takes on the context's device, by default the size of the file.

    Raises `WeightsError` for a file that is missing.
    """
    file = OpaqueFile(path)
    index, named = _index_of(context), file.stamp()

    def load_file() -> T:
        with memory_errors():
            value = load(path)
        _raise_if_replaced(file, named)
        index.digest_later(file)
        return value

    return Component(
        key=ComponentKey(kind, index.name(file), dtype=context.dtype, device=device_name(context.device)),
        load=load_file,
        nbytes=path.stat().st_size if nbytes is None else nbytes,
        device=context.device,
        close=close,
        stamp=functools.partial(_stamp_if, file, named),
        exclusive=exclusive,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} can't be read: {error}", "Get it again, or pass config={...}") from error
    return config


def _config_digest(cls: type[nn.Module], config: Mapping[str, Any]) -> str:
    """Equal for configs that make equal modules: a default counts as much when it is left out."""
    if is_of_transformers(cls):
        full = telling(cls, cls.config_class(**telling(cls, config)).to_dict())  # type: ignore[attr-defined] # transformers' classes have it
    else:
        parameters = inspect.signature(cls.__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        full = {**defaults, **telling(cls, config)}
    text = json.dumps(full, sort_keys=True, default=_named)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _named(value: object) -> str:
    """Something in a config that JSON does not hold, by what tells it apart."""
    name = getattr(value, "__qualname__", None)
    if isinstance(value, PurePath) or type(value).__name__ == "dtype":  # torch's
        return str(value)
    if name is None or "<" in name:
        raise WeightsError(
            f"A config has a {type(value).__name__}, of which it can't be told whether another one is equal",
            "Configs hold what JSON holds, and classes and functions of modules",
        )
    return f"{getattr(value, '__module__', '')}.{name}"


def _stamp_if(files: TensorFiles | OpaqueFile, named: Stamp) -> Stamp | None:
    """The state of files, if it is that in which they were named."""
    stamp = files.stamp()
    return stamp if stamp == named else None


def _raise_if_replaced(files: TensorFiles | OpaqueFile, named: Stamp) -> None:
    if files.stamp() != named:
        raise WeightsError(f"{files.paths[0]} was replaced just before it was loaded", "Load the model again")


def _rewritten(files: TensorFiles, named: Stamp) -> bool:
    """Whether a file was changed in place: what is mapped of it has changed, and may not even be read any more."""
    for path, before in zip(files.paths, named, strict=True):
        try:
            now = file_stamp(path)
        except WeightsError:  # deleted; what is mapped stays
            continue
        if now[:2] == before[:2] and now[2:4] != before[2:4]:
            _logger.warning(
                "%s was written to while its weights were in use, which can end the process: write another and "
                "rename it",
                path,
            )
            return True
    return False


def _index_of(context: LoadContext) -> IdentityIndex:
    return IdentityIndex() if context.index is None else context.index
