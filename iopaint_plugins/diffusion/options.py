"""What a host decides about diffusion models, out of a request's reach."""

from __future__ import annotations

from dataclasses import dataclass

from iopaint_core import LoadOptions


@dataclass(frozen=True)
class DiffusionOptions(LoadOptions):
    """The options of the plugin's models."""

    low_memory: bool = False
    """Take less memory, and more time: decode in tiles and attend in slices, where the model can."""
    safety_checker: bool = True
    """Load a model's own checker of its pictures, if it has one."""
