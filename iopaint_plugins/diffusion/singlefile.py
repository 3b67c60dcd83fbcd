"""Single-file checkpoints of Stable Diffusion 1, 2 and XL: which tensors are which component's.

The names are those of the original code (CompVis/stable-diffusion, Stability-AI/generative-models); diffusers
turns them into its own. Configs and tokenizers, which the files lack, are those of the published repositories.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from iopaint_core import MissingWeightsError, TensorFiles, WeightsError, hub_folder
from iopaint_plugins.diffusion.checkpoints import CheckpointType, Family, checkpoint_type
from iopaint_plugins.diffusion.configs import read_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from iopaint_core import LoadContext

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_REPOSITORIES = {
    CheckpointType(Family.SD1, inpaint=False): (
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "runwayml/stable-diffusion-v1-5",
    ),
    CheckpointType(Family.SD1, inpaint=True): (
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
        "runwayml/stable-diffusion-inpainting",
    ),
    CheckpointType(Family.SD2, inpaint=False): ("stabilityai/stable-diffusion-2-1",),
    CheckpointType(Family.SD2, inpaint=True): ("stabilityai/stable-diffusion-2-inpainting",),
    CheckpointType(Family.SDXL, inpaint=False): ("stabilityai/stable-diffusion-xl-base-1.0",),
    CheckpointType(Family.SDXL, inpaint=True): ("diffusers/stable-diffusion-xl-1.0-inpainting-0.1",),
}
"""Where the configs come from: fetched from the first, or from another where that is cached."""
_TEXT_ENCODERS = (
    ("text_encoder", "cond_stage_model.transformer.", False),
    ("text_encoder", "cond_stage_model.model.", True),
    ("text_encoder", "conditioner.embedders.0.transformer.", False),
    ("text_encoder_2", "conditioner.embedders.1.model.", True),
)
"""Component, prefix, and whether it is in OpenCLIP's layout."""


def configs_of(path: Path, context: LoadContext) -> Path:
    """The folder with the configs and tokenizers for a single file.

    It is the one beside the file that has its name without the suffix; else one of the hub. Raises `WeightsError`,
    and what `hub_folder` raises.
    """
    found = checkpoint_type(path)
    if found not in _REPOSITORIES:
        raise WeightsError(
            f"{path} is the transformer of a {found.family.value} model alone, in the original layout",
            "Single files of Stable Diffusion 1, 2 and XL can be used; get this one as a folder of diffusers",
        )
    beside = path.with_suffix("")
    if (beside / "model_index.json").is_file():
        return beside
    for name in _REPOSITORIES[found]:
        with contextlib.suppress(MissingWeightsError):
            return hub_folder(name, replace(context, offline=True), weights=False)
    return hub_folder(_REPOSITORIES[found][0], context, weights=False)


def checkpoint_parts(path: Path, configs: Path) -> dict[str, TensorFiles]:
    """The weights of each component that a single file has."""
    from diffusers.loaders import single_file_utils as layouts

    names = TensorFiles((path,)).specs

    def part(prefix: str, convert: Any) -> TensorFiles:  # noqa: ANN401 - diffusers is not typed
        return TensorFiles((path,), prefix=prefix, convert=convert, layout=f"original, as {configs}")

    parts = {
        "unet": part(_UNET, partial(layouts.convert_ldm_unet_checkpoint, config=read_config(configs / "unet"))),
        "vae": part(_VAE, partial(_convert_vae, config=read_config(configs / "vae"))),
    }
    for component, prefix, openclip in _TEXT_ENCODERS:
        if any(name.startswith(prefix) for name in names):
            convert: Any = layouts.convert_ldm_clip_checkpoint
            if openclip:
                text_model = SimpleNamespace(config=SimpleNamespace(**read_config(configs / component)))
                convert = partial(layouts.convert_open_clip_checkpoint, text_model, prefix=prefix)
            parts[component] = part(prefix, convert)
    return parts


def _convert_vae(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Besides names, the attention's projections change: they were convolutions of 1 x 1."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    converted: dict[str, Tensor] = convert_ldm_vae_checkpoint(tensors, config)  # type: ignore[no-untyped-call] # diffusers is not typed
    return {
        name: tensor[..., 0, 0] if "attentions" in name and tensor.ndim == 4 else tensor
        for name, tensor in converted.items()
    }
