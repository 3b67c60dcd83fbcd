"""People cut out of their background, by the real network."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import PIL.Image
import pytest
from commands import command
from conftest import ROOT, photograph

import iopaint_plugins.person
from iopaint_core import (
    ModelManager,
    ModelPool,
    ModelType,
    RequestError,
    Task,
    default_context,
    find_model,
    read_picture,
    scan_models,
)
from iopaint_plugins.person import PersonParameters

PORTRAIT = read_picture(ROOT / "examples" / "astronaut.jpg").rgb
OUTLINE = [(155, 60), (185, 15), (265, 15), (300, 60), (300, 110), (270, 150), (300, 170), (305, 220), (350, 255)]
OUTLINE += [(362, 345), (440, 345), (500, 420), (512, 512), (0, 512), (30, 330), (55, 250), (115, 215), (115, 180)]
OUTLINE += [(180, 150), (155, 110)]
ASTRONAUT = cv2.fillPoly(np.zeros((512, 512), np.uint8), [np.array(OUTLINE)], 1) > 0
"""Drawn by hand around her, the helmet in her arm included."""


def overlap(mask, there):
    """Intersection over union."""
    return ((mask > 127) & there).sum() / ((mask > 127) | there).sum()


@pytest.fixture(scope="module")
def models():
    with ModelManager() as manager:
        yield manager


@pytest.fixture
def cut_out(models):
    def cut_out(image, **parameters):
        return models.run("person", image, parameters=parameters)

    return cut_out


class TestCutOut:
    def test_the_matte_covers_the_person(self, cut_out):
        matte = cut_out(PORTRAIT).mask
        assert overlap(matte, ASTRONAUT) > 0.9
        assert (matte[128:160, 220:240].min(), matte[:100, 320:].max()) == (255, 2)

    @pytest.mark.parametrize(
        ("part", "bound"), [(np.s_[:, 100:320], 0.9), (np.s_[100:, 100:300], 0.93), (np.s_[:256], 0.8)]
    )
    def test_a_tall_or_wide_picture_keeps_its_aspect(self, cut_out, part, bound):
        """Squeezed into a square, the two tall ones reach 0.88 and 0.92."""
        assert overlap(cut_out(PORTRAIT[part].copy()).mask, ASTRONAUT[part]) > bound

    def test_the_image_keeps_its_colours_and_has_the_matte_as_alpha(self, cut_out):
        found = cut_out(PORTRAIT)
        assert np.array_equal(found.image[..., :3], PORTRAIT)
        assert np.array_equal(found.image[..., 3], found.mask)
        assert (found.masks.shape, found.info) == ((1, 512, 512), {})

    @pytest.mark.parametrize(
        "image", [photograph(64, 64), np.full((1, 1, 3), 200, np.uint8), PORTRAIT[:100, 310:400]]
    )
    def test_without_a_person_the_image_stays_and_the_matte_is_empty(self, cut_out, image):
        found = cut_out(image.copy())
        assert np.array_equal(found.image, image)
        assert (found.masks.shape, found.masks.any(), found.info) == (
            (1, *image.shape[:2]), False, {"unchanged": True}
        )  # fmt: skip

    @pytest.mark.parametrize("size", [(1, 600), (600, 1), (3, 5)])
    def test_odd_sizes(self, cut_out, size):
        assert cut_out(np.full((*size, 3), 200, np.uint8)).mask.shape == size

    def test_two_models_on_one_network_give_what_each_gives_alone(self, cut_out):
        images = [PORTRAIT[top : top + 200, 100:300].copy() for top in range(0, 300, 50)]
        alone = [cut_out(image).mask.tobytes() for image in images]
        contexts, pool = [replace(default_context(), device=device) for device in ("cpu", "cuda")], ModelPool()
        managers = [ModelManager(pool=pool, context=context) for context in contexts]

        def call(number):
            return managers[number % 2].run("person", images[number // 2]).mask.tobytes()

        with managers[0], managers[1], ThreadPoolExecutor(4) as threads:
            assert list(threads.map(call, range(12))) == [mask for mask in alone for _ in range(2)]
            (network,) = pool.stats().components
            assert (network.device, len(network.users)) == ("cpu", 2)
        assert len(set(alone)) == 6


class TestParameters:
    def test_the_threshold_decides_whether_there_is_a_person(self, cut_out):
        shuttle = PORTRAIT[:250, 320:].copy()
        assert cut_out(shuttle).info == {"unchanged": True}
        assert cut_out(shuttle, threshold=0.2).mask.any()

    @pytest.mark.parametrize("wrong", [0, 1, -0.5, "much"])
    def test_values_out_of_range_are_refused(self, cut_out, wrong):
        with pytest.raises(RequestError, match="threshold"):
            cut_out(PORTRAIT, threshold=wrong)

    def test_it_reads_what_it_declares(self, models, reads):
        read = reads(PersonParameters)
        models.run("person", PORTRAIT)
        assert read == {"threshold"}


class TestAnnouncement:
    def test_it_is_found_as_a_plugins_model_for_matting(self):
        info = find_model("person", scan_models())
        assert (info.type, info.task, info.license) == (ModelType.PLUGIN, Task.MATTING, "Apache-2.0")
        assert (info.plugin_name, info.unavailable, info.weights) == ("person", "", ())

    def test_its_file_is_the_one_whose_source_and_hash_are_stated(self):
        folder = ROOT / "iopaint_plugins" / "person"
        assert iopaint_plugins.person.__file__ == str(folder / "__init__.py")
        content = (folder / "selfie_segmentation.tflite").read_bytes()
        stated = (folder / "README.md").read_text()
        assert hashlib.sha256(content).hexdigest() in stated
        assert f"{len(content):,} bytes" in stated


@pytest.mark.process
def test_the_command_line_writes_the_cut_out_and_its_matte(tmp_path):
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(PORTRAIT).convert("L").save(tmp_path / "in" / "some.png")
    PIL.Image.fromarray(PORTRAIT[:100, 310:400]).save(tmp_path / "in" / "none.png")
    done = command("run", "--model", "person", "--image", tmp_path / "in", "--output", tmp_path / "out")
    assert done.returncode == 0
    assert "none.png unchanged: nothing was found in it" in done.stderr
    cut_out, matte = (PIL.Image.open(tmp_path / "out" / name) for name in ("some.png", "some.mask.png"))
    assert cut_out.mode in {"LA", "RGBA"}
    assert np.array_equal(np.array(cut_out)[..., -1], np.array(matte))
    assert overlap(np.array(matte), ASTRONAUT) > 0.9
    assert (tmp_path / "out" / "none.png").read_bytes() == (tmp_path / "in" / "none.png").read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["none.png", "some.mask.png", "some.png"]
