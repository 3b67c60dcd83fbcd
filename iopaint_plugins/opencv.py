"""OpenCV's two inpainting algorithms: small, quick, nothing to download.

Navier-Stokes: Bertalmio, Bertozzi, Sapiro, "Navier-Stokes, fluid dynamics, and image and video inpainting",
CVPR 2001. Telea: "An image inpainting technique based on the fast marching method", J. Graphics Tools 9, 2004.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iopaint_core import CV2Flag, InpaintModel, InputError, ModelInfo, ModelType, hookimpl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from iopaint_core import InpaintRequest


class CV2(InpaintModel):
    """Fills a hole from its edge inwards; `request.cv2_flag` and `request.cv2_radius` choose how."""

    def forward(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], request: InpaintRequest
    ) -> NDArray[np.uint8]:
        """Raise `InputError` where the mask leaves no pixel to start from."""
        import cv2

        if mask.all():
            raise InputError(
                "cv2 fills a hole from what surrounds it, and this mask leaves nothing around it",
                "Mask less of the picture, or raise hd_strategy_crop_margin",
            )
        flag = cv2.INPAINT_TELEA if request.cv2_flag is CV2Flag.INPAINT_TELEA else cv2.INPAINT_NS
        return cv2.inpaint(image, mask, request.cv2_radius, flag).astype("uint8", copy=False)


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """Announce `cv2`."""
    return [ModelInfo(name="cv2", type=ModelType.INPAINT, license="Apache-2.0")]


@hookimpl
def iopaint_load_model() -> InpaintModel:
    """Make the one model there is."""
    return CV2()
