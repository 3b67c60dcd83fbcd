import dataclasses
import pickle

import pytest

from iopaint_core import (
    CV2Flag,
    HDStrategy,
    InpaintRequest,
    MaskRequest,
    ModelInfo,
    ModelType,
    RequestError,
    Task,
    UnknownModelError,
)


def test_a_model_is_announced_as_the_decision_record_writes_it():
    info = ModelInfo(name="RealESRGAN_4x", type=ModelType.PLUGIN, plugin_name="realesrgan")
    assert info.qualified_name == "realesrgan:RealESRGAN_4x"
    assert info.task is Task.INPAINT


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


def test_a_request_has_the_names_and_defaults_of_iopaint():
    assert dataclasses.asdict(InpaintRequest()) == {
        "hd_strategy": "Crop",
        "hd_strategy_crop_trigger_size": 800,
        "hd_strategy_crop_margin": 128,
        "hd_strategy_resize_limit": 1280,
        "sd_mask_blur": 11,
        "sd_match_histograms": False,
        "sd_keep_unmasked_area": True,
        "cv2_flag": "INPAINT_NS",
        "cv2_radius": 4,
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
    "data", ['{"hd_strategy": "Resize", "cv2_radius": 7}', {"hd_strategy": "Resize", "cv2_radius": 7}]
)
def test_a_request_is_made_from_json_and_from_mappings(data):
    request = InpaintRequest.validate(data)
    assert request == InpaintRequest(hd_strategy=HDStrategy.RESIZE, cv2_radius=7)
    assert request.cv2_flag is CV2Flag.INPAINT_NS


def test_a_request_made_in_python_is_checked_as_one_from_outside():
    assert InpaintRequest.validate(InpaintRequest(hd_strategy="Crop")).hd_strategy is HDStrategy.CROP
    with pytest.raises(RequestError, match="'hd_strategy_crop_margin' is -1"):
        InpaintRequest.validate(InpaintRequest(hd_strategy_crop_margin=-1))


@pytest.mark.parametrize(
    ("json", "told"),
    [
        ('{"hd_strategy_crop_margin": -5}', ["hd_strategy_crop_margin", "-5", "greater than or equal to 0"]),
        ('{"cv2_radius": "wide"}', ["cv2_radius", "wide", "integer"]),
        ('{"hd_strategy": "Shrink"}', ["hd_strategy", "Shrink", "'Original', 'Resize' or 'Crop'"]),
        ('{"cv2_radios": 3}', ["cv2_radios", "did you mean cv2_radius?", "The keys are: hd_strategy,"]),
        ('{"cv2_radios": 3, "sd_mask_blur": -1}', ["cv2_radios", "sd_mask_blur"]),
        ("[1, 2]", ["The request is wrong"]),
        ("{", ["The request is wrong", "JSON"]),
    ],
)
def test_a_wrong_request_is_told_which_key_and_which_range(json, told):
    with pytest.raises(RequestError) as caught:
        InpaintRequest.validate(json)
    for words in told:
        assert words in str(caught.value)


def test_clicks_come_as_json_too():
    request = MaskRequest.validate('{"clicks": [{"x": 3, "y": 4, "positive": false}]}')
    assert (request.clicks[0].x, request.clicks[0].y, request.clicks[0].positive) == (3, 4, False)


def test_errors_keep_their_data_across_processes():
    error = pickle.loads(pickle.dumps(UnknownModelError("No model x", "Try y", ("y", "z"))))
    assert (error.message, error.remedy, error.choices) == ("No model x", "Try y", ("y", "z"))
    assert str(error) == "No model x. Try y."
