"""One picture or a folder of them: pair pictures with masks, run a model, write the results."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from iopaint_core.chain import check_chain
from iopaint_core.errors import InputError, IOPaintError, PictureReadError, PictureWriteError
from iopaint_core.models import InpaintModel, MaskModel, model_class
from iopaint_core.parameters import InpaintParameters
from iopaint_core.pictures import (
    FORMATS,
    MAX_PIXELS,
    QUALITY,
    Picture,
    copy_picture,
    holds_transparency,
    read_mask,
    read_picture,
    write_picture,
)
from iopaint_core.results import SUFFIXES, describe_result, repaired, write_result
from iopaint_core.schema import Task, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from iopaint_core.chain import Step
    from iopaint_core.imaging import Image, Mask
    from iopaint_core.manager import ModelManager
    from iopaint_core.parameters import ParametersLike
    from iopaint_core.schema import Result

_logger = logging.getLogger(__name__)


class Status(str, Enum):
    """What became of one picture."""

    REPAIRED = "repaired"
    UNCHANGED = "unchanged"
    """Its mask is empty, or nothing was found in it; it was copied as it is."""
    SKIPPED = "skipped"
    """Its result stands already."""
    FAILED = "failed"


@dataclass(frozen=True)
class Job:
    """A picture, the masks found for it, and where the result goes."""

    image: Path
    masks: tuple[Path, ...] | None
    """None for a model that takes no mask. Else one; none found, or several of one stem, are errors of this job."""
    output: Path
    cut_out: Path | None = None
    """Where a cut-out goes instead, if nobody chose the suffix of `output` and its format holds no transparency."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job, and the error if it failed."""

    job: Job
    status: Status
    error: IOPaintError | None = None
    reason: str = ""
    """Why it was left as it is."""
    files: tuple[Path, ...] = ()
    """Those that were written."""
    result: Mapping[str, object] = field(default_factory=dict)
    """What of the result is no array: scores, labels, info."""


@dataclass(frozen=True)
class Options:
    """How results are made and written."""

    parameters: ParametersLike = None
    """What the model takes, for all pictures."""
    overwrite: bool = False
    concat: bool = False
    """Write picture, mask and result side by side."""
    quality: int = QUALITY
    max_pixels: int = MAX_PIXELS


def plan(
    image: Path, mask: Path | None, output: Path, *, recursive: bool = False, overwrite: bool = False
) -> list[Job]:
    """The jobs for a picture or a folder of pictures.

    A folder's masks are found by the pictures' stems, below the same subfolders; a mask that is a file serves
    every picture. Raises `InputError` if there is nothing to do, or if a result would replace a picture or a
    mask without `overwrite`.
    """
    for path in (image, mask):
        if path is not None and not path.exists():
            raise InputError(f"There is no file or folder {path}", "Check its name")
    jobs = _folder_jobs(image, mask, output, recursive) if image.is_dir() else [_file_job(image, mask, output)]
    for job in jobs:
        if not overwrite and any(_same(job.output, source) for source in (job.image, *(job.masks or ()))):
            raise InputError(f"The result would overwrite {job.output}", "Add --overwrite, or write elsewhere")
    return jobs


def run(manager: ModelManager, model: str | Sequence[Step], jobs: list[Job], options: Options) -> Iterator[Outcome]:
    """Do each job, with one model or a chain, and tell what became of it; a bad picture does not stop the others.

    A model is leased throughout. Raises before anything is loaded: `ModelNameError`, `RequestError`, and
    `InputError` if it takes masks and there are none, or the other way round; then `ModelLoadError`.
    """
    masked = any(job.masks is not None for job in jobs)
    if not isinstance(model, str):
        check_chain(manager, model, masked=masked)
        for job in _for_task(manager.find(model[-1].model).task, jobs, options):
            yield _attempt(lambda image, mask: manager.chain(image, model, mask=mask), job, options)
        return
    task, parsed = manager.find(model).task, manager.parse(model, options.parameters)
    if task.takes_mask and not masked and getattr(parsed, "mask_input", None) is None:
        raise InputError(f"{model} needs a mask, and there is none", "Give --mask a file or a folder")
    if masked and model_class(task) not in {InpaintModel, MaskModel}:
        raise InputError(f"{model} takes no mask", "Leave out --mask")
    extends = isinstance(parsed, InpaintParameters) and parsed.use_extender and not parsed.use_croper
    lease = manager.load(model, variant=parsed.variant)

    def call(image: Image, mask: Mask | None) -> Result:
        return manager.call(lease, lambda loaded: loaded.run(image, mask=mask, parameters=parsed))

    with lease:
        for job in _for_task(task, jobs, options):
            yield _attempt(call, job, options, needs_mask=model_class(task) is InpaintModel and not extends)


def _for_task(task: Task, jobs: list[Job], options: Options) -> list[Job]:
    """Return the jobs of a task; a cut-out is a PNG file where the picture's own format holds no transparency."""
    if task != Task.MATTING or options.concat:
        return jobs
    changed = [job for job in jobs if job.cut_out is not None]
    if changed:
        _logger.warning(
            "%s is written as %s%s: its format holds no transparency",
            changed[0].image,
            changed[0].cut_out,
            f", and {len(changed) - 1} more so" if len(changed) > 1 else "",
        )
    return [replace(job, output=job.cut_out or job.output) for job in jobs]


def _file_job(image: Path, mask: Path | None, output: Path) -> Job:
    cut_out = None
    if output.is_dir() or not output.suffix:
        output = output / image.name
        cut_out = None if holds_transparency(output) else output.with_suffix(".png")
    if output.suffix.lower() not in SUFFIXES:
        raise InputError(f"{output} has no suffix of a known format", f"Use one of {', '.join(SUFFIXES)}")
    return Job(image, _masks_of(image, image.parent, mask), output, cut_out)


def _folder_jobs(folder: Path, mask: Path | None, output: Path, recursive: bool) -> list[Job]:
    if output.exists() and not output.is_dir():
        raise InputError(f"{folder} is a folder and {output} is a file", "Name a folder for the results")
    others = [path.resolve() for path in (mask, output) if path is not None and not _same(path, folder)]
    found = [
        path
        for path in sorted(folder.rglob("*") if recursive else folder.iterdir())
        if _is_picture(path) and not any(path.resolve().is_relative_to(other) for other in others)
    ]
    stems = [str(path.with_suffix("")).casefold() for path in found]
    count = Counter(stems)
    jobs = []
    for path, stem in zip(found, stems, strict=True):
        result = output / path.relative_to(folder)
        png = result.with_name(f"{result.name if count[stem] > 1 else result.stem}.png")
        jobs.append(Job(path, _masks_of(path, folder, mask), result, None if holds_transparency(path) else png))
    if not jobs:
        hint = "" if recursive else " (--recursive looks into its folders too)"
        raise InputError(f"{folder} holds no pictures{hint}", f"Their suffixes are {', '.join(FORMATS)}")
    return jobs


def _masks_of(image: Path, folder: Path, mask: Path | None) -> tuple[Path, ...] | None:
    if mask is None or not mask.is_dir():
        return None if mask is None else (mask,)
    beside = (mask / image.relative_to(folder)).parent
    found = beside.iterdir() if beside.is_dir() else ()
    return tuple(sorted(path for path in found if path.stem == image.stem and _is_picture(path)))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in FORMATS and not path.name.startswith(".") and path.is_file()


def _same(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def _attempt(
    call: Callable[[Image, Mask | None], Result], job: Job, options: Options, *, needs_mask: bool = False
) -> Outcome:
    if job.output.exists() and not options.overwrite:
        return Outcome(job, Status.SKIPPED, reason="the result exists; --overwrite replaces it")
    try:
        return _do(call, job, options, needs_mask)
    except IOPaintError as error:
        return Outcome(job, Status.FAILED, error)
    except Exception as error:  # noqa: BLE001 - one picture's; the others are done
        told = IOPaintError(f"{job.image} could not be repaired: {describe(error)}", "Report it to iopaint-core")
        told.__cause__ = error
        return Outcome(job, Status.FAILED, told)


def _do(call: Callable[[Image, Mask | None], Result], job: Job, options: Options, needs_mask: bool) -> Outcome:
    picture = read_picture(job.image, max_pixels=options.max_pixels)
    mask = None if job.masks is None else _mask_for(picture, job, options)
    _make_folder(job.output.parent)
    same_format = FORMATS.get(job.image.suffix.lower()) == FORMATS.get(job.output.suffix.lower())
    as_it_is = same_format and not options.concat
    empty = needs_mask and mask is not None and not (mask > 127).any()
    if empty and as_it_is:
        copy_picture(job.image, job.output)
        return Outcome(job, Status.UNCHANGED, reason="its mask is empty", files=(job.output,))
    result = call(picture.rgb, mask)
    reason = "its mask is empty" if empty else ""
    if result.info.get("unchanged") is True:
        reason = "nothing was found in it"
        if as_it_is and result.image is not None:
            copy_picture(job.image, job.output)
            return Outcome(job, Status.UNCHANGED, None, reason, (job.output,), describe_result(result))
    if options.concat:
        write_picture(_side_by_side(picture, mask, result), job.output, quality=options.quality)
        files = [job.output]
    else:
        files = write_result(result, picture, job.output, quality=options.quality)
    status = Status.UNCHANGED if reason else Status.REPAIRED
    return Outcome(job, status, None, reason, tuple(files), describe_result(result))


def _mask_for(picture: Picture, job: Job, options: Options) -> Mask:
    masks = job.masks or ()
    if len(masks) != 1:
        found = f"{len(masks)} masks: {', '.join(map(str, masks))}" if masks else "no mask"
        raise PictureReadError(f"{job.image} has {found}", "Give each picture one mask with its stem")
    mask = read_mask(masks[0], max_pixels=options.max_pixels)
    if mask.shape != picture.rgb.shape[:2]:
        sizes = [f"{array.shape[1]} x {array.shape[0]}" for array in (picture.rgb, mask)]
        raise InputError(
            f"{job.image} is {sizes[0]} and its mask {masks[0]} is {sizes[1]}",
            "Make the mask as large as the picture",
        )
    return mask


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PictureWriteError(f"{folder} could not be made: {error}", "Write elsewhere") from error


def _side_by_side(picture: Picture, mask: Mask | None, result: Result) -> Picture:
    import PIL.Image

    shown = result.mask if result.image is None else repaired(picture, result.image, result).rgb
    panels = [PIL.Image.fromarray(array) for array in (picture.rgb, mask, shown) if array is not None]
    canvas = PIL.Image.new("RGB", (sum(panel.width for panel in panels), max(panel.height for panel in panels)))
    left = 0
    for panel in panels:
        canvas.paste(panel, (left, 0))
        left += panel.width
    return Picture(canvas)
