"""What a single file holds is told from its header alone, and never from its name."""

import json
import os
import warnings
from pathlib import Path

import checkpointfiles as files
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from iopaint_core import ModelType, WeightsError
from iopaint_plugins.diffusion.checkpoints import CheckpointType, Family, checkpoint_type

pytestmark = pytest.mark.torch

KNOWN = {
    "sd1": (files.sd1, Family.SD1, False, ModelType.DIFFUSERS_SD),
    "sd1-inpaint": (lambda: files.sd1(9), Family.SD1, True, ModelType.DIFFUSERS_SD_INPAINT),
    "sd2": (files.sd2, Family.SD2, False, ModelType.DIFFUSERS_SD),
    "sd2-inpaint": (lambda: files.sd2(9), Family.SD2, True, ModelType.DIFFUSERS_SD_INPAINT),
    "sdxl": (files.sdxl, Family.SDXL, False, ModelType.DIFFUSERS_SDXL),
    "sdxl-inpaint": (lambda: files.sdxl(9), Family.SDXL, True, ModelType.DIFFUSERS_SDXL_INPAINT),
    "sd3": (files.sd3, Family.SD3, False, ModelType.DIFFUSERS_OTHER),
    "flux": (files.flux, Family.FLUX, False, ModelType.DIFFUSERS_OTHER),
    "flux-fill": (lambda: files.flux(384), Family.FLUX, True, ModelType.DIFFUSERS_OTHER),
    "flux-of-a-ui": (
        lambda: {f"model.diffusion_model.{name}": shape for name, shape in files.flux().items()},
        Family.FLUX,
        False,
        ModelType.DIFFUSERS_OTHER,
    ),
}
FOREIGN = {
    "the refiner": files.sdxl_refiner,
    "an InstructPix2Pix": lambda: files.sd1(8),
    "a depth-to-image": lambda: files.sd2(5),
    "an upscaler of Stable Diffusion": lambda: files.sd2(7),
    "an unCLIP": lambda: files.sd2(labels=2048),
    "a UNet without its VAE and text encoder": lambda: {
        name: shape for name, shape in files.sd1().items() if name.startswith(files.UNET)
    },
    "a UNet without its VAE": lambda: {
        name: shape for name, shape in files.sdxl().items() if not name.startswith(files.VAE)
    },
    "a VAE": files.vae,
    "a text encoder": files.clip,
    "a LoRA": lambda: {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": [4, 320, 1, 1]},
    "a ControlNet": lambda: {**files.sd1(), "control_model.time_embed.0.weight": [1280, 320]},
    "a control model of Flux.1": lambda: files.flux(128),
    "an upscaler": lambda: {"model.0.weight": [64, 3, 3, 3], "model.1.sub.0.RDB1.conv1.0.weight": [32, 64, 3, 3]},
    "a variant of Flux.1 of another width": lambda: {**files.flux(), "img_in.weight": [2048, 64]},
    "a variant of Flux.1 that takes 96 channels": lambda: files.flux(96),
    "a variant of Stable Diffusion 3 that takes 32 channels": lambda: files.sd3(32),
    "no checkpoint of a known family": lambda: {"weight": [2, 2]},
    "no checkpoint of a known family.": lambda: files.sd1(6),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_each_family_is_told_at_its_real_shapes(kind, tmp_path):
    shapes, family, inpaint, model_type = KNOWN[kind]
    found = checkpoint_type(files.write(tmp_path / "model.safetensors", shapes()))
    assert found == CheckpointType(family, inpaint)
    assert found.model_type is model_type


def test_a_name_says_nothing(tmp_path):
    path = files.write(tmp_path / "stable_diffusion_xl" / "sdxl-inpainting.safetensors", files.sd1())
    assert checkpoint_type(path) == CheckpointType(Family.SD1, inpaint=False)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux counts the bytes that a process reads")
def test_nothing_but_the_header_is_read(tmp_path):
    def read():
        return int(Path("/proc/self/io").read_text().split()[1])

    path = files.write(tmp_path / "model.safetensors", files.sdxl())
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    before = read()
    checkpoint_type(path)
    assert header <= read() - before < header + 10_000 < path.stat().st_size / 1000


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_such_model_is_refused_as_what_it_is(kind, tmp_path):
    path = files.write(tmp_path / "model.safetensors", FOREIGN[kind]())
    with pytest.raises(WeightsError, match=f"is {kind}"):
        checkpoint_type(path)


def test_a_unet_in_the_layout_of_diffusers_is_refused_as_such(tmp_path):
    path = files.write(tmp_path / "m.safetensors", {"down_blocks.0.resnets.0.conv1.weight": [320, 320, 3, 3]})
    with pytest.raises(WeightsError, match=r"a UNet in diffusers' layout.*original layout"):
        checkpoint_type(path)


class TestShapes:
    """The shapes that these tests write are the published ones: diffusers' own classes have them."""

    @pytest.mark.parametrize(
        ("shapes", "options"),
        [
            (files.unet(9, 768), {"in_channels": 9, "cross_attention_dim": 768}),
            (
                files.unet(4, 1024, linear=True),
                {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
            ),
            (
                files.sdxl_unet(),
                {
                    "cross_attention_dim": 2048,
                    "block_out_channels": (320, 640, 1280),
                    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                    "attention_head_dim": (5, 10, 20),
                    "transformer_layers_per_block": (1, 2, 10),
                    "use_linear_projection": True,
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": 2816,
                },
            ),
        ],
        ids=["sd1-inpaint", "sd2", "sdxl"],
    )
    def test_of_the_unets(self, shapes, options):
        from diffusers import UNet2DConditionModel
        from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

        with torch.device("meta"):
            model = UNet2DConditionModel(**options)
        tensors = {f"{files.UNET}{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
        assert _shapes(convert_ldm_unet_checkpoint(tensors, model.config)) == _shapes(model.state_dict())

    def test_of_the_vae(self):
        from diffusers import AutoencoderKL
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        with torch.device("meta"):
            model = AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            )
        tensors = {f"{files.VAE}{name}": torch.empty(shape, device="meta") for name, shape in files.vae().items()}
        converted = _shapes(convert_ldm_vae_checkpoint(tensors, model.config))
        flat = {  # its attention was a convolution of 1 x 1
            name: shape[:2] if ".attentions." in name else shape for name, shape in converted.items()
        }
        assert flat == _shapes(model.state_dict())

    @pytest.mark.parametrize("channels", [64, 384])
    def test_of_flux(self, channels):
        from diffusers import FluxTransformer2DModel
        from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

        with torch.device("meta"):
            model = FluxTransformer2DModel(in_channels=channels, out_channels=64, guidance_embeds=True)
        tensors = {name: torch.empty(shape, device="meta") for name, shape in files.flux(channels).items()}
        assert _shapes(convert_flux_transformer_checkpoint_to_diffusers(tensors)) == _shapes(model.state_dict())

    def test_of_stable_diffusion_3(self):
        from diffusers import SD3Transformer2DModel
        from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

        with torch.device("meta"):
            model = SD3Transformer2DModel(
                num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
            )
        tensors = {name: torch.empty(shape, device="meta") for name, shape in files.sd3().items()}
        assert _shapes(convert_sd3_transformer_checkpoint_to_diffusers(tensors)) == _shapes(model.state_dict())

    @pytest.mark.parametrize("kind", KNOWN)
    def test_diffusers_tells_the_same_family(self, kind):
        from diffusers.loaders.single_file_utils import infer_diffusers_model_type

        theirs = {
            "sd1": "v1",
            "sd1-inpaint": "inpainting",
            "sd2": "v2",
            "sd2-inpaint": "inpainting_v2",
            "sdxl": "xl_base",
            "sdxl-inpaint": "xl_inpaint",
            "sd3": "sd3",
            "flux": "flux-dev",
            "flux-fill": "flux-fill",
            "flux-of-a-ui": "flux-dev",
        }
        tensors = {name: torch.empty(shape, device="meta") for name, shape in KNOWN[kind][0]().items()}
        assert infer_diffusers_model_type(tensors) == theirs[kind]


class TestBrokenFiles:
    def test_a_header_of_10_gb(self, tmp_path):
        path = tmp_path / "m.safetensors"
        path.write_bytes((10**10).to_bytes(8, "little") + b"{" + b" " * 100)
        with pytest.raises(WeightsError, match=r"a header of 10\.00 GB, and the format allows 100 MB"):
            checkpoint_type(path)

    @pytest.mark.parametrize("keep", [0, 5, 8, 9, 5000])
    def test_a_file_that_ends_within_its_header(self, keep, tmp_path):
        path = files.write(tmp_path / "m.safetensors", files.sd1())
        os.truncate(path, keep)
        with pytest.raises(WeightsError, match=r"ends within its header.*get it again"):
            checkpoint_type(path)

    def test_a_file_that_ends_within_its_weights(self, tmp_path):
        path = files.write(tmp_path / "m.safetensors", files.sd1())
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(WeightsError, match=r"lies outside of it.*get it again"):
            checkpoint_type(path)

    def test_a_negative_shape(self, tmp_path):
        path = _with_header(tmp_path, {"a.weight": {"dtype": "F16", "shape": [2, -3], "data_offsets": [0, 4]}})
        with pytest.raises(WeightsError, match=r"'a\.weight' .* has a wrong shape: .*\[2, -3\]"):
            checkpoint_type(path)

    @pytest.mark.parametrize(
        "entry",
        [
            7,
            {},
            {"dtype": "F16", "shape": [1]},
            {"dtype": "F16", "shape": [1], "data_offsets": [0]},
            {"dtype": "F16", "shape": [1], "data_offsets": [0, "2"]},
            {"dtype": "F16", "shape": "1", "data_offsets": [0, 2]},
            {"dtype": "F16", "shape": [[1]], "data_offsets": [0, 2]},
            {"dtype": "F16", "shape": [1], "data_offsets": [0, 1, 2]},
            {"dtype": "F16", "shape": [1], "data_offsets": [0, 20]},
            {"dtype": "F16", "shape": [1], "data_offsets": [-2, 0]},
        ],
    )
    def test_an_entry_that_is_none(self, entry, tmp_path):
        with pytest.raises(WeightsError, match=r"can't be read as safetensors.*'a'"):
            checkpoint_type(_with_header(tmp_path, {"a": entry}))

    @pytest.mark.parametrize("content", ["[]", "{", '{"a": NaNN}', '{"a":' * 100_000])
    def test_a_header_that_is_no_object(self, content, tmp_path):
        with pytest.raises(WeightsError, match=r"its header is no"):
            checkpoint_type(_with_header(tmp_path, content))

    def test_a_pickle_is_told_as_one(self, tmp_path):
        path = tmp_path / "m.ckpt"
        torch.save({"model.diffusion_model.out.2.bias": torch.zeros(4)}, path)
        with pytest.raises(WeightsError, match=r"is a pickle.*save_file"):
            checkpoint_type(path)

    def test_what_is_no_file(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.safetensors")
        for path in (tmp_path, tmp_path / "pipe.safetensors"):
            with pytest.raises(WeightsError, match=r"is no file"):
                checkpoint_type(path)
        with pytest.raises(WeightsError, match=r"can't be read: No such file"):
            checkpoint_type(tmp_path / "absent.safetensors")

    @given(st.data())
    def test_no_byte_that_changes_brings_another_error(self, tmp_path_factory, data):
        path = tmp_path_factory.mktemp("broken") / "m.safetensors"
        save_file({f"{files.UNET}input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3), "b": torch.zeros(2)}, path)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(WeightsError):
                checkpoint_type(path)


def _shapes(tensors):
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _with_header(folder, header):
    raw = (header if isinstance(header, str) else json.dumps(header)).encode()
    path = folder / "m.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
    return path
