"""Colorize: black-and-white pictures in colour, by DDColor.

X. Kang, T. Yang, W. Ouyang, P. Ren, L. Li, X. Xie, "DDColor: Towards Photo-Realistic Image Colorization via Dual
Decoders", ICCV 2023. The weights are those that the authors publish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iopaint_core import ImageModel, ModelInfo, Result, Task, WeightFile, WeightsError, hookimpl
from iopaint_plugins._spandrel import check_numbers, missing_spandrel, spandrel_component

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from iopaint_core import Image, ImageParameters, LoadContext
    from iopaint_plugins._spandrel import Network

_SIDE = 512
"""The network sees squares of so many pixels a side, as its authors run it."""
_ROWS = 256
"""Rows of the image whose colours are joined with its lightness at once, so that memory is bounded."""
_MODELS = {
    "modelscope": ("DDColor", "Colours black-and-white photographs: the authors' choice."),
    "artistic": (
        "DDColor, artistic",
        "Colours black-and-white pictures: trained on works of art, too.",
    ),
    "paper": ("DDColor, as in the paper", "Colours black-and-white photographs: trained on ImageNet alone."),
    "paper_tiny": (
        "DDColor, tiny",
        "Colours black-and-white photographs: the smallest of them, and the quickest.",
    ),
}


class Colorize(ImageModel):
    """Keeps the lightness of an image, and gives it a network's colours; those that it has are not looked at."""

    def __init__(self, network: Network, device: str) -> None:
        self._network = network
        self._device = device

    def forward(self, image: Image, parameters: ImageParameters) -> Result:  # noqa: ARG002 - it reads none
        """Join the colours in CIE Lab, as the network's authors do."""
        import cv2
        import numpy as np

        height, width = image.shape[:2]
        colours = cv2.resize(self._colours(image), (width, height), interpolation=cv2.INTER_LINEAR)
        for top in range(0, height, _ROWS):
            rows = slice(top, top + _ROWS)
            lab = np.dstack([_lightness(image[rows]), colours[rows]])
            rgb = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
            image[rows] = np.rint(rgb.clip(0, 1) * 255)
        return Result(image, info={"in_colour": True})

    def _colours(self, image: Image) -> NDArray[np.float32]:
        """Return a and b of CIE Lab, `(512, 512, 2)`."""
        import cv2
        import numpy as np
        import torch

        how = cv2.INTER_AREA if max(image.shape[:2]) > _SIDE else cv2.INTER_LINEAR
        small = _lightness(np.asarray(cv2.resize(image, (_SIDE, _SIDE), interpolation=how), np.uint8))
        grey = cv2.cvtColor(np.dstack([small, np.zeros((*small.shape, 2), np.float32)]), cv2.COLOR_LAB2RGB)
        descriptor = self._network.descriptor
        with torch.inference_mode():
            pixels = torch.from_numpy(grey).to(self._device).permute(2, 0, 1)[None]
            given = descriptor.model(pixels.to(descriptor.dtype))[0]
            check_numbers(given)
            colours: NDArray[np.float32] = given.permute(1, 2, 0).float().cpu().contiguous().numpy()
        return colours


def _lightness(image: Image) -> NDArray[np.float32]:
    """Return L of CIE Lab, 0 … 100."""
    import cv2
    import numpy as np

    return np.asarray(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 0], np.float32)


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """Announce the networks that DDColor's authors publish."""
    unavailable = missing_spandrel("spandrel_extra_arches")
    return [
        ModelInfo(
            name=f"piddnad/ddcolor_{name}",
            task=Task.RESTORE,
            weights=(WeightFile(repo=f"piddnad/ddcolor_{name}", filename="pytorch_model.bin"),),
            license="Apache-2.0",
            unavailable=unavailable,
            title=title,
            description=description,
            homepage="https://github.com/piddnad/DDColor",
        )
        for name, (title, description) in _MODELS.items()
    ]


@hookimpl
def iopaint_load_model(info: ModelInfo, context: LoadContext) -> Colorize:
    """Load the network. Raises `WeightsError` for a file of another one."""
    file = context.weights(info.weights[0].filename)
    network: Network = context.share({"network": spandrel_component(file, context)})["network"]
    found = network.descriptor.architecture
    if found.id != "DDColor":
        raise WeightsError(
            f"{file} is a network of {found.name}: expected DDColor",
            "Leave out what names this file, and the published one is fetched",
        )
    return Colorize(network, context.device)
