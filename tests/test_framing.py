"""A request may have a model work on a rectangle, beyond the edges, or on a smaller picture."""

import numpy as np
import PIL.Image
import pytest
from conftest import Red, photograph
from hypothesis import given
from hypothesis import strategies as st

from iopaint_core import (
    HDStrategy,
    InpaintModel,
    InpaintRequest,
    InputError,
    ModelOutputError,
    RequestError,
    batch,
    read_picture,
    report_preview,
    wants_preview,
)
from iopaint_plugins.diffusion.parameters import DiffusionParameters

RED = (255, 0, 0)


class Whole(InpaintModel):
    """Keeps what it is given, and paints all red."""

    parameters_class = DiffusionParameters
    whole = True
    pad_multiple = 8

    def __init__(self):
        self.image = self.mask = self.request = None

    def forward(self, image, mask, request):
        self.image, self.mask, self.request = image.copy(), mask.copy(), request
        image[:] = RED
        return image


def is_red(image):
    return (image == RED).all(axis=-1)


def masked(height, width, top=0, left=0, bottom=0, right=0):
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


coordinates, sizes = st.integers(-70, 70), st.integers(1, 90)


class TestCroper:
    def test_the_model_sees_the_rectangle_alone(self):
        model, image = Whole(), photograph(40, 60)
        request = InpaintRequest(use_croper=True, croper_x=8, croper_y=16, croper_width=16, croper_height=8)
        result = model(image, masked(40, 60, 0, 0, 40, 12), request)
        assert np.array_equal(model.image, image[16:24, 8:24])
        expected = np.zeros((40, 60), bool)
        expected[16:24, 8:12] = True
        assert np.array_equal(is_red(result), expected)

    @given(coordinates, coordinates, sizes, sizes)
    def test_outside_of_rectangle_and_mask_every_pixel_comes_back(self, x, y, width, height):
        image, mask = photograph(40, 60), masked(40, 60, 5, 5, 35, 35)
        request = InpaintRequest(use_croper=True, croper_x=x, croper_y=y, croper_width=width, croper_height=height)
        inside = np.zeros((40, 60), bool)
        inside[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] = True
        if not inside.any():
            with pytest.raises(InputError, match=r"croper's rectangle, .* shows nothing .* 60 x 40\. Set croper_x"):
                Red()(image, mask, request)
            return
        result = Red()(image, mask, request)
        expected = image.copy()
        expected[inside & (mask > 0)] = RED
        assert np.array_equal(result, expected)


class TestExtender:
    def test_what_is_beyond_the_edges_is_painted_and_the_rest_is_as_it_was(self):
        model, image = Whole(), photograph(40, 60)
        request = InpaintRequest(
            use_extender=True, extender_x=-8, extender_y=-16, extender_width=80, extender_height=64, sd_strength=0.5
        )
        result = model(image, masked(40, 60, 10, 10, 20, 20), request)
        assert result.shape == (64, 80, 3)
        expected = np.zeros_like(result)
        expected[:] = RED
        expected[16:56, 8:68] = image
        expected[26:36, 18:28] = RED  # the mask counts too
        assert np.array_equal(result, expected)
        assert np.array_equal(model.image[16:56, 8:68], image)
        assert np.array_equal(model.image[0, 8:68], image[0]), "beyond an edge, the edge goes on"
        assert model.request.sd_strength == 1, "there is nothing that could be kept"

    @given(coordinates, coordinates, sizes, sizes)
    def test_the_result_holds_the_picture_and_the_rectangle(self, x, y, width, height):
        image, mask = photograph(40, 60), masked(40, 60, 5, 5, 35, 35)
        request = InpaintRequest(
            use_extender=True, extender_x=x, extender_y=y, extender_width=width, extender_height=height
        )
        left, top, right, bottom = min(0, x), min(0, y), max(60, x + width), max(40, y + height)
        if x + width <= 0 or y + height <= 0 or x >= 60 or y >= 40:
            with pytest.raises(InputError, match="extender's rectangle"):
                Red()(image, mask, request)
            return
        result = Red()(image, mask, request)
        expected = np.zeros((bottom - top, right - left, 3), np.uint8)
        expected[y - top : y - top + height, x - left : x - left + width] = RED
        keep = image.copy()
        inside = np.zeros((40, 60), bool)
        inside[max(0, y) : y + height, max(0, x) : x + width] = True
        keep[inside & (mask > 0)] = RED
        expected[-top : -top + 40, -left : -left + 60] = keep
        assert np.array_equal(result, expected)

    def test_an_empty_mask_is_no_reason_to_do_nothing(self, tmp_path, manager):
        PIL.Image.fromarray(photograph(40, 60)).save(tmp_path / "in.png")
        PIL.Image.fromarray(masked(40, 60)).save(tmp_path / "mask.png")
        jobs = batch.plan(tmp_path / "in.png", tmp_path / "mask.png", tmp_path / "out.png")
        config = b'{"use_extender": true, "extender_x": -4, "extender_width": 68, "extender_height": 40}'
        (outcome,) = batch.run(manager, "red", jobs, batch.Options(parameters=config))
        assert outcome.status is batch.Status.REPAIRED
        result = read_picture(tmp_path / "out.png").rgb
        assert result.shape == (40, 68, 3)
        assert is_red(result[:, :4]).all()
        assert is_red(result[:, 64:]).all()
        assert np.array_equal(result[:, 4:64], photograph(40, 60))

    @pytest.mark.parametrize("size", [0, -3, 10**9])
    def test_a_size_that_can_not_be_meant_is_refused(self, size):
        with pytest.raises(RequestError, match="extender_width"):
            Red()(photograph(), masked(40, 60), InpaintRequest(use_extender=True, extender_width=size))


class TestWholePictures:
    @pytest.mark.parametrize("strategy", HDStrategy)
    def test_a_strategy_for_large_pictures_is_not_read(self, strategy):
        model = Whole()
        request = InpaintRequest(
            hd_strategy=strategy, hd_strategy_crop_trigger_size=10, hd_strategy_resize_limit=10
        )
        model(photograph(40, 64), masked(40, 64, 2, 2, 4, 4), request)
        assert model.mask.shape == (40, 64)

    def test_it_may_work_on_a_smaller_picture_which_costs_only_what_it_paints_its_detail(self):
        model, image, mask = Whole(), photograph(80, 128), masked(80, 128, 10, 10, 30, 30)
        result = model(image, mask, InpaintRequest(sd_scale=0.5))
        assert model.mask.shape == (40, 64)
        assert is_red(result[mask > 0]).all()
        assert np.array_equal(result[mask == 0], image[mask == 0])

    def test_models_that_take_parts_do_not_read_the_scale(self):
        sizes = []

        class Parts(Red):
            def forward(self, image, mask, request):
                sizes.append(mask.shape)
                return super().forward(image, mask, request)

        Parts()(photograph(40, 64), masked(40, 64, 2, 2, 4, 4), InpaintRequest(sd_scale=0.5))
        assert sizes == [(40, 64)]


class Showing(InpaintModel):
    """Shows twice what it paints, the second time as it returns it."""

    pad_multiple = 8
    mask_blur = True

    def __init__(self, *, whole):
        self.whole = whole

    def forward(self, image, mask, request):
        assert wants_preview()
        report_preview(np.zeros_like(image))
        result = 255 - image
        report_preview(result)
        return result


class TestPreview:
    @given(
        st.booleans(),
        st.sampled_from(HDStrategy),
        st.fixed_dictionaries(
            {},
            optional={
                "sd_scale": st.floats(0.1, 1),
                "sd_keep_unmasked_area": st.booleans(),
                "sd_match_histograms": st.booleans(),
                "use_croper": st.booleans(),
                "use_extender": st.booleans(),
                "croper_width": st.integers(40, 80),
                "extender_x": st.integers(-20, 20),
            },
        ),
    )
    def test_the_last_preview_is_the_result(self, whole, strategy, options):
        options = {"croper_height": 40, "extender_width": 70, "extender_height": 50, **options}
        request = InpaintRequest(
            hd_strategy=strategy, hd_strategy_crop_trigger_size=30, hd_strategy_crop_margin=2,
            hd_strategy_resize_limit=30, **options,
        )  # fmt: skip
        mask = masked(40, 60, 5, 5, 12, 12) | masked(40, 60, 30, 45, 36, 50)
        shown = []
        result = Showing(whole=whole)(photograph(40, 60), mask, request, preview=shown.append)
        assert np.array_equal(shown[-1], result)
        assert {image.shape for image in shown} == {result.shape}
        assert not np.array_equal(shown[0], result)

    def test_without_somebody_to_show_it_to_there_is_none(self):
        class Asked(InpaintModel):
            def forward(self, image, mask, request):
                report_preview(image[:1])
                image[:] = 255 * wants_preview()
                return image

        assert not Asked()(photograph(40, 60), masked(40, 60, 0, 0, 40, 60)).any()

    def test_what_the_host_raises_cancels(self):
        with pytest.raises(ZeroDivisionError):
            Showing(whole=True)(photograph(40, 60), masked(40, 60, 0, 0, 9, 9), preview=lambda image: 1 / 0)

    def test_a_preview_of_another_shape_is_the_models_fault(self):
        class Wrong(InpaintModel):
            def forward(self, image, mask, request):
                report_preview(image[:1])
                return image

        with pytest.raises(ModelOutputError):
            Wrong()(photograph(40, 60), masked(40, 60, 0, 0, 9, 9), preview=lambda image: None)
