"""What a loaded model is: three shapes, each a callable that checks what goes in and what comes out.

A plugin subclasses one of them and writes `forward`. Images are RGB `uint8` arrays `(H, W, 3)`, masks `uint8`
`(H, W)`, 255 where to repaint. The arrays that `forward` receives are its own: it may write to them.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from iopaint_core import imaging
from iopaint_core.errors import InputError, ModelOutputError
from iopaint_core.parameters import HDStrategy, ImageParameters, InpaintParameters, MaskParameters, Parameters
from iopaint_core.schema import Task

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultTypeVar

    from iopaint_core.imaging import Image, Mask
    from iopaint_core.parameters import ParametersLike

    InpaintT = DefaultTypeVar("InpaintT", bound=InpaintParameters, default=InpaintParameters)
    ImageT = DefaultTypeVar("ImageT", bound=ImageParameters, default=ImageParameters)
    MaskT = DefaultTypeVar("MaskT", bound=MaskParameters, default=MaskParameters)
else:  # defaults are new in Python 3.13, and typing_extensions is nothing to import for them
    InpaintT, ImageT, MaskT = map(TypeVar, ("InpaintT", "ImageT", "MaskT"))

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with (step, total) while a model works; what it raises cancels the work."""

Preview = Callable[["Image"], None]
"""Called with the picture as it would be if the work ended now; what it raises cancels the work."""

_logger = logging.getLogger(__name__)
_progress: contextvars.ContextVar[Progress | None] = contextvars.ContextVar("iopaint_progress", default=None)
_preview: contextvars.ContextVar[Preview | None] = contextvars.ContextVar("iopaint_preview", default=None)


def report_progress(step: int, total: int) -> None:
    """Called inside `forward`: tell the host how far the work is. What the host raises cancels it."""
    report = _progress.get()
    if report is not None:
        report(step, total)


def wants_preview() -> bool:
    """Called inside `forward`: whether the host asks for previews, which may take time to make."""
    return _preview.get() is not None


def report_preview(image: Image) -> None:
    """Called inside `InpaintModel.forward`: show the host what it would return now, an array as it will return.

    What the host raises cancels the work.
    """
    show = _preview.get()
    if show is not None:
        show(image)


class Model:
    """What a plugin's loader returns, in one of three shapes."""

    nbytes: int = 0
    """Bytes that it takes on its device besides the components that it shares; the pool charges them."""
    parameters_class: type[Parameters]
    """The class of what it takes; the manager sets what its `ModelInfo` announces."""

    def close(self) -> None:
        """Called once, when the pool drops the model; override to free what the garbage collector does not."""


class InpaintModel(Model, ABC, Generic[InpaintT]):
    """Repaints what a mask covers. Everything around `forward` is done here, once for all models."""

    parameters_class: type[Parameters] = InpaintParameters
    pad_multiple: int = 1
    """Both sides of what `forward` receives are multiples of this, in pixels."""
    min_size: int = 1
    """Neither side of what `forward` receives is smaller, in pixels."""
    square: bool = False
    """`forward` receives squares."""
    mask_blur: bool = False
    """Results fade into the picture over `parameters.sd_mask_blur` pixels around the mask."""
    whole: bool = False
    """`forward` receives whole pictures, made smaller by `parameters.sd_scale`; `hd_strategy` is not read."""

    @abstractmethod
    def forward(self, image: Image, mask: Mask, parameters: InpaintT) -> Image:
        """Repaint `image` where `mask` is 255; returns a `uint8` array of the image's shape.

        The mask holds 0 and 255 only and is not empty. What is returned outside it is not used, unless
        `parameters.sd_keep_unmasked_area` is False.
        """

    def __call__(
        self,
        image: Image,
        mask: Mask,
        parameters: ParametersLike = None,
        *,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Image:
        """Repaint what `mask` covers (above 127) and return a new RGB `uint8` array of the image's shape.

        Pixels outside the mask come back bit for bit, unless the parameters or `mask_blur` say otherwise. With
        `use_extender` the result is as large as the image and the extender's rectangle together.
        `preview` is called with the picture so far, by models that can show it.
        Raises `InputError`, `RequestError`, `ModelOutputError`, and whatever `forward`, `progress` or `preview`
        raises.
        """
        parsed: InpaintT = self.parameters_class.parse(parameters)  # type: ignore[assignment] # ModelInfo sees to it
        _check_image(image)
        _check_mask(mask, image)
        covered = imaging.binarize(mask)
        if mask.any() and not covered.any():
            _logger.warning("The mask covers nothing: its largest value is %d, and above 127 counts", mask.max())
        with _bound(_progress, progress), _bound(_preview, preview):
            if parsed.use_croper:
                return self._cropped(image, covered, parsed)
            if parsed.use_extender:
                return self._extended(image, covered, parsed)
            return self._painted(image, covered, parsed)

    def _extended(self, image: Image, mask: Mask, parameters: InpaintT) -> Image:
        box = imaging.Box.at(
            parameters.extender_x, parameters.extender_y, parameters.extender_width, parameters.extender_height
        )
        framed = imaging.reframe(image, mask, box)
        if framed is None:
            raise _outside("extender", box, image)
        with _showing(lambda part: imaging.compose(image, part, box)) as finish:
            return finish(self._painted(*framed, parameters.for_outpainting()))

    def _cropped(self, image: Image, mask: Mask, parameters: InpaintT) -> Image:
        asked = imaging.Box.at(
            parameters.croper_x, parameters.croper_y, parameters.croper_width, parameters.croper_height
        )
        box = asked & imaging.Box.at(0, 0, mask.shape[1], mask.shape[0])
        if box is None:
            raise _outside("croper", asked, image)
        with _showing(lambda part: imaging.compose(image, part, box)) as finish:
            return finish(self._painted(image[box.slices], mask[box.slices], parameters))

    def _painted(self, image: Image, mask: Mask, parameters: InpaintT) -> Image:
        """Repaint all that the mask covers, and nothing else."""
        if not mask.any():
            _logger.warning("The mask is empty, so the picture is returned unchanged")
            return image.copy()

        def composite(result: Image) -> Image:
            if not parameters.sd_keep_unmasked_area:
                return result.copy()
            return imaging.blend(result, image, mask, parameters.sd_mask_blur if self.mask_blur else 0)

        with _showing(composite) as finish:
            return finish(self._repaint(image, mask, parameters))

    def _repaint(self, image: Image, mask: Mask, parameters: InpaintT) -> Image:
        longer = max(mask.shape)
        strategy = HDStrategy.ORIGINAL if self.whole else parameters.hd_strategy
        if strategy is HDStrategy.CROP and longer > parameters.hd_strategy_crop_trigger_size:
            result = image.copy()
            boxes = imaging.crop_boxes(mask, parameters.hd_strategy_crop_margin)
            for part, box in enumerate(boxes):
                with _reporting_part(part, len(boxes)), _showing(partial(_pasted, result, box)):
                    result[box.slices] = self._forward_padded(image[box.slices], mask[box.slices], parameters)
            return result
        limit = parameters.hd_strategy_resize_limit if strategy is HDStrategy.RESIZE else longer
        if self.whole:
            limit = max(1, round(longer * parameters.sd_scale))
        with _reporting_part(0, 1):
            if longer > limit:
                small = imaging.shrink(image, mask, limit)
                with _showing(lambda part: imaging.enlarge(part, *mask.shape)) as finish:
                    return finish(self._forward_padded(*small, parameters))
            return self._forward_padded(image, mask, parameters)

    def _forward_padded(self, image: Image, mask: Mask, parameters: InpaintT) -> Image:
        height, width = mask.shape
        padded, padded_mask = (
            imaging.pad(array, multiple=self.pad_multiple, min_size=self.min_size, square=self.square)
            for array in (image, mask)
        )
        shape = padded.shape

        def unpadded(result: Image) -> Image:
            _check_output(self, result, [shape])
            result = result[:height, :width]
            return imaging.match_histograms(result, image, mask == 0) if parameters.sd_match_histograms else result

        with _showing(unpadded) as finish:
            return finish(self.forward(padded, padded_mask, parameters))


class ImageModel(Model, ABC, Generic[ImageT]):
    """Makes a picture from a picture: upscales, restores, cuts out."""

    parameters_class: type[Parameters] = ImageParameters

    @abstractmethod
    def forward(self, image: Image, parameters: ImageT) -> Image:
        """Return a `uint8` array `(H, W, 3)` in RGB or `(H, W, 4)` in RGBA, of any size."""

    def __call__(
        self, image: Image, parameters: ParametersLike = None, *, progress: Progress | None = None
    ) -> Image:
        """Run the model; the image is not written to.

        Raises `InputError`, `RequestError`, `ModelOutputError`, and whatever `forward` or `progress` raises.
        """
        parsed: ImageT = self.parameters_class.parse(parameters)  # type: ignore[assignment] # ModelInfo sees to it
        _check_image(image)
        with _bound(_progress, progress), _reporting_part(0, 1):
            result = self.forward(image.copy(), parsed)
        shape = getattr(result, "shape", ())
        _check_output(self, result, [(*shape[:2], channels) for channels in (3, 4)])
        return result


class MaskModel(Model, ABC, Generic[MaskT]):
    """Finds a mask in a picture, with or without clicks."""

    parameters_class: type[Parameters] = MaskParameters

    @abstractmethod
    def forward(self, image: Image, parameters: MaskT) -> Mask:
        """Return a `uint8` array `(H, W)`, 255 where the subject is."""

    def __call__(
        self, image: Image, parameters: ParametersLike = None, *, progress: Progress | None = None
    ) -> Mask:
        """Run the model; the image is not written to.

        Raises `InputError`, `RequestError`, `ModelOutputError`, and whatever `forward` or `progress` raises.
        """
        parsed: MaskT = self.parameters_class.parse(parameters)  # type: ignore[assignment] # ModelInfo sees to it
        _check_image(image)
        height, width = image.shape[:2]
        for click in parsed.clicks:
            if click.x >= width or click.y >= height:
                raise InputError(f"{click} is outside the image of {width} x {height}", "Click inside the image")
        for box in parsed.boxes:
            if not (0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height):
                raise InputError(
                    f"{box} is empty, or not within the image of {width} x {height}",
                    "Give left < right and top < bottom, inside the image",
                )
        parsed.check_mask(height, width)
        with _bound(_progress, progress), _reporting_part(0, 1):
            result = self.forward(image.copy(), parsed)
        _check_output(self, result, [(height, width)])
        return result


SHAPES: dict[Task, type[InpaintModel] | type[ImageModel] | type[MaskModel]] = {
    Task.INPAINT: InpaintModel,
    Task.RESTORE: ImageModel,
    Task.MATTING: ImageModel,
    Task.SEGMENT: MaskModel,
}
"""What a model of each task is, so that a host knows before it loads one."""


@contextlib.contextmanager
def _bound(variable: contextvars.ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextlib.contextmanager
def _showing(finish: Callable[[Image], Image]) -> Iterator[Callable[[Image], Image]]:
    """Have previews go through `finish`, as the result will; gives it back."""
    show = _preview.get()
    if show is None:
        yield finish
        return
    with _bound(_preview, lambda image: show(finish(image))):
        yield finish


def _pasted(whole: Image, box: imaging.Box, part: Image) -> Image:
    whole = whole.copy()
    whole[box.slices] = part
    return whole


@contextlib.contextmanager
def _reporting_part(part: int, parts: int) -> Iterator[None]:
    """Report the steps of one part of the work as steps of the whole."""
    report = _progress.get()
    if report is None:
        yield
        return
    with _bound(_progress, lambda step, total: report(part * total + step, parts * total)):
        yield
        report_progress(1, 1)


def _check_image(image: Image) -> None:
    import numpy as np

    found = _describe(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"The image is {found}", "Pass RGB as a uint8 array of shape (H, W, 3)")
    if not image.size:
        raise InputError(f"The image is {found}: it has no pixels", "Pass at least one pixel")


def _check_mask(mask: Mask, image: Image) -> None:
    import numpy as np

    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.ndim != 2:
        raise InputError(
            f"The mask is {_describe(mask)}", "Pass a uint8 array of shape (H, W), 255 where to repaint"
        )
    if mask.shape != image.shape[:2]:
        sizes = [f"{array.shape[1]} x {array.shape[0]}" for array in (image, mask)]
        raise InputError(f"The image is {sizes[0]} and the mask {sizes[1]}", "Make the mask as large as the image")


def _outside(tool: str, box: imaging.Box, image: Image) -> InputError:
    height, width = image.shape[:2]
    return InputError(
        f"The {tool}'s rectangle, {box.left} to {box.right} by {box.top} to {box.bottom}, shows nothing of the "
        f"image of {width} x {height}",
        f"Set {tool}_x and {tool}_y so that it does",
    )


def _check_output(model: Model, result: object, shapes: list[tuple[int, ...]]) -> None:
    import numpy as np

    if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ModelOutputError(
            f"{type(model).__name__}.forward returned {_describe(result)}, not a uint8 array of shape {wanted}",
            "Report it to the author of the plugin",
        )


def _describe(array: object) -> str:
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    return type(array).__name__ if shape is None else f"a {dtype} array of shape {tuple(shape)}"
