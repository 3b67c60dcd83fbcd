"""Single-file checkpoints of Stable Diffusion 1, 2 and XL: which tensors are which component's.

The names are those of the original code (CompVis/stable-diffusion, Stability-AI/generative-models); diffusers
turns them into its own. Configs and tokenizers, which the files lack, are those of the published repositories.
"""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from iopaint_core import TensorFiles, WeightsError
from iopaint_plugins.diffusion.repositories import repository

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from iopaint_core import LoadContext

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_INPUT = f"{_UNET}input_blocks.0.0.weight"
_CONTEXTS = {768: "1", 1024: "2", 2048: "XL"}
"""Family by the width of what the UNet attends to."""
_REPOSITORIES = {
    ("1", 4): "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ("1", 9): "stable-diffusion-v1-5/stable-diffusion-inpainting",
    ("2", 4): "stabilityai/stable-diffusion-2-1",
    ("2", 9): "stabilityai/stable-diffusion-2-inpainting",
    ("XL", 4): "stabilityai/stable-diffusion-xl-base-1.0",
    ("XL", 9): "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
}
"""Where the configs come from, by family and the channels that the UNet takes."""
_TEXT_ENCODERS = (
    ("text_encoder", "cond_stage_model.transformer.", False),
    ("text_encoder", "cond_stage_model.model.", True),
    ("text_encoder", "conditioner.embedders.0.transformer.", False),
    ("text_encoder_2", "conditioner.embedders.1.model.", True),
)
"""Component, prefix, and whether it is in OpenCLIP's layout."""


def configs_of(path: Path, context: LoadContext) -> Path:
    """The folder with the configs and tokenizers for a single file. Raises `WeightsError`."""
    specs = TensorFiles((path,)).specs
    widths = {
        spec.shape[1]
        for name, spec in specs.items()
        if name.startswith(_UNET) and name.endswith(".attn2.to_k.weight")
    }
    family = _CONTEXTS.get(next(iter(widths), 0))
    key = (family, specs[_INPUT].shape[1] if _INPUT in specs else 0)
    if key not in _REPOSITORIES:
        raise WeightsError(
            f"{path} is no checkpoint of Stable Diffusion 1, 2 or XL that inpaints", "Name another file"
        )
    beside = path.with_suffix("")
    if (beside / "model_index.json").is_file():
        return beside
    return repository(_REPOSITORIES[key], context, weights=False)


def checkpoint_parts(path: Path, configs: Path) -> dict[str, TensorFiles]:
    """The weights of each component that a single file has."""
    from diffusers.loaders import single_file_utils as layouts

    names = TensorFiles((path,)).specs

    def part(prefix: str, convert: Any) -> TensorFiles:  # noqa: ANN401 - diffusers is not typed
        return TensorFiles((path,), prefix=prefix, convert=convert, layout=f"original, as {configs}")

    parts = {
        "unet": part(_UNET, partial(layouts.convert_ldm_unet_checkpoint, config=_config(configs / "unet"))),
        "vae": part(_VAE, partial(_convert_vae, config=_config(configs / "vae"))),
    }
    for component, prefix, openclip in _TEXT_ENCODERS:
        if any(name.startswith(prefix) for name in names):
            convert: Any = layouts.convert_ldm_clip_checkpoint
            if openclip:
                text_model = SimpleNamespace(config=SimpleNamespace(**_config(configs / component)))
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


def _config(folder: Path) -> Mapping[str, Any]:
    config: Mapping[str, Any] = json.loads((folder / "config.json").read_bytes())
    return config
