"""Text in pictures, found by the real network."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest
from commands import command
from conftest import ROOT, photograph

from iopaint_core import (
    ModelLoadError,
    ModelManager,
    ModelPool,
    ModelType,
    RequestError,
    Task,
    UnavailableModelError,
    default_context,
    find_model,
    read_picture,
    scan_models,
)
from iopaint_plugins.text import TextParameters

PORTRAIT = read_picture(ROOT / "examples" / "astronaut.jpg").rgb
SHUTTLE, SUIT = PORTRAIT[:192, 308:500].copy(), PORTRAIT[256:448, :192].copy()


def written(image, text, at, height):
    """The image with white text on it, and a mask of the rectangle that the text fills."""
    picture, font = PIL.Image.fromarray(image), PIL.ImageFont.load_default(height)
    draw = PIL.ImageDraw.Draw(picture)
    draw.text(at, text, "white", font)
    left, top, right, bottom = draw.textbbox(at, text, font)
    there = np.zeros(image.shape[:2], bool)
    there[int(top) : int(bottom) + 1, int(left) : int(right) + 1] = True
    return np.array(picture), there


def overlap(mask, there):
    """Intersection over union."""
    return ((mask > 0) & there).sum() / ((mask > 0) | there).sum()


@pytest.fixture(scope="module")
def models():
    with ModelManager() as manager:
        yield manager


@pytest.fixture
def find(models):
    def find(image, **parameters):
        return models.run("text", image, parameters=parameters)

    return find


@pytest.fixture(scope="module")
def session(models):
    with models.session("text", written(SUIT, "Moon", (40, 60), 24)[0]) as session:
        yield session


class TestWhatItFinds:
    @pytest.mark.parametrize("image", [SHUTTLE, SUIT])
    @pytest.mark.parametrize("height", [10, 24, 72])
    def test_text_is_found_where_it_stands(self, find, image, height):
        image, there = written(image, "Moon", (10, 60), height)
        found = find(image, dilation=0)
        assert found.info == {"texts": 1}
        assert overlap(found.mask, there) > 0.5
        assert find(image).mask[there].all()

    def test_texts_are_counted_and_stand_in_one_mask(self, find):
        image, above = written(SUIT, "Above", (10, 20), 24)
        image, below = written(image, "Below", (100, 140), 24)
        found = find(image, dilation=1)
        assert (found.info, found.masks.shape) == ({"texts": 2}, (1, 192, 192))
        assert overlap(found.mask, above | below) > 0.5

    @pytest.mark.parametrize("image", [SHUTTLE, SUIT, photograph(64, 64)])
    def test_a_picture_without_text_gives_an_empty_mask(self, find, image):
        found = find(image)
        assert (found.info, found.masks.shape) == ({"texts": 0, "unchanged": True}, (1, *image.shape[:2]))
        assert not found.mask.any()

    def test_what_is_large_has_to_be_text_in_half_the_size_too(self, find):
        disc = np.full((320, 320, 3), (120, 60, 30), np.uint8)
        cv2.circle(disc, (160, 160), 54, (240, 240, 240), -1)
        assert find(disc).info["texts"] == 0

    def test_a_picture_of_several_tiles_is_looked_at_everywhere(self, find):
        grey = np.full((64, 1200, 3), 90, np.uint8)
        image, across = written(grey, "Across the border", (500, 20), 24)
        image, last = written(image, "Last", (1130, 20), 24)
        assert overlap(find(image, dilation=2).mask, across | last) > 0.5

    def test_a_large_picture_is_looked_at_smaller_and_its_mask_is_as_large_as_it(self, find):
        image, there = written(np.full((40, 2600, 3), 90, np.uint8), "Far right", (2400, 8), 24)
        mask = find(image, dilation=2).mask
        assert mask.shape == (40, 2600)
        assert overlap(mask, there) > 0.5
        assert set(np.unique(mask)) == {0, 255}

    @pytest.mark.parametrize("size", [(1, 1), (1, 40), (31, 33)])
    def test_tiny_pictures(self, find, size):
        assert find(np.full((*size, 3), 200, np.uint8)).mask.shape == size

    def test_two_models_on_one_network_give_what_each_gives_alone(self, find):
        images = [written(SUIT[:96, :96].copy(), "Moon", (10, top), 24)[0] for top in range(8, 56, 8)]
        alone = [find(image).mask.tobytes() for image in images]
        contexts, pool = [replace(default_context(), device=device) for device in ("cpu", "cuda")], ModelPool()
        managers = [ModelManager(pool=pool, context=context) for context in contexts]

        def call(number):
            return managers[number % 2].segment("text", images[number // 2]).tobytes()

        with managers[0], managers[1], ThreadPoolExecutor(4) as threads:
            assert list(threads.map(call, range(12))) == [mask for mask in alone for _ in range(2)]
            (network,) = pool.stats().components
            assert (network.device, len(network.users)) == ("cpu", 2)
        assert len(set(alone)) == 6


class TestParameters:
    def test_dilation_is_a_distance_in_pixels_of_the_picture(self, session, find):
        near, far = (session.run({"dilation": dilation}).mask for dilation in (2, 12))
        distance = cv2.distanceTransform(255 - near, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        assert 9 <= distance[far > 0].max() <= 11
        assert far[distance <= 9].all()

    def test_a_higher_threshold_covers_less(self, session):
        low, high = (session.run({"threshold": value, "dilation": 0}).mask for value in (0.1, 0.8))
        assert 0 < (high > 0).sum() < (low > 0).sum()

    def test_a_session_gives_what_a_call_gives(self, session, find):
        image, _ = written(SUIT, "Moon", (40, 60), 24)
        assert np.array_equal(session.run().mask, find(image).mask)

    @pytest.mark.parametrize(
        "wrong", [{"threshold": 0}, {"threshold": 1}, {"dilation": -1}, {"dilation": 1001}, {"dilation": 1.5}]
    )
    def test_values_out_of_range_are_refused(self, find, wrong):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            find(SUIT, **wrong)

    def test_it_reads_what_it_declares(self, models, reads):
        read = reads(TextParameters)
        models.run("text", written(SUIT, "Moon", (10, 60), 24)[0])
        assert read == {"threshold", "dilation"}


class TestTiles:
    IMAGE = np.full((8, 1200, 3), 90, np.uint8)

    def test_each_is_reported_and_the_call_can_be_cancelled_between_them(self, models):
        steps = []

        def cancel(step, total):
            steps.append((step, total))
            if step == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            models.run("text", self.IMAGE, progress=cancel)
        assert steps == [(0, 3), (1, 3)]

    def test_buffers_of_the_network_are_charged(self):
        with ModelManager() as manager, manager.load("text"):
            before = manager.pool.stats().devices["cpu"].resident
            manager.run("text", self.IMAGE)
            assert manager.pool.stats().devices["cpu"].resident > before


class TestAnnouncement:
    def test_it_is_found_as_a_plugins_model_that_finds_masks(self):
        info = find_model("text", scan_models())
        assert (info.type, info.task, info.license) == (ModelType.PLUGIN, Task.SEGMENT, "Apache-2.0")
        assert (info.plugin_name, info.unavailable) == ("text", "")

    def test_the_package_is_not_imported(self, find):
        find(SUIT)
        assert "rapidocr" not in sys.modules

    def test_without_the_package_it_says_how_to_install_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "rapidocr", None)
        with ModelManager() as manager, pytest.raises(UnavailableModelError, match=r"iopaint-core\[text\]"):
            manager.run("text", SUIT)


class TestDetector:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        """A package of that name with files of these names; the first is the real one, the others are none."""
        import importlib.util

        real = Path(importlib.util.find_spec("rapidocr").origin).parent / "models"

        def package(*names):
            folder = tmp_path / "site" / "rapidocr" / "models"
            folder.mkdir(parents=True)
            (folder.parent / "__init__.py").touch()
            for number, name in enumerate(names):
                (folder / name).write_bytes(b"none" if number else next(real.glob("*det*.onnx")).read_bytes())
            monkeypatch.syspath_prepend(folder.parent.parent)

        return package

    @pytest.mark.parametrize(
        "names",
        [
            ("ch_PP-OCRv4_det_infer.onnx",),
            ("PP-OCRv10_det_small.onnx", "ch_PP-OCRv4_det_infer.onnx", "PP-OCRv6_det_small.onnx"),
            ("PP-OCRv6_det_small.onnx", "PP-OCRv10_rec_small.onnx"),
        ],
    )
    def test_the_newest_is_taken(self, package, names):
        package(*names)
        with ModelManager() as manager:
            assert not manager.segment("text", SUIT).any()

    def test_a_package_without_one_is_an_error_that_names_what_was_expected(self, package):
        package()
        with ModelManager() as manager, pytest.raises(ModelLoadError, match=r"PP-OCRv6_det_small\.onnx"):
            manager.preload("text")


@pytest.mark.process
def test_the_command_line_writes_the_mask_and_says_if_it_is_empty(tmp_path):
    image, there = written(SHUTTLE, "Moon", (10, 60), 24)
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(image).convert("L").save(tmp_path / "in" / "some.png")
    PIL.Image.fromarray(SHUTTLE).save(tmp_path / "in" / "none.png")
    done = command(
        *("run", "--model", "text", "-p", "dilation=0", "--image", tmp_path / "in", "--output", tmp_path / "out")
    )
    assert done.returncode == 0
    assert (
        done.stderr
        == f"{tmp_path / 'out' / 'none.png'} unchanged: nothing was found in it\n1 unchanged, 1 repaired\n"
    )
    some, none = (np.array(PIL.Image.open(tmp_path / "out" / f"{name}.png")) for name in ("some", "none"))
    assert overlap(some, there) > 0.5
    assert (none.shape, none.any()) == ((192, 192), False)
