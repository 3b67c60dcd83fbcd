"""What a single-file checkpoint of a diffusion model is, told from the header of its safetensors file alone.

The names are those of the original code: CompVis/stable-diffusion, Stability-AI/generative-models and sd3-ref,
black-forest-labs/flux. What is told agrees with diffusers' `infer_diffusers_model_type`, which needs all tensors,
wherever that tells; it takes what it does not know for Stable Diffusion 1, and that is refused here. A file's name
says nothing: there are base models called "inpainting", and the reverse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from iopaint_core import ModelType, WeightsError, tensor_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Shapes = Mapping[str, list[int]]

RULES = 1
"""Counts up with each change of what is told, or in what words: what was remembered of before is told anew."""


class Family(str, Enum):
    """Architectures that share their components' kinds and configs."""

    SD1 = "sd1"
    SD2 = "sd2"
    SDXL = "sdxl"
    SD3 = "sd3"
    FLUX = "flux"


@dataclass(frozen=True)
class CheckpointType:
    """What kind of model a checkpoint holds."""

    family: Family
    inpaint: bool
    """Whether it was trained to inpaint: it takes mask and masked picture beside the latents."""

    @property
    def model_type(self) -> ModelType:
        """How it is run; Stable Diffusion 2 as 1 is, Stable Diffusion 3 and Flux as `DIFFUSERS_OTHER`."""
        if self.family in {Family.SD1, Family.SD2}:
            return ModelType.DIFFUSERS_SD_INPAINT if self.inpaint else ModelType.DIFFUSERS_SD
        if self.family is Family.SDXL:
            return ModelType.DIFFUSERS_SDXL_INPAINT if self.inpaint else ModelType.DIFFUSERS_SDXL
        return ModelType.DIFFUSERS_OTHER


_UNET = "model.diffusion_model."
_CONV_IN = f"{_UNET}input_blocks.0.0.weight"
_CROSS_ATTENTION = f"{_UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
"""The first that all UNets have: XL's begin with blocks without attention."""
_CONTEXTS = {768: Family.SD1, 1024: Family.SD2, 2048: Family.SDXL}
"""By the width of what the UNet attends to: the text encoders' outputs."""
_CHANNELS = {
    5: "a depth-to-image model of Stable Diffusion",
    7: "an upscaler of Stable Diffusion",
    8: "an InstructPix2Pix model",
}
"""What a UNet is that takes as many channels; 4 are the latents, 9 those, a mask and a masked picture."""
_FLUX_CHANNELS = {64: False, 384: True}
"""Whether it inpaints, by the width of a patch: 2 x 2 of 16 latents; as much of the masked picture, 256 of mask."""
_LOOKALIKES = {
    "cc_projection.weight": "a Zero123 model, which turns objects",
    "control_model.time_embed.0.weight": "a ControlNet",
    "controlnet_blocks.0.weight": "a ControlNet",
    f"{_UNET}input_blocks.1.0.time_mixer.mix_factor": "a video model",
    "single_stream_modulation.lin.weight": "a Flux.2 model",
    f"{_UNET}single_stream_modulation.lin.weight": "a Flux.2 model",
    "distilled_guidance_layer.in_proj.bias": "a Chroma model",
    f"{_UNET}distilled_guidance_layer.in_proj.bias": "a Chroma model",
}
"""By a tensor of theirs: models that may have all tensors of a known family too."""
_OTHERS = (
    ("a LoRA", r"lora_|\.lora\.|\.(hada|lokr)_"),
    ("a ControlNet", r"^(control_model|controlnet_\w+|input_hint_block)\."),
    ("a UNet in diffusers' layout", r"^down_blocks\.\d+\.(resnets|attentions)\."),
    ("a UNet without its VAE and text encoder", r"^input_blocks\.0\.0\."),
    ("a transformer in diffusers' layout", r"^transformer_blocks\.0\."),
    ("a VAE", r"^(first_stage_model\.|vae\.)?(en|de)coder\.conv_in\."),
    ("a text encoder", r"\btoken_embedding\.|^text_model\.|^(encoder\.)?embed_tokens\.|^shared\.|SelfAttention\."),
    ("an upscaler", r"(^|\.)conv_first\.|\b(?i:rdb)1\.conv1\.|^upsampler\."),
)
"""Kinds of models by what some of their tensors' names look like; the first counts."""


def checkpoint_type(path: Path) -> CheckpointType:
    """Tell what a single-file checkpoint in the original layout holds; only the header of the file is read.

    Raises `WeightsError` for a file that is damaged, a pickle, or no checkpoint of a known family; it says what
    kind of file it is instead, if that can be told.
    """
    found = _tell(tensor_shapes(path))
    if isinstance(found, CheckpointType):
        return found
    raise WeightsError(
        f"{path} is {found or 'no checkpoint of a known family'}",
        "Whole checkpoints of Stable Diffusion 1, 2 and XL are known, and transformers of Stable Diffusion 3 and "
        "Flux.1, base and inpainting, in the original layout: take one of those",
    )


def _tell(shapes: Shapes) -> CheckpointType | str:
    """The type, or what the file is instead, or nothing."""
    for name, kind in _LOOKALIKES.items():
        if name in shapes:
            return kind
    if _CONV_IN in shapes:
        return _tell_unet(shapes)
    for prefix in ("", _UNET):
        if f"{prefix}joint_blocks.0.context_block.attn.qkv.weight" in shapes:
            return _tell_sd3(_size(shapes, f"{prefix}x_embedder.proj.weight"))
        if f"{prefix}double_blocks.0.img_attn.qkv.weight" in shapes:
            return _tell_flux(shapes, f"{prefix}img_in.weight")
    names = "\n".join(shapes)
    return next((kind for kind, looks in _OTHERS if re.search(looks, names, re.MULTILINE)), "")


def _tell_unet(shapes: Shapes) -> CheckpointType | str:
    channels, context = _size(shapes, _CONV_IN), _size(shapes, _CROSS_ATTENTION)
    if context == 1280 and _size(shapes, _CONV_IN, 0) == 384:
        return "the refiner of Stable Diffusion XL, which only finishes pictures of another model"
    if channels in _CHANNELS:
        return _CHANNELS[channels]
    family = _CONTEXTS.get(context)
    if family is None or channels not in {4, 9}:
        return ""
    if family is Family.SD2 and f"{_UNET}label_emb.0.0.weight" in shapes:
        return "an unCLIP model of Stable Diffusion 2, which varies pictures"
    parts = {"VAE": ("first_stage_model.",), "text encoder": ("cond_stage_model.", "conditioner.")}
    names = "\n" + "\n".join(shapes)
    lacking = [part for part, prefixes in parts.items() if not any(f"\n{prefix}" in names for prefix in prefixes)]
    if lacking:
        return f"a UNet without its {' and '.join(lacking)}"
    return CheckpointType(family, inpaint=channels == 9)


def _tell_sd3(channels: int) -> CheckpointType | str:
    if channels == 16:
        return CheckpointType(Family.SD3, inpaint=False)
    return f"a variant of Stable Diffusion 3 that takes {channels} channels"


def _tell_flux(shapes: Shapes, img_in: str) -> CheckpointType | str:
    channels = _size(shapes, img_in)
    if _size(shapes, img_in, 0) != 3072:
        return "a variant of Flux.1 of another width"
    if channels in _FLUX_CHANNELS:
        return CheckpointType(Family.FLUX, inpaint=_FLUX_CHANNELS[channels])
    if channels == 128:
        return "a control model of Flux.1, for depth or edges"
    return f"a variant of Flux.1 that takes {channels} channels"


def _size(shapes: Shapes, name: str, axis: int = 1) -> int:
    shape = shapes.get(name, [])
    return shape[axis] if len(shape) > axis else 0
