"""GFPGAN: faces restored by a network that knows them from a generator of faces.

X. Wang, Y. Li, H. Zhang, Y. Shan, "Towards Real-World Blind Face Restoration with Generative Facial Prior", CVPR
2021. The weights are those that the authors publish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iopaint_core import ModelInfo, Task, WeightFile, hookimpl
from iopaint_plugins._faces import YUNET, FaceParameters, FaceRestorer, load_restorer
from iopaint_plugins._spandrel import missing_spandrel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iopaint_core import LoadContext

_FILE = WeightFile(
    url="https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.4.pth",
    md5="94d735072630ab734561130a47bc44f8",
)


class GFPGAN(FaceRestorer):
    """Takes no weight: version 1.4 of the network ignores the one that others give it."""

    architecture = "GFPGAN"

    def arguments(self, parameters: FaceParameters) -> Mapping[str, object]:  # noqa: ARG002 - there are none
        """Have it take the noise in its file, so that it gives the same result each time."""
        return {"randomize_noise": False}


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """Announce the network that IOPaint knows."""
    return [
        ModelInfo(
            name="GFPGANv1.4",
            task=Task.RESTORE,
            weights=(_FILE, YUNET),
            license="Apache-2.0",
            parameters=FaceParameters,
            unavailable=missing_spandrel(),
            title="GFPGAN",
            description="Restores faces in old and blurred photographs, with natural results.",
            homepage="https://github.com/TencentARC/GFPGAN",
        )
    ]


@hookimpl
def iopaint_load_model(info: ModelInfo, context: LoadContext) -> GFPGAN:
    """Load the network, told by spandrel from its state dict, and the detector."""
    return load_restorer(GFPGAN, info, context)
