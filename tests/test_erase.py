"""What is found is erased, by the real models."""

import sys

import cv2
import numpy as np
import PIL.Image
import pytest
from commands import command
from conftest import ROOT, make_plugin

from iopaint_core import (
    InpaintModel,
    InputError,
    ModelManager,
    ModelType,
    RequestError,
    UnavailableModelError,
    UnknownModelError,
    find_model,
    read_picture,
    report_progress,
    scan_models,
)
from iopaint_plugins.erase import ErasePersonParameters, EraseTextParameters

PORTRAIT = read_picture(ROOT / "examples" / "astronaut.jpg").rgb
CAPTIONED = read_picture(ROOT / "examples" / "astronaut-captioned.jpg").rgb[424:472, :136].copy()
SMALL = cv2.resize(PORTRAIT, (96, 96), interpolation=cv2.INTER_AREA)
SKY = PORTRAIT[:64, 310:400].copy()


class Stepwise(InpaintModel):
    """Paints white, in four steps."""

    def forward(self, image, mask, parameters):
        for step in range(4):
            report_progress(step, 4)
        return np.full_like(image, 255)


@pytest.fixture(scope="module")
def models():
    with ModelManager() as manager:
        manager.plugins.register(make_plugin("stepwise", load=Stepwise), "stepwise")
        yield manager


class TestText:
    def test_what_was_written_is_found_no_more_and_the_rest_stays(self, models):
        mask = models.segment("text", CAPTIONED)
        erased = models.run("erase-text", CAPTIONED)
        assert erased.info == {"texts": 1}
        assert models.run("text", erased.image).info["texts"] == 0
        assert np.array_equal(erased.image[mask == 0], CAPTIONED[mask == 0])
        assert np.array_equal(erased.image, models.inpaint("patchmatch", CAPTIONED, mask))

    def test_it_hands_its_parameters_to_the_finder_and_the_mask_to_the_eraser(self, models):
        how = {"threshold": 0.6, "dilation": 3}
        by_hand = models.inpaint("cv2", CAPTIONED, models.segment("text", CAPTIONED, how))
        assert np.array_equal(models.process("erase-text", CAPTIONED, {**how, "eraser": "cv2"}), by_hand)

    def test_a_finder_that_does_not_take_them_is_told(self, models):
        with pytest.raises(RequestError, match="dilation"):
            models.run("erase-text", CAPTIONED, parameters={"finder": "person"})


class TestPerson:
    def erase(self, models, **parameters):
        """A portrait without the person, and where it differs."""
        erased = models.process("erase-person", SMALL, {"eraser": "cv2", **parameters})
        return erased, (erased != SMALL).any(axis=2)

    def test_the_person_is_gone_and_what_is_far_from_her_stays(self, models):
        matte = models.run("person", SMALL).mask
        erased, changed = self.erase(models, dilation=4)
        distance = cv2.distanceTransform(np.uint8(matte <= 127), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        assert not changed[distance > 4].any()
        assert changed[matte > 127].mean() > 0.95
        mask = np.uint8(distance <= 4) * np.uint8(255)
        assert np.array_equal(erased, models.inpaint("cv2", SMALL, mask))

    def test_thresholds_and_dilations_count(self, models):
        areas = [
            self.erase(models, **parameters)[1].sum()
            for parameters in (
                {"threshold": 0.9, "dilation": 0},
                {"threshold": 0.1, "dilation": 0},
                {"threshold": 0.1, "dilation": 4},
            )
        ]
        assert areas == sorted(set(areas))

    def test_a_finder_may_be_any_model_that_gives_masks(self, models):
        mask = models.segment("text", CAPTIONED)
        erased = models.process("erase-person", CAPTIONED, {"finder": "text", "eraser": "cv2", "dilation": 0})
        assert np.array_equal(erased, models.inpaint("cv2", CAPTIONED, mask))

    def test_a_person_of_whom_no_pixel_is_sure_enough_is_none(self, models):
        blurred = PORTRAIT[:250, 280:].copy()
        assert models.run("person", blurred).info == {}
        assert models.run("erase-person", blurred, parameters={"threshold": 0.9}).info == {"unchanged": True}

    def test_one_that_gives_none_is_an_error(self, models):
        with pytest.raises(InputError, match="erase-text gave no masks"):
            models.run("erase-person", SMALL, parameters={"finder": "erase-text"})


@pytest.mark.parametrize("name", ["erase-text", "erase-person"])
class TestBoth:
    @pytest.mark.parametrize("image", [SKY, np.full((1, 1, 3), 7, np.uint8)])
    def test_where_nothing_is_found_the_image_stays_and_it_is_said(self, models, name, image):
        found = models.run(name, image)
        assert np.array_equal(found.image, image)
        assert found.info["unchanged"] is True

    @pytest.mark.parametrize(
        "wrong", [{"threshold": 0}, {"threshold": 1}, {"dilation": -1}, {"dilation": 1001}, {"finder": 3}]
    )
    def test_values_out_of_range_are_refused(self, models, name, wrong):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            models.run(name, SKY, parameters=wrong)

    @pytest.mark.parametrize("which", ["finder", "eraser"])
    def test_an_unknown_model_is_named(self, models, name, which):
        with pytest.raises(UnknownModelError, match="nobody"):
            models.run(name, {"erase-text": CAPTIONED}.get(name, SMALL), parameters={which: "nobody"})

    def test_the_finder_is_half_of_the_work_and_the_eraser_the_other(self, models, name):
        steps = []
        image = {"erase-text": CAPTIONED}.get(name, SMALL)
        models.run(
            name, image, parameters={"eraser": "stepwise"}, progress=lambda done, of: steps.append(8 * done / of)
        )
        assert steps == sorted(steps)
        assert steps[-1] == 8
        assert {4, 6} <= set(steps)

    @pytest.mark.parametrize("half", [0, 0.5])
    def test_it_can_be_cancelled_in_either_half(self, models, name, half):
        def cancel(step, total):
            if step >= half * total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            models.run(name, {"erase-text": CAPTIONED}.get(name, SMALL), progress=cancel)
        assert models.unload(name)

    def test_it_is_announced_with_what_it_requires(self, models, name):
        info = find_model(name, scan_models())
        assert (info.type, info.task.name, info.task.takes_mask) == (ModelType.PLUGIN, "erase", False)
        assert info.requires == (name.removeprefix("erase-"), "patchmatch")

    def test_it_reads_what_it_declares(self, models, name, reads):
        cls = {"erase-text": EraseTextParameters}.get(name, ErasePersonParameters)
        read = reads(cls)
        models.run(name, {"erase-text": CAPTIONED}.get(name, SMALL), parameters={"eraser": "cv2"})
        assert read == {"threshold", "dilation", "finder", "eraser"}


def test_without_the_extra_erase_text_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with ModelManager() as manager:
        listed = {info.name: info.unavailable for info in manager.scan().models}
        assert listed["text"] in listed["erase-text"]
        assert not listed["erase-person"]
        with pytest.raises(UnavailableModelError, match=r"erase-text .* requires text: .*iopaint-core\[text\]"):
            manager.run("erase-text", SKY)
        assert manager.run("erase-person", SKY).info["unchanged"] is True


@pytest.mark.process
def test_the_command_line_erases_and_says_where_nothing_was_found(tmp_path):
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(np.dstack([CAPTIONED, np.full(CAPTIONED.shape[:2], 99, np.uint8)])).save(
        tmp_path / "in" / "alpha.png"
    )
    PIL.Image.fromarray(CAPTIONED).convert("L").save(tmp_path / "in" / "grey.jpg")
    PIL.Image.fromarray(SKY).save(tmp_path / "in" / "none.jpg")
    done = command(
        *("run", "--offline", "--model", "erase-text", "-p", "eraser=cv2"),
        *("--image", tmp_path / "in", "--output", tmp_path / "out"),
    )
    assert done.returncode == 0
    assert done.stderr == (
        f"{tmp_path / 'out' / 'none.jpg'} unchanged: nothing was found in it\n2 repaired, 1 unchanged\n"
    )
    assert (tmp_path / "out" / "none.jpg").read_bytes() == (tmp_path / "in" / "none.jpg").read_bytes()
    alpha, grey = (PIL.Image.open(tmp_path / "out" / name) for name in ("alpha.png", "grey.jpg"))
    assert (alpha.mode, grey.mode) == ("RGBA", "L")
    assert (np.array(alpha)[..., 3] == 99).all()
    with ModelManager() as manager:
        for picture in (alpha, grey):
            assert not manager.segment("text", np.array(picture.convert("RGB"))).any()
