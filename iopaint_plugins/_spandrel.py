"""Networks whose architecture spandrel tells from their state dict, as components that the pool shares."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from iopaint_core import WeightsError, module_component

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from iopaint_core import Component, LoadContext

NEEDS = ("torch", "spandrel")
INSTALL = "pip install 'iopaint-core[restore]'"


def spandrel_component(path: Path, context: LoadContext) -> Component[Any]:
    """Return what `context.share` makes a `Network` of: `.pth` or `.safetensors`, held once if their tensors are equal.

    Weights are in `context.dtype`, by default in full precision, which an architecture keeps that bears no other.

    Raises `WeightsError` for a file that can't be read; loading it raises it for an unknown architecture.
    """
    return module_component(network, path, context, dtype=context.dtype or "float32")


def network(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Make a module with the attribute `descriptor`, spandrel's, around the network that it calls.

    Called with an image, it is what the descriptor is: `(1, C, H, W)` in 0 … 1, in the dtype and on the device of its
    weights, padded to the network's size rules and cropped back. Raises `WeightsError` for an unknown architecture.
    """
    from spandrel import MAIN_REGISTRY, ModelLoader, UnsupportedModelError
    from torch import nn

    try:
        from spandrel_extra_arches import EXTRA_REGISTRY
    except ImportError:
        pass
    else:
        MAIN_REGISTRY.add(*EXTRA_REGISTRY, ignore_duplicates=True)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = descriptor.model
            self.descriptor = descriptor  # copied with the module that it holds, as forks are made
            if not (descriptor.supports_half and descriptor.supports_bfloat16):
                self._keep_in_fp32_modules_strict = ("network",)

        def forward(self, *images: Tensor) -> Tensor:
            return self.descriptor(*images)

    try:
        descriptor = ModelLoader().load_from_state_dict(dict(tensors))
    except UnsupportedModelError as error:
        raise WeightsError("x", "y") from error
    return Network()
