"""The nouns of the framework, as plain data: models, plugins, problems, requests.

Frozen dataclasses with `Annotated` constraints. pydantic checks them where data comes in from outside
(`InpaintRequest.validate`), and is imported only there: its import costs more than listing all models.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Lt, MinLen

from iopaint_core.errors import (
    InputError,
    IOPaintError,
    PluginError,
    RequestError,
    WeightsError,
    did_you_mean,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import TypeAdapter
    from typing_extensions import Self

    from iopaint_core.entries import Component, Share
    from iopaint_core.identity import IdentityIndex


class ModelType(str, Enum):
    """How a model is run; the values are IOPaint's."""

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

    A plugin gives `name`, `type` and, if it does something else than inpaint, `task`. The catalog overwrites
    `plugin_name` and `distribution` with the names under which the plugin is registered.
    """

    name: str
    type: ModelType
    plugin_name: str = ""
    task: Task = Task.INPAINT
    distribution: str = ""
    weights: tuple[WeightFile, ...] = ()
    """The files that it needs."""
    license: str = ""
    """Of the weights: an SPDX identifier or a URL; empty if it is not known."""
    commercial: bool = True
    """False if the licence forbids commercial use."""
    path: Path | None = None
    """Where it is, if it was found on this machine rather than announced."""
    adapters: bool = False
    """Whether its plugin loads it with the `Adapters` that a request asks for."""

    @property
    def qualified_name(self) -> str:
        """`plugin:name`, which tells apart models of one name from several plugins."""
        return f"{self.plugin_name}:{self.name}"

    def announced_by(self, plugin: PluginInfo) -> ModelInfo:
        """This model, marked as that plugin's: `dataclasses.replace` in a quarter of its time, most of a scan's."""
        marked = object.__new__(type(self))
        values = marked.__dict__
        values.update(self.__dict__)
        values["plugin_name"] = plugin.name
        values["distribution"] = plugin.distribution
        return marked


def _load_alone(components: Mapping[str, Component[Any]]) -> Mapping[str, Any]:
    """Load components that nobody shares: what a loader gets that is called outside of a pool."""
    return {name: component.load_alone() for name, component in components.items()}


def _no_weights(name: str) -> Path:
    raise WeightsError(f"No file of weights is called {name}", "Announce it in ModelInfo.weights")


@dataclass(frozen=True)
class Adapters:
    """What is loaded with a model, besides its own weights, because a request asks for it.

    With each it is another model to the pool; the weights are shared, and held once.
    """

    loras: tuple[str, ...] = ()
    """Safetensors files, or those of the hub: `owner/name`, `owner/name/file.safetensors`."""
    lcm_lora: bool = False
    """The LoRA of latent-consistency for the model's family."""
    controlnets: tuple[str, ...] = ()
    """Folders in diffusers' layout, or repositories of the hub."""

    def __bool__(self) -> bool:
        return self != NO_ADAPTERS


NO_ADAPTERS = Adapters()


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
    adapters: Adapters = NO_ADAPTERS
    """What to load with the model; only for one that announces `ModelInfo.adapters`."""
    safety_checker: bool = True
    """Load a model's own checker of its pictures, if it has one."""
    low_memory: bool = False
    """Take less memory while a model runs, at the cost of time, where its plugin knows how."""

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
    """An allow or deny list names something that is not installed."""
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


class HDStrategy(str, Enum):
    """How a picture that is larger than a model likes is handed to it; the values are IOPaint's."""

    ORIGINAL = "Original"
    """As it is."""
    RESIZE = "Resize"
    """Made smaller, and the result enlarged; pixels outside the mask keep their full resolution."""
    CROP = "Crop"
    """Cut out around each part of the mask, with a margin."""


class CV2Flag(str, Enum):
    """Algorithm of the `cv2` model; the values are OpenCV's and IOPaint's."""

    INPAINT_NS = "INPAINT_NS"
    INPAINT_TELEA = "INPAINT_TELEA"


class Sampler(str, Enum):
    """How a diffusion model takes its steps; the values are IOPaint's."""

    DPM_2M = "DPM++ 2M"
    DPM_2M_KARRAS = "DPM++ 2M Karras"
    DPM_2M_SDE = "DPM++ 2M SDE"
    DPM_2M_SDE_KARRAS = "DPM++ 2M SDE Karras"
    DPM_SDE = "DPM++ SDE"
    DPM_SDE_KARRAS = "DPM++ SDE Karras"
    DPM2 = "DPM2"
    DPM2_KARRAS = "DPM2 Karras"
    DPM2_A = "DPM2 a"
    DPM2_A_KARRAS = "DPM2 a Karras"
    EULER = "Euler"
    EULER_A = "Euler a"
    HEUN = "Heun"
    LMS = "LMS"
    LMS_KARRAS = "LMS Karras"
    DDIM = "DDIM"
    PNDM = "PNDM"
    UNIPC = "UniPC"
    LCM = "LCM"


class _Validated:
    """Adds `validate` to a dataclass; its unknown keys are errors."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    @classmethod
    def validate(cls, data: object) -> Self:
        """Make a request from JSON text, a mapping or a request, checking each value.

        Raises `RequestError` with every wrong key or value, and what would be right.
        """
        from pydantic import ValidationError

        adapter: TypeAdapter[Self] = _adapter(cls)  # type: ignore[arg-type] # python/mypy#6568: a class is hashable
        try:
            if isinstance(data, (str, bytes)):
                return adapter.validate_json(data)
            if isinstance(data, cls):
                data = {field.name: getattr(data, field.name) for field in fields(data)}  # type: ignore[arg-type] # each subclass is a dataclass
            return adapter.validate_python(data)
        except ValidationError as error:
            raise _request_error(error.errors(include_url=False), cls) from error


@functools.cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _request_error(found: list[Any], cls: type) -> RequestError:
    names = [field.name for field in fields(cls)]
    lines = []
    for item in found:
        key = ".".join(map(str, item["loc"]))
        if item["type"] == "unexpected_keyword_argument":
            lines.append(f"{key!r} is no key of it{did_you_mean(key, names)}")
        elif key:
            lines.append(f"{key!r} is {item['input']!r}: {item['msg']}")
        else:
            lines.append(item["msg"])
    return RequestError(f"The request is wrong: {'; '.join(lines)}", f"The keys are: {', '.join(names)}")


@dataclass(frozen=True)
class Lora:
    """Low-rank weights that change how a diffusion model paints."""

    name: Annotated[str, MinLen(1)]
    """A safetensors file, or one of the hub: `owner/name`, `owner/name/file.safetensors`."""
    scale: float = 1.0
    """How much of it is added to the model's own weights."""


@dataclass(frozen=True)
class InpaintRequest(_Validated):
    """How to inpaint: IOPaint's names and defaults. IOPaint leaves most ranges open; here a value that can't
    mean anything, such as a negative margin, is refused.
    """

    hd_strategy: HDStrategy = HDStrategy.CROP
    hd_strategy_crop_trigger_size: Annotated[int, Ge(1)] = 800
    """Pixels; `Crop` cuts out of a picture whose longer side exceeds this."""
    hd_strategy_crop_margin: Annotated[int, Ge(0)] = 128
    """Pixels of surroundings that a crop keeps on each side of the mask."""
    hd_strategy_resize_limit: Annotated[int, Ge(1)] = 1280
    """Pixels; `Resize` brings the longer side down to this."""
    sd_mask_blur: Annotated[int, Ge(0)] = 11
    """Pixels around the mask over which models that declare `mask_blur` blend into the picture."""
    sd_match_histograms: bool = False
    """Give the result the colours that the picture has outside the mask."""
    sd_keep_unmasked_area: bool = True
    """Take only what the mask covers from the model; False takes its whole result."""
    sd_scale: Annotated[float, Gt(0), Le(1)] = 1.0
    """Models that take whole pictures work on one that is this much smaller; only what they repaint is affected."""
    use_croper: bool = False
    """Work on a rectangle of the picture alone, which these four give in pixels; what is cut off by the picture's
    edges is left out."""
    croper_x: int = 0
    croper_y: int = 0
    croper_width: Annotated[int, Ge(1)] = 512
    croper_height: Annotated[int, Ge(1)] = 512
    use_extender: bool = False
    """Paint beyond the edges: what a rectangle, which these four give in pixels of the picture, has outside of it.
    The result holds the picture and the rectangle. Implies `sd_strength` 1."""
    extender_x: int = 0
    extender_y: int = 0
    extender_width: Annotated[int, Ge(1), Le(16_384)] = 640
    extender_height: Annotated[int, Ge(1), Le(16_384)] = 640
    cv2_flag: CV2Flag = CV2Flag.INPAINT_NS
    cv2_radius: Annotated[int, Ge(0)] = 4
    """Pixels of the neighbourhood that the `cv2` model looks at."""
    prompt: str = ""
    """What a diffusion model is to paint."""
    negative_prompt: str = ""
    """What it is not to paint."""
    sd_steps: Annotated[int, Ge(1)] = 50
    sd_strength: Annotated[float, Gt(0), Le(1)] = 1.0
    """How far from the picture it may go: 1 forgets what the mask covers."""
    sd_guidance_scale: Annotated[float, Ge(0)] = 7.5
    """How closely it follows the prompt."""
    sd_sampler: Sampler = Sampler.UNIPC
    sd_seed: Annotated[int, Ge(-1), Lt(2**63)] = 42
    """Of its random numbers; -1 takes another one each time."""
    p2p_image_guidance_scale: Annotated[float, Ge(0)] = 1.5
    """How closely InstructPix2Pix follows the picture."""
    paint_by_example_example_image: str | None = None
    """What Paint by Example is to paint: the bytes of a picture file, in base64."""
    loras: tuple[Lora, ...] = ()
    """LoRAs of the user's own, for this request alone."""
    sd_lcm_lora: bool = False
    """Paint in few steps, 4 to 8, with the LoRA of latent-consistency; implies the sampler `LCM`."""
    enable_controlnet: bool = False
    """Have ControlNets keep the result to the picture's outlines, or whatever they look at."""
    controlnet_method: str | tuple[str, ...] = "lllyasviel/control_v11p_sd15_canny"
    """One or several: folders or repositories of the hub, whose names say what they look at: `canny`, `inpaint`."""
    controlnet_conditioning_scale: Annotated[float, Ge(0), Le(1)] = 0.4
    """How much they count, each."""

    @property
    def adapters(self) -> Adapters:
        """What the model is to be loaded with."""
        methods = (self.controlnet_method,) if isinstance(self.controlnet_method, str) else self.controlnet_method
        return Adapters(
            tuple(lora.name for lora in self.loras),
            self.sd_lcm_lora,
            methods if self.enable_controlnet else (),
        )


@dataclass(frozen=True)
class ImageRequest(_Validated):
    """How to run an `ImageModel`."""

    scale: Annotated[float, Gt(0)] = 2.0
    """How many times larger an upscaler makes the picture; other models do not read it."""


@dataclass(frozen=True)
class Click:
    """A point that a user clicked on, in pixels from the top left corner."""

    x: Annotated[int, Ge(0)]
    y: Annotated[int, Ge(0)]
    positive: bool = True
    """True to take what is there, False to leave it out."""


@dataclass(frozen=True)
class MaskRequest(_Validated):
    """How to run a `MaskModel`."""

    clicks: tuple[Click, ...] = ()
