"""Writes pipelines of Stable Diffusion 1, 2 and XL as single files in the layout that they were published in."""

import re

import torch
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
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
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
    encoders = [pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)]
    if encoders[1] is not None:
        tensors |= _clip(encoders[0], "conditioner.embedders.0.transformer.")
        tensors |= _openclip(encoders[1], "conditioner.embedders.1.model.")
    elif encoders[0].config.hidden_act == "gelu":
        tensors |= _openclip(encoders[0], "cond_stage_model.model.")
        last = "cond_stage_model.model.transformer.resblocks.23.ln_1.weight"  # which nothing uses
        tensors |= {last: torch.ones(8), "cond_stage_model.model.logit_scale": torch.ones(())}
    else:
        tensors |= _clip(encoders[0], "cond_stage_model.transformer.")
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors["alphas_cumprod"] = torch.linspace(1, 0, 1000)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)


def _clip(encoder, prefix):
    return {
        f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in encoder.state_dict().items()
    }


_OPENCLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _openclip(encoder, prefix):
    """There the projections of an attention are one tensor, and the last one lies transposed."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    tensors = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            fused = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            tensors[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(fused)
        elif name == "text_projection.weight":
            tensors["text_projection"] = tensor.T
        elif not re.search(r"self_attn\.[kv]_proj", name):
            for new, old in _OPENCLIP.items():
                name = name.replace(new, old)  # noqa: PLW2901 - step by step
            tensors[name] = tensor
    return {prefix + name: tensor for name, tensor in tensors.items()}
