"""A task of a plugin's own: depth, from one picture, without weights.

Haze hides what is far away. How much of it lies before a pixel, the dark channel prior tells: K. He, J. Sun,
X. Tang, "Single Image Haze Removal Using Dark Channel Prior", CVPR 2009. Without haze, some colour is dark near
almost every pixel; so what light is left there is haze, and what shines through it falls off with depth.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from iopaint_core import Hint, ImageModel, ImageParameters, ModelInfo, Result, Task, hookimpl

DEPTH = Task("depth", gives=("maps",))


@dataclass(frozen=True)
class DepthParameters(ImageParameters):
    """How `depth` looks for haze."""

    patch: Annotated[int, Ge(1), Le(99), Hint(unit="px")] = 15
    """Side of the square around a pixel in which the darkest colour is looked for."""
    haze_kept: Annotated[float, Gt(0), Lt(1)] = 0.05
    """Part of the haze that counts as none; it bounds the depth of what is nothing but haze."""
    smoothing: Annotated[int, Ge(1), Le(200), Hint(unit="px")] = 30
    """Radius within which depth follows the edges of the picture."""


class Depth(ImageModel[DepthParameters]):
    def forward(self, image, parameters):
        import numpy as np

        pixels = image.astype(np.float32) / 255
        dark = dark_channel(pixels, parameters.patch)
        haziest = dark >= np.quantile(dark, 0.999)
        air = np.maximum(pixels[haziest].mean(axis=0), 1 / 255)
        clear = 1 - (1 - parameters.haze_kept) * dark_channel(pixels / air, parameters.patch)
        clear = follow_edges(clear, pixels.mean(axis=2), parameters.smoothing)
        depth = -np.log(clear.clip(parameters.haze_kept, 1))
        return Result(maps={"depth": depth.astype(np.float32)})


def dark_channel(pixels, patch):
    """Return the darkest colour near each pixel."""
    import cv2
    import numpy as np

    return cv2.erode(pixels.min(axis=2), np.ones((patch, patch), np.uint8))


def follow_edges(values, guide, radius, tolerance=1e-3):
    """Smooth values except at the edges of a guide: the guided filter of the same authors, ECCV 2010."""
    import cv2

    def mean(array):
        return cv2.blur(array, (2 * radius + 1, 2 * radius + 1))

    covariance = mean(guide * values) - mean(guide) * mean(values)
    slope = covariance / (mean(guide * guide) - mean(guide) ** 2 + tolerance)
    return mean(slope) * guide + mean(mean(values) - slope * mean(guide))


@hookimpl
def iopaint_available_models():
    return [ModelInfo(name="depth", task=DEPTH, parameters=DepthParameters, title="Depth from haze")]


@hookimpl
def iopaint_load_model(info, context):
    return Depth()
