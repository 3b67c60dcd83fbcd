"""The nouns of the framework, as plain data: models, plugins, problems."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast

from iopaint_core.errors import ContractError, InputError, IOPaintError, PoolError, WeightsError
from iopaint_core.options import NO_OPTIONS, LoadOptions, OptionsClass, check_options_class
from iopaint_core.parameters import (
    ImageParameters,
    InpaintParameters,
    MaskParameters,
    Parameters,
    ParametersClass,
    check_declaration,
)
from iopaint_core.tracebacks import plugin_traceback
from iopaint_core.values import checked_bool, checked_text, is_a, items, plain, shown, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from iopaint_core.entries import Component, Share
    from iopaint_core.identity import IdentityIndex
    from iopaint_core.imaging import Image, Map, Mask, Masks
    from iopaint_core.models import Models


class ModelType(str, Enum):
    """IOPaint's label of a model, for lists; nothing is decided by it."""

    INPAINT = "inpaint"
    DIFFUSERS_SD = "diffusers_sd"
    DIFFUSERS_SD_INPAINT = "diffusers_sd_inpaint"
    DIFFUSERS_SDXL = "diffusers_sdxl"
    DIFFUSERS_SDXL_INPAINT = "diffusers_sdxl_inpaint"
    DIFFUSERS_OTHER = "diffusers_other"
    PLUGIN = "plugin"


RESULT_FIELDS = ("image", "masks", "scores", "labels", "maps", "info")
"""What a `Result` holds, and what a task may say that it gives."""


@dataclass(frozen=True)
class Task:
    """What a model does with an image, as data: a plugin may make its own, and no host needs to know it.

    It decides which kind of model it is: one that takes a mask and gives an image is an `InpaintModel`, one that
    gives masks and no image, or takes a mask for something else, is a `MaskModel`, all others are `ImageModel`s.

    Raises `ContractError` for a name or a field of results that can't be.
    """

    INPAINT: ClassVar[Task]
    """Repaint what a mask covers."""
    RESTORE: ClassVar[Task]
    """Return a better image: upscaled, denoised, faces restored."""
    MATTING: ClassVar[Task]
    """Cut the foreground out of its background: RGBA, or a mask beside the image."""
    SEGMENT: ClassVar[Task]
    """Find masks, with or without clicks."""

    name: str
    takes_mask: bool = False
    """A call needs a mask beside the image."""
    gives: tuple[str, ...] = ("image",)
    """What a result always holds, by the names of the fields of `Result`; it may hold more."""

    def __post_init__(self) -> None:
        if not is_a(self.name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", plain(self.name)):
            raise ContractError(
                f"invalid task: expected a name such as 'depth' or 'remove-haze', got {shown(self.name)}",
                "Take lower-case letters, digits, hyphens",
            )
        object.__setattr__(self, "name", plain(self.name))
        object.__setattr__(self, "takes_mask", checked_bool("invalid task: takes_mask", self.takes_mask))
        gives = items(self.gives)
        names = tuple(plain(cast("str", name)) if is_a(name, str) else "" for name in gives)
        wrong = [value for name, value in zip(names, gives, strict=True) if name not in RESULT_FIELDS]
        if wrong or not gives:
            found = shown(wrong[0]) if wrong else "nothing"
            raise ContractError(
                f"invalid task {self.name}: it gives {found}, which no Result holds",
                f"Name at least one of {', '.join(RESULT_FIELDS)}",
            )
        object.__setattr__(self, "gives", names)

    def __str__(self) -> str:
        return self.name

    @property
    def parameters_class(self) -> ParametersClass:
        """What the framework itself reads for it: every model's own class is derived from that."""
        if self.takes_mask and "image" in self.gives:
            return InpaintParameters
        if self.takes_mask or ("masks" in self.gives and "image" not in self.gives):
            return MaskParameters
        return ImageParameters


Task.INPAINT = Task("inpaint", takes_mask=True)
Task.RESTORE = Task("restore")
Task.MATTING = Task("matting")
Task.SEGMENT = Task("segment", gives=("masks",))

_OF_PLUGIN = cast("Task", None)
"""Typed as a task, since every model that a scan returns has one."""


@dataclass(frozen=True, eq=False)
class Result:
    """What a call of a model gives. Which fields are there, the model's task says: `Task.gives`."""

    image: Image | None = None
    """RGB or RGBA, `uint8` `(H, W, 3 or 4)`."""
    masks: Masks | None = None
    """`uint8` `(N, H, W)`, as large as the image that went in, 255 where the subject is; N may be 0."""
    scores: tuple[float, ...] = ()
    """How sure the model is of each mask, if it says so."""
    labels: tuple[str, ...] = ()
    """What each mask shows, if it says so."""
    maps: Mapping[str, Map] = field(default_factory=dict)
    """Values for each pixel by name, `(H, W)` or `(H, W, C)`: `{"depth": ...}`."""
    info: Mapping[str, object] = field(default_factory=dict)
    """What else is to be known, as JSON can hold it: the seed that was drawn, faces found. `unchanged` is True if
    nothing was found to work on, so that the image is as it was; `in_colour`, if a grey picture becomes one in
    colour."""

    @property
    def mask(self) -> Mask | None:
        """The mask of the highest score; without scores, all masks united; None if there are no masks.

        Where no subject was found, it covers nothing, or is None if its size is not known.
        """
        if self.masks is None:
            return None
        if self.scores:
            return cast("Mask", self.masks[max(range(len(self.scores)), key=self.scores.__getitem__)])
        return self.united_masks()

    def united_masks(self) -> Mask | None:
        """Return what any of the masks covers; None if there are no masks."""
        if self.masks is None:
            return None
        return self.masks[0] if len(self.masks) == 1 else cast("Mask", self.masks.max(axis=0, initial=0))


@dataclass(frozen=True)
class WeightFile:
    """A file that a model needs: at a URL, or in a repository of the Hugging Face hub.

    Raises `ContractError` if it can't be meant so.
    """

    filename: str = ""
    """Its name in the store, or its path in the repository; by default, the last part of the URL."""
    url: str = ""
    repo: str = ""
    """A repository of the hub, `owner/name`."""
    revision: str = "main"
    sha256: str = ""
    """In hexadecimal digits, as `md5`; the stronger one given is checked."""
    md5: str = ""
    size: int | None = None
    """Bytes, if known."""
    runs_code: bool = False
    """TorchScript or a pickle: it is loaded only if its hash is the declared one, or the user trusts it."""
    env: str = ""
    """Prefix of environment variables that replace what is declared: with `LAMA_MODEL`, `LAMA_MODEL_URL`,
    `LAMA_MODEL_SHA256` and `LAMA_MODEL_MD5`."""

    def __post_init__(self) -> None:
        for name in ("filename", "url", "repo", "revision", "sha256", "md5", "env"):
            object.__setattr__(self, name, checked_text(f"invalid WeightFile: {name}", getattr(self, name)))
        object.__setattr__(self, "runs_code", checked_bool("invalid WeightFile: runs_code", self.runs_code))
        if not self.filename:
            object.__setattr__(self, "filename", self.url.partition("?")[0].rpartition("/")[2])
        for name, length in (("sha256", 64), ("md5", 32)):
            digest = getattr(self, name).lower()
            object.__setattr__(self, name, digest)
            if digest and not re.fullmatch(f"[0-9a-f]{{{length}}}", digest):
                raise self._wrong(f"its {name} is {shown(digest)}", f"Give {length} hexadecimal digits")
        if bool(self.url) == bool(self.repo):
            raise self._wrong("it has no url and no repo, or both", "Give one of them")
        if self.url and not self.url.startswith(("https://", "http://")):
            raise self._wrong(f"its url is {shown(self.url)}", "Give one that begins with https://")
        if self.repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
            raise self._wrong(f"its repo is {shown(self.repo)}", "Give owner/name")
        if self.size is not None and (type(self.size) is not int or self.size < 0):
            raise self._wrong(f"its size is {shown(self.size)}", "Give bytes as a whole number, or nothing")
        parts = self.filename.split("/")
        if not self.filename or re.search(r"[\\:\0-\x1f]", self.filename) or {"", ".", ".."} & set(parts):
            raise self._wrong("its name leads out of its folder, or nowhere", "Give a plain, relative name")

    def _wrong(self, what: str, remedy: str) -> ContractError:
        return ContractError(f"invalid WeightFile {shown(self.filename)}: {what}", remedy)

    @property
    def digest(self) -> tuple[str, str] | None:
        """The algorithm and the hash to check, or None if none is declared."""
        return ("sha256", self.sha256) if self.sha256 else ("md5", self.md5) if self.md5 else None

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return self.url or f"https://huggingface.co/{self.repo}/blob/{self.revision}/{self.filename}"


@dataclass(frozen=True)
class ModelInfo:
    """A model as its plugin announces it.

    A plugin gives `name` and, if it does something else than inpaint, `task`. The catalog overwrites
    `plugin_name` and `distribution` with the names under which the plugin is registered.
    """

    name: str
    type: ModelType = ModelType.PLUGIN
    plugin_name: str = ""
    task: Task = _OF_PLUGIN
    """By default, that of its `BasePlugin`, or else `Task.INPAINT`; the catalog fills it in, None until then."""
    distribution: str = ""
    weights: tuple[WeightFile, ...] = ()
    """The files that it needs."""
    license: str = ""
    """Of the weights: an SPDX identifier or a URL; empty if it is not known."""
    commercial: bool = True
    """False if the licence forbids commercial use."""
    path: Path | None = None
    """Where it is, if it was found on this machine rather than announced."""
    parameters: ParametersClass = Parameters
    """The class of what it takes; by default, what the framework itself reads for its task, filled in with it."""
    load_options: OptionsClass = LoadOptions
    """The class of `LoadContext.options`: what the host decides, out of a request's reach."""
    unavailable: str = ""
    """Why it can't be used yet, and what to do: `pip install ...`; empty if it can."""
    requires: tuple[str, ...] = ()
    """Names of the models that it calls by `LoadContext.models`: they are downloaded and forecast with it."""
    title: str = ""
    """Its name for people: `Real-ESRGAN, four times larger`."""
    description: str = ""
    """What it is good for, in a sentence or two."""
    homepage: str = ""
    """Where more is to be read, as a URL."""

    def __post_init__(self) -> None:
        """Make every value plain, so that no list or lookup runs a plugin's code. Raises `ContractError`."""
        values = self.__dict__
        for name, (default, check) in _CHECKS.items():
            if (value := values[name]) is not default:
                values[name] = check(f"invalid ModelInfo: {name}", value)
        if self.task:
            values["parameters"] = self._parameters_for(self.task)

    @property
    def qualified_name(self) -> str:
        """`plugin:name`, which tells apart models of one name from several plugins."""
        return f"{self.plugin_name}:{self.name}"

    @property
    def full_name(self) -> str:
        """`distribution:plugin:name`, which no other model has."""
        return f"{self.distribution}:{self.plugin_name}:{self.name}"

    def _parameters_for(self, task: Task) -> ParametersClass:
        base = task.parameters_class
        if self.parameters is Parameters:
            return base
        if not issubclass(self.parameters, base):
            raise ContractError(
                f"{self.name} has the parameters {self.parameters.__name__}, which do not fit its task ({task})",
                f"Derive them from {base.__name__}, or announce the task that they fit: task=Task.RESTORE",
            )
        return self.parameters

    def announced_by(self, plugin: PluginInfo, task: Task) -> ModelInfo:
        """This model, marked as that plugin's and with `task` unless it has one.

        It is `dataclasses.replace` in a quarter of its time, most of a scan's. Raises `ContractError` for
        parameters that do not fit the task.
        """
        marked = object.__new__(type(self))
        values = marked.__dict__
        values.update(self.__dict__)
        values["plugin_name"] = plugin.name
        values["distribution"] = plugin.distribution
        if not self.task:
            values["task"] = task
            values["parameters"] = self._parameters_for(task)
        return marked


def _name(what: str, value: object) -> str:
    name = checked_text(what, value)
    if not name.strip() or ":" in name or not name.isprintable():
        raise ContractError(
            f"{what} expected text that can be printed, without colons, got {shown(value)}",
            "Give it a name that people can type: 'blur'",
        )
    return name


def _model_type(what: str, value: object) -> ModelType:
    if type(value) is ModelType:
        return value
    if is_a(value, str):
        with contextlib.suppress(ValueError):
            return ModelType(plain(cast("str", value)))
    labels = ", ".join(f"ModelType.{label.name}" for label in ModelType)
    raise ContractError(f"{what} expected a ModelType, got {shown(value)}", f"Give one of {labels}")


def _task(what: str, value: object) -> Task:
    if type(value) is not Task:
        raise ContractError(
            f"{what} expected a Task, got {shown(value)}", "Give Task.INPAINT, another of these, or Task('a-name')"
        )
    return value


def _weights(what: str, value: object) -> tuple[WeightFile, ...]:
    files = []
    for file in items(value):
        if type(file) is not WeightFile:
            raise ContractError(
                f"{what} expected WeightFiles, got {shown(file)}",
                "Give a tuple of them: weights=(WeightFile(url='https://...'),)",
            )
        files.append(file)
    return tuple(files)


def _path(what: str, value: object) -> Path | None:
    if value is None:
        return None
    try:
        text = os.fspath(value)  # type: ignore[call-overload] # it raises TypeError for what is no path
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a foreign `__fspath__` may raise anything
        text = None
    if not is_a(text, str) or "\0" in (exact := str.__str__(text)):
        raise ContractError(f"{what} expected a Path, got {shown(value)}", "Give Path('a/file'), or None")
    return Path(exact)


def _parameters(what: str, value: object) -> ParametersClass:  # noqa: ARG001 - the check says what
    check_declaration(value)
    return cast("ParametersClass", value)


def _load_options(what: str, value: object) -> OptionsClass:  # noqa: ARG001 - the check says what
    check_options_class(value)
    return cast("OptionsClass", value)


def _requires(what: str, value: object) -> tuple[str, ...]:
    names = items(value)
    if not (is_a(value, tuple) or is_a(value, list)) or not all(is_a(name, str) for name in names):
        raise ContractError(
            f"{what} expected names of models, got {shown(value)}", "Give a tuple: requires=('lama',)"
        )
    return tuple(plain(cast("str", name)) for name in names)


_CHECKS: Mapping[str, tuple[object, Callable[[str, object], object]]] = {
    "name": (object(), _name),
    "type": (ModelType.PLUGIN, _model_type),
    "plugin_name": ("", checked_text),
    "task": (_OF_PLUGIN, _task),
    "distribution": ("", checked_text),
    "weights": ((), _weights),
    "license": ("", checked_text),
    "commercial": (True, checked_bool),
    "path": (None, _path),
    "parameters": (Parameters, _parameters),
    "load_options": (LoadOptions, _load_options),
    "unavailable": ("", checked_text),
    "requires": ((), _requires),
    "title": ("", checked_text),
    "description": ("", checked_text),
    "homepage": ("", checked_text),
}
"""The default of each field of `ModelInfo`, which needs no check, and what makes another value plain."""


def _load_alone(components: Mapping[str, Component[Any]]) -> Mapping[str, Any]:
    """Load components that nobody shares: what a loader gets that is called outside of a pool."""
    return {name: component.load_alone() for name, component in components.items()}


def _no_weights(name: str) -> Path:
    raise WeightsError(f"No file of weights is called {name}", "Announce it in ModelInfo.weights")


class _NoModels:
    """Stands for the host's models where there is no host."""

    def __getattr__(self, name: str) -> NoReturn:
        raise PoolError(
            "this model was loaded without a ModelManager, so it can call no other models",
            "Load it by ModelManager.load, or give LoadContext(models=...)",
        )


NO_MODELS = cast("Models", _NoModels())

DTYPES = ("float32", "float16", "bfloat16")
"""What weights may be cast to, as torch spells it."""


@dataclass(frozen=True)
class LoadContext:
    """Under what conditions to load a model. It grows by fields, the hook never by arguments."""

    device: str = "cpu"
    """Where the model is to run, as torch spells it: `cpu`, `cuda`, `cuda:1`, `mps`."""
    dtype: str | None = None
    """Floating-point type of the weights, one of `DTYPES`; None for the plugin's choice."""
    offline: bool = False
    """No connection may be opened."""
    cache: Path = Path()
    """Folder for files that a model needs; it may not exist yet."""
    share: Share = _load_alone
    """Takes all components of a model at once, by name, and gives them back loaded; see `docs/plugins.md`."""
    index: IdentityIndex | None = None
    """Knows which weights are equal; the functions that make components use it."""
    weights: Callable[[str], Path] = _no_weights
    """Gives the path of one of the model's `WeightFile`s by its name, fetching it if need be."""
    variant: Hashable | None = None
    """What to load besides the model's own weights: the `Parameters.variant` of the calls to come."""
    options: LoadOptions = NO_OPTIONS
    """What the host decides: an instance of the model's `ModelInfo.load_options`, its values checked."""
    models: Models = NO_MODELS
    """The host's models, for a model to call in its `forward`: `context.models.run("lama", ...)`."""
    data_dir: Path = Path()
    """Folder of the plugin's own, for what it wants to keep; it may not exist yet."""

    def __post_init__(self) -> None:
        if self.dtype not in {None, *DTYPES}:
            raise InputError(f"{self.dtype!r} is no dtype for weights", f"Use None or one of: {', '.join(DTYPES)}")


UNKNOWN = "unknown"
"""The distribution of a plugin whose package's metadata don't name it."""
HOST = "host"
"""The distribution of a plugin that a host brings along, unless it says another."""


class PluginStatus(str, Enum):
    """What became of a plugin."""

    ACTIVE = "active"
    DISABLED = "disabled"
    """Left out by an allow or deny list, and never imported; or unregistered by the host."""
    FAILED = "failed"
    """Unregistered; a `Problem` says why."""


@dataclass(frozen=True)
class PluginInfo:
    """A plugin and where it came from."""

    name: str
    """Name of the entry point, or the file's stem for a single-file plugin."""
    distribution: str
    """The package that brought it, or the folder of a single-file plugin."""
    version: str
    status: PluginStatus = PluginStatus.ACTIVE
    seconds: float = field(default=0.0, compare=False)
    """How long its import took."""
    heavy_imports: tuple[str, ...] = field(default=(), compare=False)
    """Packages that its import brought in, of `HEAVY` modules and more each: they belong into functions."""

    @property
    def qualified_name(self) -> str:
        """`distribution:name`, under which it is registered."""
        return f"{self.distribution}:{self.name}"


HEAVY = 50
"""Modules of a package that is told in `PluginInfo.heavy_imports`."""


class Stage(str, Enum):
    """Where on its way a plugin failed."""

    CONFIGURE = "configure"
    """An allow or deny list names something that is not installed, or options can't be used."""
    IMPORT = "import"
    REGISTER = "register"
    """Its hooks do not fit the hook specifications."""
    SCAN = "scan"
    """Asked for its models, it raised or returned something wrong."""
    WRAP = "wrap"
    """Its wrapper failed around a load, which went on without it."""


@dataclass(frozen=True)
class Problem:
    """What went wrong with a plugin, as data."""

    plugin: str
    distribution: str
    version: str
    stage: Stage
    error: BaseException
    remedy: str

    @property
    def traceback(self) -> str:
        """The traceback of the error and of its causes, from the plugin's first frame on."""
        return plugin_traceback(self.error)

    def __str__(self) -> str:
        origin = f"{self.distribution} {self.version}".strip()
        return f"{self.plugin} ({origin}), {self.stage.value}: {describe(self.error)}. {self.remedy}."


def describe(error: BaseException) -> str:
    """Return an error as one line: its own words if it is this package's, else with its type before them."""
    try:
        own = isinstance(error, IOPaintError)
        words = " ".join(plain(str(error.message if isinstance(error, IOPaintError) else error)).split())
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a foreign exception may fail to print itself
        own, words = False, ""
    return words if own else f"{type_name(error)}: {words}".rstrip(": ")


def format_bytes(count: float) -> str:
    """Bytes for people, in powers of 1000: `1.72 GB`."""
    if abs(count) < 1000:
        return f"{count:.0f} B"
    for unit, size in (("kB", 1e3), ("MB", 1e6)):
        if abs(count) < 1000 * size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e9:.2f} GB"
