"""Measure fill quality: how near erasers come to what a mask hid, on photographs, with the seconds that they take.

Each photograph is its own truth: a part of it is hidden and painted anew. That says how well an eraser goes on with
what surrounds a hole; of an object that is to vanish, the truth is not known.

Writes `benchmarks/results/quality.json`, its part of `docs/benchmarks.md`, and the sheet `docs/fill-quality.jpg`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import io
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from report import ROOT, lines, machine, save, summary, versions

from iopaint_core import ModelManager, Task, WeightStore, default_context

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Image = NDArray[np.uint8]

PHOTOGRAPHS = ("astronaut", "brick", "chelsea", "coffee", "gravel", "ihc", "motorcycle_left", "rocket")
"""Files of scikit-image's package; it says where each is from."""
SIDE = 512
PARTS = (0.03, 0.12)
"""How much of a photograph is hidden."""
ELLIPSES = 6
ON_SHEET = ("astronaut", "chelsea", "coffee", "rocket")


class Eraser(NamedTuple):
    """A model, and what is asked of it beside its defaults."""

    name: str
    model: str
    parameters: Mapping[str, object]


class Fill(NamedTuple):
    """What an eraser made of a photograph."""

    image: Image
    distance: float
    """ST-LPIPS (AlexNet) to the photograph: A. Ghildyal, F. Liu, "Shift-tolerant Perceptual Similarity Metric",
    ECCV 2022."""
    psnr: float
    """Of the hidden pixels, in dB."""
    seconds: float


def erasers(manager: ModelManager) -> list[Eraser]:
    """The installed models that erase and whose weights are here, by their defaults; `cv2` in both its ways."""
    store = WeightStore(default_context().cache)
    ready = [
        info.name
        for info in manager.scan().models
        if info.task is Task.INPAINT and not info.unavailable and not store.missing(info) and info.path is None
    ]
    ways = [Eraser("cv2, Telea", "cv2", {"cv2_flag": "INPAINT_TELEA"})] if "cv2" in ready else []
    return [*(Eraser(name, name, {}) for name in ready), *ways]


def photograph(name: str) -> Image:
    """A photograph in RGB, its longer side of 512 pixels."""
    import skimage

    (path,) = (Path(skimage.__file__).parent / "data").glob(f"{name}.*g")
    image = cv2.imread(str(path))
    scale = SIDE / max(image.shape[:2])
    size = [round(side * scale) for side in image.shape[1::-1]]
    return np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)[:, :, ::-1])


def hidden(shape: tuple[int, ...], part: float, seed: int) -> Image:
    """A mask of ellipses at random places that covers `part` of an image, give or take a tenth of it."""
    random = np.random.default_rng(seed)
    height, width = shape[:2]
    while True:
        mask = np.zeros((height, width), np.uint8)
        for _ in range(ELLIPSES):
            area, ratio = part * height * width / ELLIPSES, random.uniform(0.5, 2)
            axes = round((area * ratio / np.pi) ** 0.5), round((area / ratio / np.pi) ** 0.5)
            centre = int(random.integers(width)), int(random.integers(height))
            cv2.ellipse(mask, centre, axes, random.uniform(0, 180), 0, 360, 255, -1)
        if abs(mask.mean() / 255 / part - 1) < 0.1:
            return mask


def metric() -> Callable[[Image, Image], float]:
    """ST-LPIPS, whose weights its package brings along."""
    import torch

    with contextlib.redirect_stdout(io.StringIO()):
        from stlpips_pytorch.stlpips import LPIPS

        network = LPIPS(net="alex", variant="shift_tolerant", verbose=False)

    def tensor(image: Image) -> torch.Tensor:
        return torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 127.5 - 1

    def distance(one: Image, other: Image) -> float:
        with torch.inference_mode():
            return float(network(tensor(one), tensor(other)))

    return distance


def fill(manager: ModelManager, eraser: Eraser, image: Image, mask: Image, distance: Callable[..., float]) -> Fill:
    hole = image.copy()
    hole[mask > 0] = 128  # an eraser that looks there is found out
    started = time.perf_counter()
    made = manager.inpaint(eraser.model, hole, mask, eraser.parameters)
    seconds = time.perf_counter() - started
    error = np.square(made[mask > 0].astype(np.float32) - image[mask > 0]).mean()
    return Fill(made, distance(made, image), float(10 * np.log10(255**2 / max(error, 1e-9))), seconds)


def sheet(rows: list[list[Image]], names: list[str]) -> Image:
    """Photographs below each other, and beside each what was made of it, with names above."""
    side = 240

    def cell(image: Image) -> Image:
        scale = side / image.shape[1]
        return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)

    head = np.full((24, side * len(names), 3), 255, np.uint8)
    for place, name in enumerate(names):
        cv2.putText(head, name, (side * place + 4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([head, *(np.hstack([cell(image) for image in row]) for row in rows)])


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    distance = metric()
    fills: dict[str, dict[float, list[Fill]]] = {}
    rows: list[list[Image]] = []
    with ModelManager() as manager:
        tried = erasers(manager)
        image = photograph("coffee")
        for eraser in tried:  # what is loaded, or imported, at the first call is not counted
            fill(manager, eraser, image, hidden(image.shape, PARTS[0], 0), distance)
        for seed, name in enumerate(PHOTOGRAPHS):
            image = photograph(name)
            for part in PARTS:
                mask = hidden(image.shape, part, seed)
                made = [fill(manager, eraser, image, mask, distance) for eraser in tried]
                for eraser, each in zip(tried, made, strict=True):
                    fills.setdefault(eraser.name, {}).setdefault(part, []).append(each)
                if part == PARTS[-1] and name in ON_SHEET:
                    hole = image.copy()
                    hole[mask > 0] = 255
                    rows.append([image, hole, *(each.image for each in made)])
    about = machine()
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": about,
        "versions": {"iopaint-core": versions(Path(sys.executable).parent)},
        "photographs": PHOTOGRAPHS,
        "erasers": {
            name: {
                f"{part:.0%}": {
                    field: summary([getattr(each, field) for each in made]) | {"mean": mean(made, field)}
                    for field in ("distance", "psnr", "seconds")
                }
                for part, made in parts.items()
            }
            for name, parts in fills.items()
        },
    }
    head = ["eraser", *(f"{what}, {part:.0%} hidden" for part in PARTS for what in ("ST-LPIPS", "PSNR", "seconds"))]
    body = [
        [
            name,
            *(
                f"{mean(parts[part], field):{form}}"
                for part in PARTS
                for field, form in (("distance", ".4f"), ("psnr", ".1f"), ("seconds", ".2f"))
            ),
        ]
        for name, parts in sorted(fills.items(), key=lambda item: mean(item[1][PARTS[-1]], "distance"))
    ]
    text = f"""{lines(head, body)}

{result["date"]}, {about["cpu"]}, {about["cores"]} cores, Python {about["python"]}.
Means of {len(PHOTOGRAPHS)} photographs of scikit-image's package, at {SIDE} pixels; {ELLIPSES} ellipses at random
places are hidden. ST-LPIPS (AlexNet) is of the whole picture, lower is better; PSNR is of the hidden pixels in dB,
higher is better, and likes what is blurred."""
    save("quality", "quality", result, text)
    picture = sheet(rows, ["photograph", "hidden", *(eraser.name for eraser in tried)])
    cv2.imwrite(str(ROOT / "docs" / "fill-quality.jpg"), picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    print(text)


def mean(fills: list[Fill], field: str) -> float:
    return statistics.fmean(getattr(each, field) for each in fills)


if __name__ == "__main__":
    main()
