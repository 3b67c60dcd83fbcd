"""Models of a user's own are found where they lie, told by what is in them, and listed like any other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import checkpointfiles as files
import pytest
from click.testing import CliRunner

import iopaint_plugins.diffusion
from iopaint_core import ModelType, scan_models
from iopaint_core.cli import main
from iopaint_plugins.diffusion.discovery import find_local_models, local_models


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("IOPAINT_HOME", str(tmp_path / "iopaint"))
    return tmp_path / "iopaint"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """IOPaint's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def folder(
    path, pipeline="StableDiffusionPipeline", channels=4, weights="unet/diffusion_pytorch_model.safetensors"
):
    """A folder in diffusers' layout."""
    (path / "unet").mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    (path / "unet" / "config.json").write_text(json.dumps({"in_channels": channels}))
    if weights:
        (path / weights).parent.mkdir(exist_ok=True)
        (path / weights).touch()
    return path


def snapshot(hub, name, commit, *, main=True, **options):
    """A repository in the cache of the hub."""
    repository = hub / f"models--{name.replace('/', '--')}"
    folder(repository / "snapshots" / commit, **options)
    if main:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
    return repository / "snapshots" / commit


def found(models):
    return {model.name: (model.type, model.kind) for model in models.models}


def old(path):
    """The file as it was long ago: what is just written may still change, and is not remembered."""
    os.utime(path, ns=(10**18, 10**18))
    return path


class TestPlaces:
    def test_files_of_this_program_and_of_iopaint(self, home, cache):
        files.write(home / "stable_diffusion" / "mine.safetensors", files.sd1())
        files.write(home / "stable_diffusion_xl" / "large.safetensors", files.sdxl(9))
        files.write(cache / "stable_diffusion" / "deep" / "er" / "theirs.safetensors", files.sd2(9))
        files.write(cache / "stable_diffusion_xl" / "in-the-wrong-folder.safetensors", files.sd1())
        assert found(local_models()) == {
            "mine.safetensors": (ModelType.DIFFUSERS_SD, "single file"),
            "large.safetensors": (ModelType.DIFFUSERS_SDXL_INPAINT, "single file"),
            "theirs.safetensors": (ModelType.DIFFUSERS_SD_INPAINT, "single file"),
            "in-the-wrong-folder.safetensors": (ModelType.DIFFUSERS_SD, "single file"),
        }

    def test_folders_that_the_user_adds(self, home, tmp_path, monkeypatch):
        path = files.write(tmp_path / "one" / "flux.safetensors", files.flux())
        folder(tmp_path / "two" / "saved")
        monkeypatch.setenv("IOPAINT_MODEL_DIRS", os.pathsep.join(map(str, (tmp_path / "one", tmp_path / "two"))))
        assert found(local_models()) == {
            "flux.safetensors": (ModelType.DIFFUSERS_OTHER, "single file"),
            "saved": (ModelType.DIFFUSERS_SD, "folder"),
        }
        assert local_models().models[0].path == path

    @pytest.mark.parametrize(
        ("pipeline", "channels", "expected"),
        [
            ("StableDiffusionPipeline", 4, ModelType.DIFFUSERS_SD),
            ("StableDiffusionInpaintPipeline", 9, ModelType.DIFFUSERS_SD_INPAINT),
            ("StableDiffusionInpaintPipeline", 4, ModelType.DIFFUSERS_SD),
            ("StableDiffusionXLPipeline", 4, ModelType.DIFFUSERS_SDXL),
            ("StableDiffusionXLInpaintPipeline", 9, ModelType.DIFFUSERS_SDXL_INPAINT),
            ("StableDiffusion3Pipeline", 4, ModelType.DIFFUSERS_OTHER),
            ("FluxFillPipeline", 4, ModelType.DIFFUSERS_OTHER),
        ],
    )
    def test_the_type_of_a_folder_is_read_from_its_configs(self, pipeline, channels, expected, tmp_path):
        folder(tmp_path / "added" / "model", pipeline, channels)
        models = find_local_models([tmp_path / "added"], home=tmp_path / "home")
        assert found(models) == {"model": (expected, "folder")}

    def test_folders_of_other_pipelines_are_passed_over(self, home):
        folder(home / "stable_diffusion" / "speech", "AudioLDMPipeline")
        models = local_models()
        assert models.models == models.problems == ()

    def test_the_cache_of_the_hub(self, home, hub):
        snapshot(hub, "runwayml/stable-diffusion-inpainting", "abc", channels=9)
        snapshot(hub, "gpt2", "abc", pipeline="None", weights="")
        assert found(local_models()) == {
            "runwayml/stable-diffusion-inpainting": (ModelType.DIFFUSERS_SD_INPAINT, "hub")
        }

    def test_of_several_revisions_main_is_taken_and_else_the_newest(self, home, hub):
        chosen = snapshot(hub, "a/model", "older")
        os.utime(snapshot(hub, "a/model", "newer", main=False), (2e9, 2e9))
        os.utime(snapshot(hub, "a/nomain", "older", main=False), (1e9, 1e9))
        newest = snapshot(hub, "a/nomain", "newer", main=False)
        assert {model.name: model.path for model in local_models().models} == {
            "a/model": chosen,
            "a/nomain": newest,
        }

    def test_configs_alone_are_no_model(self, home, hub):
        snapshot(hub, "stable-diffusion-v1-5/stable-diffusion-v1-5", "abc", weights="")
        models = local_models()
        assert models.models == models.problems == ()

    def test_a_repository_whose_name_leads_elsewhere_is_passed_over(self, home, hub):
        snapshot(hub, "../..", "abc")
        assert local_models().models == ()

    def test_equal_names_are_told_apart_by_their_folders(self, home, hub, tmp_path):
        for place in ("a", "b"):
            files.write(tmp_path / place / "same" / "model.safetensors", files.sd1())
        snapshot(hub, "b/same", "abc")
        files.write(tmp_path / "a" / "other.safetensors", files.sd1())
        models = find_local_models([tmp_path / "a", tmp_path / "b"], home=home)
        assert {model.name for model in models.models} == {
            "other.safetensors",
            "a/same/model.safetensors",
            "b/same/model.safetensors",
            "b/same",
        }

    def test_the_name_of_a_repository_is_nobody_elses(self, home, hub, tmp_path):
        snapshot(hub, "someone/model", "abc")
        for place in ("x/someone", "y/other"):
            folder(tmp_path / place / "model")
        models = find_local_models([tmp_path / "x", tmp_path / "y"], home=home).models
        assert {model.name for model in models} == {"someone/model", "x/someone/model", "other/model"} | {
            model.name for model in models if model.name.endswith("/y/other/model")
        }
        assert [model.kind for model in models if model.name == "someone/model"] == ["hub"]

    def test_links_are_followed_and_circles_end(self, home, tmp_path):
        files.write(tmp_path / "far" / "model.safetensors", files.sd1())
        place = home / "stable_diffusion"
        place.mkdir(parents=True)
        (place / "link").symlink_to(tmp_path / "far")
        (place / "again").symlink_to(tmp_path / "far")
        (tmp_path / "far" / "circle").symlink_to(place)
        (place / "dangling.safetensors").symlink_to(tmp_path / "gone")
        models = local_models()
        assert [model.name for model in models.models] == ["model.safetensors"]
        assert [path.name for path, _ in models.problems] == ["dangling.safetensors"]

    def test_a_machine_without_models_is_left_as_it_is(self, home, cache, hub):
        assert local_models().models == ()
        assert not any(path.exists() for path in (home, cache, hub))


class TestProblems:
    @pytest.mark.torch
    def test_a_broken_or_foreign_file_costs_no_other(self, home, hub):
        import torch

        place = home / "stable_diffusion"
        files.write(place / "good.safetensors", files.sd1())
        files.write(place / "lora.safetensors", {"lora_unet_conv_in.lora_down.weight": [4, 4]})
        with (place / "good.safetensors").open("rb") as whole:  # of 2 GB
            (place / "cut.safetensors").write_bytes(whole.read(4000))
        torch.save({"a": torch.zeros(1)}, place / "old.ckpt")
        (place / "unreadable").mkdir()
        (place / "unreadable" / "model_index.json").write_text("{")
        (folder(place / "large") / "model_index.json").write_text(json.dumps({"_class_name": "x" * 1_000_000}))
        refiner = folder(place / "refiner", "StableDiffusionXLImg2ImgPipeline") / "unet" / "config.json"
        refiner.write_text('{"in_channels": 4, "cross_attention_dim": 1280}')
        folder(place / "pickled", weights="unet/diffusion_pytorch_model.bin")
        (folder(place / "no-config") / "unet" / "config.json").unlink()
        models = local_models()
        assert [model.name for model in models.models] == ["good.safetensors"]
        assert {path.name: str(error).partition(str(path))[2][:20] for path, error in models.problems} == {
            "lora.safetensors": " is a LoRA. Whole ch",
            "cut.safetensors": " can't be read as sa",
            "old.ckpt": " is a pickle, which ",
            "unreadable": "/model_index.json ca",
            "pickled": " has its weights as ",
            "no-config": "/unet/config.json is",
            "refiner": " is the refiner of S",
            "large": "/model_index.json ca",
        }

    @pytest.mark.parametrize("name", ["a:b.safetensors", "a\nb.safetensors", "\udcff.safetensors"])
    def test_a_name_that_no_model_may_have(self, name, home):
        files.write(home / "stable_diffusion" / name, files.sd1())
        models = local_models()
        assert models.models == ()
        assert [error.remedy for _, error in models.problems] == ["Rename it"]


class TestMemory:
    def search(self, home):
        return found(find_local_models(home=home, memory=home / "types.json"))

    @pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux counts the bytes that a process reads")
    def test_what_was_told_once_is_not_read_again(self, home):
        for number in range(20):
            old(files.write(home / "stable_diffusion" / f"{number}.safetensors", files.sdxl()))

        def read():
            before = int(Path("/proc/self/io").read_text().split()[1])
            result = self.search(home)
            return result, int(Path("/proc/self/io").read_text().split()[1]) - before

        (first, all_headers), (second, remembered) = read(), read()
        assert first == second
        assert len(first) == 20
        assert remembered < all_headers / 100

    def test_a_file_that_is_replaced_is_told_anew(self, home):
        path = old(files.write(home / "stable_diffusion" / "model.safetensors", files.sd1()))
        assert self.search(home)["model.safetensors"][0] is ModelType.DIFFUSERS_SD
        size = path.stat().st_size
        other = files.write(home / "other", files.sd1(9))
        os.truncate(other, max(size, other.stat().st_size))
        os.truncate(path, other.stat().st_size)
        old(path)
        assert self.search(home)["model.safetensors"][0] is ModelType.DIFFUSERS_SD
        old(other).replace(path)  # same name, size and time: the inode differs
        assert self.search(home)["model.safetensors"][0] is ModelType.DIFFUSERS_SD_INPAINT

    def test_a_file_that_is_rewritten_in_place_is_told_anew(self, home):
        path = old(files.write(home / "stable_diffusion" / "model.safetensors", files.sd1()))
        assert self.search(home)["model.safetensors"][0] is ModelType.DIFFUSERS_SD
        old(files.write(path, files.sdxl()))
        assert self.search(home)["model.safetensors"][0] is ModelType.DIFFUSERS_SDXL

    def test_what_was_just_written_is_not_remembered(self, home):
        """Within one tick of the clock of its file system it may change again."""
        files.write(home / "stable_diffusion" / "model.safetensors", files.sd1())
        self.search(home)
        assert not (home / "types.json").exists()

    def test_problems_are_remembered_too(self, home):
        old(files.write(home / "stable_diffusion" / "vae.safetensors", files.vae()))
        first, second = (find_local_models(home=home, memory=home / "types.json") for _ in range(2))
        assert "vae.safetensors" in (home / "types.json").read_text()
        assert str(first.problems[0][1]) == str(second.problems[0][1])

    def test_a_problem_that_is_mended_is_gone(self, home):
        path = old(files.write(home / "stable_diffusion" / "model.safetensors", files.vae()))
        assert self.search(home) == {}
        old(files.write(path, files.sd1()))
        assert self.search(home)["model.safetensors"][0] is ModelType.DIFFUSERS_SD

    def test_what_other_rules_told_is_told_anew(self, home):
        old(files.write(home / "stable_diffusion" / "model.safetensors", files.sd1()))
        self.search(home)
        memory = home / "types.json"
        stale = json.loads(memory.read_bytes())
        stale["rules"] -= 1
        memory.write_text(json.dumps(stale).replace('"diffusers_sd"', '"diffusers_sdxl"'))
        assert self.search(home)["model.safetensors"][0] is ModelType.DIFFUSERS_SD

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"7", b'{"rules": 1, "files": 7}', b'{"rules": 1, "files": {"KEY": VALUE}}']
    )
    @pytest.mark.parametrize("value", [b'[STAMP, "no type", null]', b"[STAMP]", b"7"])
    def test_a_memory_that_is_damaged_is_made_anew(self, content, value, home):
        path = old(files.write(home / "stable_diffusion" / "model.safetensors", files.sd1()))
        self.search(home)
        good = json.loads((home / "types.json").read_bytes())
        ((key, (stamp, *_)),) = good["files"].items()
        content = content.replace(b'"KEY"', json.dumps(key).encode())
        content = content.replace(b"VALUE", value).replace(b"STAMP", json.dumps(stamp).encode())
        (home / "types.json").write_bytes(content)
        assert self.search(home) == {"model.safetensors": (ModelType.DIFFUSERS_SD, "single file")}
        assert json.loads((home / "types.json").read_bytes()) == good
        assert path.exists()

    def test_a_memory_that_can_not_be_written_is_done_without(self, home):
        old(files.write(home / "stable_diffusion" / "model.safetensors", files.sd1()))
        (home / "types.json").mkdir()
        assert self.search(home)

    @pytest.mark.process
    def test_processes_search_at_once(self, home):
        for number in range(10):
            old(files.write(home / "stable_diffusion" / f"{number}.safetensors", files.sd1()))
        code = "from iopaint_plugins.diffusion.discovery import local_models; print(len(local_models().models))"
        running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
        assert [int(process.communicate(timeout=60)[0]) for process in running] == [10] * 4
        assert len(json.loads((home / "checkpoints.json").read_bytes())["files"]) == 10
        assert [path.name for path in home.iterdir() if path.is_file()] == ["checkpoints.json"]


class TestModels:
    def test_local_models_are_listed_like_any_others(self, home, hub, plugins):
        path = files.write(home / "stable_diffusion" / "mine.safetensors", files.sd1(9))
        snapshot(hub, "a/model", "abc")
        plugins.register(iopaint_plugins.diffusion, "diffusion")
        assert [(info.name, info.type, info.path) for info in scan_models(plugins)] == [
            ("a/model", ModelType.DIFFUSERS_SD, hub / "models--a--model" / "snapshots" / "abc"),
            ("mine.safetensors", ModelType.DIFFUSERS_SD_INPAINT, path),
        ]

    def test_the_command_line_lists_them_and_tells_where_they_are(self, home):
        path = files.write(home / "stable_diffusion" / "mine.safetensors", files.sd1())
        runner = CliRunner()
        listed = json.loads(runner.invoke(main, ["list", "--json"]).stdout)
        assert [
            (item["name"], item["type"], item["downloaded"]) for item in listed if item["name"].startswith("mine")
        ] == [("mine.safetensors", "diffusers_sd", True)]
        assert runner.invoke(main, ["where", "mine.safetensors"]).stdout.split() == [str(path)]

    def test_doctor_has_one_line_for_each_file_that_is_no_model(self, home):
        (home / "stable_diffusion").mkdir(parents=True)
        shutil.copy(__file__, home / "stable_diffusion" / "broken.safetensors")
        files.write(home / "stable_diffusion" / "vae.safetensors", files.vae())
        result = CliRunner().invoke(main, ["doctor"])
        assert result.exit_code == 0
        lines = [line for line in result.stderr.splitlines() if line.startswith("Can't be used yet: ")]
        named = [line.split()[4] for line in lines]
        assert [name for name in named if ".safetensors" in name] == ["broken.safetensors:", "vae.safetensors:"]
        assert "Nothing wrong" not in result.stdout
