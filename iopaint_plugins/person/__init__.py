"""Person: cuts people out of their background, by MediaPipe's selfie segmentation; nothing to download.

A network of a quarter of a megabyte, made for people within two metres of the camera; OpenCV runs it. It takes
what stands out in front for a person, a cat too. Its file lies beside this one, with a README.md on its source.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Lt

from iopaint_core import (
    Hint,
    ImageModel,
    ImageParameters,
    ModelInfo,
    ModelType,
    Result,
    Task,
    hookimpl,
)
from iopaint_plugins._opencv import opencv_component

if TYPE_CHECKING:
    import cv2
    import numpy as np
    from numpy.typing import NDArray

    from iopaint_core import LoadContext

_SIDE = 256
"""What the network takes: squares, of so many pixels a side."""


@dataclass(frozen=True)
class PersonParameters(ImageParameters):
    """What counts as a person for `person`. `scale` is not read."""

    threshold: Annotated[float, Gt(0), Lt(1), Hint(widget="slider")] = 0.5
    """Probability that a pixel has to reach for there to be a person at all."""


class Person(ImageModel[PersonParameters]):
    """Gives the cut-out as RGBA, and its matte beside it as the only mask; without a person, the image as it is."""

    def __init__(self, network: cv2.dnn.Net) -> None:
        self._network = network

    def forward(self, image: NDArray[np.uint8], parameters: PersonParameters) -> Result:
        """Look at the image with its aspect kept: stretched, a tall or a wide one loses hands and shoulders."""
        import cv2
        import numpy as np

        height, width = image.shape[:2]
        scale = _SIDE / max(height, width)
        inner_height, inner_width = (max(1, round(side * scale)) for side in (height, width))
        top, left = (_SIDE - inner_height) // 2, (_SIDE - inner_width) // 2
        square = np.zeros((_SIDE, _SIDE, 3), np.uint8)
        inside = slice(top, top + inner_height), slice(left, left + inner_width)
        square[inside] = cv2.resize(image, (inner_width, inner_height), interpolation=cv2.INTER_AREA)
        self._network.setInput(cv2.dnn.blobFromImage(square, 1 / 255))
        likely = np.asarray(self._network.forward(), np.float32)[0, 0][inside]
        matte = np.rint(cv2.resize(likely, (width, height)).clip(0, 1) * 255).astype(np.uint8)
        if matte.max() < 255 * parameters.threshold:
            return Result(image, np.zeros_like(matte)[None], info={"unchanged": True})
        return Result(np.dstack([image, matte]), matte[None])


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """Announce `person`."""
    return [
        ModelInfo(
            name="person",
            type=ModelType.PLUGIN,
            task=Task.MATTING,
            license="Apache-2.0",
            parameters=PersonParameters,
            title="Person",
            description="Cuts people close to the camera out of their background, with nothing to download.",
            homepage="https://ai.google.dev/edge/mediapipe/solutions/vision/image_segmenter",
        )
    ]


@hookimpl
def iopaint_load_model(context: LoadContext) -> Person:
    """Load the network, on the CPU."""
    import cv2

    file = Path(__file__).with_name("selfie_segmentation.tflite")
    part = opencv_component(file, context, cv2.dnn.readNetFromTFLite)
    return Person(context.share({"network": part})["network"])
