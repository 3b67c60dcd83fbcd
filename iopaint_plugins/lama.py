"""LaMa: large masks filled by a network with Fourier convolutions, and the same trained on anime and manga.

R. Suvorov et al., "Resolution-robust Large Mask Inpainting with Fourier Convolutions", WACV 2022. The weights are
those that IOPaint publishes, traced to TorchScript.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iopaint_core import InpaintModel, ModelInfo, ModelType, WeightFile, hookimpl, missing_packages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from iopaint_core import InpaintParameters, LoadContext

_RELEASES = "https://github.com/Sanster/models/releases"
_MODELS = {
    "lama": (
        WeightFile(
            url=f"{_RELEASES}/download/add_big_lama/big-lama.pt",
            md5="e3aa4aaa15225a33ec84f9f4bc47e500",
            runs_code=True,
            env="LAMA_MODEL",
        ),
        "Apache-2.0",
        "LaMa",
        "Erases large objects: a network with Fourier convolutions, which goes on with what repeats.",
    ),
    "anime-lama": (
        WeightFile(
            url=f"{_RELEASES}/download/AnimeMangaInpainting/anime-manga-big-lama.pt",
            md5="29f284f36a0a510bcacf39ecf4c4d54f",
            runs_code=True,
            env="ANIME_LAMA_MODEL",
        ),
        f"{_RELEASES}/tag/AnimeMangaInpainting",
        "LaMa for anime",
        "Erases objects from drawings: LaMa, trained on anime and manga.",
    ),
}


class LaMa(InpaintModel):
    """Takes RGB and a mask of 0 and 1, both `float32` of shape `(1, C, H, W)`; gives RGB in 0 … 1."""

    pad_multiple = 8

    def __init__(self, network: Callable[[Tensor, Tensor], Tensor], device: str) -> None:
        self._network = network
        self._device = device

    def forward(
        self,
        image: NDArray[np.uint8],
        mask: NDArray[np.uint8],
        parameters: InpaintParameters,  # noqa: ARG002 - it has none of its own
    ) -> NDArray[np.uint8]:
        """Repaint every pixel whose mask is not 0."""
        import torch

        with torch.inference_mode():
            pixels = torch.from_numpy(image).to(self._device).permute(2, 0, 1)[None] / 255
            hole = (torch.from_numpy(mask).to(self._device)[None, None] > 0).float()
            painted = self._network(pixels, hole)[0].permute(1, 2, 0)
            result: NDArray[np.uint8] = (painted * 255).clamp(0, 255).to(torch.uint8).cpu().numpy()
        return result


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """Announce `lama` and `anime-lama`."""
    unavailable = missing_packages("torch", install="pip install 'iopaint-core[restore]'")
    return [
        ModelInfo(
            name=name,
            type=ModelType.INPAINT,
            weights=(file,),
            license=terms,
            unavailable=unavailable,
            title=title,
            description=description,
            homepage="https://github.com/advimman/lama",
        )
        for name, (file, terms, title, description) in _MODELS.items()
    ]


@hookimpl
def iopaint_load_model(info: ModelInfo, context: LoadContext) -> LaMa:
    """Load the network, which has no state between calls, on the context's device; on Apple's, on the CPU."""
    from dataclasses import replace

    from iopaint_core import file_component

    if context.device == "mps":  # its Fourier transforms do not run there
        context = replace(context, device="cpu")

    def load(path: Path) -> object:
        import torch

        return torch.jit.load(path, map_location=context.device).eval()  # type: ignore[no-untyped-call] # torch's own

    path = context.weights(info.weights[0].filename)
    part = file_component(path, load, context, kind="TorchScript LaMa")
    return LaMa(context.share({"network": part})["network"], context.device)
