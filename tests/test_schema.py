import dataclasses
import pickle

import pytest

from iopaint_core import (
    ImageParameters,
    InpaintParameters,
    MaskParameters,
    ModelInfo,
    ModelType,
    PluginError,
    Task,
    UnknownModelError,
)
from iopaint_plugins.diffusion.parameters import DiffusionParameters
from iopaint_plugins.opencv import CV2Parameters


def test_model_types_have_the_values_of_iopaint():
    assert {kind.name: kind.value for kind in ModelType} == {
        "INPAINT": "inpaint",
        "DIFFUSERS_SD": "diffusers_sd",
        "DIFFUSERS_SD_INPAINT": "diffusers_sd_inpaint",
        "DIFFUSERS_SDXL": "diffusers_sdxl",
        "DIFFUSERS_SDXL_INPAINT": "diffusers_sdxl_inpaint",
        "DIFFUSERS_OTHER": "diffusers_other",
        "PLUGIN": "plugin",
    }


def test_parameters_have_the_names_and_defaults_of_iopaint():
    framework = {
        "hd_strategy": "Crop",
        "hd_strategy_crop_trigger_size": 800,
        "hd_strategy_crop_margin": 128,
        "hd_strategy_resize_limit": 1280,
        "sd_mask_blur": 11,
        "sd_match_histograms": False,
        "sd_keep_unmasked_area": True,
        "use_croper": False,
        "croper_x": 0,
        "croper_y": 0,
        "croper_width": 512,
        "croper_height": 512,
        "use_extender": False,
        "extender_x": 0,
        "extender_y": 0,
        "extender_width": 640,
        "extender_height": 640,
        "sd_scale": 1.0,
    }
    assert dataclasses.asdict(InpaintParameters()) == framework
    assert dataclasses.asdict(CV2Parameters()) == {**framework, "cv2_flag": "INPAINT_NS", "cv2_radius": 4}
    assert dataclasses.asdict(DiffusionParameters()) == {
        **framework,
        "prompt": "",
        "negative_prompt": "",
        "sd_steps": 50,
        "sd_strength": 1.0,
        "sd_guidance_scale": 7.5,
        "sd_sampler": "UniPC",
        "sd_seed": 42,
        "p2p_image_guidance_scale": 1.5,
        "paint_by_example_example_image": None,
        "loras": (),
        "sd_lcm_lora": False,
        "enable_controlnet": False,
        "controlnet_method": "lllyasviel/control_v11p_sd15_canny",
        "controlnet_conditioning_scale": 0.4,
    }


@pytest.mark.parametrize(
    ("task", "parameters"),
    [
        (Task.INPAINT, InpaintParameters),
        (Task.RESTORE, ImageParameters),
        (Task.MATTING, ImageParameters),
        (Task.SEGMENT, MaskParameters),
    ],
)
def test_a_model_takes_what_its_task_takes_unless_it_says_more(task, parameters):
    @dataclasses.dataclass(frozen=True)
    class Own(parameters):
        level: int = 1

    assert ModelInfo("a", ModelType.PLUGIN, task=task).parameters is parameters
    assert ModelInfo("a", ModelType.PLUGIN, task=task, parameters=Own).parameters is Own


def test_wrong_parameters_are_an_error_of_the_model():
    class Bare(InpaintParameters):
        radius: int = 3

    wrong = {
        Bare: "Bare: it is not a frozen dataclass",
        ImageParameters: r"a has the parameters ImageParameters, which do not fit its task \(inpaint\)",
        dict: "expected a subclass of Parameters, got <class 'dict'>",
        CV2Parameters(): "expected a subclass of Parameters, got CV2Parameters",
    }
    for parameters, words in wrong.items():
        with pytest.raises(PluginError, match=words):
            ModelInfo("a", task=Task.INPAINT, parameters=parameters)


def test_errors_keep_their_data_across_processes():
    error = pickle.loads(pickle.dumps(UnknownModelError("No model x", "Try y", ("y", "z"))))
    assert (error.message, error.remedy, error.choices) == ("No model x", "Try y", ("y", "z"))
    assert str(error) == "No model x. Try y."
