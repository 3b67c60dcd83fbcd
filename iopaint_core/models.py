"""What a loaded model is: three kinds, each a callable that checks what goes in and what comes out.

A plugin subclasses one of them and writes `forward`, which returns an array, or a `Result`. Images are RGB `uint8`
arrays `(H, W, 3)`, masks `uint8` `(H, W)`, 255 where to repaint. The arrays that `forward` receives are its own: it
may write to them.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from iopaint_core import imaging
from iopaint_core.errors import InputError, IOPaintError, ModelError, ModelOutputError
from iopaint_core.parameters import HDStrategy, ImageParameters, InpaintParameters, MaskParameters, Parameters
from iopaint_core.progress import Progress, call_progress, cancellation, host_callback, nested_part
from iopaint_core.schema import Result, Task, describe
from iopaint_core.torch_process import is_out_of_memory
from iopaint_core.tracebacks import log_failure, raises_at_once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import TypeVar as DefaultTypeVar

    from iopaint_core.chain import Step
    from iopaint_core.host_models import HostModels
    from iopaint_core.imaging import Image, Mask, Masks
    from iopaint_core.parameters import ParametersLike
    from iopaint_core.schema import ModelInfo
    from iopaint_core.session import Session

    # Without an argument, `forward` may be annotated with the class that stands in `ModelInfo.parameters`.
    InpaintT = DefaultTypeVar("InpaintT", bound=InpaintParameters, default=Any)
    ImageT = DefaultTypeVar("ImageT", bound=ImageParameters, default=Any)
    MaskT = DefaultTypeVar("MaskT", bound=MaskParameters, default=Any)
else:  # defaults are new in Python 3.13, and typing_extensions is nothing to import for them
    InpaintT, ImageT, MaskT = map(TypeVar, ("InpaintT", "ImageT", "MaskT"))

T = TypeVar("T")

Preview = Callable[["Image"], None]
"""Called with the picture as it would be if the work ended now; what it raises cancels the work."""

_logger = logging.getLogger(__name__)
_preview: contextvars.ContextVar[Preview | None] = contextvars.ContextVar("iopaint_preview", default=None)


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


class Models(Protocol):
    """The host's models, as a model may call them: `LoadContext.models`.

    They are loaded in the host's pool, so that each is there once. A call within a call counts as a part of it: it
    takes no slot of a device besides that one's, its progress is part of that one's, and what cancels that one
    cancels it. See `ModelManager` for what each does and raises.
    """

    def run(
        self,
        name: str,
        image: Image,
        *,
        mask: Mask | None = None,
        parameters: ParametersLike = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Result:
        """Run any model and return all that it gives."""
        ...

    def inpaint(self, name: str, image: Image, mask: Mask, parameters: ParametersLike = None) -> Image:
        """Repaint what a mask covers."""
        ...

    def process(self, name: str, image: Image, parameters: ParametersLike = None) -> Image:
        """Make an image from an image."""
        ...

    def segment(self, name: str, image: Image, parameters: ParametersLike = None) -> Mask:
        """Find a mask in an image."""
        ...

    def chain(self, image: Image, steps: Sequence[Step], *, mask: Mask | None = None) -> Result:
        """Run models one after the other."""
        ...

    def session(self, name: str, image: Image) -> Session:
        """Hold an image open for a model that finds masks."""
        ...


class Model:
    """What a plugin's loader returns, in one of three kinds."""

    nbytes: int = 0
    """Bytes that it takes on its device besides the components that it shares; the pool charges them, and looks
    again after each call."""
    concurrency: int = 1
    """Calls of it that may run at once."""
    device_bound: bool = True
    """False if its calls take no slot of the device: those of an HTTP client, for example."""
    info: ModelInfo | None = None
    """As it was announced; the manager sets it, and with it the two below."""
    parameters_class: type[Parameters]
    """The class of what it takes."""
    task: Task
    """What its results hold at least."""
    host_models: HostModels | None = None
    """The `LoadContext.models` that its loader got."""

    def run(
        self,
        image: Image,
        *,
        mask: Mask | None = None,
        parameters: ParametersLike = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Result:
        """Check what goes in, run the model, check what comes out; the arrays given are not written to.

        Raises `InputError`, `RequestError`, `ModelError` for whatever `forward` raises, `ModelOutputError`, and
        what `progress` or `preview` raises, as it is.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Free what the garbage collector does not; called once, when the pool drops the model."""


class InpaintModel(Model, ABC, Generic[InpaintT]):
    """Repaints what a mask covers. Everything around `forward` is done here, once for all models."""

    parameters_class: type[Parameters] = InpaintParameters
    task = Task.INPAINT
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
    def forward(self, image: Image, mask: Mask, parameters: InpaintT) -> Image | Result:
        """Repaint `image` where `mask` is 255; returns a `uint8` array of the image's shape.

        The mask holds 0 and 255 only and is not empty. What is returned outside it is not used, unless
        `parameters.sd_keep_unmasked_area` is False. A `Result` may hold `info` beside that array; where a large
        image is repainted in several parts, a later part's `info` goes over an earlier one's.
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
        """Repaint what `mask` covers; the image of what `run` returns."""
        result = self.run(image, mask=mask, parameters=parameters, progress=progress, preview=preview)
        assert result.image is not None, "_checked sees to it"
        return result.image

    def run(
        self,
        image: Image,
        *,
        mask: Mask | None = None,
        parameters: ParametersLike = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Result:
        """Repaint what `mask` covers (above 127) and return a new RGB `uint8` array of the image's shape.

        Pixels outside the mask come back bit for bit, unless the parameters or `mask_blur` say otherwise. With
        `use_extender` the result is as large as the image and the extender's rectangle together.
        `preview` is called with the image so far, by models that can show it.
        Raises `InputError`, `RequestError`, `ModelError` for whatever `forward` raises, `ModelOutputError`, and
        what `progress` or `preview` raises, as it is.
        """
        parsed: InpaintT = self.parameters_class.parse(parameters)  # type: ignore[assignment] # ModelInfo sees to it
        check_image(image)
        if mask is None:
            raise InputError(
                f"{model_name(self)} takes a mask, and none was given", "Pass one: 255 where to repaint"
            )
        check_mask(mask, image)
        covered = imaging.binarize(mask)
        if mask.any() and not covered.any():
            _logger.warning("The mask covers nothing: its largest value is %d, and above 127 counts", mask.max())
        info: dict[str, object] = {}
        with call_progress(progress), _bound(_preview, host_callback(preview)):
            if parsed.use_croper:
                painted = self._cropped(image, covered, parsed, info)
            elif parsed.use_extender:
                painted = self._extended(image, covered, parsed, info)
            else:
                painted = self._painted(image, covered, parsed, info)
        return _checked(self, Result(image=painted, info=info), image)

    def _extended(self, image: Image, mask: Mask, parameters: InpaintT, info: dict[str, object]) -> Image:
        box = imaging.Box.at(
            parameters.extender_x, parameters.extender_y, parameters.extender_width, parameters.extender_height
        )
        framed = imaging.reframe(image, mask, box)
        if framed is None:
            raise _outside("extender", box, image)
        with _showing(lambda part: imaging.compose(image, part, box)) as finish:
            return finish(self._painted(*framed, parameters.for_outpainting(), info))

    def _cropped(self, image: Image, mask: Mask, parameters: InpaintT, info: dict[str, object]) -> Image:
        asked = imaging.Box.at(
            parameters.croper_x, parameters.croper_y, parameters.croper_width, parameters.croper_height
        )
        box = asked & imaging.Box.at(0, 0, mask.shape[1], mask.shape[0])
        if box is None:
            raise _outside("croper", asked, image)
        with _showing(lambda part: imaging.compose(image, part, box)) as finish:
            return finish(self._painted(image[box.slices], mask[box.slices], parameters, info))

    def _painted(self, image: Image, mask: Mask, parameters: InpaintT, info: dict[str, object]) -> Image:
        """Repaint all that the mask covers, and nothing else."""
        if not mask.any():
            _logger.warning("The mask is empty, so the picture is returned unchanged")
            return image.copy()

        def composite(result: Image) -> Image:
            if not parameters.sd_keep_unmasked_area:
                return result.copy()
            return imaging.blend(result, image, mask, parameters.sd_mask_blur if self.mask_blur else 0)

        with _showing(composite) as finish:
            return finish(self._repaint(image, mask, parameters, info))

    def _repaint(self, image: Image, mask: Mask, parameters: InpaintT, info: dict[str, object]) -> Image:
        longer = max(mask.shape)
        strategy = HDStrategy.ORIGINAL if self.whole else parameters.hd_strategy
        if strategy is HDStrategy.CROP and longer > parameters.hd_strategy_crop_trigger_size:
            result = image.copy()
            boxes = imaging.crop_boxes(mask, parameters.hd_strategy_crop_margin)
            for part, box in enumerate(boxes):
                with nested_part(part, len(boxes)), _showing(partial(_pasted, result, box)):
                    result[box.slices] = self._forward_padded(image[box.slices], mask[box.slices], parameters, info)
            return result
        limit = parameters.hd_strategy_resize_limit if strategy is HDStrategy.RESIZE else longer
        if self.whole:
            limit = max(1, round(longer * parameters.sd_scale))
        with nested_part(0, 1):
            if longer > limit:
                small = imaging.shrink(image, mask, limit)
                with _showing(lambda part: imaging.enlarge(part, *mask.shape)) as finish:
                    return finish(self._forward_padded(*small, parameters, info))
            return self._forward_padded(image, mask, parameters, info)

    def _forward_padded(self, image: Image, mask: Mask, parameters: InpaintT, info: dict[str, object]) -> Image:
        height, width = mask.shape
        padded, padded_mask = (
            imaging.pad(array, multiple=self.pad_multiple, min_size=self.min_size, square=self.square)
            for array in (image, mask)
        )
        shape = padded.shape

        def unpadded(result: Image) -> Image:
            check_output(self, "an image", result, [shape])
            result = result[:height, :width]
            return imaging.match_histograms(result, image, mask == 0) if parameters.sd_match_histograms else result

        with _showing(unpadded) as finish:
            with model_errors(self):
                given = self.forward(padded, padded_mask, parameters)
            if not isinstance(given, Result):
                return finish(given)
            given = _normalized(self, given)
            if given.masks is not None or given.scores or given.labels or given.maps:
                raise _output_error(
                    self,
                    "a Result with masks, scores, labels or maps",
                    "an image, and info: that of an InpaintModel",
                )
            info.update(given.info)
            return finish(given.image)  # type: ignore[arg-type] # None is refused there


class ImageModel(Model, ABC, Generic[ImageT]):
    """Makes something of an image: a better one, a cut-out, a depth map."""

    parameters_class: type[Parameters] = ImageParameters
    task = Task.RESTORE

    @abstractmethod
    def forward(self, image: Image, parameters: ImageT) -> Image | Result:
        """Return a `uint8` array `(H, W, 3)` in RGB or `(H, W, 4)` in RGBA, of any size; or a `Result`."""

    def __call__(
        self, image: Image, parameters: ParametersLike = None, *, progress: Progress | None = None
    ) -> Image:
        """Run the model; the image of what `run` returns. Raises `ModelOutputError` if there is none."""
        result = self.run(image, parameters=parameters, progress=progress)
        if result.image is None:
            raise _output_error(self, "no image", "an image", "Call `run`, which returns all that it gives")
        return result.image

    def run(
        self,
        image: Image,
        *,
        mask: Mask | None = None,
        parameters: ParametersLike = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Result:
        """Run the model; see `Model.run`. It takes no mask."""
        parsed: ImageT = self.parameters_class.parse(parameters)  # type: ignore[assignment] # ModelInfo sees to it
        check_image(image)
        if mask is not None:
            raise InputError(f"{model_name(self)} takes no mask, and one was given", "Leave it out")
        with (
            call_progress(progress),
            _bound(_preview, host_callback(preview)),
            nested_part(0, 1),
            model_errors(self),
        ):
            given = self.forward(image.copy(), parsed)
        return _checked(self, given if isinstance(given, Result) else Result(image=given), image)


class MaskModel(Model, Generic[MaskT]):
    """Finds masks in an image, with or without clicks.

    A subclass writes `forward`; or `encode` and `decode`, so that an image that is held open by a session is
    encoded once.
    """

    parameters_class: type[Parameters] = MaskParameters
    task = Task.SEGMENT

    def forward(self, image: Image, parameters: MaskT) -> Mask | Masks | Result:
        """Return `uint8` masks `(H, W)` or `(N, H, W)`, 255 where a subject is; or a `Result`."""
        return self.decode(self.encode(image), parameters)

    def encode(self, image: Image) -> Any:  # noqa: ANN401 - each model's own
        """Compute what `decode` needs of an image, once for all calls that follow; the image is not to be kept.

        The pool charges what is returned by the bytes of the arrays and tensors in it, or by its `nbytes`.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither `forward`, nor `encode` and `decode`")

    def decode(self, state: Any, parameters: MaskT) -> Mask | Masks | Result:  # noqa: ANN401 - each model's own
        """Return masks, as `forward` does, from what `encode` returned, which is not to be written to."""
        raise NotImplementedError(f"{type(self).__name__} has an `encode`, and no `decode`")

    @property
    def encodes(self) -> bool:
        """Whether it computes something of an image once."""
        return type(self).encode is not MaskModel.encode

    def __call__(
        self, image: Image, parameters: ParametersLike = None, *, progress: Progress | None = None
    ) -> Mask:
        """Run the model; the mask of what `run` returns. Raises `ModelOutputError` if there is none."""
        result = self.run(image, parameters=parameters, progress=progress)
        if result.mask is None:
            raise _output_error(self, "no mask", "masks", "Call `run`, which returns all that it gives")
        return result.mask

    def run(
        self,
        image: Image,
        *,
        mask: Mask | None = None,
        parameters: ParametersLike = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Result:
        """Run the model; see `Model.run`. A `mask` is `parameters.mask_input`."""
        check_image(image)
        parsed = self.parse(image, mask, parameters)
        with (
            call_progress(progress),
            _bound(_preview, host_callback(preview)),
            nested_part(0, 1),
            model_errors(self),
        ):
            given = self.forward(image.copy(), parsed)
        return self.checked(given, image)

    def parse(self, image: Image, mask: Mask | None, parameters: ParametersLike) -> MaskT:
        """Check what the model is to be called with. Raises `InputError`, `RequestError`."""
        parsed: MaskT = self.parameters_class.parse(parameters)  # type: ignore[assignment] # ModelInfo sees to it
        height, width = image.shape[:2]
        if mask is not None:
            check_mask(mask, image)
            if parsed.mask_input is not None:
                raise InputError(f"{model_name(self)} was given a mask and a mask_input", "Give one of them")
            parsed = dataclasses.replace(parsed, mask_input=mask)
        elif parsed.mask_input is not None:
            check_mask(parsed.mask_input, image, "mask_input")
        elif self.task.takes_mask:
            raise InputError(f"{model_name(self)} takes a mask, and none was given", "Pass one")
        for click in parsed.clicks:
            if click.x >= width or click.y >= height:
                raise InputError(f"{click} is outside the image of {width} x {height}", "Click inside the image")
        for box in parsed.boxes:
            if not (0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height):
                raise InputError(
                    f"{box} is empty, or not within the image of {width} x {height}",
                    "Give left < right and top < bottom, inside the image",
                )
        return parsed

    def checked(self, given: Mask | Masks | Result, image: Image) -> Result:
        """Return what `forward` or `decode` gave as a result. Raises `ModelOutputError`."""
        return _checked(self, given if isinstance(given, Result) else Result(masks=given), image)


MODEL_CLASSES: dict[type[Parameters], type[InpaintModel] | type[ImageModel] | type[MaskModel]] = {
    InpaintParameters: InpaintModel,
    ImageParameters: ImageModel,
    MaskParameters: MaskModel,
}


def model_class(task: Task) -> type[InpaintModel] | type[ImageModel] | type[MaskModel]:
    """Return the class of the models of a task, so that a host knows it before it loads one."""
    return MODEL_CLASSES[task.parameters_class]


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


@contextlib.contextmanager
def model_errors(model: Model) -> Iterator[None]:
    """Run code of a model: what it raises becomes a `ModelError` that names it, and the plugin it is of.

    This package's own errors pass as they are, as does Ctrl-C. What a callback of the host raised comes out
    whatever the model made of it: it cancels the call.
    """
    try:
        yield
    except (IOPaintError, KeyboardInterrupt):
        _raise_if_cancelled()
        raise
    except BaseException as error:  # SystemExit is no Exception, nor are the panics of extensions written in Rust
        _raise_if_cancelled()
        if raises_at_once():
            raise
        log_failure(f"{model_name(model)} failed", error)
        raise _failed(model, error) from error
    _raise_if_cancelled()


def _raise_if_cancelled() -> None:
    raised = cancellation()
    if raised is not None:
        raise raised


def _failed(model: Model, error: BaseException) -> ModelError:
    if is_out_of_memory(error):
        remedy = "Take a smaller image, or less of it at once: hd_strategy=Crop; or end what else takes memory"
    elif isinstance(error, ModuleNotFoundError) and error.name:
        remedy = f"Install {error.name}"
    else:
        author = type(model).__name__ if model.info is None else model.info.distribution
        remedy = f"Report it to the author of {author}"
    return ModelError(f"{model_name(model)} failed: {describe(error)}", remedy)


def _pasted(whole: Image, box: imaging.Box, part: Image) -> Image:
    whole = whole.copy()
    whole[box.slices] = part
    return whole


def check_image(image: Image) -> None:
    """Raise `InputError` unless it is an image: RGB, `uint8`, `(H, W, 3)`."""
    import numpy as np

    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"The image is {_describe(image)}", "Pass RGB as a uint8 array of shape (H, W, 3)")
    if not image.size:
        raise InputError(f"The image is {_describe(image)}: it has no pixels", "Pass at least one pixel")


def check_mask(mask: Mask, image: Image, name: str = "mask") -> None:
    """Raise `InputError` unless it is a mask that is as large as the image."""
    import numpy as np

    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.ndim != 2:
        raise InputError(
            f"The {name} is {_describe(mask)}", "Pass a uint8 array of shape (H, W), 255 where to repaint"
        )
    if mask.shape != image.shape[:2]:
        sizes = [f"{array.shape[1]} x {array.shape[0]}" for array in (image, mask)]
        raise InputError(
            f"The image is {sizes[0]} and the {name} {sizes[1]}", f"Make the {name} as large as the image"
        )


def _outside(tool: str, box: imaging.Box, image: Image) -> InputError:
    height, width = image.shape[:2]
    return InputError(
        f"The {tool}'s rectangle, {box.left} to {box.right} by {box.top} to {box.bottom}, shows nothing of the "
        f"image of {width} x {height}",
        f"Set {tool}_x and {tool}_y so that it does",
    )


def _checked(model: Model, result: Result, image: Image) -> Result:
    """Return a result that holds what the model's task says, with masks as one array `(N, H, W)`.

    Raises `ModelOutputError`.
    """
    height, width = image.shape[:2]
    result = _normalized(model, result)
    masks = result.masks
    if result.image is not None:
        shape = getattr(result.image, "shape", ())
        shapes = [] if 0 in shape else [(*shape[:2], channels) for channels in (3, 4)]
        check_output(model, "an image", result.image, shapes, "(H, W, 3) or (H, W, 4), of one pixel at least")
    if masks is not None:
        count = masks.shape[0] if getattr(masks, "ndim", 0) == 3 else 0
        shapes = [(height, width), (count, height, width)]
        check_output(model, "masks", masks, shapes, f"({height}, {width}) or (N, {height}, {width})")
        masks = masks[None] if masks.ndim == 2 else masks
    count = 0 if masks is None else len(masks)
    for name in ("scores", "labels"):
        given = getattr(result, name)
        if len(given) not in {0, count}:
            raise _output_error(model, f"{len(given)} {name} for {count} masks", f"one of the {name} for each mask")
    held = {
        "image": result.image is not None,
        "masks": masks is not None,
        "scores": len(result.scores) == count,
        "labels": len(result.labels) == count,
        "maps": bool(result.maps),
        "info": bool(result.info),
    }
    missing = [name for name in model.task.gives if not held[name]]
    if missing:
        raise _output_error(
            model,
            f"a result without {' and '.join(missing)}",
            f"{', '.join(model.task.gives)}, as its task ({model.task}) says",
        )
    return dataclasses.replace(result, masks=masks)


def _normalized(model: Model, result: Result) -> Result:
    """Return a result with scores and labels as tuples, whose maps and info are what they should be.

    Raises `ModelOutputError`.
    """
    import numpy as np

    for name in ("maps", "info"):
        given = getattr(result, name)
        if not isinstance(given, Mapping):
            raise _output_error(model, f"{name} that is {_describe(given)}", f"a dict of {name} by name")
    for name, values in result.maps.items():
        is_map = isinstance(values, np.ndarray) and values.ndim in {2, 3} and values.size
        if not isinstance(name, str) or not is_map or values.dtype.kind not in "biuf":
            raise _output_error(
                model, f"a map {name!r} that is {_describe(values)}", "an array (H, W) or (H, W, C) of real numbers"
            )
    try:
        if result.info:
            json.dumps(result.info, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _output_error(
            model, f"info that JSON can't hold: {error}", "texts, plain numbers, lists and dicts"
        ) from error
    scores = _tuple_of(model, "scores", result.scores, float, "finite numbers")
    if not all(map(math.isfinite, scores)):
        raise _output_error(model, f"the scores {scores}", "finite numbers")
    labels = _tuple_of(model, "labels", result.labels, str, "texts")
    return dataclasses.replace(result, scores=scores, labels=labels)


def _tuple_of(model: Model, name: str, values: object, convert: Callable[[Any], T], wanted: str) -> tuple[T, ...]:
    try:
        if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
            raise TypeError(f"they are {_describe(values)}")
        return tuple(map(convert, values))
    except (TypeError, ValueError) as error:
        raise _output_error(model, f"{name} that can't be read: {error}", f"a tuple of {wanted}") from error


def check_output(
    model: Model, what: str, array: object, shapes: Sequence[tuple[int, ...]], wanted: str = ""
) -> None:
    """Raise `ModelOutputError` unless a model returned a `uint8` array of a shape, as `wanted` tells them."""
    import numpy as np

    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.shape not in shapes:
        wanted = wanted or " or ".join(map(str, shapes))
        raise _output_error(model, _describe(array), f"{what} as a uint8 array of shape {wanted}")


def _output_error(model: Model, found: str, expected: str, remedy: str = "") -> ModelOutputError:
    return ModelOutputError(
        f"{model_name(model)}: {type(model).__name__}.forward returned {found}, expected {expected}",
        remedy or "Report it to the author of the plugin",
    )


def model_name(model: Model) -> str:
    """Return the name of a model for errors: `plugin:name`, or its class's where no manager loaded it."""
    return type(model).__name__ if model.info is None else model.info.qualified_name


def _describe(array: object) -> str:
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    return type(array).__name__ if shape is None else f"a {dtype} array of shape {tuple(shape)}"
