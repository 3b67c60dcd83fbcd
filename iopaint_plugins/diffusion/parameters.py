"""What diffusion models take: IOPaint's fields, its samplers, and LoRAs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le, Lt, MinLen

from iopaint_core import Hint, InpaintParameters, InputError, TensorFiles

if TYPE_CHECKING:
    from typing import Self

    from iopaint_core import LoadContext


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


@dataclass(frozen=True)
class Lora:
    """Low-rank weights that change how a diffusion model paints."""

    name: Annotated[str, MinLen(1)]
    """A safetensors file, or one of the hub: `owner/name`, `owner/name/file.safetensors`."""
    scale: float = 1.0
    """How much of it is added to the model's own weights."""


@dataclass(frozen=True)
class Adapters:
    """What a diffusion model is loaded with besides its own weights, which stay as they are and are held once."""

    loras: tuple[str, ...] = ()
    """Safetensors files, or those of the hub: `owner/name`, `owner/name/file.safetensors`."""
    lcm_lora: bool = False
    """The LoRA of latent-consistency for the model's family."""
    controlnets: tuple[str, ...] = ()
    """Folders in diffusers' layout, or repositories of the hub."""
    fingerprints: tuple[tuple[int, ...], ...] = ()
    """Of the LoRAs' files: one that is replaced is another."""

    @property
    def named(self) -> Adapters:
        """The same by name alone, whatever the files hold."""
        return replace(self, fingerprints=())


@dataclass(frozen=True)
class DiffusionParameters(InpaintParameters):
    """How a diffusion model repaints what the mask covers."""

    prompt: Annotated[str, Hint(widget="textarea")] = ""
    """What to paint."""
    negative_prompt: Annotated[str, Hint(widget="textarea")] = ""
    """What not to paint."""
    sd_steps: Annotated[int, Ge(1)] = 50
    """How many steps to take: more take longer, and show more detail."""
    sd_strength: Annotated[float, Gt(0), Le(1)] = 1.0
    """How far from the image it may go: 1 forgets what the mask covers. 1 beyond the edges (`use_extender`)."""
    sd_guidance_scale: Annotated[float, Ge(0)] = 7.5
    """How closely it follows the prompt."""
    sd_sampler: Sampler = Sampler.UNIPC
    """How it takes its steps."""
    sd_seed: Annotated[int, Ge(-1), Lt(2**63)] = 42
    """Of its random numbers; -1 takes another one each time."""
    p2p_image_guidance_scale: Annotated[float, Ge(0)] = 1.5
    """How closely it follows the image."""
    paint_by_example_example_image: Annotated[str | None, Hint(widget="image")] = None
    """What to paint: the bytes of an image file, in base64."""
    loras: tuple[Lora, ...] = ()
    """LoRAs of the user's own: `[{"name": "style.safetensors", "scale": 0.8}]`."""
    sd_lcm_lora: bool = False
    """Paint in few steps, 4 to 8, with the LoRA of latent-consistency; implies the sampler `LCM`."""
    enable_controlnet: bool = False
    """Have ControlNets keep the result to the image's outlines, or whatever they look at."""
    controlnet_method: str | tuple[str, ...] = "lllyasviel/control_v11p_sd15_canny"
    """One or several: folders or repositories of the hub, whose names say what they look at: `canny`, `inpaint`."""
    controlnet_conditioning_scale: Annotated[float, Ge(0), Le(1)] = 0.4
    """How much the ControlNets count, each."""

    @property
    def variant(self) -> Adapters | None:
        """The LoRAs and ControlNets, as far as a model takes them; their scales may differ from call to call."""
        loras = tuple(lora.name for lora in getattr(self, "loras", ()))
        methods: str | tuple[str, ...] = self.controlnet_method if getattr(self, "enable_controlnet", False) else ()
        adapters = Adapters(
            loras,
            getattr(self, "sd_lcm_lora", False),
            (methods,) if isinstance(methods, str) else methods,
            TensorFiles(tuple(path for path in map(Path, loras) if path.is_file())).stamp(),
        )
        return None if adapters == Adapters() else adapters

    def for_outpainting(self) -> Self:
        """Forget what the mask covers, where the model can keep some of it."""
        return replace(self, sd_strength=1.0) if hasattr(self, "sd_strength") else self


def adapters_of(context: LoadContext) -> Adapters:
    """Return what a model is to be loaded with."""
    variant = context.variant
    if not isinstance(variant, Adapters | None):
        raise InputError(f"expected the variant of DiffusionParameters, got {variant!r}", "Pass parameters.variant")
    return variant or Adapters()
