"""What a loaded model is: three shapes, each a callable that checks what goes in and what comes out.

A plugin subclasses one of them and writes `forward`. Images are RGB `uint8` arrays `(H, W, 3)`, masks `uint8`
`(H, W)`, 255 where to repaint. The arrays that `forward` receives are its own: it may write to them.
"""

from __future__ import annotations

import contextvars
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from iopaint_core import imaging
from iopaint_core.errors import InputError, ModelOutputError
from iopaint_core.schema import HDStrategy, ImageRequest, InpaintRequest, MaskRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from iopaint_core.imaging import Image, Mask

Progress = Callable[[int, int], None]
"""Called with (step, total) while a model works; what it raises cancels the work."""

_logger = logging.getLogger(__name__)
_progress: contextvars.ContextVar[Progress | None] = contextvars.ContextVar("iopaint_progress", default=None)


def report_progress(step: int, total: int) -> None:
    """Called inside `forward`: tell the host how far the work is. What the host raises cancels it."""
    report = _progress.get()
    if report is not None:
        report(step, total)
