"""Single-file checkpoints with the names and shapes of published ones, and holes in place of weights."""

import json
import math

UNET, VAE = "model.diffusion_model.", "first_stage_model."


def _linear(name, outputs, inputs, *, bias=True, kernel=()):
    return {f"{name}.weight": [outputs, inputs, *kernel], **({f"{name}.bias": [outputs]} if bias else {})}


def _conv(name, outputs, inputs, size=3):
    return _linear(name, outputs, inputs, kernel=(size, size))


def _norm(name, width):
    return {f"{name}.weight": [width], f"{name}.bias": [width]}


def _prefixed(prefix, shapes):
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def _unet_resnet(name, inputs, outputs):
    return {
        **_norm(f"{name}.in_layers.0", inputs),
        **_conv(f"{name}.in_layers.2", outputs, inputs),
        **_linear(f"{name}.emb_layers.1", outputs, 1280),
        **_norm(f"{name}.out_layers.0", outputs),
        **_conv(f"{name}.out_layers.3", outputs, outputs),
        **(_conv(f"{name}.skip_connection", outputs, inputs, 1) if inputs != outputs else {}),
    }


def _unet_attention(name, width, context, depth, linear):
    kernel = () if linear else (1, 1)
    shapes = {**_norm(f"{name}.norm", width), **_linear(f"{name}.proj_in", width, width, kernel=kernel)}
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for attention, attended in (("attn1", width), ("attn2", context)):
            shapes |= _linear(f"{block}.{attention}.to_q", width, width, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_k", width, attended, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_v", width, attended, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_out.0", width, width)
        shapes |= _linear(f"{block}.ff.net.0.proj", 8 * width, width)
        shapes |= _linear(f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            shapes |= _norm(f"{block}.{norm}", width)
    return shapes | _linear(f"{name}.proj_out", width, width, kernel=kernel)


def unet(channels, context, *, widths=(320, 640, 1280, 1280), depths=(1, 1, 1, 0), linear=False, labels=0):
    """A UNet of CompVis/stable-diffusion; `depths`: transformer blocks at each level."""
    first, middle = widths[0], depths[-1] or 1
    shapes = {**_linear("time_embed.0", 1280, first), **_linear("time_embed.2", 1280, 1280)}
    if labels:
        shapes |= {**_linear("label_emb.0.0", 1280, labels), **_linear("label_emb.0.2", 1280, 1280)}
    shapes |= _conv("input_blocks.0.0", first, channels)
    width, number, skips = first, 0, [first]
    for level, outputs in enumerate(widths):
        for _ in range(2):
            number += 1
            shapes |= _unet_resnet(f"input_blocks.{number}.0", width, outputs)
            width = outputs
            if depths[level]:
                shapes |= _unet_attention(f"input_blocks.{number}.1", width, context, depths[level], linear)
            skips.append(width)
        if level < len(widths) - 1:
            number += 1
            shapes |= _conv(f"input_blocks.{number}.0.op", width, width)
            skips.append(width)
    shapes |= _unet_resnet("middle_block.0", width, width)
    shapes |= _unet_attention("middle_block.1", width, context, middle, linear)
    shapes |= _unet_resnet("middle_block.2", width, width)
    number = 0
    for level, outputs in reversed([*enumerate(widths)]):
        for i in range(3):
            block = f"output_blocks.{number}"
            shapes |= _unet_resnet(f"{block}.0", width + skips.pop(), outputs)
            width = outputs
            if depths[level]:
                shapes |= _unet_attention(f"{block}.1", width, context, depths[level], linear)
            if i == 2 and level:
                shapes |= _conv(f"{block}.{2 if depths[level] else 1}.conv", width, width)
            number += 1
    return shapes | _norm("out.0", first) | _conv("out.2", 4, first)


def _vae_resnet(name, inputs, outputs):
    return {
        **_norm(f"{name}.norm1", inputs),
        **_conv(f"{name}.conv1", outputs, inputs),
        **_norm(f"{name}.norm2", outputs),
        **_conv(f"{name}.conv2", outputs, outputs),
        **(_conv(f"{name}.nin_shortcut", outputs, inputs, 1) if inputs != outputs else {}),
    }


def _vae_middle(side):
    shapes = {**_vae_resnet(f"{side}.mid.block_1", 512, 512), **_norm(f"{side}.mid.attn_1.norm", 512)}
    for name in ("q", "k", "v", "proj_out"):
        shapes |= _conv(f"{side}.mid.attn_1.{name}", 512, 512, 1)
    return shapes | _vae_resnet(f"{side}.mid.block_2", 512, 512)


def vae():
    """The VAE of Stable Diffusion 1, 2 and XL."""
    widths = (128, 256, 512, 512)
    shapes, width = _conv("encoder.conv_in", 128, 3), 128
    for level, outputs in enumerate(widths):
        for i in range(2):
            shapes |= _vae_resnet(f"encoder.down.{level}.block.{i}", width, outputs)
            width = outputs
        if level < 3:
            shapes |= _conv(f"encoder.down.{level}.downsample.conv", width, width)
    shapes |= {**_vae_middle("encoder"), **_norm("encoder.norm_out", 512), **_conv("encoder.conv_out", 8, 512)}
    shapes |= {**_conv("decoder.conv_in", 512, 4), **_vae_middle("decoder")}
    for level, outputs in reversed([*enumerate(widths)]):
        for i in range(3):
            shapes |= _vae_resnet(f"decoder.up.{level}.block.{i}", width, outputs)
            width = outputs
        if level:
            shapes |= _conv(f"decoder.up.{level}.upsample.conv", width, width)
    shapes |= {**_norm("decoder.norm_out", 128), **_conv("decoder.conv_out", 3, 128)}
    return shapes | _conv("quant_conv", 8, 8, 1) | _conv("post_quant_conv", 4, 4, 1)


def clip():
    """The text encoder of Stable Diffusion 1, the first of XL: OpenAI's CLIP ViT-L/14."""
    shapes = {
        "embeddings.position_ids": [1, 77],
        "embeddings.token_embedding.weight": [49408, 768],
        "embeddings.position_embedding.weight": [77, 768],
        **_norm("final_layer_norm", 768),
    }
    for number in range(12):
        layer = f"encoder.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{name}", 768, 768)
        shapes |= {**_linear(f"{layer}.mlp.fc1", 3072, 768), **_linear(f"{layer}.mlp.fc2", 768, 3072)}
        shapes |= {**_norm(f"{layer}.layer_norm1", 768), **_norm(f"{layer}.layer_norm2", 768)}
    return _prefixed("transformer.text_model.", shapes)


def openclip(width, layers):
    """The text encoder of Stable Diffusion 2 (1024, 24), the second of XL (1280, 32)."""
    shapes = {
        "positional_embedding": [77, width],
        "text_projection": [width, width],
        "logit_scale": [],
        "token_embedding.weight": [49408, width],
        **_norm("ln_final", width),
    }
    for number in range(layers):
        block = f"transformer.resblocks.{number}"
        shapes |= {f"{block}.attn.in_proj_weight": [3 * width, width], f"{block}.attn.in_proj_bias": [3 * width]}
        shapes |= _linear(f"{block}.attn.out_proj", width, width)
        shapes |= {
            **_linear(f"{block}.mlp.c_fc", 4 * width, width),
            **_linear(f"{block}.mlp.c_proj", width, 4 * width),
        }
        shapes |= {**_norm(f"{block}.ln_1", width), **_norm(f"{block}.ln_2", width)}
    return _prefixed("model.", shapes)


def sd1(channels=4):
    return {
        **_prefixed(UNET, unet(channels, 768)),
        **_prefixed(VAE, vae()),
        **_prefixed("cond_stage_model.", clip()),
        "alphas_cumprod": [1000],
    }


def sd2(channels=4, *, labels=0):
    return {
        **_prefixed(UNET, unet(channels, 1024, linear=True, labels=labels)),
        **_prefixed(VAE, vae()),
        **_prefixed("cond_stage_model.", openclip(1024, 24)),
    }


def sdxl_unet(channels=4):
    return unet(channels, 2048, widths=(320, 640, 1280), depths=(0, 2, 10), linear=True, labels=2816)


def sdxl(channels=4):
    return {
        **_prefixed(UNET, sdxl_unet(channels)),
        **_prefixed(VAE, vae()),
        **_prefixed("conditioner.embedders.0.", clip()),
        **_prefixed("conditioner.embedders.1.", openclip(1280, 32)),
    }


def sdxl_refiner():
    shapes = unet(4, 1280, widths=(384, 768, 1536, 1536), depths=(0, 4, 4, 0), linear=True, labels=2560)
    return {
        **_prefixed(UNET, shapes),
        **_prefixed(VAE, vae()),
        **_prefixed("conditioner.embedders.0.", openclip(1280, 32)),
    }


def sd3(channels=16):
    """The transformer of Stable Diffusion 3 medium (Stability-AI/sd3-ref)."""
    width, blocks = 1536, 24
    shapes = {
        "pos_embed": [1, 36864, width],
        **_linear("x_embedder.proj", width, channels, kernel=(2, 2)),
        **_linear("context_embedder", width, 4096),
        **_linear("t_embedder.mlp.0", width, 256),
        **_linear("t_embedder.mlp.2", width, width),
        **_linear("y_embedder.mlp.0", width, 2048),
        **_linear("y_embedder.mlp.2", width, width),
        **_linear("final_layer.linear", 64, width),
        **_linear("final_layer.adaLN_modulation.1", 2 * width, width),
    }
    for number in range(blocks):
        for side in ("x_block", "context_block"):
            block, ends = f"joint_blocks.{number}.{side}", side == "context_block" and number == blocks - 1
            shapes |= _linear(f"{block}.adaLN_modulation.1", (2 if ends else 6) * width, width)
            shapes |= _linear(f"{block}.attn.qkv", 3 * width, width)
            if not ends:
                shapes |= _linear(f"{block}.attn.proj", width, width)
                shapes |= {
                    **_linear(f"{block}.mlp.fc1", 4 * width, width),
                    **_linear(f"{block}.mlp.fc2", width, 4 * width),
                }
    return _prefixed(UNET, shapes)


def flux(channels=64):
    """The transformer of Flux.1 dev (black-forest-labs/flux); Fill takes 384 channels."""
    width = 3072
    shapes = {
        **_linear("img_in", width, channels),
        **_linear("txt_in", width, 4096),
        **_linear("final_layer.linear", 64, width),
        **_linear("final_layer.adaLN_modulation.1", 2 * width, width),
    }
    for name, inputs in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
        shapes |= {**_linear(f"{name}.in_layer", width, inputs), **_linear(f"{name}.out_layer", width, width)}
    for number in range(19):
        for side in ("img", "txt"):
            block = f"double_blocks.{number}.{side}"
            shapes |= _linear(f"{block}_mod.lin", 6 * width, width)
            shapes |= {
                **_linear(f"{block}_attn.qkv", 3 * width, width),
                **_linear(f"{block}_attn.proj", width, width),
            }
            shapes |= {f"{block}_attn.norm.{name}_norm.scale": [128] for name in ("query", "key")}
            shapes |= {**_linear(f"{block}_mlp.0", 4 * width, width), **_linear(f"{block}_mlp.2", width, 4 * width)}
    for number in range(38):
        block = f"single_blocks.{number}"
        shapes |= {**_linear(f"{block}.linear1", 7 * width, width), **_linear(f"{block}.linear2", width, 5 * width)}
        shapes |= _linear(f"{block}.modulation.lin", 3 * width, width)
        shapes |= {f"{block}.norm.{name}_norm.scale": [128] for name in ("query", "key")}
    return shapes


def write(path, shapes):
    """A safetensors file in half precision with those shapes; its weights take no room on the disk."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()  # as the library writes it
    raw += b" " * (-len(raw) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    return path
