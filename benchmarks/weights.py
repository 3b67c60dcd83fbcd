"""Four inpainting fine-tunes of the size of Stable Diffusion 1.5, with random weights; never zeros.

They are bfloat16: as large as the float16 that is published, in which a CPU computes many times slower. Their
UNets differ; the VAE and the text encoder are equal, byte for byte, in files of their own. They lie as
`huggingface_hub` lays out its cache on a disk without symlinks, since IOPaint looks for models there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

NAMES = ("one", "two", "three", "four")
REVISION = "0" * 40
DTYPE = "bfloat16"
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
INDEX = {
    "_class_name": "StableDiffusionInpaintPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
BLOCKS = {"full": (320, 640, 1280, 1280), "tiny": (32, 32, 64, 64)}
VAE_BLOCKS = {"full": (128, 256, 512, 512), "tiny": (32, 32, 32, 32)}
TEXT = {
    "full": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
}


def configs(scale: str) -> dict[str, dict[str, Any]]:
    width = TEXT[scale]["hidden_size"]
    return {
        "unet": {
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.6.0",
            "attention_head_dim": 8,
            "block_out_channels": BLOCKS[scale],
            "cross_attention_dim": width,
            "in_channels": 9,
            "layers_per_block": 2,
            "out_channels": 4,
            "sample_size": 64,
        },
        "vae": {
            "_class_name": "AutoencoderKL",
            "_diffusers_version": "0.6.0",
            "block_out_channels": VAE_BLOCKS[scale],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "latent_channels": 4,
            "layers_per_block": 2,
            "sample_size": 512,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        },
        "text_encoder": {
            "architectures": ["CLIPTextModel"],
            "hidden_act": "quick_gelu",
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "projection_dim": width,
            "torch_dtype": DTYPE,
            "vocab_size": 49408,
            **TEXT[scale],
        },
    }


def scale_of(root: Path) -> str:
    """The scale that the models there were made in."""
    return str(json.loads((root / "made.json").read_text())["scale"])


def folder_of(root: Path, name: str) -> Path:
    """Where the model of that name lies."""
    return root / f"models--benchmark--{name}" / "snapshots" / REVISION


def unique_bytes(root: Path) -> int:
    """Bytes of all weights, those that are equal counted once."""
    shared = [folder_of(root, NAMES[0]) / part / WEIGHTS[part] for part in ("vae", "text_encoder")]
    unets = [folder_of(root, name) / "unet" / WEIGHTS["unet"] for name in NAMES]
    return sum(path.stat().st_size for path in shared + unets)


def modules(scale: str) -> dict[str, nn.Module]:
    """The modules of one model, on `meta`."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    settings = configs(scale)
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(settings["unet"]),
            "vae": AutoencoderKL.from_config(settings["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**settings["text_encoder"])),
        }


def fill(module: nn.Module, path: Path, seed: int, prefix: str = "") -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)

    def random(shape: torch.Size) -> torch.Tensor:
        return torch.empty(shape).normal_(0, 0.02, generator=generator).to(getattr(torch, DTYPE))

    tensors = {
        prefix + name.removeprefix(prefix): random(tensor.shape)
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})


def write_tokenizer(folder: Path) -> None:
    """A vocabulary of single letters: what a text becomes matters to no figure."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {**special, "model_max_length": 77, "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def make(root: Path, scale: str) -> None:
    """Make the four models; again only if something is missing, or they are of another scale."""
    made = root / "made.json"
    wanted = {"scale": scale, "configs": json.loads(json.dumps(configs(scale)))}
    if made.exists() and json.loads(made.read_text()) == wanted:
        return
    made.unlink(missing_ok=True)
    parts = modules(scale)
    for seed, name in enumerate(NAMES):
        folder = folder_of(root, name)
        shutil.rmtree(folder.parent.parent, ignore_errors=True)
        write_tokenizer(folder / "tokenizer")
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=1))
        (folder / "model_index.json").write_text(json.dumps(INDEX, indent=1))
        for part, module in parts.items():
            path = folder / part / WEIGHTS[part]
            if part == "unet" or not seed:
                fill(module, path, seed, "text_model." if part == "text_encoder" else "")
            else:
                path.parent.mkdir()
                shutil.copyfile(folder_of(root, NAMES[0]) / part / WEIGHTS[part], path)
            (path.parent / "config.json").write_text(json.dumps(wanted["configs"][part], indent=1))
        references = folder.parent.parent / "refs"
        references.mkdir()
        (references / "main").write_text(REVISION)
    made.write_text(json.dumps(wanted))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--scale", choices=BLOCKS, default="full")
    options = parser.parse_args()
    make(options.root, options.scale)
