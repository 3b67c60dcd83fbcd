"""LoRAs and ControlNets: for one request, beside weights that stay as they are and are shared."""

import asyncio
import shutil
from dataclasses import replace

import cv2
import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import ROOT, make_plugin
from pipelines import MAKERS, ORIGINALS, save_controlnet, save_lora
from safetensors.torch import load_file, save_file
from test_diffusion import IMAGE, MASK, REQUEST, cache, home, model, painted, small
from weights import hub_cache

from iopaint_core import (
    AsyncModelManager,
    InputError,
    MissingWeightsError,
    ModelLoadError,
    ModelManager,
    PluginManager,
    RequestError,
    read_picture,
)
from iopaint_plugins.diffusion.adapters import control_image
from iopaint_plugins.diffusion.parameters import Adapters, DiffusionParameters, Lora

__all__ = ["home", "model", "small"]

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

CLASS = "StableDiffusionInpaintPipeline"


def unet_of(folder):
    return diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")


@pytest.fixture
def one(model, tmp_path):
    return save_lora(tmp_path / "loras" / "one.safetensors", unet_of(model))


@pytest.fixture
def two(model, tmp_path):
    return save_lora(tmp_path / "loras" / "two.safetensors", unet_of(model), seed=2, kohya=True)


def asking(*loras, **changes):
    return replace(REQUEST, loras=tuple(Lora(str(path), scale) for path, scale in loras), **changes)


def with_loras(*loras):
    """A pipeline as diffusers adds LoRAs to it."""

    def prepare(pipeline):
        for number, (path, _) in enumerate(loras):
            pipeline.load_lora_weights(load_file(path), adapter_name=f"a{number}")
        pipeline.set_adapters([f"a{number}" for number in range(len(loras))], [scale for _, scale in loras])
        return pipeline

    return prepare


class TestLoras:
    def test_each_paints_bit_for_bit_what_diffusers_paints_with_it(self, model, one, two):
        manager = ModelManager()
        plain = manager.inpaint("model", IMAGE, MASK, REQUEST)
        for loras in ([(one, 1.0)], [(two, 0.5)], [(one, 0.3), (two, -0.7)]):
            result = manager.inpaint("model", IMAGE, MASK, asking(*loras))
            assert np.array_equal(result, painted(model, CLASS, prepare=with_loras(*loras)))
            assert not np.array_equal(result, plain)

    def test_it_reaches_no_other_request_and_no_other_model(self, model, home, one):
        shutil.copytree(model, home / "twin")
        manager = ModelManager()
        plain = manager.inpaint("model", IMAGE, MASK, REQUEST)
        manager.inpaint("model", IMAGE, MASK, asking((one, 1.0)))
        assert np.array_equal(manager.inpaint("model", IMAGE, MASK, REQUEST), plain)
        assert np.array_equal(manager.inpaint("twin", IMAGE, MASK, REQUEST), plain)
        stats = manager.pool.stats()
        assert [len(held.users) for held in stats.components] == [3, 3, 3], "the weights are held once"
        assert stats.counts.spoiled == 0

    def test_another_scale_loads_nothing(self, model, one):
        manager = ModelManager()
        manager.inpaint("model", IMAGE, MASK, asking((one, 1.0)))
        loads = manager.pool.stats().counts.loads
        result = manager.inpaint("model", IMAGE, MASK, asking((one, 0.25)))
        assert manager.pool.stats().counts.loads == loads
        assert np.array_equal(result, painted(model, CLASS, prepare=with_loras((one, 0.25))))

    def test_a_file_that_is_replaced_is_another(self, model, one, two):
        manager = ModelManager()
        manager.inpaint("model", IMAGE, MASK, asking((one, 1.0)))
        two.replace(one)
        result = manager.inpaint("model", IMAGE, MASK, asking((one, 1.0)))
        assert np.array_equal(result, painted(model, CLASS, prepare=with_loras((one, 1.0))))

    def test_its_bytes_are_charged_and_given_back(self, model, one):
        manager = ModelManager()
        manager.load("model").close()
        before = manager.pool.stats().devices["cpu"].resident
        manager.load("model", variant=asking((one, 1.0)).variant).close()
        added = sum(tensor.nbytes for tensor in load_file(one).values())
        assert manager.pool.stats().devices["cpu"].resident == before + added
        assert manager.unload("model")
        assert manager.pool.stats().leases == {}
        assert manager.pool.stats().devices["cpu"].used == 0

    def test_the_random_state_of_the_process_is_left_alone(self, model, one):
        before = torch.get_rng_state()
        ModelManager().inpaint("model", IMAGE, MASK, asking((one, 1.0)))
        assert torch.equal(torch.get_rng_state(), before)

    def test_it_may_lie_in_the_cache_of_the_hub(self, model, one, two):
        shutil.copyfile(two, two.with_name("pytorch_lora_weights.safetensors"))
        hub_cache(cache(), one.parent, "someone/lora")
        manager = ModelManager()
        pictures = [
            manager.inpaint("model", IMAGE, MASK, asking((name, 1.0)))
            for name in (one, "someone/lora/one.safetensors", two, "someone/lora")
        ]
        assert np.array_equal(pictures[0], pictures[1])
        assert np.array_equal(pictures[2], pictures[3])
        assert not np.array_equal(pictures[0], pictures[2])

    def test_that_of_latent_consistency_comes_with_its_sampler(self, home, tmp_path, monkeypatch):
        ORIGINALS["sd1 inpainting"](home / "model")
        file = save_lora(tmp_path / "lcm" / "pytorch_lora_weights.safetensors", unet_of(home / "model"))
        request = replace(REQUEST, sd_lcm_lora=True, sd_steps=2, sd_strength=1.0, sd_guidance_scale=1.0)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(ModelLoadError, match="latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights"):
            ModelManager().inpaint("model", IMAGE, MASK, request)
        hub_cache(cache(), file.parent, "latent-consistency/lcm-lora-sdv1-5")
        result = ModelManager().inpaint("model", IMAGE, MASK, request)
        alone = replace(request, sd_sampler="LCM")
        assert np.array_equal(result, painted(home / "model", CLASS, alone, with_loras((file, 1.0))))
        own = save_lora(tmp_path / "own.safetensors", unet_of(home / "model"), seed=2)
        result = ModelManager().inpaint("model", IMAGE, MASK, replace(request, loras=(Lora(str(own), 0.3),)))
        both = with_loras((own, 0.3), (file, 1.0))
        assert np.array_equal(result, painted(home / "model", CLASS, alone, both)), "scales are of the user's own"

    def test_of_a_model_of_flux(self, home, tmp_path):
        MAKERS["FluxPipeline"](home / "model")
        transformer = diffusers.FluxTransformer2DModel.from_pretrained(home / "model" / "transformer")
        file = save_lora(tmp_path / "one.safetensors", transformer)
        save_file({name.replace("unet.", "transformer."): tensor for name, tensor in load_file(file).items()}, file)
        result = ModelManager().inpaint("model", IMAGE, MASK, asking((file, 1.0)))
        assert np.array_equal(result, painted(home / "model", "FluxPipeline", prepare=with_loras((file, 1.0))))

    def test_an_event_loop_is_served_too(self, model, one):
        async def ask():
            manager = AsyncModelManager()
            try:
                return await manager.inpaint("model", IMAGE, MASK, asking((one, 1.0)))
            finally:
                manager.close()

        assert np.array_equal(asyncio.run(ask()), painted(model, CLASS, prepare=with_loras((one, 1.0))))


class TestWrongLoras:
    def refused(self, request, words, name="model"):
        manager = ModelManager()
        with pytest.raises(ModelLoadError, match=words) as error:
            manager.inpaint(name, IMAGE, MASK, request)
        assert manager.pool.stats().components == (), "it is told before anything is loaded"
        return error

    def test_one_for_another_family(self, model, home, tmp_path):
        ORIGINALS["sd1"](home / "other")
        for kohya in (False, True):
            file = save_lora(tmp_path / "other.safetensors", unet_of(home / "other"), kohya=kohya)
            self.refused(asking((file, 1.0)), r"is a LoRA for Stable Diffusion 1, and this model .*768 and 32 wide")

    def test_what_is_no_lora(self, model):
        file = model / "unet" / "diffusion_pytorch_model.safetensors"
        self.refused(asking((file, 1.0)), "holds no LoRA. Name a LoRA")

    def test_what_fits_no_layer(self, model, tmp_path):
        file = tmp_path / "one.safetensors"
        save_file(
            {"unet.nowhere.lora_A.weight": torch.ones(2, 8), "unet.nowhere.lora_B.weight": torch.ones(8, 2)}, file
        )
        manager = ModelManager()
        with pytest.raises(ModelLoadError, match="does not fit this model"):
            manager.inpaint("model", IMAGE, MASK, asking((file, 1.0)))
        assert manager.pool.stats().leases == {}
        manager.inpaint("model", IMAGE, MASK, REQUEST)

    @pytest.mark.parametrize(
        "name", ["/nowhere/lora.safetensors", "../a/b", "lora.safetensors", "loras/lora.safetensors"]
    )
    def test_what_is_no_file(self, model, name):
        self.refused(asking((name, 1.0)), "is no file, and none of the hub")

    def test_one_of_the_hub_that_is_not_there_offline(self, model, monkeypatch):
        monkeypatch.setenv("IOPAINT_OFFLINE", "1")
        error = self.refused(
            asking(("someone/lora", 1.0)), "hf download someone/lora pytorch_lora_weights.safetensors"
        )
        assert isinstance(error.value.__cause__ or error.value, MissingWeightsError)

    def test_that_of_latent_consistency_for_a_family_that_has_none(self, model):
        self.refused(replace(REQUEST, sd_lcm_lora=True), "There is no LoRA of latent-consistency for this model")

    def test_a_model_that_takes_none_is_not_loaded(self):
        plugins = PluginManager()
        plugins.register(make_plugin("red"), "red")
        manager = ModelManager(plugins)
        with pytest.raises(RequestError, match=r"unknown key 'loras'\. The keys are: "):
            manager.inpaint("red", IMAGE, MASK, DiffusionParameters(loras=(Lora("one.safetensors"),)))
        assert manager.pool.stats().counts.loads == 0

    def test_a_model_that_was_loaded_without_says_how_to_load_it(self, model, one):
        with (
            ModelManager().load("model") as loaded,
            pytest.raises(InputError, match=r"load it with variant=parameters\.variant"),
        ):
            loaded(IMAGE, MASK, asking((one, 1.0)))


CANNY = PIL.Image.fromarray(np.repeat(cv2.Canny(IMAGE, 100, 200)[..., None], 3, axis=2))
HOLES = torch.from_numpy(np.where(MASK[..., None] > 0, -1, IMAGE / 255).astype(np.float32).transpose(2, 0, 1)[None])


def controlled(*folders, **changes):
    return replace(REQUEST, enable_controlnet=True, controlnet_method=tuple(map(str, folders)), **changes)


def with_controlnets(row, *folders):
    """The pipeline of diffusers that takes ControlNets."""

    def prepare(pipeline):
        nets = [diffusers.ControlNetModel.from_pretrained(folder).requires_grad_(False) for folder in folders]
        return getattr(diffusers, row)(**pipeline.components, controlnet=nets)

    return prepare


class TestControlNets:
    @pytest.mark.parametrize(
        ("class_name", "pipeline"),
        [
            ("StableDiffusionPipeline", "StableDiffusionControlNetInpaintPipeline"),
            ("StableDiffusionInpaintPipeline", "StableDiffusionControlNetInpaintPipeline"),
            ("StableDiffusionXLPipeline", "StableDiffusionXLControlNetInpaintPipeline"),
        ],
    )
    def test_one_paints_bit_for_bit_what_diffusers_paints_with_it(self, home, tmp_path, class_name, pipeline):
        MAKERS[class_name](home / "model")
        folder = save_controlnet(tmp_path / "a-canny", unet_of(home / "model"))
        manager = ModelManager()
        result = manager.inpaint("model", IMAGE, MASK, controlled(folder, controlnet_conditioning_scale=0.8))
        more = {"control_image": [CANNY], "controlnet_conditioning_scale": [0.8]}
        prepare = with_controlnets(pipeline, folder)
        assert np.array_equal(result, painted(home / "model", class_name, prepare=prepare, **more))
        assert not np.array_equal(result, manager.inpaint("model", IMAGE, MASK, REQUEST))

    def test_several_at_once(self, model, tmp_path, reads):
        folders = [
            save_controlnet(tmp_path / f"control-{kind}", unet_of(model), seed=i)
            for i, kind in enumerate(["inpaint", "canny"])
        ]
        manager = ModelManager()
        read = reads(manager.find("model").parameters)
        result = manager.inpaint("model", IMAGE, MASK, controlled(*folders))
        assert {"controlnet_method", "controlnet_conditioning_scale"} <= read
        more = {"control_image": [HOLES, CANNY], "controlnet_conditioning_scale": [0.4, 0.4]}
        prepare = with_controlnets("StableDiffusionControlNetInpaintPipeline", *folders)
        assert np.array_equal(result, painted(model, CLASS, prepare=prepare, **more))

    def test_models_share_it_and_it_comes_with_a_lora(self, model, home, tmp_path, one):
        shutil.copytree(model, home / "twin")
        folder = save_controlnet(tmp_path / "canny", unet_of(model))
        hub_cache(cache(), folder, "someone/canny")
        manager = ModelManager()
        request = asking((one, 1.0), enable_controlnet=True, controlnet_method=str(folder))
        pictures = [
            manager.inpaint(name, IMAGE, MASK, replace(request, controlnet_method=method))
            for name, method in (("model", str(folder)), ("twin", "someone/canny"))
        ]
        assert np.array_equal(*pictures)
        assert [len(held.users) for held in manager.pool.stats().components] == [2, 2, 2, 2]

    def test_one_of_the_hub_is_fetched(self, model, tmp_path, hub):
        folder = save_controlnet(tmp_path / "canny", unet_of(model))
        for path in folder.iterdir():
            hub("someone/canny", path.name, path.read_bytes())
        manager = ModelManager()
        pictures = [manager.inpaint("model", IMAGE, MASK, controlled(name)) for name in (folder, "someone/canny")]
        assert np.array_equal(*pictures)

    def test_outlines_are_those_that_iopaint_shows_it(self):
        photo = read_picture(ROOT / "examples" / "astronaut.jpg").rgb
        expected = np.repeat(cv2.Canny(photo, 100, 200)[..., None], 3, axis=2)
        shown = control_image("lllyasviel/control_v11p_sd15_canny", photo, np.zeros(photo.shape[:2], np.uint8))
        assert np.array_equal(np.asarray(shown), expected)

    def refused(self, folder, words):
        manager = ModelManager()
        with pytest.raises(ModelLoadError, match=words):
            manager.inpaint("model", IMAGE, MASK, controlled(folder))
        assert manager.pool.stats().components == (), "it is told before anything is loaded"

    def test_one_of_another_family(self, model, home, tmp_path):
        ORIGINALS["sd2"](home / "other")
        folder = save_controlnet(tmp_path / "canny", unet_of(home / "other"))
        self.refused(folder, "is a ControlNet for Stable Diffusion 2, and this model is of another family")

    def test_a_name_that_does_not_say_what_it_looks_at(self, model, tmp_path):
        self.refused(save_controlnet(tmp_path / "net", unet_of(model)), "says neither canny nor inpaint")

    def test_what_is_none(self, model, tmp_path):
        self.refused("nowhere-canny", "is no folder, and no repository of the hub")
        (tmp_path / "canny").mkdir()
        self.refused(tmp_path / "canny", r"config\.json can't be read")
        shutil.copytree(model / "unet", tmp_path / "canny", dirs_exist_ok=True)
        self.refused(tmp_path / "canny", "holds no ControlNet")

    def test_a_model_that_takes_none(self, home, tmp_path):
        MAKERS["StableDiffusionInstructPix2PixPipeline"](home / "model")
        manager = ModelManager()
        assert manager.find("model").parameters.parse(controlled(tmp_path)).variant is None, "it is not asked"
        with pytest.raises(ModelLoadError, match="StableDiffusionInstructPix2PixPipeline takes no ControlNets"):
            manager.load("model", variant=controlled(tmp_path).variant)


def test_a_request_names_what_a_model_is_loaded_with():
    assert DiffusionParameters().variant is None
    request = DiffusionParameters.parse('{"loras": [{"name": "a"}], "controlnet_method": ["b", "c"]}')
    assert request.variant == Adapters(loras=("a",))
    assert replace(request, enable_controlnet=True).variant == Adapters(loras=("a",), controlnets=("b", "c"))
