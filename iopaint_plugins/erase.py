"""Models made of models: they find something, and erase it. Finder and eraser are parameters."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le, Lt

from iopaint_core import (
    Hint,
    ImageModel,
    ImageParameters,
    InputError,
    ModelInfo,
    ModelType,
    Result,
    Task,
    hookimpl,
    progress_part,
    report_progress,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from iopaint_core import LoadContext, Models


@dataclass(frozen=True)
class EraseParameters(ImageParameters):
    """What is erased, and by which models. `scale` is not read."""

    threshold: Annotated[float, Gt(0), Lt(1), Hint(widget="slider")] = 0.5
    """How sure the finder has to be of a pixel: a lower one finds more, and more that is not meant."""
    dilation: Annotated[int, Ge(0), Le(1000), Hint(unit="px")] = 15
    """How far beyond what is found is erased, over outlines, hair, shadows."""
    finder: str = ""
    """Model that finds what to erase."""
    eraser: str = "patchmatch"
    """Model that repaints what a mask covers, with its own defaults."""


@dataclass(frozen=True)
class EraseTextParameters(EraseParameters):
    """What `erase-text` takes for text, and by which models it works. `scale` is not read."""

    threshold: Annotated[float, Gt(0), Lt(1), Hint(widget="slider")] = 0.3
    """Probability from which a pixel is text: a lower one finds fainter text, and more that is none."""
    finder: str = "text"
    """Model that finds what to erase; it takes `threshold` and `dilation`, as `text` does."""


@dataclass(frozen=True)
class ErasePersonParameters(EraseParameters):
    """What `erase-person` takes for a person, and by which models it works. `scale` is not read."""

    finder: str = "person"
    """Model that gives a matte, or a mask, of what to erase, with its own defaults."""


class _Erase(ImageModel[EraseParameters]):
    """Tells by `info` what its finder does; `unchanged` stands there if nothing was found."""

    def __init__(self, models: Models) -> None:
        self._models = models

    @abstractmethod
    def _find(self, image: NDArray[np.uint8], parameters: EraseParameters) -> tuple[NDArray[np.uint8], Result]:
        """Return a mask of what to erase, and what the finder gave."""

    def forward(self, image: NDArray[np.uint8], parameters: EraseParameters) -> Result:
        report_progress(0, 100)  # the first report says how finely is counted, and a finder may make but one
        with progress_part(0, 2):
            mask, found = self._find(image, parameters)
        if not mask.any():
            return Result(image, info={**found.info, "unchanged": True})
        with progress_part(1, 2):
            return Result(self._models.inpaint(parameters.eraser, image, mask), info=found.info)


class EraseText(_Erase):
    """Has the finder grow its mask: it knows how large the text is."""

    def _find(self, image: NDArray[np.uint8], parameters: EraseParameters) -> tuple[NDArray[np.uint8], Result]:
        how = {"threshold": parameters.threshold, "dilation": parameters.dilation}
        found = self._models.run(parameters.finder, image, parameters=how)
        return _mask_of(found, parameters), found


class ErasePerson(_Erase):
    """Makes a mask of the finder's matte, and grows it."""

    def _find(self, image: NDArray[np.uint8], parameters: EraseParameters) -> tuple[NDArray[np.uint8], Result]:
        import cv2
        import numpy as np

        found = self._models.run(parameters.finder, image)
        outside = np.asarray(_mask_of(found, parameters) <= 255 * parameters.threshold, np.uint8)
        if outside.all():
            return np.zeros_like(outside), found
        near = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= parameters.dilation
        return near.astype(np.uint8) * np.uint8(255), found


def _mask_of(found: Result, parameters: EraseParameters) -> NDArray[np.uint8]:
    if found.mask is None:
        raise InputError(
            f"The finder {parameters.finder} gave no masks, so there is nothing to erase",
            "Take one whose task is segment or matting",
        )
    return found.mask


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """Announce `erase-text` and `erase-person`."""
    return [
        ModelInfo(
            name="erase-text",
            type=ModelType.PLUGIN,
            task=Task("erase"),
            license="Apache-2.0",
            parameters=EraseTextParameters,
            requires=("text", "patchmatch"),
            title="Erase text",
            description="Finds what is written in a picture and erases it: captions, dates, signatures.",
        ),
        ModelInfo(
            name="erase-person",
            type=ModelType.PLUGIN,
            task=Task("erase"),
            license="Apache-2.0",
            parameters=ErasePersonParameters,
            requires=("person", "patchmatch"),
            title="Erase people",
            description="Finds people close to the camera and fills in what may be behind them.",
        ),
    ]


@hookimpl
def iopaint_load_model(info: ModelInfo, context: LoadContext) -> _Erase:
    """Make one, which loads what it calls when it is called."""
    return (EraseText if info.name == "erase-text" else ErasePerson)(context.models)
