"""Small networks of SAM's families in the published format, with random weights, in a cache of the hub."""

import json

import torch
from transformers import (
    CLIPTokenizer,
    Sam2Config,
    Sam2Model,
    Sam3Config,
    Sam3Model,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
)
from weights import hub_cache, rewrite

from iopaint_plugins.interactive_seg import MODELS

SIZE = 64
"""Side of the square that these take; SAM 3's takes 56 pixels."""
_VIT = {
    "hidden_size": 16,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
    "window_size": 4,
    "global_attn_indexes": [1],
    "mlp_dim": 32,
    "num_pos_feats": 8,
}
_DECODER = {
    "hidden_size": 16,
    "mlp_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
}
_PROMPTS = {"hidden_size": 16, "image_size": SIZE, "patch_size": 8, "mask_input_channels": 16}
_HIERA = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "num_attention_heads": 1,
    "image_size": [SIZE, SIZE],
    "blocks_per_stage": [1, 2, 1, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 1, 1, 1],
    "window_size_per_stage": [4, 4, 4, 4],
    "global_attention_blocks": [2],
    "window_positional_embedding_background_size": [4, 4],
}
_SAM2 = {
    "vision_config": {
        "model_type": "sam2_vision_model",
        "backbone_config": _HIERA,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    },
    "prompt_encoder_config": {**_PROMPTS, "hidden_size": 32, "patch_size": 16},
    "mask_decoder_config": {**_DECODER, "hidden_size": 32},
}
_LAYER = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_SAM3 = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "window_size": 2,
            "global_attn_indexes": [1],
            "pretrain_image_size": 28,
        },
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    },
    "text_config": {
        "model_type": "clip_text_model",
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 32,
        "projection_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "geometry_encoder_config": _LAYER,
    "detr_encoder_config": _LAYER,
    "detr_decoder_config": {**_LAYER, "num_queries": 5},
    "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
}


def _random(network):
    """Give a network weights so large that what it finds depends on what it is asked."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return network.eval()


def make_networks():
    """Return a network of each family, by its class's name."""
    vision = {"vision_config": _VIT, "prompt_encoder_config": _PROMPTS}
    return {
        "SamModel": _random(SamModel(SamConfig(**vision, mask_decoder_config=_DECODER))),
        "SamHQModel": _random(SamHQModel(SamHQConfig(**vision, mask_decoder_config={**_DECODER, "vit_dim": 16}))),
        "Sam2Model": _random(Sam2Model(Sam2Config(**_SAM2))),
        "Sam3Model": _random(Sam3Model(Sam3Config(**_SAM3))),
    }


def make_tokenizer():
    """Return a tokenizer of letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])


def publish(networks, folder):
    """Save the networks as they are published, as all repositories of the plugin in a cache of the hub."""
    for name, network in networks.items():
        network.save_pretrained(folder / name)
    _as_of_videos(folder / "Sam2Model", lambda config: {**config, "model_type": "sam2_video", "num_maskmem": 7}, "")
    _as_of_videos(
        folder / "Sam3Model",
        lambda config: {"model_type": "sam3_video", "detector_config": config, "tracker_config": {}},
        "detector_model.",
    )
    make_tokenizer().save_pretrained(folder / "Sam3Model")
    classes = {"sam": "SamModel", "sam_hq": "SamHQModel", "sam2": "Sam2Model", "sam2_1": "Sam2Model"}
    for row in MODELS.values():
        hub_cache(folder / "hub", folder / classes.get(row.family, "Sam3Model"), row.repo)
    return folder / "hub"


def _as_of_videos(folder, change, prefix):
    """Have a folder hold a network for videos, of which that for images is a part."""
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    rewrite(
        folder / "model.safetensors",
        lambda tensors: {
            **{prefix + name: tensor for name, tensor in tensors.items()},
            "memory_encoder.projection.weight": torch.zeros(3, 3),
            "tracker_model.mask_decoder.weight": torch.zeros(3, 3),
        },
    )
