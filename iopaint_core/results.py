"""Write what a result holds: the image, masks and maps beside it, and the rest as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from iopaint_core.errors import PictureWriteError
from iopaint_core.pictures import FORMATS, Picture, write_picture, written_aside

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from iopaint_core.imaging import Image, Map
    from iopaint_core.schema import Result

SUFFIXES = (*FORMATS, ".npy", ".json")
"""Those that `run --output` may have: of pictures, of arrays, and of what is no image at all."""


def write_result(result: Result, picture: Picture, path: Path, *, quality: int) -> list[Path]:
    """Write all that a result holds and return the files, the one at `path` first.

    The image comes to `path`, with the metadata of `picture`, of which it was made. Beside it come a mask as
    `NAME.mask.png`, several as `NAME.0.mask.png`, maps as `NAME.depth.png` with the 8 or 16 bits that they have,
    and those of other types as `NAME.depth.npy`. Without an image, `path` gets the mask, all masks united, or the
    first map: as `.npy`, or as a PNG file of 16 bits, its values spread from black to white.

    Raises `PictureWriteError`.
    """
    files = [path] if _write_main(result, picture, path, quality) else []
    masks = [] if result.masks is None else [*result.masks]
    maps = [*result.maps.items()]
    if files and result.image is None and path.suffix.lower() != ".json":  # what stands there is not repeated
        masks = masks if len(masks) > 1 else []
        maps = maps if result.masks is not None else maps[1:]
    for number, mask in enumerate(masks):
        files.append(_beside(path, "mask" if len(masks) == 1 else f"{number}.mask", ".png"))
        _write_png(files[-1], mask)
    for name, values in maps:
        is_plain = values.ndim == 2 and values.dtype.name in {"uint8", "uint16"}
        file = _beside(path, name, ".png" if is_plain else ".npy")
        if file in files:
            raise PictureWriteError(
                f"The map {name!r} would be written over {file}, which holds something else of the same result",
                "Report it to the author of the plugin: maps have names of letters and digits, other than 'mask'",
            )
        files.append(file)
        (_write_png if is_plain else _write_array)(file, values)
    return files


def _write_main(result: Result, picture: Picture, path: Path, quality: int) -> bool:
    """Write what stands for the whole result; False if there is nothing of the kind that `path` says."""
    import PIL.Image

    suffix = path.suffix.lower()
    if suffix == ".json":
        text = json.dumps(describe_result(result), indent=2, ensure_ascii=False)
        _write_bytes(path, text.encode("utf-8", "backslashreplace"))  # half a surrogate pair, as JSON escapes it
        return True
    first = next(iter(result.maps.values()), None)
    main = result.image if result.image is not None else first if result.masks is None else result.mask
    if main is None:
        return False
    if suffix == ".npy":
        _write_array(path, main)
    elif result.image is not None:
        write_picture(repaired(picture, result.image, result), path, quality=quality)
    elif result.masks is not None:
        write_picture(Picture(PIL.Image.fromarray(main)), path, quality=quality)
    elif suffix == ".png":
        _write_png(path, _spread(main))
    else:
        return False
    return True


def repaired(picture: Picture, image: Image, result: Result) -> Picture:
    """Return a picture with the image of a result of it."""
    return picture.repaired(image, in_colour=result.info.get("in_colour") is True)


def describe_result(result: Result) -> Mapping[str, object]:
    """Return what of a result is no array, as JSON holds it."""
    return {
        "masks": 0 if result.masks is None else len(result.masks),
        "scores": list(result.scores),
        "labels": list(result.labels),
        "maps": {
            name: {"shape": list(values.shape), "dtype": values.dtype.name} for name, values in result.maps.items()
        },
        "info": dict(result.info),
    }


def _beside(path: Path, name: str, suffix: str) -> Path:
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    return path.with_name(f"{path.stem}.{plain}{suffix}")


def _spread(values: Map) -> Map:
    """Return a map as 16 bits, its least value black, its greatest white; one of 8 or 16 bits as it is."""
    import numpy as np

    if values.dtype.name in {"uint8", "uint16"}:
        return values
    plane = np.asarray(values if values.ndim == 2 else values.mean(axis=2), np.float64)
    finite = plane[np.isfinite(plane)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    scaled = (np.nan_to_num(plane, nan=low, posinf=high, neginf=low) - low) / ((high - low) or 1.0)
    return np.asarray(np.rint(scaled * 65535), np.uint16)


def _write_png(path: Path, values: Map) -> None:
    import cv2
    import numpy as np

    plane: NDArray[np.integer] = np.asarray(values, np.uint16 if values.dtype == np.uint16 else np.uint8)
    _write_bytes(path, cv2.imencode(".png", plane)[1].tobytes())


def _write_array(path: Path, values: Map) -> None:
    import numpy as np

    with written_aside(path) as file:
        np.save(file, values, allow_pickle=False)


def _write_bytes(path: Path, content: bytes) -> None:
    with written_aside(path) as file:
        file.write(content)
