"""Which pipeline of diffusers inpaints with which checkpoint, and which parameters it takes: one row for each."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from iopaint_core import InpaintParameters, ModelType, WeightsError
from iopaint_plugins.diffusion.configs import read_index
from iopaint_plugins.diffusion.parameters import DiffusionParameters

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PROMPT = {"prompt": "prompt"}
_STEPS = {"sd_steps": "num_inference_steps"}
_GUIDANCE = {"sd_guidance_scale": "guidance_scale"}
_TRUE_GUIDANCE = {"sd_guidance_scale": "true_cfg_scale"}
_NEGATIVE = {"negative_prompt": "negative_prompt"}
_STRENGTH = {"sd_strength": "strength"}
_CONTROLNETS = ("enable_controlnet", "controlnet_method", "controlnet_conditioning_scale")
_CLASSIC = {**_PROMPT, **_NEGATIVE, **_STEPS, **_GUIDANCE, **_STRENGTH}


@dataclass(frozen=True)
class Row:
    """How a checkpoint inpaints."""

    pipeline: str
    """The class of diffusers."""
    type: ModelType
    multiple: int
    """Pixels that the sides of a picture must be a multiple of."""
    takes: Mapping[str, str] = field(default_factory=lambda: _CLASSIC)
    """Parameters, and what the pipeline calls them."""
    samplers: bool = False
    """Whether another sampler may take the place of its own."""
    loras: bool = True
    """Whether it takes LoRAs; that of latent-consistency if it takes samplers too."""
    dtype: str = "float16"
    """Of the weights on an accelerator."""
    mask: bool = True
    """Whether it is told the mask; if not, only the composite keeps to it."""
    size: tuple[str, ...] = ("height", "width")
    """What it is told of the size, in pixels."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """More arguments."""
    controlnet: str = ""
    """The class of diffusers that takes ControlNets besides."""
    prior: str = ""
    """A repository whose components it needs besides its own, each named with `prior_` before it."""


def row_parameters(row: Row) -> type[DiffusionParameters]:
    """Return what the pipeline of a row takes."""
    more = {
        "sd_sampler": row.samplers,
        "loras": row.loras,
        "sd_lcm_lora": row.samplers and row.loras,
        **dict.fromkeys(_CONTROLNETS, bool(row.controlnet)),
    }
    return DiffusionParameters.only(*row.takes, "sd_seed", *(name for name, taken in more.items() if taken))


_SD = Row(
    "StableDiffusionInpaintPipeline",
    ModelType.DIFFUSERS_SD,
    8,
    samplers=True,
    controlnet="StableDiffusionControlNetInpaintPipeline",
)
_SD_INPAINT = replace(_SD, type=ModelType.DIFFUSERS_SD_INPAINT)
_SDXL = replace(
    _SD,
    pipeline="StableDiffusionXLInpaintPipeline",
    type=ModelType.DIFFUSERS_SDXL,
    controlnet="StableDiffusionXLControlNetInpaintPipeline",
)
_SDXL_INPAINT = replace(_SDXL, type=ModelType.DIFFUSERS_SDXL_INPAINT)
_SD3 = Row("StableDiffusion3InpaintPipeline", ModelType.DIFFUSERS_OTHER, 16)
_FLUX_TAKES = {**_PROMPT, **_STEPS, **_GUIDANCE, **_STRENGTH}
_FLUX = Row("FluxInpaintPipeline", ModelType.DIFFUSERS_OTHER, 16, _FLUX_TAKES, dtype="bfloat16")
_FLUX_FILL = Row("FluxFillPipeline", ModelType.DIFFUSERS_OTHER, 16, _FLUX_TAKES, dtype="bfloat16")
_KONTEXT = Row(
    "FluxKontextInpaintPipeline",
    ModelType.DIFFUSERS_OTHER,
    16,
    _FLUX_TAKES,
    dtype="bfloat16",
    size=("height", "width", "max_area"),
    fixed={"_auto_resize": False},
)
_KLEIN = Row("Flux2KleinInpaintPipeline", ModelType.DIFFUSERS_OTHER, 16, _FLUX_TAKES, dtype="bfloat16")
_QWEN_TAKES = {**_PROMPT, **_NEGATIVE, **_STEPS, **_TRUE_GUIDANCE, **_STRENGTH}
_QWEN = Row("QwenImageInpaintPipeline", ModelType.DIFFUSERS_OTHER, 16, _QWEN_TAKES, dtype="bfloat16")
_QWEN_EDIT = Row("QwenImageEditInpaintPipeline", ModelType.DIFFUSERS_OTHER, 16, _QWEN_TAKES, dtype="bfloat16")
_ZIMAGE = Row("ZImageInpaintPipeline", ModelType.DIFFUSERS_OTHER, 16, dtype="bfloat16")
_KANDINSKY = Row(
    "KandinskyV22InpaintCombinedPipeline",
    ModelType.DIFFUSERS_OTHER,
    64,
    {**_PROMPT, **_NEGATIVE, **_STEPS, **_GUIDANCE},
    loras=False,
    prior="kandinsky-community/kandinsky-2-2-prior",
)
_PAINT_BY_EXAMPLE = Row(
    "PaintByExamplePipeline",
    ModelType.DIFFUSERS_OTHER,
    8,
    {**_STEPS, **_GUIDANCE, **_NEGATIVE, "paint_by_example_example_image": "example_image"},
    samplers=True,
    loras=False,
)
_PIX2PIX = Row(
    "StableDiffusionInstructPix2PixPipeline",
    ModelType.DIFFUSERS_OTHER,
    8,
    {**_PROMPT, **_NEGATIVE, **_STEPS, **_GUIDANCE, "p2p_image_guidance_scale": "image_guidance_scale"},
    samplers=True,
    mask=False,
    size=(),
)

PIPELINES: Mapping[str, Row] = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionImg2ImgPipeline": _SD,
    "StableDiffusionInpaintPipeline": _SD_INPAINT,
    "StableDiffusionXLPipeline": _SDXL,
    "StableDiffusionXLImg2ImgPipeline": _SDXL,
    "StableDiffusionXLInpaintPipeline": _SDXL_INPAINT,
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusion3InpaintPipeline": _SD3,
    "FluxPipeline": _FLUX,
    "FluxInpaintPipeline": _FLUX,
    "FluxFillPipeline": _FLUX_FILL,
    "FluxKontextPipeline": _KONTEXT,
    "FluxKontextInpaintPipeline": _KONTEXT,
    "Flux2KleinPipeline": _KLEIN,
    "Flux2KleinInpaintPipeline": _KLEIN,
    "QwenImagePipeline": _QWEN,
    "QwenImageInpaintPipeline": _QWEN,
    "QwenImageEditPipeline": _QWEN_EDIT,
    "QwenImageEditInpaintPipeline": _QWEN_EDIT,
    "ZImagePipeline": _ZIMAGE,
    "ZImageInpaintPipeline": _ZIMAGE,
    "KandinskyV22InpaintPipeline": _KANDINSKY,
    "KandinskyV22InpaintCombinedPipeline": _KANDINSKY,
    "PaintByExamplePipeline": _PAINT_BY_EXAMPLE,
    "StableDiffusionInstructPix2PixPipeline": _PIX2PIX,
}
"""By the `_class_name` in a folder's `model_index.json`."""

_BY_TYPE: Mapping[ModelType, Row] = {
    row.type: row for row in PIPELINES.values() if row.type is not ModelType.DIFFUSERS_OTHER
}


def parameters_of(kind: ModelType, path: Path) -> type[InpaintParameters]:
    """Return what the model at a path takes; no more than the framework's own fields if it can't be loaded."""
    row = _BY_TYPE.get(kind)
    if row is None and path.is_dir():
        with contextlib.suppress(WeightsError):
            row = PIPELINES.get(str(read_index(path).get("_class_name")))
    return InpaintParameters if row is None else row_parameters(row)
