"""Geometry and blending of pictures as arrays: pad, crop, resize, blend. Nothing here writes to its arguments.

Images are `uint8` arrays `(H, W, 3)` in RGB; masks are `uint8` `(H, W)`, 255 where to repaint and 0 elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ForwardRef

from iopaint_core import parameters

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]
    """Array `(H, W, 3)` in RGB; `(H, W, 4)` in RGBA where a result may have transparency."""
    Mask = NDArray[np.uint8]
    """Array `(H, W)`, 255 where to repaint or where the subject is, and 0 elsewhere."""
    Masks = NDArray[np.uint8]
    Map = NDArray[np.generic]
else:  # for annotations of plugins, which are read when these are listed, and numpy is not imported yet
    Image = Mask = ForwardRef("ndarray", module="numpy")


class Box(parameters.Box):
    """The public `Box` with what is computed with rectangles here."""

    __slots__ = ()

    @classmethod
    def at(cls, left: int, top: int, width: int, height: int) -> Box:
        """The rectangle of a size, by its top left corner."""
        return cls(left, top, left + width, top + height)

    def __and__(self, other: Box) -> Box | None:
        """What lies in both; None if nothing does."""
        shared = Box(*map(max, self[:2], other[:2]), *map(min, self[2:], other[2:]))
        return shared if shared.left < shared.right and shared.top < shared.bottom else None

    def __or__(self, other: Box) -> Box:
        """The least rectangle that holds both."""
        return Box(*map(min, self[:2], other[:2]), *map(max, self[2:], other[2:]))

    def seen_from(self, other: Box) -> Box:
        """The same rectangle, counted from the top left corner of another."""
        left, top = other[:2]
        return Box(self.left - left, self.top - top, self.right - left, self.bottom - top)


def binarize(mask: Mask) -> Mask:
    """255 where the mask is above 127, 0 elsewhere."""
    import cv2

    return cv2.threshold(mask, 127, 255, cv2.THRESH_BINARY)[1].astype("uint8", copy=False)


def pad(image: Image, *, multiple: int, min_size: int, square: bool) -> Image:
    """A copy, grown at the right and the bottom by mirroring, so that a network takes it.

    Both sides become multiples of `multiple` and at least `min_size`, and equal where `square` is asked.
    """
    import numpy as np

    height, width = (-(-max(side, min_size) // multiple) * multiple for side in image.shape[:2])
    if square:
        height = width = max(height, width)
    grown = [(0, height - image.shape[0]), (0, width - image.shape[1])] + [(0, 0)] * (image.ndim - 2)
    return np.pad(image, grown, mode="symmetric")


def reframe(image: Image, mask: Mask, box: Box) -> tuple[Image, Mask] | None:
    """What a rectangle shows: beyond the image, its edge goes on and is masked. None if it shows nothing of it."""
    import numpy as np

    inside = box & Box.at(0, 0, mask.shape[1], mask.shape[0])
    if inside is None:
        return None
    grown = [(inside.top - box.top, box.bottom - inside.bottom), (inside.left - box.left, box.right - inside.right)]
    framed = np.pad(image[inside.slices], [*grown, (0, 0)], mode="edge")
    return framed, np.pad(mask[inside.slices], grown, constant_values=255)


def compose(image: Image, framed: Image, box: Box) -> Image:
    """The image with what a rectangle shows, on black that holds both."""
    import numpy as np

    place = Box.at(0, 0, image.shape[1], image.shape[0])
    whole = place | box
    canvas = np.zeros((whole.bottom - whole.top, whole.right - whole.left, 3), np.uint8)
    canvas[place.seen_from(whole).slices] = image
    canvas[box.seen_from(whole).slices] = framed
    return canvas


def crop_boxes(mask: Mask, margin: int) -> list[Box]:
    """Rectangles that hold every part of a mask with `margin` pixels around it, none touching another.

    A margin that an edge of the picture cuts off is added at the opposite side. Rectangles that touch are
    merged until none do, so that each pixel lies in one at most.
    """
    import numpy as np

    boxes = [_grow(box, margin, *mask.shape) for box in _components(mask)]
    while True:
        canvas = np.zeros_like(mask)
        for box in boxes:
            canvas[box.slices] = 255
        merged = _components(canvas)
        if len(merged) == len(boxes):
            return merged
        boxes = merged


def _components(mask: Mask) -> list[Box]:
    """Bounding boxes of the connected parts of a mask, diagonal neighbours counted as connected."""
    import cv2

    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return [Box(int(x), int(y), int(x + width), int(y + height)) for x, y, width, height, _ in stats[1:]]


def _grow(box: Box, margin: int, height: int, width: int) -> Box:
    left, right = _grow_side(box.left, box.right, margin, width)
    top, bottom = _grow_side(box.top, box.bottom, margin, height)
    return Box(left, top, right, bottom)


def _grow_side(start: int, stop: int, margin: int, limit: int) -> tuple[int, int]:
    start, stop = start - margin, stop + margin
    cut_start, cut_stop = max(0, -start), max(0, stop - limit)
    return max(0, start - cut_stop), min(limit, stop + cut_start)


def shrink(image: Image, mask: Mask, limit: int) -> tuple[Image, Mask]:
    """Both with their longer side at `limit` pixels; a pixel of which any part was masked is masked."""
    import cv2

    height, width = mask.shape
    scale = limit / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    coverage = cv2.resize(mask.astype("float32"), size, interpolation=cv2.INTER_AREA)
    return small.astype("uint8", copy=False), ((coverage > 0) * 255).astype("uint8")


def enlarge(image: Image, height: int, width: int) -> Image:
    """The image at that size, by bicubic interpolation."""
    import cv2

    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC).astype("uint8", copy=False)


def match_histograms(image: Image, reference: Image, where: NDArray[np.bool_]) -> Image:
    """The image with its colours mapped so that at the pixels `where` each channel is distributed as there.

    Cumulative histogram matching: Gonzalez and Woods, Digital Image Processing, "Histogram Matching".
    """
    import numpy as np

    if not where.any():
        return image
    matched = np.empty_like(image)
    for channel in range(image.shape[2]):
        source, target = (
            np.cumsum(np.bincount(picture[..., channel][where], minlength=256)) for picture in (image, reference)
        )
        table = np.searchsorted(target, np.maximum(source, 1)).astype("uint8")
        matched[..., channel] = table[image[..., channel]]
    return matched


def blend(result: Image, image: Image, mask: Mask, blur: int) -> Image:
    """The result where the mask is 255, the image elsewhere.

    With `blur`, the result fades into the image over that many pixels around the mask; within it the result
    stands alone, so that nothing of what was masked shines through.
    """
    import cv2
    import numpy as np

    if not blur:
        return np.where((mask > 0)[..., np.newaxis], result, image)
    x, y, width, height = cv2.boundingRect(mask)
    margin = blur + 1
    part = slice(max(0, y - margin), y + height + margin), slice(max(0, x - margin), x + width + margin)
    size = 2 * blur + 1
    alpha = np.maximum(mask[part], cv2.GaussianBlur(mask[part], (size, size), 0)).astype("float32") / 255
    blended = image.copy()
    blended[part] = cv2.blendLinear(result[part], image[part], alpha, 1 - alpha)
    return blended
