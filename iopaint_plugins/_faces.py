"""Faces: found by YuNet, aligned on five points, restored by a network one by one, and faded back into the image.

W. Wu, H. Peng, S. Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 2023; OpenCV
runs it. Faces are aligned as those of FFHQ in squares of 512 pixels, on which the restorers are trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iopaint_core import (
    Box,
    ImageModel,
    ImageParameters,
    InputError,
    Result,
    WeightFile,
    WeightsError,
    progress_part,
    report_progress,
)
from iopaint_plugins._opencv import opencv_component
from iopaint_plugins._spandrel import check_numbers, spandrel_component

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TypeVar

    import cv2
    import numpy as np
    from numpy.typing import NDArray

    from iopaint_core import Image, LoadContext, ModelInfo
    from iopaint_plugins._spandrel import Network

    Matrix = NDArray[np.float64]
    """`(3, 3)`: of points in pixels, whose centres are whole numbers."""
    Values = NDArray[np.float32]
    RestorerT = TypeVar("RestorerT", bound="FaceRestorer")

YUNET = WeightFile(
    url="https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/face_detection_yunet/"
    "face_detection_yunet_2023mar.onnx",
    sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    size=232_589,
)
_SIDE = 512
"""Pixels of a side of an aligned face."""
_POINTS = (
    (192.98138, 239.94708),
    (318.90277, 240.1936),
    (256.63416, 314.01935),
    (201.26117, 371.41043),
    (313.08905, 371.15118),
)
"""Eyes, nose and corners of the mouth of an aligned face, left ones first: the means of FFHQ, as facexlib has them
(github.com/xinntao/facexlib, `FaceRestoreHelper`), which GFPGAN, RestoreFormer and CodeFormer are run with."""
_VIEW, _OVERLAP = 640, 160
"""YuNet sees squares of this side, for which its file is made; a face that is not larger than the overlap is in one
of them as a whole."""
_LONGEST = 2048
"""Longer side of the largest size in which an image is looked at: what is 10 pixels high there is found."""
_LARGEST_FACE = 320
"""YuNet was trained on faces of up to about so many pixels: larger ones are found in a smaller view."""
_LIKELY = 0.7
"""Score from which something is a face: less than the 0.9 of OpenCV, for those to restore are blurred."""
_SAME = 0.3
"""Intersection over union from which two boxes are one face; OpenCV's default."""
_CLOSEST_EYES = 5
"""Pixels between the eyes of the smallest face that is restored; GFPGAN's."""
_EDGE, _FADE = 24, 48
"""Pixels of an aligned face at its edge that are not taken, and over which what is taken fades in from there."""
_ROWS = 256
"""Rows of the image that are worked on at once, so that memory is bounded."""


@dataclass(frozen=True)
class FaceParameters(ImageParameters):
    """What is done besides the restoration of faces. By default, `scale` is 1."""

    background: str = ""
    """Model that makes what is not a face, such as `realesr-general-x4v3`; by default it stays as it is."""


class FaceRestorer(ImageModel[FaceParameters]):
    """Restores each face by a network; `info["faces"]` says how many were found."""

    architecture: str
    """The `id` that spandrel has for its network, whose module takes RGB in -1 … 1, and gives that first."""

    def __init__(self, network: Network, detector: cv2.FaceDetectorYN, context: LoadContext) -> None:
        self._network = network
        self._detector = detector
        self._device = context.device
        self._models = context.models

    def arguments(self, parameters: FaceParameters) -> Mapping[str, object]:  # noqa: ARG002 - for subclasses
        """Return what the network's module takes besides the face."""
        return {}

    def forward(self, image: Image, parameters: FaceParameters) -> Result:
        """Restore the faces from left to right; without any, and nothing else to do, the image stays as it is."""
        faces = find_faces(image, self._detector)
        scale = parameters.scale or 1
        if not faces and scale == 1 and not parameters.background:
            return Result(image, info={"faces": 0, "unchanged": True})
        height, width = image.shape[:2]
        enlarged = _resized(image, max(1, round(height * scale)), max(1, round(width * scale)))
        result = enlarged.copy()
        first = 1 if parameters.background else 0
        parts = first + len(faces)
        report_progress(0, parts)
        if parameters.background:
            with progress_part(0, parts):
                result = self._background(image, parameters.background, scale, enlarged.shape)
        for number, to_aligned in enumerate(faces):
            report_progress(first + number, parts)
            aligned = _aligned(image, to_aligned)
            change = self._restored(aligned, parameters) - aligned
            into_result = _scaling(enlarged.shape[1] / width, enlarged.shape[0] / height)
            _paste(result, enlarged, change, into_result @ _inverse(to_aligned))
        return Result(result, info={"faces": len(faces)})

    def _background(self, image: Image, name: str, scale: float, shape: tuple[int, ...]) -> Image:
        made = self._models.process(name, image, {"scale": scale})
        if made.shape[2] != 3:
            raise InputError(
                f"The background was made by {name}, which cuts something out: expected RGB, found RGBA",
                "Take an upscaler, such as background=realesr-general-x4v3",
            )
        return _resized(made, *shape[:2])

    def _restored(self, aligned: Image, parameters: FaceParameters) -> Values:
        """Run the network on an aligned face; its result is in 0 … 255."""
        import torch

        descriptor = self._network.descriptor
        with torch.inference_mode():
            pixels = torch.from_numpy(aligned).to(self._device).permute(2, 0, 1)[None]
            given = descriptor.model(pixels.to(descriptor.dtype) / 127.5 - 1, **self.arguments(parameters))[0]
            check_numbers(given)
            values: Values = ((given[0].permute(1, 2, 0).float() + 1) * 127.5).clamp(0, 255).cpu().numpy()
        return values


def load_restorer(kind: type[RestorerT], info: ModelInfo, context: LoadContext) -> RestorerT:
    """Load the network, which is the first of the weights, and YuNet. Raises `WeightsError` for another network."""

    def read(network: NDArray[np.uint8]) -> cv2.FaceDetectorYN:
        import cv2
        import numpy as np

        no_config = np.zeros(0, np.uint8)
        return cv2.FaceDetectorYN.create("onnx", network, no_config, (_VIEW, _VIEW), _LIKELY, _SAME)

    file = context.weights(info.weights[0].filename)
    parts = context.share(
        {
            "network": spandrel_component(file, context),
            "detector": opencv_component(
                context.weights(YUNET.filename), context, read, kind="OpenCV face detector"
            ),
        }
    )
    found = parts["network"].descriptor.architecture
    if found.id != kind.architecture:
        raise WeightsError(
            f"{file} is a network of {found.name}: expected {kind.architecture}",
            "Leave out what names this file, and the published one is fetched",
        )
    return kind(parts["network"], parts["detector"], context)


def find_faces(image: Image, detector: cv2.FaceDetectorYN) -> list[Matrix]:
    """Return what aligns each face, from left to right, by YuNet on all of the image in several sizes."""
    import cv2
    import numpy as np

    found = [np.zeros((0, 15), np.float32)]
    longest = max(image.shape[:2])
    looked_at = min(longest, _LONGEST)
    while True:
        found += _looks(image, looked_at / longest, detector)
        if looked_at <= _LARGEST_FACE:
            break
        looked_at //= 4  # what was too large to be in one tile is then larger than the smallest that is found
    rows = np.concatenate(found)
    kept = cv2.dnn.NMSBoxes(rows[:, :4].tolist(), rows[:, 14].tolist(), _LIKELY, _SAME)
    faces = []
    for row in sorted(rows[np.asarray(kept, int)].tolist()):
        points = np.asarray(row[4:14], np.float32).reshape(5, 2)
        matrix, _ = cv2.estimateAffinePartial2D(points, np.asarray(_POINTS, np.float32), method=cv2.LMEDS)
        if matrix is None or math.dist(*points[:2]) < _CLOSEST_EYES:
            continue
        to_aligned = np.vstack([matrix, [0, 0, 1]]).astype(np.float64)
        if _bounds(_inverse(to_aligned), image.shape) is not None:
            faces.append(to_aligned)
    return faces


def _looks(image: Image, scale: float, detector: cv2.FaceDetectorYN) -> Iterator[Values]:
    """Yield what YuNet finds in each tile of an image of that size: box, five points and score."""
    import cv2
    import numpy as np

    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    view = cv2.cvtColor(_resized(image, height, width), cv2.COLOR_RGB2BGR)
    for top in _starts(height):
        for left in _starts(width):
            seen = view[top : top + _VIEW, left : left + _VIEW]
            tile = np.zeros((_VIEW, _VIEW, 3), np.uint8)
            tile[: seen.shape[0], : seen.shape[1]] = seen
            given = detector.detect(tile)[1]
            if given is not None:
                rows = np.asarray(given, np.float32)
                rows[:, [0, 4, 6, 8, 10, 12]] += left
                rows[:, [1, 5, 7, 9, 11, 13]] += top
                rows[:, :4] = rows[:, :4] / scale
                rows[:, 4:14] = (rows[:, 4:14] + 0.5) / scale - 0.5
                yield rows


def _starts(length: int) -> list[int]:
    """Return where tiles begin that cover a length, overlapping by `_OVERLAP` pixels at least."""
    count = max(1, math.ceil((length - _OVERLAP) / (_VIEW - _OVERLAP)))
    return [max(0, length - _VIEW) * number // max(1, count - 1) for number in range(count)]


def _aligned(image: Image, to_aligned: Matrix) -> Image:
    """Return a face as the networks take it; where it is larger, each pixel is the mean of what it covers."""
    import cv2
    import numpy as np

    finer = max(1, math.ceil(1 / math.hypot(*to_aligned[:2, 0])))
    box = _bounds(_inverse(to_aligned), image.shape)
    assert box is not None, "find_faces sees to it"
    matrix = _scaling(finer, finer) @ to_aligned @ _shift(box.left, box.top)
    size = finer * _SIDE, finer * _SIDE
    face = cv2.warpAffine(image[box.slices], matrix[:2], size, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(_resized(np.asarray(face, np.uint8), _SIDE, _SIDE))


def _paste(result: Image, image: Image, change: Values, from_aligned: Matrix) -> None:
    """Put a face into a result: the image with what the network changed in it, faded out towards the edge.

    It is not the network's pixels that are resampled back, but what they differ by: where nothing changes, the
    image stays as sharp as it is. Both are as large.
    """
    import cv2
    import numpy as np

    box = _bounds(from_aligned, result.shape)
    if box is None:
        return
    layers = np.dstack([change, _weights()])
    smaller = math.ceil(_SIDE * math.hypot(*from_aligned[:2, 0]))
    if smaller < _SIDE:
        layers = cv2.resize(layers, (smaller, smaller), interpolation=cv2.INTER_AREA)
        from_aligned = from_aligned @ _scaling(_SIDE / smaller, _SIDE / smaller)
    for top in range(box.top, box.bottom, _ROWS):
        strip = Box(box.left, top, box.right, min(top + _ROWS, box.bottom))
        size = strip.right - strip.left, strip.bottom - strip.top
        patch = cv2.warpAffine(layers, (_shift(-strip.left, -strip.top) @ from_aligned)[:2], size)
        old, weight = result[strip.slices], patch[..., 3:]
        new = old + (image[strip.slices] + patch[..., :3] - old) * weight
        result[strip.slices] = np.rint(new).clip(0, 255).astype(np.uint8)


def _weights() -> Values:
    """Return how much counts of each pixel of an aligned face: 0 at its edge, 1 in its middle."""
    import numpy as np

    from_edge = np.minimum(np.arange(_SIDE), np.arange(_SIDE)[::-1])
    ramp = ((from_edge - _EDGE) / _FADE).clip(0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    return np.asarray(np.outer(ramp, ramp), np.float32)


def _bounds(from_aligned: Matrix, shape: tuple[int, ...]) -> Box | None:
    """Return the pixels of an image that an aligned face covers, and two around them; None if there are none."""
    import numpy as np

    corners = from_aligned @ [[0, _SIDE, 0, _SIDE], [0, 0, _SIDE, _SIDE], [1, 1, 1, 1]]
    (left, top), (right, bottom) = np.floor(corners.min(axis=1))[:2] - 2, np.ceil(corners.max(axis=1))[:2] + 3
    box = Box(max(0, int(left)), max(0, int(top)), min(shape[1], int(right)), min(shape[0], int(bottom)))
    return box if box.left < box.right and box.top < box.bottom else None


def _resized(image: Image, height: int, width: int) -> Image:
    import cv2
    import numpy as np

    if image.shape[:2] == (height, width):
        return image
    how = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)


def _scaling(across: float, down: float) -> Matrix:
    import numpy as np

    return np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1]])


def _shift(right: float, down: float) -> Matrix:
    import numpy as np

    return np.array([[1, 0, right], [0, 1, down], [0, 0, 1]], np.float64)


def _inverse(matrix: Matrix) -> Matrix:
    import numpy as np

    return np.asarray(np.linalg.inv(matrix), np.float64)
