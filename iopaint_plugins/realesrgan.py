"""Real-ESRGAN: upscalers of photographs and drawings that forgive noise and compression.

X. Wang, L. Xie, C. Dong, Y. Shan, "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic
Data", ICCVW 2021. The weights are those that the authors publish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iopaint_core import ModelInfo, Task, WeightFile, hookimpl
from iopaint_plugins._spandrel import missing_spandrel
from iopaint_plugins.upscale import UpscaleParameters, load_upscaler

if TYPE_CHECKING:
    from iopaint_core import LoadContext
    from iopaint_plugins.upscale import Upscaler

_RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"
_X4PLUS = WeightFile(url=f"{_RELEASES}/v0.1.0/RealESRGAN_x4plus.pth", md5="99ec365d4afad750833258a1a24f44ca")
_MODELS = {
    "realesr-general-x4v3": (
        WeightFile(url=f"{_RELEASES}/v0.2.5.0/realesr-general-x4v3.pth", md5="91a7644643c884ee00737db24e478156"),
        "Real-ESRGAN general x4",
        "Makes a photograph four times larger: small and quick.",
    ),
    "RealESRGAN_x4plus": (
        _X4PLUS,
        "Real-ESRGAN x4plus",
        "Makes a photograph four times larger: the best of them, and slow.",
    ),
    "RealESRGAN_4x": (
        _X4PLUS,
        "Real-ESRGAN x4plus",
        "Another name of RealESRGAN_x4plus.",
    ),
    "RealESRGAN_x4plus_anime_6B": (
        WeightFile(
            url=f"{_RELEASES}/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth", md5="d58ce384064ec1591c2ea7b79dbf47ba"
        ),
        "Real-ESRGAN x4plus for anime",
        "Makes a drawing four times larger.",
    ),
}


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """Announce the networks that IOPaint knows, and the name that its decision record has for one of them."""
    unavailable = missing_spandrel()
    return [
        ModelInfo(
            name=name,
            task=Task.RESTORE,
            weights=(file,),
            license="BSD-3-Clause",
            parameters=UpscaleParameters,
            unavailable=unavailable,
            title=title,
            description=description,
            homepage="https://github.com/xinntao/Real-ESRGAN",
        )
        for name, (file, title, description) in _MODELS.items()
    ]


@hookimpl
def iopaint_load_model(info: ModelInfo, context: LoadContext) -> Upscaler:
    """Load the network, told by spandrel from its state dict."""
    return load_upscaler(context.weights(info.weights[0].filename), context)
