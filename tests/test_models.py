import logging

import numpy as np
import pytest
from conftest import Red, photograph
from hypothesis import given, settings
from hypothesis import strategies as st

from iopaint_core import (
    Click,
    HDStrategy,
    ImageModel,
    ImageParameters,
    InpaintModel,
    InpaintRequest,
    InputError,
    MaskModel,
    MaskParameters,
    ModelManager,
    ModelOutputError,
    RequestError,
    report_progress,
)
from iopaint_plugins.opencv import CV2Flag


class Any(InpaintModel):
    """Checks what it is given, spoils it, and returns noise."""

    def __init__(self, pad_multiple=1, min_size=1, square=False):
        self.pad_multiple, self.min_size, self.square = pad_multiple, min_size, square
        self.calls = []

    def forward(self, image, mask, request):
        height, width = mask.shape
        assert image.shape == (height, width, 3)
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}
        assert mask.any()
        assert height % self.pad_multiple == width % self.pad_multiple == 0
        assert min(height, width) >= self.min_size
        assert not self.square or height == width
        self.calls.append((height, width))
        image[:] = 13
        mask[:] = 7
        return np.random.default_rng(1).integers(0, 256, image.shape, dtype=np.uint8)


@st.composite
def pictures(draw):
    shape = draw(st.tuples(st.integers(1, 64), st.integers(1, 64)))
    colors = draw(st.integers(1, 255))  # of each channel
    image = photograph(*shape, draw(st.integers(0, 255))) % np.uint8(colors)
    random, most = np.random.default_rng(draw(st.integers(0, 255))), draw(st.sampled_from([0, 127, 255]))
    others = random.choice(draw(st.sampled_from([(0, 127, 128, 255), range(256)])), shape)
    share = draw(st.sampled_from([0, 0.001, 0.01, 0.1, 0.5, 1]))
    mask = np.where(random.random(shape) < share, others, most).astype(np.uint8)
    return image, mask


requests = st.builds(
    InpaintRequest,
    hd_strategy=st.sampled_from(HDStrategy),
    hd_strategy_crop_trigger_size=st.integers(1, 80),
    hd_strategy_crop_margin=st.integers(0, 40),
    hd_strategy_resize_limit=st.integers(1, 80),
    sd_mask_blur=st.integers(0, 20),
    sd_match_histograms=st.booleans(),
    cv2_flag=st.sampled_from(CV2Flag),
)
models = st.builds(Any, st.sampled_from([1, 2, 8]), st.sampled_from([1, 16, 70]), st.booleans())


@given(picture=pictures(), request=requests, model=models)
@settings(max_examples=200)
def test_outside_the_mask_every_pixel_comes_back_and_nothing_is_written_to(picture, request, model):
    image, mask = picture
    before = image.copy(), mask.copy()
    image.flags.writeable = mask.flags.writeable = False
    result = model(image, mask, request)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    assert np.array_equal(result[mask <= 127], image[mask <= 127])
    assert np.array_equal(image, before[0])
    assert np.array_equal(mask, before[1])
    assert not np.shares_memory(result, image)


@pytest.fixture(scope="module")
def installed():
    """A manager of the plugins that are installed; finding them takes longer than what most tests do with it."""
    return ModelManager()


@given(picture=pictures(), request=requests)
@settings(max_examples=150)
def test_the_default_model_keeps_the_promise_too(installed, picture, request):
    image, mask = picture
    before = image.copy(), mask.copy()
    try:
        result = installed.inpaint("cv2", image, mask, request)
    except InputError:  # a crop with no unmasked pixel, see TestCv2
        result = image
    assert np.array_equal(result[mask <= 127], image[mask <= 127])
    assert np.array_equal(image, before[0])
    assert np.array_equal(mask, before[1])


@given(picture=pictures(), request=requests)
@settings(max_examples=100)
def test_every_masked_pixel_is_the_models(picture, request):
    image, mask = picture
    result = Red()(image, mask, {**request, "sd_match_histograms": False})
    assert (result[mask > 127] == (255, 0, 0)).all()


def masked(height, width, *boxes):
    mask = np.zeros((height, width), np.uint8)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = 255
    return mask


class TestStrategies:
    def sizes(self, image, mask, model=None, **request):
        model = model or Any()
        model(image, mask, InpaintRequest(**request))
        return model.calls

    def test_original_hands_over_the_whole_picture(self):
        image, mask = photograph(900, 1000), masked(900, 1000, (10, 10, 20, 20))
        assert self.sizes(image, mask, hd_strategy=HDStrategy.ORIGINAL) == [(900, 1000)]

    def test_crop_hands_over_each_part_with_its_margin(self):
        image, mask = photograph(900, 1000), masked(900, 1000, (200, 200, 210, 220), (700, 700, 720, 710))
        assert self.sizes(image, mask) == [(10 + 256, 20 + 256), (20 + 256, 10 + 256)]

    def test_crop_leaves_a_small_picture_whole(self):
        image, mask = photograph(600, 800), masked(600, 800, (200, 200, 210, 220))
        assert self.sizes(image, mask) == [(600, 800)]

    def test_parts_whose_crops_touch_are_handed_over_together(self):
        image, mask = photograph(900, 1000), masked(900, 1000, (200, 200, 210, 210), (300, 300, 310, 310))
        assert self.sizes(image, mask) == [(110 + 256, 110 + 256)]

    def test_resize_hands_over_a_small_copy(self):
        image, mask = photograph(900, 1800), masked(900, 1800, (200, 200, 210, 220))
        assert self.sizes(image, mask, hd_strategy=HDStrategy.RESIZE) == [(640, 1280)]

    def test_padding_makes_what_the_model_declares(self):
        image, mask = photograph(50, 70), masked(50, 70, (20, 20, 30, 30))
        assert self.sizes(image, mask, Any(pad_multiple=32)) == [(64, 96)]
        assert self.sizes(image, mask, Any(pad_multiple=32, min_size=100, square=True)) == [(128, 128)]

    @pytest.mark.parametrize("strategy", HDStrategy)
    @pytest.mark.parametrize(("height", "width"), [(1, 1), (20, 8000), (8000, 20), (1, 900)])
    def test_odd_sizes_go_through(self, strategy, height, width):
        image, mask = photograph(height, width), masked(height, width, (0, 0, 1, 1))
        result = Red()(image, mask, InpaintRequest(hd_strategy=strategy))
        assert (result[0, 0] == (255, 0, 0)).all()
        assert np.array_equal(result[mask == 0], image[mask == 0])

    def test_a_full_mask_is_repainted_whole(self):
        image = photograph()
        assert (Red()(image, np.full((40, 60), 255, np.uint8)) == (255, 0, 0)).all()

    def test_a_request_may_take_the_whole_result(self):
        image, mask = photograph(), masked(40, 60, (5, 5, 9, 9))
        result = Red()(image, mask, InpaintRequest(sd_keep_unmasked_area=False))
        assert (result == (255, 0, 0)).all()

    def test_a_model_that_declares_blur_blends_around_the_mask_only(self):
        class Soft(Red):
            mask_blur = True

        image, mask = photograph(), masked(40, 60, (18, 28, 22, 32))
        result = Soft()(image, mask, InpaintRequest(sd_mask_blur=3))
        assert (result[mask > 0] == (255, 0, 0)).all()
        near = masked(40, 60, (15, 25, 25, 35)) > 0
        assert np.array_equal(result[~near], image[~near])
        assert not np.array_equal(result[mask == 0], image[mask == 0])
        sharp = Soft()(image, mask, InpaintRequest(sd_mask_blur=0))
        assert np.array_equal(sharp[mask == 0], image[mask == 0])

    def test_histograms_are_matched_outside_the_mask(self):
        class Darker(InpaintModel):
            def forward(self, image, mask, request):
                return image // 2

        image, mask = photograph(), masked(40, 60, (5, 5, 15, 15))
        plain = Darker()(image, mask)[mask > 0]
        matched = Darker()(image, mask, InpaintRequest(sd_match_histograms=True))[mask > 0]
        original = image[mask > 0].astype(int)
        assert np.abs(matched - original).mean() < 3 < np.abs(plain - original).mean()


class TestCv2:
    def test_it_fills_a_hole_from_what_surrounds_it(self):
        image = np.full((60, 80, 3), (10, 120, 240), np.uint8)
        mask = masked(60, 80, (20, 20, 40, 40))
        image[mask > 0] = 0
        result = ModelManager().inpaint("cv2", image, mask)
        assert np.abs(result.astype(int) - (10, 120, 240)).max() <= 1

    def test_flag_and_radius_change_the_result(self):
        image, mask = photograph(), masked(40, 60, (10, 10, 30, 30))
        manager = ModelManager()
        results = [
            manager.inpaint("cv2", image, mask, InpaintRequest(cv2_flag=flag, cv2_radius=radius)).tobytes()
            for flag, radius in [("INPAINT_NS", 4), ("INPAINT_TELEA", 4), ("INPAINT_TELEA", 9)]
        ]
        assert len(set(results)) == 3

    def test_a_full_mask_is_an_error_that_says_why(self):
        with pytest.raises(InputError, match="leaves nothing around it"):
            ModelManager().inpaint("cv2", photograph(), np.full((40, 60), 255, np.uint8))


class TestWrongInput:
    @pytest.mark.parametrize(
        ("image", "told"),
        [
            (photograph().astype(np.float32), r"float32 array of shape \(40, 60, 3\)"),
            (photograph()[..., 0], r"\(40, 60\)"),
            (np.dstack([photograph(), photograph()[..., :1]]), r"\(40, 60, 4\)"),
            (photograph()[:0], "no pixels"),
            ("photo.png", "The image is str"),
        ],
    )
    def test_an_image_of_another_kind(self, image, told):
        with pytest.raises(InputError, match=told):
            Red()(image, masked(40, 60))

    @pytest.mark.parametrize("mask", [masked(40, 60) > 0, masked(40, 60)[..., np.newaxis], "mask.png"])
    def test_a_mask_of_another_kind(self, mask):
        with pytest.raises(InputError, match=r"uint8 array of shape \(H, W\)"):
            Red()(photograph(), mask)

    def test_no_mask(self):
        with pytest.raises(InputError, match="Red takes a mask, and none was given"):
            Red()(photograph(), None)

    def test_a_mask_of_another_size_is_told_with_both_sizes(self):
        with pytest.raises(InputError, match="The image is 60 x 40 and the mask 40 x 60"):
            Red()(photograph(), masked(60, 40))

    def test_a_request_out_of_range(self):
        with pytest.raises(RequestError, match="sd_mask_blur"):
            Red()(photograph(), masked(40, 60), InpaintRequest(sd_mask_blur=-1))

    def test_an_empty_mask_returns_the_picture_and_says_so(self, caplog):
        image = photograph()
        result = Red()(image, masked(40, 60))
        assert np.array_equal(result, image)
        assert not np.shares_memory(result, image)
        assert "mask is empty" in caplog.text

    def test_a_mask_of_ones_is_empty_and_told_why(self, caplog):
        Red()(photograph(), masked(40, 60, (1, 1, 9, 9)) // 255)
        assert "its largest value is 1" in caplog.text


@pytest.mark.parametrize("result", [None, photograph(3, 3), photograph().astype(float), photograph()[..., :1]])
def test_a_model_that_returns_something_else_is_named(result):
    class Wrong(InpaintModel):
        def forward(self, image, mask, request):
            return result

    with pytest.raises(ModelOutputError, match=r"Wrong\.forward returned"):
        Wrong()(photograph(), masked(40, 60, (1, 1, 9, 9)))


class TestProgress:
    class Stepping(InpaintModel):
        def forward(self, image, mask, request):
            for step in range(1, 5):
                report_progress(step, 4)
            return image

    image, mask = photograph(900, 1000), masked(900, 1000, (200, 200, 210, 220), (700, 700, 720, 710))

    def test_the_steps_of_all_parts_make_one_whole(self):
        seen = []
        self.Stepping()(self.image, self.mask, progress=lambda step, total: seen.append(step / total))
        assert seen == sorted(seen)
        assert seen[0] == 1 / 8
        assert seen[-1] == 1

    def test_what_the_callback_raises_cancels_the_work_and_frees_the_model(self):
        class CancelledError(Exception):
            pass

        def cancel(step, total):
            raise CancelledError

        manager = ModelManager()
        with pytest.raises(CancelledError):
            manager.inpaint("cv2", self.image, self.mask, progress=cancel)
        assert manager.unload("cv2")

    def test_outside_a_call_reporting_does_nothing(self):
        report_progress(1, 2)


class TestImageModel:
    class Twice(ImageModel):
        def forward(self, image, request):
            image[:] = image // 2
            scale = int(request.scale or 2)
            return image.repeat(scale, axis=0).repeat(scale, axis=1)

    def test_it_may_change_the_size_and_not_the_callers_image(self):
        image = photograph()
        before = image.copy()
        assert self.Twice()(image).shape == (80, 120, 3)
        assert self.Twice()(image, ImageParameters(scale=3)).shape == (120, 180, 3)
        assert np.array_equal(image, before)

    def test_it_may_return_transparency_and_nothing_else(self):
        class Cut(ImageModel):
            channels = 4

            def forward(self, image, request):
                return np.zeros((*image.shape[:2], self.channels), np.uint8)

        assert Cut()(photograph()).shape == (40, 60, 4)
        Cut.channels = 2
        with pytest.raises(ModelOutputError, match="Cut"):
            Cut()(photograph())

    def test_a_scale_of_nothing_is_refused(self):
        with pytest.raises(RequestError, match="scale"):
            self.Twice()(photograph(), ImageParameters(scale=0))


class TestMaskModel:
    class Clicked(MaskModel):
        def forward(self, image, request):
            mask = np.zeros(image.shape[:2], np.uint8)
            for click in request.clicks:
                mask[click.y, click.x] = 255 * click.positive
            return mask

    def test_clicks_reach_it(self):
        mask = self.Clicked()(photograph(), MaskParameters(clicks=(Click(59, 0), Click(0, 39, positive=False))))
        assert np.argwhere(mask).tolist() == [[0, 59]]

    def test_a_click_outside_is_refused(self):
        with pytest.raises(InputError, match="outside the image of 60 x 40"):
            self.Clicked()(photograph(), MaskParameters(clicks=(Click(60, 0),)))


def test_no_global_random_state_is_touched():
    state = np.random.get_state()[1].tolist()
    ModelManager().inpaint("cv2", photograph(), masked(40, 60, (5, 5, 9, 9)))
    assert np.random.get_state()[1].tolist() == state


def test_nothing_is_said_about_a_repaired_picture(caplog):
    with caplog.at_level(logging.INFO):
        Red()(photograph(), masked(40, 60, (5, 5, 9, 9)))
    assert not caplog.records
