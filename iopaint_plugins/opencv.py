"""OpenCV's two inpainting algorithms: small, quick, nothing to download.

Navier-Stokes: Bertalmio, Bertozzi, Sapiro, "Navier-Stokes, fluid dynamics, and image and video inpainting",
CVPR 2001. Telea: "An image inpainting technique based on the fast marching method", J. Graphics Tools 9, 2004.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from iopaint_core import Hint, InpaintModel, InpaintParameters, InputError, ModelInfo, ModelType, hookimpl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class CV2Flag(str, Enum):
    """Algorithm; the values are OpenCV's and IOPaint's."""

    INPAINT_NS = "INPAINT_NS"
    INPAINT_TELEA = "INPAINT_TELEA"


@dataclass(frozen=True)
class CV2Parameters(InpaintParameters):
    """How `cv2` fills a hole from its edge inwards."""

    cv2_flag: CV2Flag = CV2Flag.INPAINT_NS
    """Algorithm: `INPAINT_NS` is Navier-Stokes, `INPAINT_TELEA` Telea's."""
    cv2_radius: Annotated[int, Ge(0), Hint(unit="px")] = 4
    """Neighbourhood of a pixel that is looked at to fill it."""


class CV2(InpaintModel[CV2Parameters]):
    """Fills a hole from its edge inwards; `CV2Parameters` choose how."""

    def forward(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], parameters: CV2Parameters
    ) -> NDArray[np.uint8]:
        """Raise `InputError` where the mask leaves no pixel to start from."""
        import cv2

        if mask.all():
            raise InputError(
                "cv2 fills a hole from what surrounds it, and this mask leaves nothing around it",
                "Mask less of the picture, or raise hd_strategy_crop_margin",
            )
        flag = cv2.INPAINT_TELEA if parameters.cv2_flag is CV2Flag.INPAINT_TELEA else cv2.INPAINT_NS
        return cv2.inpaint(image, mask, parameters.cv2_radius, flag).astype("uint8", copy=False)


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """Announce `cv2`."""
    return [
        ModelInfo(
            name="cv2",
            type=ModelType.INPAINT,
            license="Apache-2.0",
            parameters=CV2Parameters,
            title="OpenCV",
            description="Fills a hole from its edge inwards: small scratches and spots, with nothing to download.",
            homepage="https://docs.opencv.org/4.x/df/d3d/tutorial_py_inpainting.html",
        )
    ]


@hookimpl
def iopaint_load_model() -> CV2:
    """Make the one model there is."""
    return CV2()
