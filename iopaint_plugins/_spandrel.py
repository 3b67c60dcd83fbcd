"""Networks whose architecture spandrel tells from their state dict, as components that the pool shares."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

from iopaint_core import ModelError, WeightsError, missing_packages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor, dtype, nn

    from iopaint_core import Component, LoadContext


class _SizeRequirements(Protocol):
    minimum: int
    multiple_of: int
    square: bool


class Descriptor(Protocol):
    """What is used of spandrel's `ImageModelDescriptor` and `MaskedImageModelDescriptor`, which are not typed."""

    model: nn.Module
    architecture: Any
    """Has an `id` and a `name`."""
    purpose: str
    """SR, FaceSR, Inpainting or Restoration."""
    scale: int
    input_channels: int
    output_channels: int
    supports_half: bool
    supports_bfloat16: bool
    size_requirements: _SizeRequirements
    tiling: Any
    """An enum whose `name` is SUPPORTED, DISCOURAGED or INTERNAL."""
    dtype: dtype
    """Of the weights, and so of what it is called with."""

    def __call__(self, *images: Tensor) -> Tensor: ...


class Network(Protocol):
    """What `context.share` makes of a `spandrel_component`: a module of torch.

    It takes one image, or an image and a mask, `(1, C, H, W)` in 0 … 1, on the device and in the dtype of its
    weights, and gives an image, as its descriptor does: padded to the size requirements and cropped back.
    """

    descriptor: Descriptor

    def __call__(self, *images: Tensor) -> Tensor: ...


def missing_spandrel(*more: str) -> str:
    """Return why no network can be loaded, and the remedy; empty if nothing is, nor of `more` packages."""
    return missing_packages("torch", "spandrel", *more, install="pip install 'iopaint-core[restore]'")


def spandrel_component(path: Path, context: LoadContext) -> Component[Any]:
    """Return a component that is a `Network`, of a `.pth` or `.safetensors` file; equal tensors are held once.

    Its weights are in `context.dtype`, by default in float32, which an architecture keeps that bears no half
    precision. Architectures of spandrel_extra_arches are known where that is installed.

    Raises `WeightsError` for a file that can't be read; loading it raises that for an unknown architecture.
    """
    from iopaint_core import module_component

    return module_component(spandrel_network, path, context, dtype=context.dtype or "float32")


def spandrel_network(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Make a `Network` of its state dict. Raises `WeightsError` for an unknown architecture."""
    import torch
    from spandrel import MAIN_REGISTRY, UnsupportedModelError  # type: ignore[import-untyped] # has no py.typed

    registry = MAIN_REGISTRY.copy()
    try:
        from spandrel_extra_arches import EXTRA_REGISTRY  # type: ignore[import-untyped] # has no py.typed
    except ImportError:
        pass
    else:
        registry.add(*EXTRA_REGISTRY, ignore_duplicates=True)
    try:
        with torch.no_grad():  # some try themselves out when they are made, and keep what they saw
            descriptor = registry.load(dict(tensors))
    except UnsupportedModelError as error:
        names = ", ".join([*tensors][:3])
        raise WeightsError(
            f"The architecture of a network with {names} … is unknown to spandrel; the nearest of the "
            f"{len(registry)} that it knows: {', '.join(_nearest(registry, tensors)) or 'none'}",
            "Get a file of one of these, or a newer spandrel: pip install --upgrade spandrel",
        ) from error

    return _network_class()(descriptor)


@functools.cache
def _network_class() -> Callable[[Descriptor], nn.Module]:
    """Make the class once: one for each network would hold that, as classes do, until garbage is collected."""
    from torch import nn

    class SpandrelNetwork(nn.Module):
        def __init__(self, descriptor: Descriptor) -> None:
            super().__init__()
            self.network = descriptor.model
            self.descriptor = descriptor  # a fork's copy holds the fork's network
            if not (descriptor.supports_half and descriptor.supports_bfloat16):
                self._keep_in_fp32_modules_strict = ("network",)

        def forward(self, *images: Tensor) -> Tensor:
            return self.descriptor(*images)

    return SpandrelNetwork


def check_numbers(values: Tensor) -> None:
    """Raise `ModelError` if a network gave values that are no numbers, as half precision may."""
    if not values.isfinite().all():
        raise ModelError(
            f"The network gave values that are no numbers, in {values.dtype}",
            "Load it in full precision: dtype=float32",
        )


class _Asked(dict[str, object]):
    """Stands for a state dict that has every name, and keeps those that are asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __contains__(self, name: object) -> bool:
        self.names.append(str(name))
        return True


def _nearest(registry: Any, tensors: Mapping[str, Tensor], count: int = 3) -> list[str]:  # noqa: ANN401 - not typed
    """Return the architectures that look for most of what a state dict has; a name's first part counts by half."""
    starts = {name.partition(".")[0] for name in tensors}
    scores = {}
    for support in registry:
        asked = _Asked()
        try:
            support.detect(asked)
        except Exception:  # noqa: BLE001 - it looks at tensors too, which are none
            continue
        found = [1.0 if name in tensors else 0.5 * (name.partition(".")[0] in starts) for name in asked.names]
        scores[support.architecture.name] = sum(found) / max(1, len(found))
    return [name for name in sorted(scores, key=scores.__getitem__, reverse=True) if scores[name]][:count]
