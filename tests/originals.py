"""Writes pipelines of Stable Diffusion 1 as a single file in the layout that they were published in."""

import re

from safetensors.torch import save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE = {
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "resnets": "block",
}


def _unet_name(name, layers, attends):
    def down(match):
        block, kind, i, rest = int(match[1]), match[2], int(match[3]), match[4]
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (block + 1)}.0.op{rest.removeprefix('.conv')}"
        return f"input_blocks.{(layers + 1) * block + i + 1}.{int(kind == 'attentions')}{rest}"

    def up(match):
        block, kind, i, rest = int(match[1]), match[2], int(match[3]), match[4]
        if kind == "upsamplers":
            return f"output_blocks.{(layers + 1) * block + layers}.{2 if attends[block] else 1}{rest}"
        return f"output_blocks.{(layers + 1) * block + i}.{int(kind == 'attentions')}{rest}"

    renamed = re.sub(r"^down_blocks\.(\d+)\.(\w+)\.(\d+)(.*)", down, name)
    renamed = re.sub(r"^up_blocks\.(\d+)\.(\w+)\.(\d+)(.*)", up, renamed)
    for new, old in _UNET.items():
        renamed = re.sub(rf"^{re.escape(new)}\.", f"{old}.", renamed)
    if "resnets" in name:
        for new, old in _RESNET.items():
            renamed = renamed.replace(f".{new}.", f".{old}.")
    return f"model.diffusion_model.{renamed}"


def _vae_name(name, blocks):
    renamed = re.sub(r"decoder\.up_blocks\.(\d+)", lambda match: f"decoder.up.{blocks - 1 - int(match[1])}", name)
    renamed = re.sub(r"encoder\.down_blocks\.(\d+)", r"encoder.down.\1", renamed)
    for new, old in _VAE.items():
        renamed = renamed.replace(f".{new}.", f".{old}.")
    return f"first_stage_model.{renamed}"


def save_original(pipeline, path):
    """The weights of a pipeline under their names of before diffusers."""
    unet, vae = pipeline.unet, pipeline.vae
    attends = ["CrossAttn" in kind for kind in unet.config.up_block_types]
    tensors = {
        _unet_name(name, unet.config.layers_per_block, attends): tensor
        for name, tensor in unet.state_dict().items()
    }
    for name, tensor in vae.state_dict().items():
        projection = "mid_block.attentions" in name and "group_norm" not in name and tensor.ndim == 2
        tensors[_vae_name(name, len(vae.config.block_out_channels))] = (
            tensor[..., None, None] if projection else tensor
        )
    for name, tensor in pipeline.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
