"""Tiny pipelines of diffusers with random weights, whole enough to be saved, loaded and run."""

import json

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WORDS = ["a", "cat", "dog", "red", "on", "the", "grass", "photo", "of"]


def clip_tokenizer(folder):
    """A vocabulary of letters and a few words."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def word_tokenizer(length=32, **special):
    """One token for each word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def clip_text(cls=CLIPTextModel, width=32, **options):
    return cls(
        CLIPTextConfig(
            vocab_size=190,
            hidden_size=width,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=32,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            **options,
        )
    )


def t5(width=32):
    return T5EncoderModel(T5Config(vocab_size=20, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4))


def vae(**options):
    defaults = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    return AutoencoderKL(**{**defaults, **options})


def unet(in_channels=4, **options):
    defaults = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "sample_size": 64,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(in_channels=in_channels, out_channels=4, **{**defaults, **options})


def ddim():
    return PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )


def flow():
    return FlowMatchEulerDiscreteScheduler()


def seeded(make):
    def made(folder, seed=0):
        torch.manual_seed(seed)
        pipeline = make(folder)
        pipeline.save_pretrained(folder)
        return pipeline

    return made


def _sd(cls, in_channels):
    def make(folder):
        return getattr(diffusers, cls)(
            vae=vae(),
            text_encoder=clip_text(),
            tokenizer=clip_tokenizer(folder / "made"),
            unet=unet(in_channels),
            scheduler=ddim(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    return make


def _sdxl(cls, in_channels):
    def make(folder):
        tokenizer = clip_tokenizer(folder / "made")
        return getattr(diffusers, cls)(
            vae=vae(),
            text_encoder=clip_text(),
            text_encoder_2=clip_text(CLIPTextModelWithProjection),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=unet(
                in_channels,
                cross_attention_dim=64,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32,
                transformer_layers_per_block=(1, 2),
            ),
            scheduler=ddim(),
        )

    return make


def _sd3(folder):
    tokenizer = clip_tokenizer(folder / "made")
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=16,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            out_channels=16,
        ),
        scheduler=flow(),
        vae=vae(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06),
        text_encoder=clip_text(CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        text_encoder_2=clip_text(CLIPTextModelWithProjection),
        tokenizer_2=tokenizer,
        text_encoder_3=t5(64),
        tokenizer_3=word_tokenizer(),
    )


def _flux(cls, in_channels):
    def make(folder):
        return getattr(diffusers, cls)(
            scheduler=flow(),
            vae=vae(latent_channels=4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06),
            text_encoder=clip_text(),
            tokenizer=clip_tokenizer(folder / "made"),
            text_encoder_2=t5(),
            tokenizer_2=word_tokenizer(),
            transformer=diffusers.FluxTransformer2DModel(
                patch_size=1,
                in_channels=in_channels,
                out_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                axes_dims_rope=(4, 4, 8),
            ),
        )

    return make


def _pix2pix(folder):
    return diffusers.StableDiffusionInstructPix2PixPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(folder / "made"),
        unet=unet(8),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _paint_by_example(folder):
    from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder

    config = CLIPVisionConfig(
        hidden_size=32,
        projection_dim=32,
        intermediate_size=37,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=32,
        patch_size=4,
    )
    return diffusers.PaintByExamplePipeline(
        vae=vae(),
        image_encoder=PaintByExampleImageEncoder(config, proj_size=32),
        unet=unet(9),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
        requires_safety_checker=False,
    )


MAKERS = {
    "StableDiffusionPipeline": _sd("StableDiffusionPipeline", 4),
    "StableDiffusionInpaintPipeline": _sd("StableDiffusionInpaintPipeline", 9),
    "StableDiffusionXLPipeline": _sdxl("StableDiffusionXLPipeline", 4),
    "StableDiffusionXLInpaintPipeline": _sdxl("StableDiffusionXLInpaintPipeline", 9),
    "StableDiffusion3Pipeline": _sd3,
    "FluxPipeline": _flux("FluxPipeline", 16),
    "FluxFillPipeline": _flux("FluxFillPipeline", 16 + 16 + 256),
    "FluxKontextPipeline": _flux("FluxKontextPipeline", 16),
    "StableDiffusionInstructPix2PixPipeline": _pix2pix,
    "PaintByExamplePipeline": _paint_by_example,
}
"""Makes and saves a pipeline of each class: called with a folder, and a seed for its weights."""
MAKERS = {name: seeded(make) for name, make in MAKERS.items()}
