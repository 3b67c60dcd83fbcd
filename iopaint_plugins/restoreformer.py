"""RestoreFormer: faces restored from a dictionary of what faces in good pictures are made of.

Z. Wang, J. Zhang, R. Chen, W. Wang, P. Luo, "RestoreFormer: High-Quality Blind Face Restoration from Undegraded
Key-Value Pairs", CVPR 2022. The weights are those that GFPGAN's authors publish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iopaint_core import ModelInfo, Task, WeightFile, hookimpl
from iopaint_plugins._faces import YUNET, FaceParameters, FaceRestorer, load_restorer
from iopaint_plugins._spandrel import missing_spandrel

if TYPE_CHECKING:
    from iopaint_core import LoadContext

_FILE = WeightFile(
    url="https://github.com/TencentARC/GFPGAN/releases/download/v1.3.4/RestoreFormer.pth",
    md5="eaeeff6c4a1caa1673977cb374e6f699",
)


class RestoreFormer(FaceRestorer):
    """Takes nothing but the face."""

    architecture = "RestoreFormer"


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """Announce the network that IOPaint knows."""
    return [
        ModelInfo(
            name="RestoreFormer",
            task=Task.RESTORE,
            weights=(_FILE, YUNET),
            license="Apache-2.0",
            parameters=FaceParameters,
            unavailable=missing_spandrel(),
            title="RestoreFormer",
            description="Restores faces in old and blurred photographs, with much detail.",
            homepage="https://github.com/wzhouxiff/RestoreFormer",
        )
    ]


@hookimpl
def iopaint_load_model(info: ModelInfo, context: LoadContext) -> RestoreFormer:
    """Load the network, told by spandrel from its state dict, and the detector."""
    return load_restorer(RestoreFormer, info, context)
