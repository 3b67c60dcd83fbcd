"""Large images in tiles: what a network takes at once is bounded, and its seams can't be seen."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from iopaint_core import Box, report_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from iopaint_core import Image

_CONTEXT = 16
"""Pixels around each tile that the network sees and whose result is dropped, or faded out."""
_FADE = 8
"""Pixels over which a tile fades into those left of it and above it, within its context."""
MIN_TILE = 64
"""The smallest tile with its context, in pixels."""

_logger = logging.getLogger(__name__)


def upscale_in_tiles(
    image: Image, scale: int, upscale: Callable[[Image], Image], *, tile: int, multiple_of: int = 1
) -> Image:
    """Return an image that is `scale` times larger, of RGB `uint8` tiles that `upscale` makes so much larger.

    `upscale` sees `tile` pixels on each side at most, their context included, or three times `multiple_of` if that
    is more. Tiles begin at multiples of
    `multiple_of`, as networks with windows have it. Besides the result, no memory grows with the image. Where
    memory runs out in a tile, smaller ones are taken from there on, down to `MIN_TILE`; then its error is raised.
    """
    import numpy as np

    from iopaint_core import is_out_of_memory

    height, width = image.shape[:2]
    result = np.empty((height * scale, width * scale, 3), np.uint8)
    context = -(-_CONTEXT // multiple_of) * multiple_of
    waiting, done = [Box(0, 0, width, height)], 0
    while waiting:
        core = waiting.pop()
        seen = Box(
            max(0, core.left - context),
            max(0, core.top - context),
            min(width, core.right + context),
            min(height, core.bottom + context),
        )
        step = max(multiple_of, (tile - 2 * context) // multiple_of * multiple_of)
        if _side(seen) > tile and _side(core) > step:
            waiting += reversed(_split(core, step))
            continue
        report_progress(done, done + len(waiting) + 1)
        try:
            part = upscale(np.ascontiguousarray(image[seen.slices]))
        except (MemoryError, RuntimeError) as error:
            smaller = max(_side(seen) // 2, MIN_TILE)
            too_small = smaller >= _side(seen) or smaller - 2 * context < multiple_of
            if not is_out_of_memory(error) or too_small:
                raise
            _logger.warning("Memory ran out in a tile of %d pixels; going on with %d", _side(seen), smaller)
            tile = smaller
            waiting.append(core)
            continue
        _paste(result, part, core, seen, scale)
        done += 1
    report_progress(done, done)
    return result


def _side(box: Box) -> int:
    return max(box.right - box.left, box.bottom - box.top)


def _split(box: Box, step: int) -> list[Box]:
    return [
        Box(left, top, min(left + step, box.right), min(top + step, box.bottom))
        for top in range(box.top, box.bottom, step)
        for left in range(box.left, box.right, step)
    ]


def _paste(result: Image, part: Image, core: Box, seen: Box, scale: int) -> None:
    """Put a tile where it belongs, faded into what is there already: all that is left of it and above it."""
    left, top = (min(_FADE, start) for start in (core.left, core.top))
    place = Box(*(scale * edge for edge in (core.left - left, core.top - top, core.right, core.bottom)))
    x, y = place.left - scale * seen.left, place.top - scale * seen.top
    height, width = place.bottom - place.top, place.right - place.left
    new, old = part[y : y + height, x : x + width], result[place.slices]
    if left or top:
        weight = _ramp(height, scale * top)[:, None, None] * _ramp(width, scale * left)[None, :, None]
        new = (old + (new.astype("float32") - old) * weight).round().astype("uint8")
    old[:] = new


def _ramp(size: int, fade: int) -> NDArray[np.float32]:
    """Return weights of pixels that rise from 0 to 1 over the first `fade` of them."""
    import numpy as np

    rising: NDArray[np.float32] = (np.arange(size, dtype=np.float32) + 0.5) / max(fade, 0.5)
    return rising.clip(max=1)
