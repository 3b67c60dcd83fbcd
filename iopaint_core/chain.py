"""Chains: models one after the other, each on the image that the one before gave, with the mask that was found."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from iopaint_core.errors import InputError, IOPaintError, RequestError
from iopaint_core.models import check_image, check_mask
from iopaint_core.progress import call_progress, progress_part
from iopaint_core.schema import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from iopaint_core.imaging import Image, Mask
    from iopaint_core.manager import ModelManager
    from iopaint_core.models import Preview
    from iopaint_core.parameters import Parameters, ParametersLike
    from iopaint_core.progress import Progress
    from iopaint_core.schema import ModelInfo

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One model of a chain, and what it takes."""

    model: str
    parameters: ParametersLike = None
    masks: Literal["all", "best"] = "all"
    """Of the masks that it finds, those that the next steps work on: all united, or that of the highest score."""

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or self.masks not in ("all", "best"):
            raise RequestError(
                "invalid step: expected a model's name, and masks 'all' or 'best', got "
                f"{self.model!r}, {self.masks!r}",
                "Write Step('lama', {...})",
            )


def read_chain(text: str | bytes) -> list[Step]:
    """Return the steps that a JSON document holds: `["text", {"model": "lama", "parameters": {...}}]`.

    Raises `RequestError`.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"invalid chain: expected JSON: {error}", "Give a list of steps") from error
    if not isinstance(given, list):
        raise RequestError(f"invalid chain: expected a list of steps, got {type(given).__name__}", "Give a list")
    steps = []
    for number, step in enumerate(given, start=1):
        fields = {"model": step} if isinstance(step, str) else step
        if not isinstance(fields, Mapping) or not {"model"} <= fields.keys() <= {"model", "parameters", "masks"}:
            raise RequestError(
                f"invalid chain: step {number} is {json.dumps(step)[:100]}, expected a model's name, or an object "
                "with model, parameters, masks",
                'Write {"model": "lama", "parameters": {...}}',
            )
        steps.append(Step(**fields))
    return steps


def check_chain(
    manager: ModelManager, steps: Iterable[Step], *, masked: bool
) -> list[tuple[ModelInfo, Parameters]]:
    """Return each step's model and parsed parameters. `masked` says whether a mask is given.

    Raises, before anything is loaded, what is wrong with a step: `ModelNameError`, `RequestError`, `InputError` for
    a mask that is missing, `UnavailableModelError`, `MissingWeightsError` where nothing may be fetched,
    `PoolFullError` for one that does not fit a device's budget.
    """
    steps = [*steps]
    wrong = [type(step).__name__ for step in steps if not isinstance(step, Step)]
    if wrong:
        raise RequestError(f"invalid chain: expected Steps, got {wrong[0]}", "Write [Step('lama', {...})]")
    if not steps:
        raise RequestError("invalid chain: it has no steps", "Give at least one: Step('lama')")
    checked: list[tuple[ModelInfo, Parameters]] = []
    for number, step in enumerate(steps, start=1):
        where = f"Step {number} ({step.model})"
        with _named(where):
            info = manager.find(step.model)
            checked.append((info, info.parameters.parse(step.parameters)))
        if info.task.takes_mask and not masked:
            raise InputError(
                f"{where} takes a mask: none is given, and no step before it finds one",
                "Give a mask, or put a step before it that finds one",
            )
        if number < len(steps) and not {"image", "masks"} & {*info.task.gives}:
            raise RequestError(
                f"{where} gives {', '.join(info.task.gives)}, of which the next step can take nothing",
                "Make it the last step",
            )
        masked = masked or "masks" in info.task.gives
    for number, (step, (_, parsed)) in enumerate(zip(steps, checked, strict=True), start=1):
        with _named(f"Step {number} ({step.model})"):
            manager.check_room(step.model, variant=parsed.variant)
    return checked


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Have an error say which step it is of."""
    try:
        yield
    except IOPaintError as error:
        error.message = f"{where}: {error.message}"
        raise


def run_chain(
    manager: ModelManager,
    image: Image,
    steps: Sequence[Step],
    *,
    mask: Mask | None = None,
    progress: Progress | None = None,
    preview: Preview | None = None,
) -> Result:
    """Run the steps; see `ModelManager.chain`."""
    check_image(image)
    if mask is not None:
        check_mask(mask, image)
    steps = [*steps]
    checked = check_chain(manager, steps, masked=mask is not None)
    given_image, whole = image, Result(image=image)
    infos: list[dict[str, object]] = []
    with call_progress(progress):
        for number, (step, (info, parsed)) in enumerate(zip(steps, checked, strict=True)):
            with progress_part(number, len(steps)):
                if info.task.takes_mask and (mask is None or not (mask > 127).any()):
                    _logger.warning("No mask was found for %s, so the image is left as it is", step.model)
                    infos.append({"model": step.model, "skipped": "no mask was found"})
                    continue
                if image.shape[2] == 4:
                    raise InputError(
                        f"Step {number + 1} ({step.model}) takes RGB, and the step before it gave RGBA",
                        "Make a step that cuts out the last one",
                    )
                given = mask if info.task.takes_mask else None
                result = manager.run(step.model, image, mask=given, parameters=parsed, preview=preview)
            infos.append({"model": step.model, **result.info})
            if result.masks is not None:
                mask = result.mask if step.masks == "best" else result.united_masks()
            if result.image is not None:
                image = result.image
                mask = None if mask is None else _resized(mask, image)
            whole = _merged(whole, result)
    summary: dict[str, object] = {"steps": infos}
    if any(each.get("in_colour") is True for each in infos):
        summary["in_colour"] = True
    if image is given_image:
        image = image.copy()
        if any("skipped" in each for each in infos):
            summary["unchanged"] = True
    return replace(whole, image=image, info=summary)


def _merged(whole: Result, result: Result) -> Result:
    """Return a result with what a step gave over what stood there."""
    if result.masks is not None:
        whole = replace(whole, masks=result.masks, scores=result.scores, labels=result.labels)
    return replace(
        whole,
        image=whole.image if result.image is None else result.image,
        maps={**whole.maps, **result.maps},
    )


def _resized(mask: Mask, image: Image) -> Mask:
    """Return a mask as large as an image that a step made larger or smaller."""
    import cv2
    import numpy as np

    height, width = image.shape[:2]
    if mask.shape == (height, width):
        return mask
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
