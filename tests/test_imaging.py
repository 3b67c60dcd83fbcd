import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from iopaint_core import imaging

masks = arrays.arrays(
    np.uint8,
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    elements=st.sampled_from([0, 0, 0, 0, 0, 255]),
    fill=st.just(0),
)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    multiple=st.sampled_from([1, 2, 8, 32]),
    min_size=st.integers(1, 70),
    square=st.booleans(),
)
def test_padding_reaches_the_size_asked_for_by_mirroring(shape, multiple, min_size, square):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    padded = imaging.pad(image, multiple=multiple, min_size=min_size, square=square)
    height, width = padded.shape[:2]
    assert height % multiple == width % multiple == 0
    assert min(height, width) >= min_size
    assert not square or height == width
    for old, new in zip(shape, (height, width), strict=True):
        assert square or new - max(old, min_size) < multiple
    rows, columns = (np.concatenate([np.arange(n), np.arange(n)[::-1]]) for n in shape)
    mirrored = image[np.resize(rows, height)][:, np.resize(columns, width)]
    assert np.array_equal(padded, mirrored)
    assert not np.shares_memory(padded, image)


@given(mask=masks, margin=st.integers(0, 30))
def test_crop_boxes_cover_the_mask_and_touch_neither_each_other_nor_the_outside(mask, margin):
    height, width = mask.shape
    boxes = imaging.crop_boxes(mask, margin)
    count = np.zeros((height + 2, width + 2), int)
    for box in boxes:
        assert 0 <= box.left < box.right <= width
        assert 0 <= box.top < box.bottom <= height
        assert mask[box.slices].any()
        count[box.top : box.bottom + 2, box.left : box.right + 2] += 1  # grown by a pixel, so that touching counts
    inside = np.zeros_like(mask)
    for box in boxes:
        assert count[box.top + 1 : box.bottom + 1, box.left + 1 : box.right + 1].max() == 1
        inside[box.slices] = 1
    assert inside[mask > 0].all()


@given(mask=masks, margin=st.integers(0, 30))
def test_each_masked_pixel_keeps_its_margin_inside_its_box(mask, margin):
    height, width = mask.shape
    boxes = imaging.crop_boxes(mask, margin)
    for y, x in np.argwhere(mask):
        (box,) = [box for box in boxes if box.top <= y < box.bottom and box.left <= x < box.right]
        assert box.left <= max(0, x - margin)
        assert box.right >= min(width, x + 1 + margin)
        assert box.top <= max(0, y - margin)
        assert box.bottom >= min(height, y + 1 + margin)


def test_a_margin_cut_off_at_an_edge_is_added_at_the_other_side():
    mask = np.zeros((100, 100), np.uint8)
    mask[0:10, 45:55] = 255
    assert imaging.crop_boxes(mask, 20) == [imaging.Box(left=25, top=0, right=75, bottom=50)]


def test_boxes_that_touch_become_one():
    mask = np.zeros((100, 100), np.uint8)
    mask[50, 20] = mask[50, 41] = 255
    assert len(imaging.crop_boxes(mask, 10)) == 1
    assert len(imaging.crop_boxes(mask, 9)) == 2


@given(mask=masks, limit=st.integers(1, 59))
@settings(max_examples=50)
def test_shrinking_loses_no_masked_pixel(mask, limit):
    image = np.zeros((*mask.shape, 3), np.uint8)
    if limit >= max(mask.shape):
        return
    small, small_mask = imaging.shrink(image, mask, limit)
    assert small.shape[:2] == small_mask.shape
    assert max(small_mask.shape) == limit
    assert small_mask.any() == mask.any()
    back = imaging.enlarge(np.repeat(small_mask[..., np.newaxis], 3, axis=2), *mask.shape)
    assert back.shape == (*mask.shape, 3)


def test_matching_gives_the_colours_of_the_reference():
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 100, (50, 50, 3), dtype=np.uint8)
    image = (reference.astype(int) + 100).astype(np.uint8)
    everywhere = np.ones((50, 50), bool)
    assert np.array_equal(imaging.match_histograms(image, reference, everywhere), reference)
    assert np.array_equal(imaging.match_histograms(image, reference, ~everywhere), image)


@given(mask=masks, blur=st.integers(1, 12))
def test_blur_mixes_by_the_blurred_mask_wherever_the_mask_is(mask, blur):
    image, result = (np.random.default_rng(seed).integers(0, 256, (*mask.shape, 3), np.uint8) for seed in (0, 1))
    size = 2 * blur + 1
    alpha = np.maximum(mask, cv2.GaussianBlur(mask, (size, size), 0))[..., None] / 255
    blended = imaging.blend(result, image, mask, blur)
    assert np.abs(blended - (result * alpha + image * (1 - alpha))).max() <= 0.51
    assert np.array_equal(blended[alpha[..., 0] == 0], image[alpha[..., 0] == 0])
    assert np.array_equal(blended[mask == 255], result[mask == 255])


def test_blur_fades_into_the_picture_and_leaves_nothing_of_what_was_masked():
    image = np.full((41, 41, 3), 200, np.uint8)
    result = np.zeros_like(image)
    mask = np.zeros((41, 41), np.uint8)
    mask[20, 20] = 255
    blended = imaging.blend(result, image, mask, 5)
    assert (blended[20, 20] == 0).all()
    assert 0 < blended[20, 21, 0] < 200
    assert (np.diff(blended[20, 20:, 0].astype(int)) >= 0).all()
    assert (blended[20, 26:] == 200).all()
    assert (blended[:14] == 200).all()
