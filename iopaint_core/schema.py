"""The nouns of the framework, as plain data: models, plugins, problems."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from iopaint_core.errors import InputError, IOPaintError, PluginError, WeightsError
from iopaint_core.options import NO_OPTIONS, LoadOptions, OptionsClass, check_options_class
from iopaint_core.parameters import (
    ImageParameters,
    InpaintParameters,
    MaskParameters,
    Parameters,
    ParametersClass,
    check_declaration,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from iopaint_core.entries import Component, Share
    from iopaint_core.identity import IdentityIndex


class ModelType(str, Enum):
    """IOPaint's label of a model, for lists; nothing is decided by it."""

    INPAINT = "inpaint"
    DIFFUSERS_SD = "diffusers_sd"
    DIFFUSERS_SD_INPAINT = "diffusers_sd_inpaint"
    DIFFUSERS_SDXL = "diffusers_sdxl"
    DIFFUSERS_SDXL_INPAINT = "diffusers_sdxl_inpaint"
    DIFFUSERS_OTHER = "diffusers_other"
    PLUGIN = "plugin"


class Task(str, Enum):
    """What a model does to a picture, and with that its shape."""

    INPAINT = "inpaint"
    """Repaint what a mask covers: an `InpaintModel`."""
    RESTORE = "restore"
    """Return a better picture, upscaled, denoised, faces restored: an `ImageModel`."""
    MATTING = "matting"
    """Cut the foreground out of its background: an `ImageModel`."""
    SEGMENT = "segment"
    """Return a mask, with or without clicks: a `MaskModel`."""


_PARAMETERS: dict[Task, ParametersClass] = {
    Task.INPAINT: InpaintParameters,
    Task.RESTORE: ImageParameters,
    Task.MATTING: ImageParameters,
    Task.SEGMENT: MaskParameters,
}
"""What the framework reads for a task: every model's own class is derived from it."""

_OF_PLUGIN = cast("Task", None)
"""Typed as a task, since every model that a scan returns has one."""


@dataclass(frozen=True)
class WeightFile:
    """A file that a model needs: at a URL, or in a repository of the Hugging Face hub.

    Raises `PluginError` if it can't be meant so.
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
        if not self.filename:
            object.__setattr__(self, "filename", self.url.partition("?")[0].rpartition("/")[2])
        for name, length in (("sha256", 64), ("md5", 32)):
            digest = getattr(self, name).lower()
            object.__setattr__(self, name, digest)
            if digest and not re.fullmatch(f"[0-9a-f]{{{length}}}", digest):
                raise self._wrong(f"its {name} is {digest!r}", f"Give {length} hexadecimal digits")
        if bool(self.url) == bool(self.repo):
            raise self._wrong("it has no url and no repo, or both", "Give one of them")
        if self.url and not self.url.startswith(("https://", "http://")):
            raise self._wrong(f"its url is {self.url!r}", "Give one that begins with https://")
        if self.repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
            raise self._wrong(f"its repo is {self.repo!r}", "Give owner/name")
        if self.size is not None and self.size < 0:
            raise self._wrong(f"its size is {self.size}", "Give bytes, or nothing")
        parts = self.filename.split("/")
        if not self.filename or re.search(r"[\\:\0-\x1f]", self.filename) or {"", ".", ".."} & set(parts):
            raise self._wrong("its name leads out of its folder, or nowhere", "Give a plain, relative name")

    def _wrong(self, what: str, remedy: str) -> PluginError:
        return PluginError(f"The weights {self.filename!r} can't be had: {what}", remedy)

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

    def __post_init__(self) -> None:
        if self.load_options is not LoadOptions:
            check_options_class(self.load_options)
        if not isinstance(self.unavailable, str):
            raise PluginError(
                f"unavailable expected str, got {type(self.unavailable).__name__}", "Give the reason as text"
            )
        if self.parameters is not Parameters:
            check_declaration(self.parameters)
        if isinstance(self.task, Task):  # the catalog refuses all others, but None
            object.__setattr__(self, "parameters", self._parameters_for(self.task))

    @property
    def qualified_name(self) -> str:
        """`plugin:name`, which tells apart models of one name from several plugins."""
        return f"{self.plugin_name}:{self.name}"

    def _parameters_for(self, task: Task) -> ParametersClass:
        base = _PARAMETERS[task]
        if self.parameters is Parameters:
            return base
        if not issubclass(self.parameters, base):
            raise PluginError(
                f"{self.name} has the parameters {self.parameters.__name__}, which do not fit its task "
                f"({task.value})",
                f"Derive them from {base.__name__}, or announce the task that they fit: task=Task.RESTORE",
            )
        return self.parameters

    def announced_by(self, plugin: PluginInfo, task: Task) -> ModelInfo:
        """This model, marked as that plugin's and with `task` unless it has one.

        It is `dataclasses.replace` in a quarter of its time, most of a scan's. Raises `PluginError` for parameters
        that do not fit the task.
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


def _load_alone(components: Mapping[str, Component[Any]]) -> Mapping[str, Any]:
    """Load components that nobody shares: what a loader gets that is called outside of a pool."""
    return {name: component.load_alone() for name, component in components.items()}


def _no_weights(name: str) -> Path:
    raise WeightsError(f"No file of weights is called {name}", "Announce it in ModelInfo.weights")


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

    def __post_init__(self) -> None:
        if self.dtype not in {None, *DTYPES}:
            raise InputError(f"{self.dtype!r} is no dtype for weights", f"Use None or one of: {', '.join(DTYPES)}")


class PluginStatus(str, Enum):
    """What became of a plugin."""

    ACTIVE = "active"
    DISABLED = "disabled"
    """Left out by an allow or deny list; never imported."""
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

    @property
    def qualified_name(self) -> str:
        """`distribution:name`, under which it is registered."""
        return f"{self.distribution}:{self.name}"


class Stage(str, Enum):
    """Where on its way a plugin failed."""

    CONFIGURE = "configure"
    """An allow or deny list names something that is not installed, or options can't be used."""
    IMPORT = "import"
    REGISTER = "register"
    """Its hooks do not fit the hook specifications."""
    SCAN = "scan"
    """Asked for its models, it raised or returned something wrong."""


@dataclass(frozen=True)
class Problem:
    """What went wrong with a plugin, as data."""

    plugin: str
    distribution: str
    version: str
    stage: Stage
    error: BaseException
    remedy: str

    def __str__(self) -> str:
        origin = f"{self.distribution} {self.version}".strip()
        return f"{self.plugin} ({origin}), {self.stage.value}: {describe(self.error)}. {self.remedy}."


def describe(error: BaseException) -> str:
    """An error as one line: its own words if it is this package's, else with its type before them."""
    if isinstance(error, IOPaintError):
        return error.message
    try:
        words = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - a foreign exception may fail to print itself
        words = ""
    return f"{type(error).__name__}: {words}".rstrip(": ")


def format_bytes(count: float) -> str:
    """Bytes for people, in powers of 1000: `1.72 GB`."""
    if abs(count) < 1000:
        return f"{count:.0f} B"
    for unit, size in (("kB", 1e3), ("MB", 1e6)):
        if abs(count) < 1000 * size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e9:.2f} GB"
