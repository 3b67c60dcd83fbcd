"""PatchMatch, run by the real library."""

import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import patchmatch
import PIL.Image
import pytest
from commands import Commands, command
from conftest import photograph

from iopaint_core import (
    InpaintParameters,
    InputError,
    ModelLoadError,
    ModelManager,
    ModelType,
    RequestError,
    find_model,
    scan_models,
)
from iopaint_plugins.patchmatch import PatchMatchParameters

PHOTO = photograph(48, 64)
HOLE = np.zeros((48, 64), np.uint8)
HOLE[16:32, 20:40] = 255


@pytest.fixture(scope="module")
def models():
    with ModelManager() as manager:
        yield manager


@pytest.fixture
def erase(models):
    def erase(image, mask=HOLE, **parameters):
        return models.inpaint("patchmatch", image, mask, parameters)

    return erase


class TestWhatItPaints:
    def test_it_goes_on_with_the_texture_around_the_hole(self, models):
        stripes, mask = np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128), np.uint8)
        stripes[:, np.arange(128) % 16 < 8] = (200, 140, 90)
        mask[42:64, 42:64] = 255
        image = np.where(mask[..., None] > 0, np.uint8(7), stripes)
        wrong = {
            name: np.abs(models.inpaint(name, image, mask).astype(int) - stripes)[mask > 0].mean()
            for name in ("patchmatch", "cv2")
        }
        assert wrong["patchmatch"] < wrong["cv2"] / 2

    def test_pixels_outside_the_mask_stay(self, erase):
        painted = erase(PHOTO)
        assert np.array_equal(painted[HOLE == 0], PHOTO[HOLE == 0])
        assert not np.array_equal(painted, PHOTO)
        whole = erase(PHOTO, sd_keep_unmasked_area=False)
        assert np.array_equal(whole, painted)

    @pytest.mark.parametrize("different", [{"patch_size": 2}, {"seed": 7}])
    def test_equal_calls_give_equal_results_and_parameters_matter(self, erase, different):
        plain = erase(PHOTO)
        other = erase(PHOTO, **different)
        assert not np.array_equal(other, plain)
        assert np.array_equal(erase(PHOTO), plain)
        assert np.array_equal(erase(PHOTO, **different), other)

    def test_what_else_the_process_seeds_is_neither_read_nor_changed(self, erase):
        before = erase(PHOTO)
        patchmatch.set_random_seed(5)
        random.seed(5)
        np.random.seed(5)
        states = random.getstate(), np.random.get_state()[1].tolist()
        assert np.array_equal(erase(PHOTO), before)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == states

    def test_calls_of_several_managers_keep_their_seeds(self, monkeypatch):
        seeds, working, together = [1, 2, 3, 4] * 3, set(), []
        inpaint = patchmatch.inpaint

        def watched(*arguments, **options):
            working.add(threading.get_ident())
            together.append(len(working))
            try:
                return inpaint(*arguments, **options)
            finally:
                working.remove(threading.get_ident())

        with ModelManager() as one, ModelManager() as other, ThreadPoolExecutor(4) as threads:
            alone = {seed: one.inpaint("patchmatch", PHOTO, HOLE, {"seed": seed}).tobytes() for seed in seeds[:4]}
            monkeypatch.setattr(patchmatch, "inpaint", watched)
            results = threads.map(
                lambda job: job[0].inpaint("patchmatch", PHOTO, HOLE, {"seed": job[1]}).tobytes(),
                [([one, other][number // 2 % 2], seed) for number, seed in enumerate(seeds)],
            )
            assert list(results) == [alone[seed] for seed in seeds]
        assert len(set(alone.values())) == 4
        assert max(together) == 1

    def test_it_reads_what_it_declares(self, models, reads):
        read = reads(PatchMatchParameters)
        models.inpaint("patchmatch", PHOTO, HOLE)
        assert read == {*PatchMatchParameters.names()} - {*InpaintParameters.names()}

    @pytest.mark.parametrize(("height", "cropped"), [(256, False), (400, True)])
    def test_it_is_cropped_around_the_mask_where_that_is_less(self, erase, height, cropped):
        image, mask = photograph(height, 40), np.zeros((height, 40), np.uint8)
        mask[4:8, 4:8] = 255
        assert np.array_equal(erase(image, mask), erase(image, mask, hd_strategy="Original")) is not cropped


class TestOddInput:
    @pytest.mark.parametrize("size", [(1, 2), (2, 1), (3, 3), (1, 60), (12, 9), (24, 32)])
    @pytest.mark.parametrize("patch_size", [1, 5, 15])
    def test_a_single_known_pixel_is_enough(self, erase, size, patch_size):
        image, mask = np.zeros((*size, 3), np.uint8), np.full(size, 255, np.uint8)
        image[0, -1], mask[0, -1] = (90, 30, 200), 0
        assert np.array_equal(erase(image, mask, patch_size=patch_size), np.broadcast_to(image[0, -1], image.shape))

    def test_a_mask_along_all_borders(self, erase):
        mask = np.full((48, 64), 255, np.uint8)
        mask[8:-8, 8:-8] = 0
        painted = erase(np.full((48, 64, 3), 70, np.uint8), mask)
        assert (painted == 70).all()

    @pytest.mark.parametrize("size", [(1, 1), (40, 60)])
    def test_a_full_mask_is_an_error_that_says_why_at_once(self, erase, size, monkeypatch):
        monkeypatch.setattr(patchmatch, "inpaint", None)
        with pytest.raises(InputError, match="leaves too little around it"):
            erase(photograph(*size), np.full(size, 255, np.uint8))

    def test_a_crop_without_surroundings_is_told_too(self, erase):
        mask = np.zeros((300, 30), np.uint8)
        mask[:9, :9] = 255
        with pytest.raises(InputError, match="raise hd_strategy_crop_margin"):
            erase(photograph(300, 30), mask, hd_strategy_crop_margin=0)

    @pytest.mark.parametrize("wrong", [{"patch_size": 0}, {"patch_size": 16}, {"seed": -1}, {"seed": 2**32}])
    def test_values_out_of_range_are_refused(self, erase, wrong):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            erase(PHOTO, **wrong)


class TestCancel:
    def test_it_ends_before_the_next_crop(self, models, monkeypatch):
        image, mask = photograph(300, 20), np.zeros((300, 20), np.uint8)
        mask[10:14, 8:12] = mask[280:284, 8:12] = 255
        painted, steps, inpaint = [], [], patchmatch.inpaint

        def counted(*arguments, **options):
            painted.append(arguments)
            return inpaint(*arguments, **options)

        def cancel(step, total):
            steps.append((step, total))
            if step:
                raise KeyboardInterrupt

        monkeypatch.setattr(patchmatch, "inpaint", counted)
        with pytest.raises(KeyboardInterrupt):
            models.run("patchmatch", image, mask=mask, parameters={"hd_strategy_crop_margin": 8}, progress=cancel)
        assert steps == [(0, 2), (1, 2)]
        assert len(painted) == 1

    def test_it_ends_before_the_first(self, models, monkeypatch):
        def cancel(step, total):
            raise KeyboardInterrupt

        monkeypatch.setattr(patchmatch, "inpaint", None)
        with pytest.raises(KeyboardInterrupt):
            models.run("patchmatch", PHOTO, mask=HOLE, progress=cancel)
        monkeypatch.undo()
        assert models.unload("patchmatch")


@pytest.mark.process
def test_a_child_that_is_forked_during_a_call_has_its_own_lock(models):
    """Run in a process of its own, for the fork is made while the library works in another thread."""
    script = """
import os, threading
import numpy as np, patchmatch
from iopaint_core import ModelManager

image, mask = np.full((24, 24, 3), 9, np.uint8), np.zeros((24, 24), np.uint8)
mask[8:12, 8:12] = 255
inpaint, began, go_on = patchmatch.inpaint, threading.Event(), threading.Event()

def wait(*arguments, **options):
    began.set()
    go_on.wait()
    return inpaint(*arguments, **options)

patchmatch.inpaint = wait
call = threading.Thread(target=ModelManager().inpaint, args=("patchmatch", image, mask))
call.start()
began.wait()
if not (child := os.fork()):
    patchmatch.inpaint = inpaint
    os._exit(0 if (ModelManager().inpaint("patchmatch", image, mask) == 9).all() else 1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
go_on.set()
call.join()
raise SystemExit(code)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)


class TestAnnouncement:
    def test_it_is_found_as_a_plugins_model_for_the_task_inpaint(self):
        info = find_model("patchmatch", scan_models())
        assert (info.type, info.task.name, info.license) == (ModelType.PLUGIN, "inpaint", "MIT")
        assert (info.plugin_name, info.unavailable) == ("patchmatch", "")

    def test_without_the_package_it_says_how_to_install_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "patchmatch", None)
        assert "pip install 'PyPatchMatch>=2.2'" in find_model("patchmatch", scan_models()).unavailable

    def test_a_library_that_can_not_be_loaded_is_told_when_it_is_loaded(self, monkeypatch):
        monkeypatch.setattr(patchmatch, "patchmatch_available", False)
        with ModelManager() as manager, pytest.raises(ModelLoadError, match="native library can't be loaded"):
            manager.preload("patchmatch")


@pytest.mark.process
class TestDefault:
    @pytest.fixture
    def files(self, tmp_path):
        PIL.Image.fromarray(PHOTO).save(tmp_path / "in.png")
        PIL.Image.fromarray(HOLE).save(tmp_path / "mask.png")

        def files(output):
            return ("--image", tmp_path / "in.png", "--mask", tmp_path / "mask.png", "--output", tmp_path / output)

        return files

    @pytest.fixture
    def without_library(self, tmp_path):
        """A package as pip leaves it where the library can't be compiled."""
        (tmp_path / "site" / "patchmatch").mkdir(parents=True)
        (tmp_path / "site" / "patchmatch" / "__init__.py").write_text("patchmatch_available = False")
        path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
        commands = Commands(environment={**os.environ, "PYTHONPATH": path})
        yield commands
        commands.close()

    def test_it_is_what_run_takes(self, files, tmp_path):
        for output, more in (("default.png", ()), ("named.png", ("--model", "patchmatch"))):
            done = command("run", *more, *files(output))
            assert (done.returncode, done.stderr) == (0, "1 repaired\n")
        assert (tmp_path / "default.png").read_bytes() == (tmp_path / "named.png").read_bytes()
        command("run", "--model", "cv2", *files("cv2.png"))
        assert (tmp_path / "default.png").read_bytes() != (tmp_path / "cv2.png").read_bytes()

    def test_without_its_library_run_takes_cv2_and_says_why(self, files, tmp_path, without_library):
        done = without_library("run", *files("default.png"))
        assert done.returncode == 0
        assert "Using cv2" in done.stderr
        assert "without its native library" in done.stderr
        assert command("run", "--model", "cv2", *files("cv2.png")).stderr == "1 repaired\n"
        assert (tmp_path / "default.png").read_bytes() == (tmp_path / "cv2.png").read_bytes()
        done = without_library("run", "--model", "patchmatch", *files("none.png"))
        assert done.returncode == 1
        assert "--force-reinstall" in done.stderr

    def test_listing_does_not_import_it(self):
        script = "import sys; from iopaint_core.cli import main\nmain(['list'], standalone_mode=False)\n"
        done = subprocess.run(
            [sys.executable, "-c", f"{script}print('patchmatch' in sys.modules)"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "patchmatch" in done.stdout
        assert done.stdout.endswith("False\n")
