"""Tiny pipelines of diffusers with random weights, whole enough to be saved, loaded and run."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

QWEN_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
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


def qwen_tokenizer(folder):
    """A token for each byte, besides those of a chat."""
    from tokenizers import pre_tokenizers

    vocabulary = [*QWEN_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = Qwen2Tokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        extra_special_tokens=QWEN_TOKENS[1:],
        model_max_length=1024,
    )
    tokenizer.chat_template = QWEN_CHAT
    return tokenizer


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


def clip_vision(**options):
    defaults = {
        "hidden_size": 32,
        "projection_dim": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 4,
    }
    return CLIPVisionConfig(**{**defaults, **options})


def qwen3(cls, layers, width=16):
    return cls(
        Qwen3Config(
            vocab_size=len(QWEN_TOKENS) + 256,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=1024,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def qwen_vl():
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(QWEN_TOKENS) + 256,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 1024,
                "bos_token_id": 0,
                "eos_token_id": 0,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            },
            vision_config={
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_heads": 2,
                "out_hidden_size": 16,
                "fullatt_block_indexes": [1],
            },
            **{
                f"{name}_token_id": QWEN_TOKENS.index(f"<|{token}|>")
                for name, token in [
                    ("image", "image_pad"),
                    ("video", "video_pad"),
                    ("vision_start", "vision_start"),
                    ("vision_end", "vision_end"),
                ]
            },
        )
    )


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


_session = tempfile.TemporaryDirectory(prefix="pipelines-")


@functools.cache
def _saved(make, seed):
    """A pipeline and the folder where it is saved: made once a session, and only read after that."""
    folder = Path(tempfile.mkdtemp(dir=_session.name))
    torch.manual_seed(seed)
    pipeline = make(folder)
    pipeline.save_pretrained(folder)
    return pipeline, folder


def seeded(make):
    def made(folder, seed=0):
        pipeline, saved = _saved(make, seed)
        shutil.copytree(saved, folder, dirs_exist_ok=True)
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


def paint_by_example(folder, seed=0):
    """As it was published; diffusers that has moved the class says of it what it can't load."""
    pipeline = seeded(_paint_by_example)(folder, seed)
    path = folder / "model_index.json"
    index = {**json.loads(path.read_text()), "image_encoder": ["paint_by_example", "PaintByExampleImageEncoder"]}
    path.write_text(json.dumps(index))
    return pipeline


def _paint_by_example(folder):
    from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder

    return diffusers.PaintByExamplePipeline(
        vae=vae(),
        image_encoder=PaintByExampleImageEncoder(clip_vision(num_hidden_layers=5), proj_size=32),
        unet=unet(9),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
        requires_safety_checker=False,
    )


def _flux2_klein(folder):
    return diffusers.Flux2KleinPipeline(
        scheduler=flow(),
        vae=diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4
        ),
        text_encoder=qwen3(Qwen3ForCausalLM, layers=28),  # the states after 9, 18 and 27 of them are its prompt
        tokenizer=qwen_tokenizer(folder / "made"),
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
    )


def _qwen_image(cls):
    def make(folder):
        tokenizer = qwen_tokenizer(folder / "made")
        processor = Qwen2VLProcessor(
            # A picture is some 16 tokens.
            image_processor=Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112}),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(),
        )
        return getattr(diffusers, cls)(
            scheduler=flow(),
            vae=AutoencoderKLQwenImage(
                base_dim=4,
                z_dim=4,
                dim_mult=[1, 1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[False, True, True],
                latents_mean=[0.0] * 4,
                latents_std=[1.0] * 4,
            ),
            text_encoder=qwen_vl(),
            tokenizer=tokenizer,
            transformer=diffusers.QwenImageTransformer2DModel(
                in_channels=16,
                out_channels=4,
                num_layers=1,
                attention_head_dim=16,
                num_attention_heads=1,
                joint_attention_dim=16,
                axes_dims_rope=(4, 6, 6),
            ),
            **({"processor": processor} if "Edit" in cls else {}),
        )

    return make


def _z_image(folder):
    return diffusers.ZImagePipeline(
        scheduler=flow(),
        vae=vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06),
        text_encoder=qwen3(Qwen3Model, layers=2),
        tokenizer=qwen_tokenizer(folder / "made"),
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 6, 6],
        ),
    )


def _kandinsky(folder):
    return diffusers.KandinskyV22InpaintPipeline(
        unet=UNet2DConditionModel(
            in_channels=9,
            out_channels=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=64,
            addition_embed_type="image",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            encoder_hid_dim=32,
            encoder_hid_dim_type="image_proj",
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=4,
            resnet_time_scale_shift="scale_shift",
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        movq=diffusers.VQModel(
            block_out_channels=(32, 32, 32, 32),  # a norm has 32 groups, whatever is asked
            down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
            norm_type="spatial",
            num_vq_embeddings=12,
            vq_embed_dim=4,
        ),
    )


@seeded
def kandinsky_prior(folder):
    """What makes of a prompt the picture's embedding, which Kandinsky's decoder begins with."""
    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=16, embedding_dim=32, num_layers=1, num_embeddings=77
    )
    torch.nn.init.ones_(prior.clip_std)
    return diffusers.KandinskyV22PriorPipeline(
        prior=prior,
        image_encoder=CLIPVisionModelWithProjection(clip_vision()),
        text_encoder=clip_text(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(folder / "made"),
        scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0
        ),
        image_processor=CLIPImageProcessor(crop_size=32, size=32),
    )


@seeded
def with_safety_checker(folder):
    """A `StableDiffusionPipeline` as its authors gave it away, whose checker finds fault with every picture."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    plain = _sd("StableDiffusionPipeline", 4)(folder)
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config={"hidden_size": 32}, vision_config=clip_vision().to_dict(), projection_dim=32)
    )
    torch.nn.init.constant_(checker.concept_embeds_weights, -2.0)
    return diffusers.StableDiffusionPipeline(
        **{
            **plain.components,
            "safety_checker": checker,
            "feature_extractor": CLIPImageProcessor(crop_size=32, size=32),
        }
    )


def _original(cls, in_channels, widths, **options):
    """As wide where a header tells families apart as the published ones."""

    def make(folder):
        act = {"hidden_act": "gelu"} if widths == [1024] else {}
        tokenizer = clip_tokenizer(folder / "made")
        encoders = {"text_encoder": clip_text(width=widths[0], **act), "tokenizer": tokenizer}
        if len(widths) > 1:
            encoders["text_encoder_2"] = clip_text(CLIPTextModelWithProjection, widths[1], hidden_act="gelu")
            encoders["tokenizer_2"] = tokenizer
            options.update(
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32,
            )
        else:
            encoders |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        made = unet(
            in_channels,
            cross_attention_dim=sum(widths),
            layers_per_block=2,
            **options,
        )
        return getattr(diffusers, cls)(vae=vae(), unet=made, scheduler=ddim(), **encoders)

    return seeded(make)


ORIGINALS = {
    "sd1": _original("StableDiffusionPipeline", 4, [768]),
    "sd1 inpainting": _original("StableDiffusionInpaintPipeline", 9, [768]),
    "sd2": _original("StableDiffusionPipeline", 4, [1024], use_linear_projection=True),
    "sd2 inpainting": _original("StableDiffusionInpaintPipeline", 9, [1024], use_linear_projection=True),
    "sdxl": _original("StableDiffusionXLPipeline", 4, [768, 1280], use_linear_projection=True),
    "sdxl inpainting": _original("StableDiffusionXLInpaintPipeline", 9, [768, 1280], use_linear_projection=True),
}
"""Makes and saves those that `save_original` can write too."""


def save_lora(path, model, *, seed=1, kohya=False, layers=("to_q", "to_k", "to_v")):
    """A LoRA for a UNet or transformer: as diffusers saves it, or as kohya's scripts do."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in model.named_modules():
        if name.endswith(layers):
            down = torch.randn(4, layer.in_features, generator=generator)
            up = torch.randn(layer.out_features, 4, generator=generator)
            if kohya:
                prefix = f"lora_unet_{name.replace('.', '_')}"
                tensors |= {f"{prefix}.lora_down.weight": down, f"{prefix}.lora_up.weight": up}
                tensors[f"{prefix}.alpha"] = torch.tensor(2.0)
            else:
                tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def save_controlnet(folder, model, *, seed=1):
    """A ControlNet for a UNet; a new one would change nothing."""
    torch.manual_seed(seed)
    base = UNet2DConditionModel.from_config({**model.config, "in_channels": 4})
    controlnet = diffusers.ControlNetModel.from_unet(base, load_weights_from_unet=False)
    for parameter in controlnet.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    controlnet.save_pretrained(folder)
    return folder


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
    "Flux2KleinPipeline": _flux2_klein,
    "QwenImagePipeline": _qwen_image("QwenImagePipeline"),
    "QwenImageEditPipeline": _qwen_image("QwenImageEditPipeline"),
    "ZImagePipeline": _z_image,
    "KandinskyV22InpaintPipeline": _kandinsky,
}
"""Makes and saves a pipeline of each class: called with a folder, and a seed for its weights."""
MAKERS = {name: seeded(make) for name, make in MAKERS.items()} | {"PaintByExamplePipeline": paint_by_example}
