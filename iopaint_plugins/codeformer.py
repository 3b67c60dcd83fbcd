"""CodeFormer: faces restored from a codebook, as closely to the picture as the user wants.

S. Zhou, K. C. K. Chan, C. Li, C. C. Loy, "Towards Robust Blind Face Restoration with Codebook Lookup Transformer",
NeurIPS 2022. The weights are those that the authors publish, for other than commercial use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from iopaint_core import Hint, ModelInfo, Task, WeightFile, hookimpl
from iopaint_plugins._faces import YUNET, FaceParameters, FaceRestorer, load_restorer
from iopaint_plugins._spandrel import missing_spandrel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iopaint_core import LoadContext

_FILE = WeightFile(url="https://github.com/sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth")


@dataclass(frozen=True)
class CodeFormerParameters(FaceParameters):
    """How close to the picture faces stay, and what is done besides. By default, `scale` is 1."""

    weight: Annotated[float, Ge(0), Le(1), Hint(widget="slider")] = 0.5
    """How much counts of what the face looks like: 0 for the best face, 1 for the most faithful one."""


class CodeFormer(FaceRestorer):
    """Takes the weight with the face."""

    architecture = "CodeFormer"

    def arguments(self, parameters: FaceParameters) -> Mapping[str, object]:
        """Hand on the weight."""
        assert isinstance(parameters, CodeFormerParameters), "ModelInfo sees to it"
        return {"weight": parameters.weight}


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """Announce the one network there is."""
    return [
        ModelInfo(
            name="CodeFormer",
            task=Task.RESTORE,
            weights=(_FILE, YUNET),
            license="https://github.com/sczhou/CodeFormer/blob/master/LICENSE",
            commercial=False,
            parameters=CodeFormerParameters,
            unavailable=missing_spandrel("spandrel_extra_arches"),
            title="CodeFormer",
            description="Restores faces that are hardly to be seen; a weight says how close to the picture.",
            homepage="https://github.com/sczhou/CodeFormer",
        )
    ]


@hookimpl
def iopaint_load_model(info: ModelInfo, context: LoadContext) -> CodeFormer:
    """Load the network, told by spandrel from its state dict, and the detector."""
    return load_restorer(CodeFormer, info, context)
