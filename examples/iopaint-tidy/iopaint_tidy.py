"""A model made of three models of other plugins: it finds what was clicked on, erases it, and softens the seam.

They run in the host's pool: whoever else calls them shares them, and progress and cancelling go through.
"""

from dataclasses import dataclass
from typing import Annotated

from iopaint_core import (
    Click,
    Hint,
    ImageModel,
    ImageParameters,
    ModelInfo,
    Result,
    Task,
    hookimpl,
    progress_part,
)


@dataclass(frozen=True)
class TidyParameters(ImageParameters):
    """What `tidy` removes, and by which models."""

    clicks: Annotated[tuple[Click, ...], Hint(widget="clicks")] = ()
    """Points on what is to go, and on what is to stay: `[[x, y, 1], [x, y, 0]]`."""
    finder: str = "wand"
    """Model that makes a mask of clicks."""
    eraser: str = "cv2"
    """Model that repaints what the mask covers."""


class Tidy(ImageModel[TidyParameters]):
    def __init__(self, models):
        self._models = models

    def forward(self, image, parameters):
        import cv2
        import numpy as np

        if not parameters.clicks:
            return Result(image=image, info={"unchanged": True})
        with progress_part(0, 3):
            mask = self._models.segment(parameters.finder, image, {"clicks": parameters.clicks})
        mask = cv2.dilate(mask, np.ones((9, 9), np.uint8))  # edges belong to what is erased
        with progress_part(1, 3):
            image = self._models.inpaint(parameters.eraser, image, mask)
        seam = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8))
        with progress_part(2, 3):
            return self._models.inpaint("blur", image, seam)


@hookimpl
def iopaint_available_models():
    return [
        ModelInfo(
            name="tidy",
            task=Task("tidy"),
            parameters=TidyParameters,
            requires=("wand", "cv2", "blur"),
            title="Remove what was clicked on",
        )
    ]


@hookimpl
def iopaint_load_model(info, context):
    return Tidy(context.models)
