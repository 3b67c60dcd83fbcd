"""Text: finds what is written in a picture, by PaddleOCR's detector as RapidOCR's package brings it along.

M. Liao et al., "Real-time Scene Text Detection with Differentiable Binarization", AAAI 2020: a network gives each
pixel's probability of being in the core of a word or a line, and what surpasses a threshold is grown to all of it.
OpenCV runs the network.
"""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from annotated_types import Ge, Gt, Le, Lt

from iopaint_core import (
    Box,
    Hint,
    MaskModel,
    MaskParameters,
    ModelInfo,
    ModelLoadError,
    ModelType,
    Result,
    Task,
    hookimpl,
    missing_packages,
    report_progress,
)
from iopaint_plugins._opencv import opencv_component

if TYPE_CHECKING:
    from collections.abc import Iterator

    import cv2
    import numpy as np
    from numpy.typing import NDArray

    from iopaint_core import LoadContext

    Values = NDArray[np.float32]

_INSTALL = "pip install 'iopaint-core[text]'"
_LONGEST = 2048
"""A larger image is looked at in this size: what is 10 pixels high there is still found, and time is bounded."""
_TILE, _OVERLAP = 1024, 128
"""The network sees this much at a time, in pixels of a side: its memory grows with that."""
_SURE = 0.5
"""Mean probability from which a region is text; PaddleOCR's `box_thresh`."""
_THINNEST = 3
"""Pixels of the shorter side of a region; PaddleOCR's `min_size`."""
_LARGE = 48
"""Shorter side from which a region has to be text in half the size, too. The network takes large round things, such
as a cup from above, for a letter, yet only in one size; what is written it finds from 10 to 320 pixels."""
_UNCLIP = 1.5
"""A region grows by its area over its perimeter times this; the paper's."""
_BUFFERS = 260
"""Bytes that the network keeps of its work for each pixel of the largest tile, as measured."""


@dataclass(frozen=True)
class TextParameters(MaskParameters):
    """What counts as text for `text`, and how far around it the mask reaches. Clicks and boxes are not read."""

    threshold: Annotated[float, Gt(0), Lt(1), Hint(widget="slider")] = 0.3
    """Probability from which a pixel is taken for text: a lower one finds fainter text, and more that is none."""
    dilation: Annotated[int, Ge(0), Le(1000), Hint(unit="px")] = 15
    """How far the mask reaches beyond the text, over outlines, shadows and glow."""


class _Seen(NamedTuple):
    """What the network makes of an image: probabilities `(h, w)`, in the size that it was looked at."""

    likely: Values
    likely_in_half: Values
    """In half that size, and enlarged to it."""
    size: tuple[int, int]
    """Height and width of the image."""


class Text(MaskModel[TextParameters]):
    """Gives one mask, of all text; `info["texts"]` says how many words or lines were found, 0 for an empty mask."""

    def __init__(self, network: cv2.dnn.Net) -> None:
        self._network = network

    def encode(self, image: NDArray[np.uint8]) -> _Seen:
        """Look at an image, and at it in half the size, tile by tile."""
        import cv2
        import numpy as np

        scale = min(1.0, _LONGEST / max(image.shape[:2]))
        views = [_scaled(image, scale), _scaled(image, scale / 2)]
        tiles = [(view, box) for view in range(2) for box in _tiles(*views[view].shape[:2])]
        found = [np.zeros(view.shape[:2], np.float32) for view in views]
        for number, (view, box) in enumerate(tiles):
            report_progress(number, len(tiles))
            part = found[view][box.slices]
            np.maximum(part, self._look(views[view][box.slices]), out=part)
        height, width = views[0].shape[:2]
        in_half = np.asarray(cv2.resize(found[1], (width, height)), np.float32)
        return _Seen(found[0], in_half, (image.shape[0], image.shape[1]))

    def _look(self, image: NDArray[np.uint8]) -> Values:
        """Return the network's probabilities for an image of a size that it takes at once."""
        import cv2
        import numpy as np

        height, width = image.shape[:2]
        padded = cv2.copyMakeBorder(image, 0, -height % 32, 0, -width % 32, cv2.BORDER_REPLICATE)
        self._network.setInput(cv2.dnn.blobFromImage(padded, 1 / 127.5, mean=(127.5,) * 3))
        self.nbytes = max(self.nbytes, _BUFFERS * padded.shape[0] * padded.shape[1])
        return np.asarray(self._network.forward(), np.float32)[0, 0, :height, :width]

    def decode(self, seen: _Seen, parameters: TextParameters) -> Result:
        """Take what is likely enough, and grow it."""
        import cv2
        import numpy as np

        height, width = seen.likely.shape
        likely = np.asarray(seen.likely > parameters.threshold, np.uint8)
        count, labels, bounds, _ = cv2.connectedComponentsWithStats(likely)
        mask = np.zeros((height, width), np.uint8)
        texts = 0
        for number in range(1, count):
            left, top, across, down, area = map(int, bounds[number])
            box = Box(left, top, left + across, top + down)
            core = labels[box.slices] == number
            if min(across, down) < _THINNEST or seen.likely[box.slices][core].mean() < _SURE:
                continue
            if min(across, down) >= _LARGE and seen.likely_in_half[box.slices][core].mean() < _SURE:
                continue
            texts += 1
            outlines, _ = cv2.findContours(core.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            perimeter = max(1.0, sum(cv2.arcLength(outline, True) for outline in outlines))
            reach = area * _UNCLIP / perimeter + parameters.dilation * height / seen.size[0]
            margin = math.ceil(reach) + 1
            window = Box(
                max(0, box.left - margin),
                max(0, box.top - margin),
                min(width, box.right + margin),
                min(height, box.bottom + margin),
            ).slices
            others = np.asarray(labels[window] != number, np.uint8)
            mask[window][cv2.distanceTransform(others, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= reach] = 255
        if mask.shape != seen.size:
            mask = np.asarray(cv2.resize(mask, seen.size[::-1]) > 0, np.uint8) * np.uint8(255)
        return Result(masks=mask[None], info={"texts": texts} if texts else {"texts": 0, "unchanged": True})


def _scaled(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    import cv2
    import numpy as np

    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return image if scale == 1 else np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def _tiles(height: int, width: int) -> Iterator[Box]:
    """Yield boxes of at most `_TILE` pixels a side that cover an image, neighbours overlapping."""
    for top, bottom in _spans(height):
        for left, right in _spans(width):
            yield Box(left, top, right, bottom)


def _spans(length: int) -> Iterator[tuple[int, int]]:
    count = max(1, math.ceil((length - _OVERLAP) / (_TILE - _OVERLAP)))
    step = math.ceil((length - _OVERLAP) / count)
    for number in range(count):
        yield number * step, min(number * step + step + _OVERLAP, length)


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """Announce `text`."""
    return [
        ModelInfo(
            name="text",
            type=ModelType.PLUGIN,
            task=Task.SEGMENT,
            license="Apache-2.0",
            parameters=TextParameters,
            unavailable=missing_packages("rapidocr", install=_INSTALL),
            title="Text",
            description="Finds what is written in a picture, and gives a mask of it.",
            homepage="https://github.com/RapidAI/RapidOCR",
        )
    ]


@hookimpl
def iopaint_load_model(context: LoadContext) -> Text:
    """Load the newest detector of the installed package. Raises `ModelLoadError` if it has none."""
    import cv2

    part = opencv_component(_detector(), context, cv2.dnn.readNetFromONNX)
    return Text(context.share({"network": part})["network"])


def _detector() -> Path:
    """Return the file of the newest detector, without an import of the package that has it."""
    spec = importlib.util.find_spec("rapidocr")
    folders = [Path(folder, "models") for folder in (spec and spec.submodule_search_locations) or ()]
    found = [path for folder in folders for path in folder.glob("*PP-OCRv*det*.onnx")]
    if not found:
        raise ModelLoadError(
            f"rapidocr is installed without a text detector: expected PP-OCRv6_det_small.onnx, or another "
            f"*PP-OCRv*det*.onnx, in {', '.join(map(str, folders)) or 'its folder models'}",
            "pip install --force-reinstall --no-deps 'rapidocr>=3'",
        )
    return max(found, key=lambda path: (int(re.findall(r"v(\d+)", path.name)[0]), path.name))
