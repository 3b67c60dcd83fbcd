"""Diffusion models: each class of the table, put together from shared components, paints what diffusers paints."""

import base64
import dataclasses
import functools
import io
import json
import runpy
import shutil
import sys
import tempfile
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import checkpointfiles
import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT, photograph
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_inpaint
from originals import save_original
from pipelines import MAKERS, ORIGINALS, kandinsky_prior, save_lora, with_safety_checker
from transformers import CLIPImageProcessor
from weights import hub_cache

from iopaint_core import (
    InputError,
    ModelError,
    ModelLoadError,
    ModelManager,
    ModelPool,
    RequestError,
    WeightsError,
    scan_models,
)
from iopaint_core.cli import main
from iopaint_plugins.diffusion.discovery import local_models
from iopaint_plugins.diffusion.model import DiffusionModel
from iopaint_plugins.diffusion.parameters import DiffusionParameters, Lora, Sampler
from iopaint_plugins.diffusion.pipelines import PIPELINES
from iopaint_plugins.diffusion.samplers import scheduler_for

SIDE = 64
"""Pixels of a picture's side: a 64th of what `DiffusionModel.min_size` asks for, in as much less time."""

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

IMAGE = photograph(SIDE, SIDE)
MASK = np.zeros((SIDE, SIDE), np.uint8)
MASK[SIDE // 4 : 3 * SIDE // 4, SIDE // 4 : 3 * SIDE // 4] = 255
LARGE = np.kron(IMAGE, np.ones((8, 8, 1), np.uint8))
LARGE_MASK = np.kron(MASK, np.ones((8, 8), np.uint8))


def as_base64(image):
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


REQUEST = DiffusionParameters(
    prompt="a red cat",
    negative_prompt="a dog",
    sd_steps=2,
    sd_strength=0.9,
    sd_keep_unmasked_area=False,
    paint_by_example_example_image=as_base64(IMAGE[:48]),
)


@pytest.fixture(autouse=True)
def small(request, monkeypatch):
    """Models paint pictures as small as those of most tests; those marked `full_size` paint as for users."""
    if request.node.get_closest_marker("full_size") is None:
        monkeypatch.setattr(DiffusionModel, "min_size", SIDE)
        # It encodes a picture of a megapixel beside the one that it paints, whatever the size of that.
        monkeypatch.setattr(pipeline_qwenimage_edit_inpaint, "calculate_dimensions", lambda *_: (SIDE, SIDE, None))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where models are looked for."""
    monkeypatch.setenv("IOPAINT_HOME", str(tmp_path / "models"))
    return tmp_path / "models" / "stable_diffusion"


def cache():
    """Where the Hugging Face hub caches."""
    return Path.home() / ".cache" / "huggingface" / "hub"


def hub(name):
    """The folder of a repository in the cache of the Hugging Face hub."""
    repository = cache() / f"models--{name.replace('/', '--')}" / "snapshots"
    return next(repository.iterdir())


def saved_components(folder, class_name):
    """The components as diffusers loads them."""
    if class_name != "PaintByExamplePipeline":
        cls = getattr(diffusers, class_name)
        return cls.from_pretrained(folder, local_files_only=True).components
    from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder  # which it finds no more

    return {
        "vae": diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        "image_encoder": PaintByExampleImageEncoder.from_pretrained(folder / "image_encoder"),
        "unet": diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        "scheduler": diffusers.PNDMScheduler.from_pretrained(folder / "scheduler"),
        "safety_checker": None,
        "feature_extractor": CLIPImageProcessor.from_pretrained(folder / "feature_extractor"),
        "requires_safety_checker": False,
    }


@functools.cache
def made_components(class_name):
    """The components of a pipeline as `MAKERS` saves it and diffusers loads it: loaded once, and only read.

    No copies: torch takes other kernels where weights lie otherwise in memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        MAKERS[class_name](Path(folder))
        return saved_components(Path(folder), class_name)


def painted(folder, class_name, *args, **options):
    """What diffusers paints by itself, from a folder that it has saved."""
    return paint(saved_components(folder, class_name), class_name, *args, **options)


def reference(class_name, request=REQUEST, **images):
    """What diffusers paints by itself, with a pipeline as `MAKERS` saves it."""
    return paint(dict(made_components(class_name)), class_name, request, **images)


def paint(
    components, class_name, request=REQUEST, prepare=lambda pipeline: pipeline, *, image=IMAGE, mask=MASK, **more
):
    row = PIPELINES[class_name]
    if row.prior:
        prior = diffusers.KandinskyV22PriorPipeline.from_pretrained(hub(row.prior), local_files_only=True)
        components |= {f"prior_{name}": component for name, component in prior.components.items()}
    for part in components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)  # torch takes other kernels for weights that may be trained
    pipeline = getattr(diffusers, row.pipeline)(**components)
    pipeline = prepare(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    if row.samplers:
        pipeline.scheduler = scheduler_for(request.sd_sampler, pipeline.scheduler.config)
    arguments = {theirs: getattr(request, ours) for ours, theirs in row.takes.items()}
    if "example_image" in arguments:
        arguments["example_image"] = PIL.Image.fromarray(IMAGE[:48])
    height, width = mask.shape
    size = {"height": height, "width": width, "max_area": height * width}
    arguments.update(row.fixed, **{name: size[name] for name in row.size})
    if row.mask:
        arguments["mask_image"] = PIL.Image.fromarray(mask)
    generator = torch.Generator("cpu").manual_seed(request.sd_seed)
    result = pipeline(**arguments, image=PIL.Image.fromarray(image), generator=generator, **more).images[0]
    return np.asarray(result.resize((width, height), PIL.Image.Resampling.LANCZOS))


FULL_SIZE = {"StableDiffusionInpaintPipeline", "StableDiffusionXLPipeline", "FluxPipeline"}
"""One of each kind: a UNet, a UNet with two text encoders, a transformer."""


class TestEveryClass:
    @pytest.mark.parametrize("class_name", MAKERS)
    def test_it_paints_bit_for_bit_what_diffusers_paints(self, home, class_name, reads):
        MAKERS[class_name](home / "model")
        if PIPELINES[class_name].prior:
            kandinsky_prior(home.parent.parent / "prior")
            hub_cache(cache(), home.parent.parent / "prior", PIPELINES[class_name].prior)
        assert [info.type for info in scan_models() if info.name == "model"] == [PIPELINES[class_name].type]
        steps = []
        manager = ModelManager()
        taken = manager.find("model").parameters
        read = reads(taken)
        result = manager.inpaint("model", IMAGE, MASK, REQUEST, progress=lambda *step: steps.append(step))
        of_controlnets = {"controlnet_method", "controlnet_conditioning_scale"}  # TestControlNets
        assert read == {*taken.names()} - {*taken.framework_names()} - of_controlnets
        assert np.array_equal(result, reference(class_name))
        assert steps[-1][0] == steps[-1][1]
        assert result.std() > 5
        assert manager.pool.stats().counts.spoiled == 0
        again = manager.inpaint("model", IMAGE, MASK, REQUEST)
        assert np.array_equal(again, result), "nothing of a request is left for the next"

    @pytest.mark.full_size
    @pytest.mark.parametrize(
        "class_name",
        [pytest.param(name, marks=() if name in FULL_SIZE else pytest.mark.slow) for name in MAKERS],
    )
    def test_it_paints_as_large_as_models_do_for_users(self, home, class_name):
        MAKERS[class_name](home / "model")
        if PIPELINES[class_name].prior:
            kandinsky_prior(home.parent.parent / "prior")
            hub_cache(cache(), home.parent.parent / "prior", PIPELINES[class_name].prior)
        request = replace(REQUEST, sd_steps=1, sd_strength=1.0, sd_guidance_scale=1.0)  # one pass of the network
        result = ModelManager().inpaint("model", LARGE, LARGE_MASK, request)
        assert np.array_equal(result, reference(class_name, request, image=LARGE, mask=LARGE_MASK))

    def test_every_pipeline_of_the_table_is_tried(self):
        tried = {PIPELINES[name].pipeline for name in MAKERS}
        assert tried == {row.pipeline for row in PIPELINES.values()}

    @pytest.mark.parametrize("class_name", PIPELINES)
    def test_it_takes_loras_if_diffusers_does(self, class_name):
        row = PIPELINES[class_name]
        assert row.loras == hasattr(getattr(diffusers, row.pipeline), "load_lora_weights")


@pytest.fixture
def model(home):
    MAKERS["StableDiffusionInpaintPipeline"](home / "model")
    return home / "model"


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    """A manager that holds `model`, for tests that count nothing of it and change no file."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("IOPAINT_HOME", str(home / "models"))
        MAKERS["StableDiffusionInpaintPipeline"](home / "models" / "stable_diffusion" / "model")
        with ModelManager() as manager:
            manager.scan()
            yield manager


class TestShared:
    @pytest.mark.parametrize(
        "family",
        [
            pytest.param(name, marks=() if name in {"sd1", "sd2 inpainting", "sdxl"} else pytest.mark.slow)
            for name in ORIGINALS
        ],
    )
    def test_a_folder_a_single_file_and_a_cache_are_one_set_of_weights(self, home, family):
        pipeline = ORIGINALS[family](home / "model")
        save_original(pipeline, home / "original.safetensors")
        shutil.copytree(home / "model", home / "original", ignore=shutil.ignore_patterns("*.safetensors"))
        hub_cache(cache(), home / "model", "someone/model")
        manager = ModelManager()
        names = ("model", "original.safetensors", "someone/model")
        pictures = [manager.inpaint(name, IMAGE, MASK, REQUEST) for name in names]
        assert np.array_equal(pictures[0], painted(home / "model", type(pipeline).__name__))
        assert np.array_equal(pictures[0], pictures[1])
        assert np.array_equal(pictures[0], pictures[2])
        stats = manager.pool.stats()
        modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        assert [len(held.users) for held in stats.components] == [3] * len(modules)
        own = sum(parameter.nbytes for module in modules for parameter in module.parameters())
        assert 0 <= stats.devices["cpu"].resident - own < 10_000, "besides parameters, a few buffers"

    def test_a_single_file_needs_configs_and_finds_them_offline(self, home, monkeypatch, tmp_path):
        """Beside it, or in the cache of the hub under one of two names."""
        pipeline = ORIGINALS["sd1"](tmp_path / "whole")
        monkeypatch.setenv("IOPAINT_OFFLINE", "1")
        home.mkdir(parents=True)
        save_original(pipeline, home / "model.safetensors")
        words = "stable-diffusion-v1-5/stable-diffusion-v1-5 is needed, and is not in .*hf download"
        with pytest.raises(ModelLoadError, match=words):
            ModelManager().load("model.safetensors")
        configs = tmp_path / "configs"
        shutil.copytree(tmp_path / "whole", configs, ignore=shutil.ignore_patterns("*.safetensors"))
        hub_cache(cache(), configs, "runwayml/stable-diffusion-v1-5")
        result = ModelManager().inpaint("model.safetensors", IMAGE, MASK, REQUEST)
        assert np.array_equal(result, painted(tmp_path / "whole", "StableDiffusionPipeline"))
        shutil.rmtree(cache())
        configs.rename(home / "model")
        assert np.array_equal(result, ModelManager().inpaint("model.safetensors", IMAGE, MASK, REQUEST))

    @pytest.mark.parametrize(("dtype", "expected"), [("float16", "half"), ("float32", "whole")])
    def test_half_precision_is_read_where_it_is_saved_and_wanted(self, model, dtype, expected):
        pipeline = diffusers.StableDiffusionInpaintPipeline.from_pretrained(model)
        with torch.no_grad():
            for parameter in pipeline.unet.parameters():
                parameter.fill_(0.5)
        pipeline.unet.half().save_pretrained(model / "unet", variant="fp16")
        manager = ModelManager(context=replace(ModelManager().context, dtype=dtype))
        with manager.load("model"):
            unet = manager.pool.get_shared_components(next(iter(manager.pool.stats().leases)))["unet"]
            halves = {bool((parameter == 0.5).all()) for parameter in unet.parameters()}
            assert ("half" if halves == {True} else "whole") == expected
            assert unet.dtype is getattr(torch, dtype)

    def test_fine_tunes_share_what_is_equal_and_keep_what_is_their_own(self, model, home):
        for name, seed, part in (("tune", 1, "unet"), ("vae-tune", 2, "vae")):
            shutil.copytree(model, home / name)
            MAKERS["StableDiffusionInpaintPipeline"](home.parent / "made" / name, seed)
            shutil.rmtree(home / name / part)
            shutil.copytree(home.parent / "made" / name / part, home / name / part)
        manager = ModelManager()
        pictures = {name: manager.inpaint(name, IMAGE, MASK, REQUEST) for name in ("model", "tune", "vae-tune")}
        assert sorted(len(held.users) for held in manager.pool.stats().components) == [1, 1, 2, 2, 3]
        for name, picture in pictures.items():
            assert np.array_equal(picture, painted(home / name, "StableDiffusionInpaintPipeline"))

    def test_the_example_prints_what_two_fine_tunes_share(self, model, home, monkeypatch, capsys):
        shutil.copytree(model, home / "tune")
        MAKERS["StableDiffusionInpaintPipeline"](home.parent / "made", 1)
        shutil.rmtree(home / "tune" / "unet")
        shutil.copytree(home.parent / "made" / "unet", home / "tune" / "unet")
        example = ROOT / "examples" / "sharing.py"
        monkeypatch.setattr(sys, "argv", [str(example)])
        with pytest.raises(SystemExit, match="Name two of them"):
            runpy.run_path(str(example))
        assert "model  (diffusers_sd_inpaint)\n" in capsys.readouterr().out
        monkeypatch.setattr(sys, "argv", [str(example), "model", "tune"])
        runpy.run_path(str(example))
        lines = capsys.readouterr().out.splitlines()
        assert [line.rpartition(" in ")[2] for line in lines if "AutoencoderKL" in line] == ["model and tune"]
        assert sorted(line.rpartition(" in ")[2] for line in lines if "UNet2D" in line) == ["model", "tune"]
        assert lines[-1].endswith("MB saved by sharing")


SCHEDULERS = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", False, False),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", False, True),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", True, False),
    "DPM++ 2M SDE Karras": ("DPMSolverMultistepScheduler", True, True),
    "DPM++ SDE": ("DPMSolverSinglestepScheduler", False, False),
    "DPM++ SDE Karras": ("DPMSolverSinglestepScheduler", False, True),
    "DPM2": ("KDPM2DiscreteScheduler", False, False),
    "DPM2 Karras": ("KDPM2DiscreteScheduler", False, True),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", False, False),
    "DPM2 a Karras": ("KDPM2AncestralDiscreteScheduler", False, True),
    "Euler": ("EulerDiscreteScheduler", False, False),
    "Euler a": ("EulerAncestralDiscreteScheduler", False, False),
    "Heun": ("HeunDiscreteScheduler", False, False),
    "LMS": ("LMSDiscreteScheduler", False, False),
    "LMS Karras": ("LMSDiscreteScheduler", False, True),
    "DDIM": ("DDIMScheduler", False, False),
    "PNDM": ("PNDMScheduler", False, False),
    "UniPC": ("UniPCMultistepScheduler", False, False),
    "LCM": ("LCMScheduler", False, False),
}
"""Scheduler of each sampler, whether it solves the stochastic equation, whether it takes Karras' noise levels."""

PAINTED = {"DPM++ 2M SDE Karras", "Euler a", "LCM"}
"""Samplers that paint in the quick suite; the others differ from them in their schedulers alone."""


class TestRequest:
    @pytest.mark.parametrize(("sampler", "expected"), SCHEDULERS.items())
    def test_each_sampler_is_the_scheduler_of_its_name(self, sampler, expected):
        name, sde, karras = expected
        noise = {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
        own = diffusers.PNDMScheduler(num_train_timesteps=100, **noise)
        made = scheduler_for(Sampler(sampler), own.config)
        assert type(made).__name__ == name
        config = made.config
        assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.001, 0.02, "scaled_linear")
        assert config.get("use_karras_sigmas", False) == karras
        assert (config.get("algorithm_type") == "sde-dpmsolver++") == sde

    def test_every_sampler_of_iopaint_is_tried(self):
        assert set(SCHEDULERS) == {sampler.value for sampler in Sampler}

    @pytest.mark.parametrize(
        "sampler",
        [pytest.param(sampler, marks=() if sampler.value in PAINTED else pytest.mark.slow) for sampler in Sampler],
    )
    def test_each_sampler_paints_what_its_scheduler_paints(self, painter, sampler):
        request = replace(REQUEST, sd_sampler=sampler, sd_steps=3, sd_strength=1.0)
        result = painter.inpaint("model", IMAGE, MASK, request)
        assert np.array_equal(result, reference("StableDiffusionInpaintPipeline", request))

    def test_a_sampler_is_itself_whatever_the_models_own_scheduler_is(self):
        own = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, algorithm_type="sde-dpmsolver++")
        made = scheduler_for(Sampler.DPM_2M, own.config)
        assert not made.config.use_karras_sigmas
        assert made.config.algorithm_type == "dpmsolver++"

    @pytest.mark.parametrize(
        "change",
        [{"prompt": "grass"}, {"negative_prompt": ""}, {"sd_seed": 7}, {"sd_steps": 3}, {"sd_guidance_scale": 3.0}],
    )
    def test_what_is_asked_matters(self, painter, change):
        other = painter.inpaint("model", IMAGE, MASK, replace(REQUEST, **change))
        assert not np.array_equal(other, reference("StableDiffusionInpaintPipeline"))

    def test_a_seed_of_minus_one_is_another_each_time(self, painter):
        request = replace(REQUEST, sd_seed=-1)
        one, other = (painter.run("model", IMAGE, mask=MASK, parameters=request) for _ in range(2))
        assert not np.array_equal(one.image, other.image)
        again = painter.inpaint("model", IMAGE, MASK, replace(REQUEST, sd_seed=one.info["seed"]))
        assert np.array_equal(again, one.image), "the seed that was drawn is told"

    def test_no_random_state_of_the_process_is_touched(self, model):
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        ModelManager().inpaint("model", IMAGE, MASK, REQUEST)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])

    def test_pixels_outside_the_mask_and_its_seam_come_back(self, painter):
        image = photograph(101, 143)
        mask = np.zeros((101, 143), np.uint8)
        mask[40:60, 40:60] = 255
        result = painter.inpaint("model", image, mask, DiffusionParameters(sd_steps=1, sd_mask_blur=5))
        far = np.ones_like(mask, bool)
        far[30:70, 30:70] = False
        assert np.array_equal(result[far], image[far])
        assert not np.array_equal(result[mask > 0], image[mask > 0])

    def test_cancelling_at_step_two_leaves_a_model_that_works(self, model):
        manager = ModelManager()

        def cancel(step, total):
            if step >= 2 * total / 4:
                raise InterruptedError("the user has seen enough")

        with pytest.raises(InterruptedError):
            manager.inpaint("model", IMAGE, MASK, replace(REQUEST, sd_steps=4, sd_strength=1.0), progress=cancel)
        assert set(manager.pool.stats().leases.values()) == {0}
        result = manager.inpaint("model", IMAGE, MASK, REQUEST)
        assert np.array_equal(result, reference("StableDiffusionInpaintPipeline"))

    def test_out_of_memory_at_step_one_makes_room_and_tries_again(self, model, monkeypatch):
        failed = []
        step = diffusers.UniPCMultistepScheduler.step

        def run_out(*args, **options):
            if not failed:
                failed.append(True)
                raise torch.OutOfMemoryError("no memory")
            return step(*args, **options)

        monkeypatch.setattr(diffusers.UniPCMultistepScheduler, "step", run_out)
        result = ModelManager().inpaint("model", IMAGE, MASK, REQUEST)
        assert failed
        assert np.array_equal(result, reference("StableDiffusionInpaintPipeline"))

    def test_a_prompt_that_is_too_long_is_cut_with_a_word(self, painter, caplog, monkeypatch):
        monkeypatch.setattr(diffusers.utils.logging.get_logger("diffusers"), "propagate", True)
        painter.inpaint("model", IMAGE, MASK, replace(REQUEST, prompt="cat " * 1_000))
        assert "was truncated" in caplog.text


class TestPreview:
    @pytest.mark.parametrize(
        "class_name",
        [
            "StableDiffusionInpaintPipeline",
            "StableDiffusionXLPipeline",
            "StableDiffusion3Pipeline",
            "FluxPipeline",
            "PaintByExamplePipeline",
        ],
    )
    def test_each_step_shows_the_picture_and_changes_nothing(self, home, class_name):
        MAKERS[class_name](home / "model")
        manager, shown, request = ModelManager(), [], replace(REQUEST, sd_strength=1.0)
        result = manager.inpaint("model", IMAGE, MASK, request, preview=shown.append)
        assert len(shown) >= request.sd_steps
        if class_name == "StableDiffusion3Pipeline":  # in the end diffusers leaves out the VAE's shift
            assert np.abs(shown[-1] - result.astype(float)).mean() < 3
        else:
            assert np.array_equal(shown[-1], result)
        assert not np.array_equal(shown[0], result)
        assert np.array_equal(manager.inpaint("model", IMAGE, MASK, request), result)

    def test_nothing_is_decoded_for_a_caller_who_wants_none(self, painter, monkeypatch):
        decoded, decode = [], diffusers.AutoencoderKL.decode

        def count(*args, **options):
            decoded.append(args)
            return decode(*args, **options)

        monkeypatch.setattr(diffusers.AutoencoderKL, "decode", count)
        painter.inpaint("model", IMAGE, MASK, REQUEST)
        assert len(decoded) == 1

    def test_a_model_that_can_not_show_it_paints_all_the_same(self, home):
        MAKERS["ZImagePipeline"](home / "model")
        shown = []
        ModelManager().inpaint("model", IMAGE, MASK, REQUEST, preview=shown.append)


class TestLowMemory:
    @pytest.mark.parametrize(
        "class_name", ["StableDiffusionInpaintPipeline", "StableDiffusionXLPipeline", "FluxPipeline"]
    )
    def test_it_decodes_in_tiles_and_attends_in_slices(self, home, class_name):
        def save_memory(pipeline):
            pipeline.enable_attention_slicing()
            pipeline.vae.enable_tiling()
            return pipeline

        MAKERS[class_name](home / "model")
        config = home / "model" / "vae" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": SIDE // 2}))
        manager = ModelManager(options={"diffusion": {"low_memory": True}})
        result = manager.inpaint("model", IMAGE, MASK, REQUEST)
        assert np.array_equal(result, painted(home / "model", class_name, prepare=save_memory))
        whole = ModelManager(pool=manager.pool).inpaint("model", IMAGE, MASK, REQUEST)
        assert not np.array_equal(result, whole), "it is told apart in the pool, and tiles show"
        assert np.abs(result - whole.astype(float)).mean() < 30


class TestSafetyChecker:
    def test_a_picture_that_it_finds_unfit_is_an_error_and_not_black(self, home):
        with_safety_checker(home / "model")
        with pytest.raises(ModelError, match=r"safety checker found the picture unfit.*-o safety_checker=false"):
            ModelManager().inpaint("model", IMAGE, MASK, REQUEST)

    def test_it_is_left_out_where_the_host_says_so(self, home, tmp_path):
        with_safety_checker(home / "model")
        manager = ModelManager(options={"diffusion": {"safety_checker": False}})
        result = manager.inpaint("model", IMAGE, MASK, REQUEST)
        assert len(manager.pool.stats().components) == 3
        with pytest.raises(ModelError, match="safety checker"):
            ModelManager(pool=manager.pool).inpaint("model", IMAGE, MASK, REQUEST)
        PIL.Image.fromarray(IMAGE).save(tmp_path / "photo.png")
        PIL.Image.fromarray(MASK).save(tmp_path / "mask.png")
        (tmp_path / "request.json").write_text(json.dumps(dataclasses.asdict(REQUEST)))
        options = {"--image": "photo.png", "--mask": "mask.png", "--output": "out.png", "--config": "request.json"}
        command = [
            "run",
            "--model",
            "model",
            *(str(tmp_path / x) if "." in x else x for y in options.items() for x in y),
        ]
        for option, code in (("-osafety_checker=false", 0), ("--overwrite", 1)):
            done = CliRunner().invoke(main, [*command, option])
            assert done.exit_code == code, done.output
        assert np.array_equal(np.asarray(PIL.Image.open(tmp_path / "out.png")), result)
        assert "safety checker" in done.output


class TestThreads:
    @pytest.mark.parametrize("rounds", [15, pytest.param(50, marks=pytest.mark.slow)])
    def test_models_that_share_components_paint_what_each_paints_alone(self, model, home, rounds):
        """8 threads, 4 models of which each two share a UNet, 60 requests (200): samplers, seeds, LoRAs."""
        for name in ("two", "three", "four"):
            shutil.copytree(model, home / name)
        for name in ("three", "four"):
            MAKERS["StableDiffusionInpaintPipeline"](home.parent / "made" / name, 5)
            shutil.rmtree(home / name / "unet")
            shutil.copytree(home.parent / "made" / name / "unet", home / name / "unet")
        unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet")
        loras = [(), *((Lora(str(save_lora(home.parent / f"{i}.safetensors", unet, seed=i))),) for i in range(2))]
        samplers = [Sampler.UNIPC, Sampler.EULER_A, Sampler.DDIM, Sampler.DPM_2M_KARRAS]
        requests = [
            replace(
                REQUEST, sd_sampler=samplers[i % 4], sd_seed=i % 5, sd_steps=1, sd_strength=1.0, loras=loras[i % 3]
            )
            for i in range(max(3, rounds // 5))
        ]
        tasks = [
            (name, requests[i % len(requests)]) for i in range(rounds) for name in ("model", "two", "three", "four")
        ]
        alone = ModelManager()
        pictures = {
            (name, request): alone.inpaint(name, IMAGE, MASK, request)
            for name in ("model", "three")
            for request in requests
        }
        expected = {
            task: pictures[{"two": "model", "four": "three"}.get(task[0], task[0]), task[1]] for task in tasks
        }
        manager = ModelManager(concurrency=2)
        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(lambda task: manager.inpaint(task[0], IMAGE, MASK, task[1]), tasks))
        assert all(np.array_equal(result, expected[task]) for result, task in zip(results, tasks, strict=True))
        stats = manager.pool.stats()
        assert set(stats.leases.values()) == {0}
        assert len(stats.components) == 4
        assert stats.counts.spoiled == 0


class TestBadInput:
    def refused(self, words):
        with pytest.raises(ModelLoadError, match=words) as error:
            ModelManager().load("model")
        return error

    def index(self, model, **changes):
        path = model / "model_index.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def test_a_component_whose_folder_is_missing(self, model):
        shutil.rmtree(model / "vae")
        self.refused("has no folder vae, which its model_index.json names. Get the model again")

    def test_a_component_whose_weights_are_missing(self, model):
        (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
        self.refused(r"has no model\.safetensors and no single \*_model\.safetensors")

    def test_a_component_that_the_index_does_not_name(self, model):
        self.index(model, unet=[None, None])
        path = model / "model_index.json"
        index = json.loads(path.read_text())
        del index["unet"]
        path.write_text(json.dumps(index))
        self.refused("has no unet, which StableDiffusionInpaintPipeline needs")

    def test_a_class_that_is_not_there(self, model):
        self.index(model, unet=["diffusers", "UNet9DModel"])
        self.refused(
            "needs UNet9DModel of diffusers as its unet, which is not there. pip install --upgrade diffusers"
        )

    def test_a_folder_that_names_another_library_runs_none_of_its_code(self, model, tmp_path, monkeypatch):
        (tmp_path / "evil.py").write_text("raise SystemExit('code was run')")
        monkeypatch.syspath_prepend(str(tmp_path))
        self.index(model, unet=["evil", "UNet"])
        self.refused("needs UNet of evil as its unet, which is not there")

    def test_a_pipeline_that_is_not_known_to_inpaint(self, model):
        self.index(model, _class_name="StableDiffusionUpscalePipeline", _diffusers_version="0.99.0")
        self.refused(r"holds a StableDiffusionUpscalePipeline, saved by diffusers 0\.99\.0, which is not known")

    def test_a_pipeline_that_this_diffusers_lacks(self, model, monkeypatch):
        class Older(types.ModuleType):
            def __getattr__(self, name):
                if name == "StableDiffusionInpaintPipeline":
                    raise AttributeError(name)
                return getattr(diffusers, name)

        older = Older("diffusers")
        older.__version__ = "0.1.0"
        monkeypatch.setitem(sys.modules, "diffusers", older)
        self.index(model, _diffusers_version="0.99.0")
        self.refused(r"needs StableDiffusionInpaintPipeline, which diffusers 0\.1\.0 does not have.*0\.99\.0 saved")

    def test_an_index_that_is_gone_since_the_scan(self, model):
        manager = ModelManager()
        manager.scan()
        (model / "model_index.json").unlink()
        with pytest.raises(
            ModelLoadError, match=r"model_index\.json can't be read.*Name a folder that diffusers has"
        ):
            manager.load("model")

    def test_a_transformer_alone(self, home):
        checkpointfiles.write(home / "model", checkpointfiles.flux()).rename(home / "model.safetensors")
        with pytest.raises(ModelLoadError, match="is the transformer of a flux model alone"):
            ModelManager().load("model.safetensors")

    def test_a_config_that_is_cut_off(self, model):
        (model / "unet" / "config.json").write_text('{"in_')
        assert [problem for path, problem in local_models().problems if path == model]

    def test_a_load_that_dies_at_its_last_component_leaves_nothing(self, model):
        path = model / "unet" / "diffusion_pytorch_model.safetensors"
        sound = path.read_bytes()
        path.write_bytes(sound[: len(sound) // 2])
        pool = ModelPool()
        with pytest.raises(WeightsError):
            raise self.failure(pool)
        assert pool.stats().leases == {}
        assert all(ledger.used == 0 for ledger in pool.stats().devices.values())
        path.write_bytes(sound)
        result = ModelManager(pool=pool).inpaint("model", IMAGE, MASK, REQUEST)
        assert np.array_equal(result, reference("StableDiffusionInpaintPipeline"))

    def failure(self, pool):
        with pytest.raises(ModelLoadError) as error:
            ModelManager(pool=pool).load("model")
        return error.value.__cause__ or error.value

    def test_an_example_image_that_is_missing_or_none(self, home):
        MAKERS["PaintByExamplePipeline"](home / "model")
        manager = ModelManager()
        large = io.BytesIO()
        PIL.Image.new("1", (6_000, 5_000)).save(large, "PNG")
        broken = ("####", "aGVsbG8=", "é", base64.b64encode(large.getvalue()).decode())
        for example, words in ((None, "there is none"), *((text, "can't be read") for text in broken)):
            with pytest.raises(InputError, match=words):
                manager.inpaint("model", IMAGE, MASK, replace(REQUEST, paint_by_example_example_image=example))

    def test_steps_of_zero(self, model):
        with pytest.raises(RequestError, match="sd_steps"):
            ModelManager().inpaint("model", IMAGE, MASK, {"sd_steps": 0})
