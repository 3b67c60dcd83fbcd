"""The command line as a user meets it: a process, its two streams, its exit code."""

import hashlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import PIL.Image
import pytest
from commands import command
from conftest import ROOT, photograph
from pools import until
from servers import stall
from test_pictures import huge_png

from iopaint_core import read_mask, read_picture
from iopaint_core.fetched import plugin_folder

pytestmark = pytest.mark.process

PHOTO, MASK = ROOT / "examples" / "astronaut.jpg", ROOT / "examples" / "astronaut-mask.png"


def spot(folder):
    """A mask of some pixels for the photograph; to paint those of `MASK` takes a second."""
    mask = np.zeros((512, 512), np.uint8)
    mask[380:388, 170:178] = 255
    PIL.Image.fromarray(mask).save(folder / "spot.png")
    return folder / "spot.png"


def repair(tmp_path, *arguments, image=PHOTO, mask=None, output="out.jpg"):
    files = ("--image", image, "--mask", mask or spot(tmp_path), "--output", tmp_path / output)
    return command("run", *files, *arguments)


class TestList:
    def test_models_stand_under_their_tasks_in_80_columns(self, tmp_path):
        (tmp_path / "mine.py").write_text(
            "from iopaint_core import ModelInfo, Task, hookimpl\n"
            "OWN = 'https://example.org/terms'\n"
            "@hookimpl\n"
            "def iopaint_available_models():\n"
            "    return [ModelInfo('deep', task=Task('depth'), license=OWN),\n"
            "            ModelInfo('far', task=Task('depth'), license=OWN, commercial=False),\n"
            "            *(ModelInfo(f'later{n}', unavailable='pip install it') for n in range(5))]\n"
            "@hookimpl\n"
            "def iopaint_load_model(): pass\n"
        )
        done = command("--plugins-dir", tmp_path, "list")
        assert done.returncode == 0
        lines = done.stdout.splitlines()
        tasks = {line: [] for line in lines if line.endswith(":")}
        for line in lines:
            if line in tasks:
                models = tasks[line]
            elif line.startswith("  "):
                models.append(line.split(maxsplit=1))
                assert len(line) <= 80
        assert {"inpaint:", "matting:", "restore:", "segment:", "erase:"} <= tasks.keys()
        assert list(tasks) == sorted(tasks)
        assert [[name, *rest.split()] for name, rest in tasks["depth:"]] == [
            ["deep", "ready", "own", "terms", "mine"],
            ["far", "ready", "non-commercial", "mine"],
        ]
        assert ["cv2", "ready", "Apache-2.0", "opencv"] in [
            [name, *rest.split()] for name, rest in tasks["inpaint:"]
        ]
        assert "to download" in dict(tasks["inpaint:"])["lama"]
        assert "later0, later1, later2 and 2 more: pip install it" in lines

    def test_json_is_one_document_and_nothing_else(self):
        (lama,) = [model for model in json.loads(command("list", "--json").stdout) if model["name"] == "lama"]
        shown = {
            "name": "lama",
            "task": "inpaint",
            "takes_mask": True,
            "gives": ["image"],
            "type": "inpaint",
            "plugin_name": "lama",
            "distribution": "iopaint-core",
            "license": "Apache-2.0",
            "commercial": True,
            "requires": [],
            "downloaded": False,
            "unavailable": "",
        }
        assert lama.items() >= shown.items()
        assert lama["weights"][0]["filename"] == "big-lama.pt"
        assert "hd_strategy" in lama["parameters"]

    def test_every_model_of_ours_has_a_licence(self):
        for model in json.loads(command("list", "--json").stdout):
            assert re.fullmatch(r"[\w.-]+|https://\S+", model["license"])

    def test_models_whose_weights_are_here_or_are_missing(self):
        names = {option: command("list", option).stdout for option in ("--downloaded", "--missing")}
        assert "cv2" in names["--downloaded"]
        assert "lama" not in names["--downloaded"]
        assert "lama" in names["--missing"]
        assert "cv2" not in names["--missing"]

    def test_models_that_may_be_used_commercially(self, tmp_path):
        (tmp_path / "mat.py").write_text(
            "from iopaint_core import ModelInfo, ModelType, hookimpl\n"
            "@hookimpl\n"
            "def iopaint_available_models():\n"
            "    return [ModelInfo('mat', ModelType.PLUGIN, license='CC-BY-NC-4.0', commercial=False)]\n"
            "@hookimpl\n"
            "def iopaint_load_model(): pass\n"
        )
        assert "CC-BY-NC-4.0" in command("--plugins-dir", tmp_path, "list").stdout
        allowed = command("--plugins-dir", tmp_path, "list", "--commercial").stdout
        assert "cv2" in allowed
        assert "CC-BY-NC-4.0" not in allowed

    def test_what_plugins_print_stays_off_standard_output(self, tmp_path):
        (tmp_path / "loud.py").write_text("print('hello from a plugin')\n1 / 0")
        done = command("--plugins-dir", tmp_path, "plugins", "--json")
        problem = json.loads(done.stdout)["problems"][0]
        assert (problem["plugin"], problem["error"]) == ("loud", "ZeroDivisionError: division by zero")
        assert "hello from a plugin" in done.stderr

    def test_problems_are_hinted_at_on_standard_error(self, tmp_path):
        (tmp_path / "broken.py").write_text("1 / 0")
        done = command("--plugins-dir", tmp_path, "list")
        assert done.returncode == 0
        assert "cv2" in done.stdout
        assert "`iopaint-core plugins` shows them" in done.stderr
        done = command("--plugins-dir", tmp_path, "plugins")
        assert "Problem: broken" in done.stderr

    def test_it_imports_nothing_heavy(self, tmp_path):
        """Packages that would be imported if anything asked for them stand on the path."""
        heavy = ["torch", "diffusers", "transformers", "onnxruntime", "spandrel"]
        for name in heavy:
            (tmp_path / f"{name}.py").write_text("")
        script = textwrap.dedent("""
            import sys
            from iopaint_core.cli import main
            main(["list"], standalone_mode=False)
            print(" ".join(sys.modules), file=sys.stderr)
        """)
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
        )
        assert "cv2" in done.stdout
        modules = set(done.stderr.split())
        assert "pluggy" in modules
        assert modules.isdisjoint({*heavy, "pydantic", "numpy", "cv2", "patchmatch", "PIL", "rich"})


class TestRun:
    def test_an_object_is_removed_from_a_photograph(self, tmp_path):
        done = repair(tmp_path, mask=MASK, output="out.png")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "1 repaired\n")
        before, after = read_picture(PHOTO).rgb, read_picture(tmp_path / "out.png").rgb
        covered = read_mask(MASK) > 127
        assert np.array_equal(after[~covered], before[~covered])
        patch = np.zeros_like(covered)
        patch[360:410, 150:195] = True  # blue before, the orange of the suit after
        assert before[patch].mean(axis=0)[2] > 100
        red, _, blue = after[patch].mean(axis=0)
        assert red > 180
        assert blue < 80

    def test_a_config_is_followed(self, tmp_path):
        (tmp_path / "request.json").write_text('{"cv2_flag": "INPAINT_TELEA", "cv2_radius": 9}')
        repair(tmp_path, "--model", "cv2", output="plain.png")
        config = ("--config", tmp_path / "request.json")
        assert repair(tmp_path, "--model", "cv2", *config, output="telea.png").returncode == 0
        plain, telea = (read_picture(tmp_path / f"{name}.png").rgb for name in ("plain", "telea"))
        assert not np.array_equal(plain, telea)

    def test_a_folder_with_one_bad_file_is_finished_and_counted(self, tmp_path):
        photos = tmp_path / "photos"
        photos.mkdir()
        for name in ("a.jpg", "b.jpg"):
            shutil.copy(PHOTO, photos / name)
        (photos / "bad.jpg").write_bytes(PHOTO.read_bytes()[:20_000])
        done = repair(tmp_path, image=photos, output="out")
        assert done.returncode == 1
        assert "bad.jpg can't be read" in done.stderr
        assert done.stderr.splitlines()[-1] == "2 repaired, 1 failed"
        done = repair(tmp_path, image=photos, output="out")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "2 skipped, 1 failed"
        (photos / "bad.jpg").unlink()
        assert repair(tmp_path, image=photos, output="out").returncode == 0
        assert repair(tmp_path, "--overwrite", image=photos, output="out").stderr == "2 repaired\n"

    def test_quality_and_concat(self, tmp_path):
        repair(tmp_path, "--quality", 30, output="low.jpg")
        repair(tmp_path, "--quality", 95, "--concat", output="high.jpg")
        assert (tmp_path / "low.jpg").stat().st_size < (tmp_path / "high.jpg").stat().st_size / 2
        assert read_picture(tmp_path / "high.jpg").rgb.shape == (512, 3 * 512, 3)

    def test_a_single_file_plugin_is_run(self, tmp_path):
        shutil.copy(ROOT / "examples" / "iopaint-blur" / "iopaint_blur.py", tmp_path / "mine.py")
        done = command("--plugins-dir", tmp_path, "run", "--model", "mine:blur", "--image", PHOTO, "--mask", MASK,
                       "--output", tmp_path / "out.png")  # fmt: skip
        assert done.returncode == 0
        assert (tmp_path / "out.png").exists()

    def test_ctrl_c_ends_it_and_leaves_nothing_half_done(self, tmp_path):
        plugin = (ROOT / "examples" / "iopaint-blur" / "iopaint_blur.py").read_text()
        forward = """\
        import signal, threading
        print("at work")
        while True:  # a signal that comes just before it blocks is noticed after that
            threading.Event().wait(0.05)
"""
        (tmp_path / "slow.py").write_text(plugin.replace("        import cv2", forward + "        import cv2"))
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "iopaint_core", "--plugins-dir", tmp_path, "run", "--model", "slow:blur",
             "--image", PHOTO, "--mask", MASK, "--output", tmp_path / "out" / "photo.jpg"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
        process.stderr.close()
        assert process.wait(30) == 1
        assert "Aborted!" in told
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_model_that_can_not_be_loaded_is_no_wrong_use(self, tmp_path):
        plugin = (ROOT / "examples" / "iopaint-blur" / "iopaint_blur.py").read_text()
        (tmp_path / "torn.py").write_text(plugin.replace("return Blur()", "import torch_of_nobody"))
        done = command("--plugins-dir", tmp_path, "run", "--model", "torn:blur", "--image", PHOTO, "--mask", MASK,
                       "--output", tmp_path / "out.png")  # fmt: skip
        assert done.returncode == 1
        assert "Install torch_of_nobody" in done.stderr
        assert "Traceback" not in done.stderr

    def test_on_a_terminal_a_bar_shows_progress(self, tmp_path):
        host, terminal = pty.openpty()
        subprocess.run(
            [sys.executable, "-m", "iopaint_core", "run", "--image", PHOTO, "--mask", spot(tmp_path),
             "--output", tmp_path / "out.jpg"], stdout=subprocess.PIPE, stderr=terminal, check=True,
        )  # fmt: skip
        os.close(terminal)
        shown = os.read(host, 10_000).decode()
        os.close(host)
        assert "100%" in shown
        assert "1 repaired" in shown


class TestUsageErrors:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--model", "cv3"], "No plugin announces a model named cv3. Did you mean cv2?"),
            (
                ["--model", "cv2", "--config", "{}/unknown.json"],
                "unknown key 'cv2_radios' (did you mean cv2_radius?)",
            ),
            (
                ["--model", "cv2", "--config", "{}/range.json"],
                "'cv2_radius' is -1: Input should be greater than or equal to 0",
            ),
            (["--config", "{}/broken.json"], "JSON"),
            (["--quality", "101"], "1<=x<=100"),
            (["--image", "{}/none.png"], "none.png"),
            (["--image", "{}/empty"], "holds no pictures"),
            (["--output", str(PHOTO)], "would overwrite"),
            (["--output", "{}/out.gif"], "no suffix of a known format"),
            (["--plain"], "No such option"),
        ],
    )
    def test_wrong_use_exits_with_2_and_says_what_to_do(self, tmp_path, arguments, told):
        (tmp_path / "unknown.json").write_text('{"cv2_radios": 3}')
        (tmp_path / "range.json").write_text('{"cv2_radius": -1}')
        (tmp_path / "broken.json").write_text("{")
        (tmp_path / "empty").mkdir()
        before = PHOTO.read_bytes()
        done = repair(tmp_path, *(argument.format(tmp_path) for argument in arguments))
        assert (done.returncode, done.stdout) == (2, "")
        assert told in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
        assert PHOTO.read_bytes() == before
        assert not list(tmp_path.glob("out*"))

    def test_no_mask_for_a_model_that_needs_one(self, tmp_path):
        done = command("run", "--image", PHOTO, "--output", tmp_path / "out.jpg")
        assert done.returncode == 2
        assert "Give --mask a file or a folder" in done.stderr


class TestBadPictures:
    def refused(self, tmp_path, told, **files):
        done = repair(tmp_path, **files)
        assert (done.returncode, done.stdout) == (1, "")
        assert told in done.stderr
        assert done.stderr.splitlines()[-1] == "1 failed"
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out.jpg").exists()

    def test_a_mask_of_another_size_is_told_with_both(self, tmp_path):
        PIL.Image.new("L", (30, 20), 255).save(tmp_path / "mask.png")
        self.refused(tmp_path, "is 512 x 512 and its mask", mask=tmp_path / "mask.png")
        self.refused(tmp_path, "is 30 x 20", mask=tmp_path / "mask.png")

    def test_a_text_file_named_png(self, tmp_path):
        (tmp_path / "photo.png").write_text("hello")
        self.refused(tmp_path, "is no picture that can be read", image=tmp_path / "photo.png")

    def test_a_picture_of_2500_megapixels_is_refused_undecoded(self, tmp_path):
        huge_png(tmp_path / "huge.png")
        self.refused(tmp_path, "has 50000 x 50000 pixels, over the limit", image=tmp_path / "huge.png")

    def test_the_limit_is_the_users(self, tmp_path):
        done = repair(tmp_path, "--max-megapixels", "0.2")
        assert done.returncode == 1
        assert "has 512 x 512 pixels, over the limit of 200000" in done.stderr

    def test_a_full_mask(self, tmp_path):
        PIL.Image.new("L", (512, 512), 255).save(tmp_path / "mask.png")
        self.refused(tmp_path, "leaves too little around it", mask=tmp_path / "mask.png")

    def test_an_empty_mask_returns_the_picture_and_says_so(self, tmp_path):
        PIL.Image.new("L", (512, 512)).save(tmp_path / "mask.png")
        done = repair(tmp_path, mask=tmp_path / "mask.png")
        assert done.returncode == 0
        assert "out.jpg unchanged: its mask is empty" in done.stderr
        assert (tmp_path / "out.jpg").read_bytes() == PHOTO.read_bytes()

    @pytest.mark.parametrize("size", [(8000, 20), (2, 2)])
    def test_odd_sizes_go_through(self, tmp_path, size):
        PIL.Image.fromarray(photograph(size[1], size[0])).save(tmp_path / "photo.png")
        mask = np.zeros((size[1], size[0]), np.uint8)
        mask[0, 0] = 255
        PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
        assert repair(tmp_path, image=tmp_path / "photo.png", mask=tmp_path / "mask.png").returncode == 0

    def test_one_pixel_comes_back_if_it_is_not_masked(self, tmp_path):
        PIL.Image.new("RGB", (1, 1), "red").save(tmp_path / "photo.png")
        PIL.Image.new("L", (1, 1)).save(tmp_path / "mask.png")
        done = repair(tmp_path, image=tmp_path / "photo.png", mask=tmp_path / "mask.png", output="out.png")
        assert done.returncode == 0
        assert (tmp_path / "out.png").read_bytes() == (tmp_path / "photo.png").read_bytes()

    def test_a_read_only_folder(self, tmp_path):
        folder = tmp_path / "sealed"
        folder.mkdir()
        (folder / "out.jpg").write_bytes(b"old")
        folder.chmod(0o555)
        as_anyone = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [*as_anyone, sys.executable, "-m", "iopaint_core", "run", "--image", PHOTO, "--mask", spot(tmp_path),
             "--output", folder / "out.jpg", "--overwrite"], capture_output=True, text=True, check=False,
        )  # fmt: skip
        folder.chmod(0o755)
        assert done.returncode == 1
        assert "Permission denied" in done.stderr
        assert "Check that the folder can be written to" in done.stderr
        assert (folder / "out.jpg").read_bytes() == b"old"


FAMILY = """
from iopaint_core import Component, InpaintModel, ModelInfo, ModelType, hookimpl


class Whole(InpaintModel):
    nbytes = 7

    def forward(self, image, mask, request):
        return image


def must_not_load():
    raise AssertionError("only headers are to be read")


@hookimpl
def iopaint_available_models():
    return [ModelInfo(name=name, type=ModelType.PLUGIN) for name in ("first", "second", "whole", "broken")]


@hookimpl
def iopaint_load_model(info, context):
    if info.name == "whole":
        return Whole()
    if info.name == "broken":
        raise OSError("the weights are not there")
    vae = Component(("vae", context.dtype), must_not_load, 2_000_000_000)
    unet = Component(("unet", info.name), must_not_load, 3_000_000_000)
    if context.device != "cpu":
        vae, unet = (
            Component((part.key, context.device), must_not_load, part.nbytes, context.device, parts=(part,))
            for part in (vae, unet)
        )
    context.share({"vae": vae, "unet": unet})
"""


class TestPool:
    @pytest.fixture
    def family(self, tmp_path):
        (tmp_path / "family.py").write_text(FAMILY)
        return lambda *arguments: command("--plugins-dir", tmp_path, "pool", *arguments)

    def test_a_table_says_what_is_shared_and_whether_it_fits(self, family):
        done = family("first", "second", "whole", "--budget", "8GB")
        assert done.returncode == 0, done.stderr
        assert [line.split() for line in done.stdout.splitlines()] == [
            ["MODEL", "COMPONENT", "BYTES", "DEVICE", "SHARED_WITH"],
            ["first", "vae", "2.00", "GB", "cpu", "second"],
            ["first", "unet", "3.00", "GB", "cpu", "-"],
            ["second", "vae", "2.00", "GB", "cpu", "first"],
            ["second", "unet", "3.00", "GB", "cpu", "-"],
            ["whole", "model", "7", "B", "cpu", "-"],
            [],
            ["DEVICE", "SEPARATELY", "TOGETHER", "SAVED", "FITS"],
            ["cpu", "10.00", "GB", "8.00", "GB", "2.00", "GB", "no"],
        ]

    def test_json_is_one_document_with_exact_bytes(self, family):
        found = json.loads(family("first", "second", "first", "--budget", "8GB", "--json").stdout)
        assert found["components"][0] == {
            "model": "first",
            "component": "vae",
            "bytes": 2_000_000_000,
            "device": "cpu",
            "shared_with": ["second"],
        }
        assert len(found["components"]) == 4
        assert found["devices"] == [
            {
                "device": "cpu",
                "separately": 10_000_000_000,
                "together": 8_000_000_000,
                "saved": 2_000_000_000,
                "fits": True,
            }
        ]

    def test_an_accelerator_has_a_budget_of_its_own_beside_the_host(self, family):
        done = family("first", "second", "--device", "cuda", "--budget", "7GiB", "--dtype", "float16", "--json")
        devices = {row["device"]: row for row in json.loads(done.stdout)["devices"]}
        assert {name: (row["together"], row["fits"]) for name, row in devices.items()} == {
            "cuda:0": (8_000_000_000, False),
            "cpu": (8_000_000_000, None),
        }

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            ([], 2, "Missing argument 'MODEL...'"),
            (["frist"], 2, "Did you mean first?"),
            (["first", "--budget", "lots"], 2, "'lots' is no size such as 6GB"),
            (["first", "--budget", "-1"], 2, "'-1' is no size such as 6GB"),
            (["first", "--dtype", "int3"], 2, "'int3' is not one of"),
            (["first", "broken"], 1, "the weights are not there"),
        ],
    )
    def test_what_is_wrong_is_said_on_standard_error(self, family, arguments, code, words):
        done = family(*arguments)
        assert done.returncode == code
        assert words in done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr


STORED = """
from iopaint_core import InpaintModel, ModelInfo, ModelType, WeightFile, hookimpl


class Painter(InpaintModel):
    def __init__(self, colour):
        self.colour = colour

    def forward(self, image, mask, request):
        image[:] = self.colour
        return image


def file(name):
    return WeightFile(url="URL/" + name, md5={"a.bin": "MD5A", "b.bin": "MD5B"}[name], runs_code=name == "a.bin")


@hookimpl
def iopaint_available_models():
    return [
        ModelInfo("one", ModelType.PLUGIN, weights=(file("a.bin"),)),
        ModelInfo("two", ModelType.PLUGIN, weights=(file("a.bin"), file("b.bin"))),
        ModelInfo("three", ModelType.PLUGIN, requires=("two",)),
    ]


@hookimpl
def iopaint_load_model(info, context):
    return Painter(tuple(context.weights("a.bin").read_bytes()))
"""


class TestWeights:
    """Two models, of which one needs a file that the other needs too, and one that calls one of these.

    What `a.bin` holds is a colour.
    """

    @pytest.fixture
    def stored(self, tmp_path, server, monkeypatch):
        monkeypatch.setenv("IOPAINT_HOME", str(tmp_path / "store"))
        server.files.update({"/a.bin": b"\x00\xff\x00", "/b.bin": b"other"})
        source = STORED.replace("URL", server.url)
        for name in "ab":
            digest = hashlib.md5(server.files[f"/{name}.bin"]).hexdigest()
            source = source.replace(f"MD5{name.upper()}", digest)
        (tmp_path / "plugins").mkdir()
        (tmp_path / "plugins" / "stored.py").write_text(source)
        return lambda *arguments: command("--plugins-dir", tmp_path / "plugins", *arguments)

    @pytest.fixture
    def place(self, tmp_path):
        return tmp_path / "store" / "weights" / plugin_folder(str(tmp_path / "plugins"), "stored")

    def test_download_fetches_what_is_missing(self, stored, server):
        done = stored("download", "two")
        assert done.returncode == 0, done.stderr
        assert "two: fetched" in done.stderr
        assert "a.bin: 100%" in done.stderr
        assert "one: is here" in stored("download", "one").stderr
        assert [path for path, _ in server.requests] == ["/a.bin", "/b.bin"]
        assert {"one", "two"} <= set(stored("list", "--downloaded").stdout.split())

    def test_download_fetches_for_what_a_model_requires_too(self, stored, server):
        assert "three" in stored("list", "--missing").stdout.split()
        assert stored("download", "three").returncode == 0
        assert [path for path, _ in server.requests] == ["/a.bin", "/b.bin"]
        assert "three" in stored("list", "--downloaded").stdout.split()

    def test_download_all_goes_on_after_a_failure(self, stored, server, monkeypatch):
        for model in ("LAMA", "ANIME_LAMA"):  # else the real ones, and five tries of each where there is no network
            monkeypatch.setenv(f"{model}_MODEL_URL", f"{server.url}/{model}.pt")
        del server.files["/b.bin"]
        done = stored("download", "--all", "--task", "inpaint")
        assert done.returncode == 1
        assert "one: fetched" in done.stderr
        assert "/b.bin answered 404. Look whether it has moved." in done.stderr
        assert "Traceback" not in done.stderr

    def test_ctrl_c_leaves_a_part_that_the_next_download_goes_on_from(self, stored, server, tmp_path, place):
        server.files["/b.bin"] = b"other" * 100_000
        plugin = tmp_path / "plugins" / "stored.py"
        old, new = (hashlib.md5(content).hexdigest() for content in (b"other", server.files["/b.bin"]))
        plugin.write_text(plugin.read_text().replace(old, new))
        slow = stall(200_000)
        server.script["/b.bin"] = [slow]
        arguments = ["--plugins-dir", tmp_path / "plugins", "download", "two"]
        process = subprocess.Popen([sys.executable, "-m", "iopaint_core", *map(str, arguments)])
        slow.gate.wait_until_reached()
        part = place / "b.bin.part"
        until(lambda: part.exists() and part.stat().st_size == 200_000)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 1
        slow.gate.open()
        assert stored("download", "two").returncode == 0
        assert server.requests[-1] == ("/b.bin", "bytes=200000-")

    def test_where_tells_where_files_are_and_where_they_would_be(self, stored, place):
        stored("download", "one")
        done = stored("where", "two")
        assert done.stdout == f"{place / 'a.bin'}\n"
        assert f"{place / 'b.bin'} is not there: http" in done.stderr

    def test_verify_finds_what_is_wrong_and_download_mends_it(self, stored, place):
        stored("download", "two")
        assert stored("verify").returncode == 0
        place = place / "b.bin"
        place.write_bytes(b"rotten")
        done = stored("verify", "two")
        assert done.returncode == 1
        assert ["wrong", "two", "b.bin", str(place)] in [line.split() for line in done.stdout.splitlines()]
        assert "sets them aside and fetches them" in done.stderr
        done = stored("download", "two")
        assert "its hash is not the declared one; it is now" in done.stderr
        assert stored("verify", "two").returncode == 0
        assert place.read_bytes() == b"other"

    def test_remove_deletes_what_no_other_model_uses(self, stored, place):
        stored("download", "two")
        done = stored("remove", "two")
        assert done.returncode == 0
        assert f"{place / 'b.bin'} removed" in done.stderr
        assert f"{place / 'a.bin'} stays" in done.stderr
        assert "a.bin removed" in stored("remove", "one").stderr or (place / "a.bin").exists()

    def colour(self, path):
        picture, mask = read_picture(path).rgb, read_mask(MASK)
        return tuple(map(int, np.median(picture[mask > 0], axis=0)))

    def run(self, stored, tmp_path, *arguments):
        out = tmp_path / "out.png"
        done = stored(
            "run", "--model", "one", "--image", PHOTO, "--mask", MASK, "--output", out, "--overwrite", *arguments
        )
        return done, self.colour(out) if done.returncode == 0 else None

    def test_run_fetches_and_takes_the_users_own_file_if_it_is_trusted(self, stored, tmp_path):
        assert self.run(stored, tmp_path)[1] == (0, 255, 0)
        (tmp_path / "mine.bin").write_bytes(b"\xff\x00\x00")
        done, _ = self.run(stored, tmp_path, "--weights", tmp_path / "mine.bin")
        assert done.returncode == 1
        assert "mine.bin can run code when it is loaded" in done.stderr
        assert "--trust" in done.stderr
        for given in (tmp_path / "mine.bin", f"a.bin={tmp_path / 'mine.bin'}"):
            assert self.run(stored, tmp_path, "--weights", given, "--trust")[1] == (255, 0, 0)

    @pytest.mark.parametrize("by", ["--offline", "IOPAINT_OFFLINE"])
    def test_offline_says_what_is_missing(self, stored, tmp_path, server, monkeypatch, by):
        if by == "IOPAINT_OFFLINE":
            monkeypatch.setenv(by, "1")
        done, _ = self.run(stored, tmp_path, *([by] if by == "--offline" else []))
        assert done.returncode == 1
        assert f"a.bin ({server.url}/a.bin) to be put at {tmp_path / 'store'}" in done.stderr
        assert server.requests == []

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["download"], "Name models, or say --all."),
            (["download", "one", "--all"], "Name models, or say --all."),
            (["download", "noe"], "Did you mean one"),
            (["verify", "noe"], "Did you mean one"),
            (["remove", "noe"], "Did you mean one"),
            (["where", "noe"], "Did you mean one"),
        ],
    )
    def test_what_is_used_wrongly(self, stored, arguments, words):
        done = stored(*arguments)
        assert done.returncode == 2
        assert words in done.stderr

    def test_a_model_of_several_files_is_told_which_one(self, stored, tmp_path):
        arguments = ["--image", PHOTO, "--mask", MASK, "--output", tmp_path / "out.png", "--weights", PHOTO]
        done = stored("run", "--model", "two", *arguments)
        assert done.returncode == 2
        assert "two has these weights: a.bin, b.bin." in done.stderr


class TestDoctor:
    def test_a_sound_installation(self):
        done = command("doctor")
        assert done.returncode == 0
        assert "Nothing wrong was found." in done.stdout
        names = [line.split()[0] for line in done.stdout.splitlines()]
        assert {"iopaint-core", "pluggy", "torch", "onnxruntime"} <= {*names}  # those of extras too
        assert "pytest" not in names
        assert len(names) == len({*names})

    def test_problems_are_told_with_what_to_do(self, tmp_path, monkeypatch):
        (tmp_path / "broken.py").write_text("import sys; sys.exit(4)")
        done = command("--plugins-dir", tmp_path, "doctor")
        assert done.returncode == 1
        assert "SystemExit: 4" in done.stderr
        monkeypatch.setenv("IOPAINT_DISABLE_PLUGINS", "iopaint-cor")
        done = command("doctor")
        assert done.returncode == 1
        assert "did you mean iopaint-core" in done.stderr


@pytest.mark.parametrize(
    "name",
    [[], ["list"], ["plugins"], ["run"], ["pool"], ["download"], ["verify"], ["remove"], ["where"], ["doctor"]],
)
def test_help_goes_to_standard_output(name):
    done = command(*name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage:")
    assert done.stderr == ""
