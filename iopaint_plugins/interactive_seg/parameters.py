"""What SAM 3 takes; a scan imports this, and not the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from iopaint_core import Hint, MaskParameters


@dataclass(frozen=True)
class Sam3Parameters(MaskParameters):
    """How to run `sam3`."""

    prompt: str = ""
    """What to find, in a few words: `striped cat`. Without it, what is like what `boxes` show."""
    threshold: Annotated[float, Ge(0), Le(1), Hint(widget="slider")] = 0.5
    """How sure the model is to be of each thing."""
