"""Modules that share their weights: each model gets one of its own, on tensors that are held once."""

from __future__ import annotations

import copy
import ctypes
import hashlib
from types import MethodType
from typing import TYPE_CHECKING, Any

from iopaint_core.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor, nn

_CANONICAL = "_iopaint_canonical"
"""Each module of a fork refers to the canonical one, so that the pool sees that gone when the last of them is."""


class Canonical:
    """A module that nobody computes with: its tensors are shared by the forks that models get."""

    def __init__(self, module: nn.Module) -> None:
        module.eval().requires_grad_(False)
        self.module = module
        self._fingerprint = _Fingerprint(module)

    def __deepcopy__(self, memo: object) -> Canonical:
        return self

    def fork(self) -> nn.Module:
        """A module of its own on the same tensors: see `fork`."""
        forked = fork(self.module)
        for module in forked.modules():
            module.__dict__[_CANONICAL] = self
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

    Raises `WeightsError` for a module that holds what can't be copied.
    """
    memo: dict[int, Any] = {}
    originals = list(module.modules())
    for original in originals:
        memo[id(original)] = type(original).__new__(type(original))
    for original in originals:
        for parameter in original._parameters.values():
            _same_storage(parameter, memo)
        for buffer in original._buffers.values():
            _copied(buffer, memo)
    for original in originals:
        _fork_into(memo[id(original)], original, memo)
    return memo[id(module)]  # type: ignore[no-any-return] # the memo holds all kinds of things


def disown(module: nn.Module) -> None:
    """Make a fork, of which no tensor is shared any more, independent of the canonical module."""
    for part in module.modules():
        part.__dict__.pop(_CANONICAL, None)


def footprint(modules: Iterable[nn.Module]) -> int:
    """Bytes of memory that parameters and buffers take, each storage counted once."""
    storages = {}
    for module in modules:
        for tensor in tensors_of(module):
            storage = tensor.untyped_storage()
            storages[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, then buffers."""
    yield from module.parameters()
    yield from module.buffers()


def _fork_into(new: nn.Module, original: nn.Module, memo: dict[int, Any]) -> None:
    from torch import Tensor

    for name, value in original.__dict__.items():
        if name == "_modules":
            copied: Any = type(value)(
                (key, memo[id(child)] if child is not None else None) for key, child in value.items()
            )
        elif name in {"_parameters", "_buffers"}:
            copied = type(value)(
                (key, memo[id(tensor)] if tensor is not None else None) for key, tensor in value.items()
            )
        elif name == "forward" and not (isinstance(value, MethodType) and value.__self__ is original):
            raise WeightsError(
                f"{type(original).__name__} can't be forked: its forward was replaced on the instance",
                "Fork before hooks are added",
            )
        elif isinstance(value, (bool, int, float, str, type(None))):
            copied = value
        elif isinstance(value, (dict, set, list)) and not value:
            copied = value.copy()
        elif isinstance(value, Tensor):
            copied = _copied(value, memo)
        else:
            copied = _deepcopy(value, memo, original, name)
        new.__dict__[name] = copied


def _deepcopy(value: object, memo: dict[int, Any], owner: nn.Module, name: str) -> object:
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:
        raise WeightsError(
            f"{type(owner).__name__} can't be forked: its {name} can't be copied: {type(error).__name__}: {error}",
            "Make that anew for each model, or share the module as a Component without a fork",
        ) from error


def _same_storage(parameter: nn.Parameter | None, memo: dict[int, Any]) -> None:
    from torch import nn

    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise WeightsError("A lazy module can't be forked before its first call", "Call it once with an example")
    if parameter is not None and id(parameter) not in memo:
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)


def _copied(tensor: Tensor | None, memo: dict[int, Any]) -> Tensor | None:
    if tensor is None:
        return None
    if id(tensor) not in memo:
        memo[id(tensor)] = tensor.detach().clone()
    return memo[id(tensor)]  # type: ignore[no-any-return] # the memo holds all kinds of things


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
                storage = tensor.untyped_storage()
                rest = storage.nbytes() - (tensor.data_ptr() - storage.data_ptr())
                size = min(tensor.numel() * tensor.element_size(), rest)  # an expanded tensor stores less
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
