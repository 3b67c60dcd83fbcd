"""Colours of 16 bits a channel, which no mode of Pillow holds: OpenCV reads and encodes the samples.

Arrays are `uint16`, `(H, W, 3)` in RGB or `(H, W, 4)` in RGBA.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Deep = NDArray[np.uint16]


def read(path: Path, orientation: int) -> Deep | None:
    """The samples of a PNG or TIFF file, upright; None if they are no colours of 16 bits.

    `orientation` is the value of the EXIF tag: the corner in which the file's first pixel belongs.
    """
    import cv2
    import numpy as np

    samples = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
        return None
    samples = cv2.cvtColor(samples, cv2.COLOR_BGRA2RGBA if samples.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    if orientation >= 5:
        samples = samples.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(samples[rows, columns], dtype=np.uint16)


def write_png(file: BinaryIO, samples: Deep, described: bytes) -> None:
    """Write the samples as a PNG with the metadata of `described`, a PNG of any other picture."""
    import cv2

    order = cv2.COLOR_RGBA2BGRA if samples.shape[2] == 4 else cv2.COLOR_RGB2BGR
    encoded = cv2.imencode(".png", cv2.cvtColor(samples, order))[1].tobytes()
    pictorial = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
    signature, header = encoded[:8], next(_chunks(encoded))[1]
    file.write(signature + header)
    file.writelines(chunk for name, chunk in _chunks(described) if name not in pictorial)
    file.write(encoded[len(signature + header) :])


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and bytes of each chunk: length, name, data, checksum (PNG specification, "Chunk layout")."""
    start = 8
    while start < len(png):
        (length,) = struct.unpack(">I", png[start : start + 4])
        end = start + 12 + length
        yield png[start + 4 : start + 8], png[start:end]
        start = end
