"""The snippets of the decision record "Model Architecture Modernization" run, with its names."""

import re
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, Red, make_plugin

from iopaint_core import (
    BasePlugin,
    Component,
    ImageModel,
    ImageParameters,
    InpaintParameters,
    ModelInfo,
    ModelLoadError,
    ModelManager,
    ModelNameError,
    ModelType,
    Stage,
    Task,
    hookimpl,
    scan,
    scan_models,
    scan_plugin_models,
)

(PLUGIN,) = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "plugins.md").read_text().partition("## A class instead")[2], re.DOTALL
)
IMAGE = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


@pytest.fixture
def realesrgan(plugins):
    space = {"__name__": "realesrgan"}
    exec(PLUGIN, space)
    plugins.register(space["RealESRGANPlugin"])
    return plugins


class TestRealESRGANPlugin:
    def test_it_is_listed_beside_the_models_of_the_core(self, realesrgan):
        announce = hookimpl(lambda: [ModelInfo("lama", ModelType.INPAINT)])
        realesrgan.register(make_plugin(iopaint_available_models=announce), "core")
        assert [(info.name, info.type) for info in scan_models(realesrgan)] == [
            ("lama", ModelType.INPAINT),
            ("RealESRGAN_4x", ModelType.PLUGIN),
        ]
        (info,) = scan_plugin_models(realesrgan)
        assert (info.qualified_name, info.task) == ("realesrgan:RealESRGAN_4x", Task.RESTORE)
        assert info.parameters is ImageParameters

    def test_it_upscales(self, realesrgan):
        upscaled = ModelManager(realesrgan).process("RealESRGAN_4x", IMAGE)
        assert upscaled.shape == (24, 32, 3)
        assert np.array_equal(upscaled[::4, ::4], IMAGE)

    @pytest.mark.process
    def test_it_upscales_on_the_command_line_from_a_single_file_and_takes_no_mask(self, tmp_path, monkeypatch):
        monkeypatch.setenv("IOPAINT_DISABLE_PLUGINS", "iopaint-core:realesrgan")  # it announces the same name
        (tmp_path / "plugins").mkdir()
        (tmp_path / "plugins" / "realesrgan.py").write_text(PLUGIN)
        PIL.Image.fromarray(IMAGE).save(tmp_path / "small.png")
        arguments = ["--image", tmp_path / "small.png", "--output", tmp_path / "large.png"]

        def run(*more):
            options = ("--plugins-dir", tmp_path / "plugins", "run", "--model", "RealESRGAN_4x", *arguments, *more)
            return subprocess.run(
                [sys.executable, "-m", "iopaint_core", *options], capture_output=True, text=True, check=False
            )

        refused = run("--mask", tmp_path / "small.png")
        assert refused.returncode == 2
        assert "RealESRGAN_4x takes no mask" in refused.stderr
        done = run()
        assert done.returncode == 0, done.stderr
        with PIL.Image.open(tmp_path / "large.png") as large:
            assert large.size == (32, 24)


class Same(ImageModel):
    def forward(self, image, parameters):
        return image


@dataclass(frozen=True)
class TiledParameters(ImageParameters):
    tile: int = 512


class Family(BasePlugin):
    """A plugin for the tests below, with what they set."""

    name = "family"
    models = ()

    @property
    def available_models(self):
        return self.models

    def load_model(self, info, context):
        return Same()


class TestBasePlugin:
    def test_it_offers_no_models_unless_it_says_so(self, plugins):
        class Empty(BasePlugin):
            name = "empty"

            def load_model(self, info, context):
                raise AssertionError("there is none")

        assert Empty().available_models == []
        plugins.register(Empty)
        report = scan(plugins)
        assert (report.models, report.problems) == ((), ())

    def test_its_task_is_that_of_the_models_that_name_none(self, plugins):
        class Many(Family):
            task = Task.MATTING
            models = (
                ModelInfo("a"),
                ModelInfo("b", task=Task.INPAINT),
                ModelInfo("c", parameters=TiledParameters),
                replace(ModelInfo("d"), license="MIT"),
            )

        plugins.register(Many)
        assert {info.name: (info.task, info.parameters) for info in scan_models(plugins)} == {
            "a": (Task.MATTING, ImageParameters),
            "b": (Task.INPAINT, InpaintParameters),
            "c": (Task.MATTING, TiledParameters),
            "d": (Task.MATTING, ImageParameters),
        }

    def test_without_one_they_inpaint(self, plugins):
        plugins.register(type("Plain", (Family,), {"models": (ModelInfo("a"),)}))
        (info,) = scan_models(plugins)
        assert (info.task, info.parameters) == (Task.INPAINT, InpaintParameters)

    def test_parameters_that_do_not_fit_the_task_cost_that_model_alone(self, plugins):
        models = (ModelInfo("tiled", parameters=TiledParameters), ModelInfo("plain"))
        plugins.register(type("Mixed", (Family,), {"models": models}))
        report = scan(plugins)
        assert [info.name for info in report.models] == ["plain"]
        (problem,) = report.problems
        assert problem.stage is Stage.SCAN
        assert "tiled has the parameters TiledParameters, which do not fit its task (inpaint)" in str(problem)
        assert "Derive them from InpaintParameters, or announce" in problem.remedy

    def test_a_task_that_is_none_costs_its_models(self, plugins):
        plugins.register(type("Wrong", (Family,), {"models": (ModelInfo("a"),), "task": "upscale"}))
        assert scan_models(plugins) == []
        assert "the task of its BasePlugin is 'upscale', expected a Task" in str(scan(plugins).problems[0])

    def test_one_that_forgets_its_task_is_told_what_to_write(self, plugins):
        plugins.register(type("Forgetful", (Family,), {"models": (ModelInfo("RealESRGAN_4x"),)}))
        manager = ModelManager(plugins)
        with pytest.raises(
            ModelLoadError, match=r"no InpaintModel as its task \(inpaint\) says\. .*task=Task\.RESTORE"
        ):
            manager.load("RealESRGAN_4x")
        with pytest.raises(ModelNameError, match=r"its task is inpaint.*ImageModels with task=Task\.RESTORE or"):
            manager.process("RealESRGAN_4x", IMAGE)


@pytest.mark.parametrize("label", ModelType)
def test_the_type_of_a_model_decides_nothing(plugins, label):
    models = (ModelInfo("copy", type=label, task=Task.RESTORE), ModelInfo("red", type=label))

    class Labelled(Family):
        def load_model(self, info, context):
            return Red() if info.name == "red" else Same()

    Labelled.models = models
    plugins.register(Labelled)
    manager = ModelManager(plugins)
    assert [(info.name, info.type) for info in scan_models(plugins)] == [("copy", label), ("red", label)]
    assert [(info.task, info.parameters) for info in scan_models(plugins)] == [
        (Task.RESTORE, ImageParameters),
        (Task.INPAINT, InpaintParameters),
    ]
    assert np.array_equal(manager.process("copy", IMAGE), IMAGE)
    assert (manager.inpaint("red", IMAGE, np.full((6, 8), 255, np.uint8)) == (255, 0, 0)).all()


class TestModelPool:
    @pytest.fixture
    def manager(self, plugins):
        class Couple(Family):
            task = Task.RESTORE
            models = (ModelInfo("one"), ModelInfo("two"))

            def load_model(self, info, context):
                names = {"vae": "vae", "unet": f"unet of {info.name}"}
                context.share({role: Component(name, object, 5) for role, name in names.items()})
                return Same()

        plugins.register(Couple)
        return ModelManager(plugins)

    def test_models_share_what_is_equal_and_each_lease_counts(self, manager):
        pool = manager.pool
        one, again, two = (manager.load(name) for name in ("one", "one", "two"))
        shared, other = (pool.get_shared_components(lease.key) for lease in (one, two))
        assert shared["vae"] is other["vae"]
        assert shared["unet"] is not other["unet"]
        assert dict(manager.get_shared_components("one")) == dict(shared)
        assert pool.stats().leases == {one.key: 2, two.key: 1}
        assert {part.key: part.users for part in pool.stats().components}["vae"] == (one.key, two.key)
        for lease in (one, again, two):
            lease.close()
        assert pool.stats().leases == {one.key: 0, two.key: 0}

    def test_release_frees_what_no_other_model_uses(self, manager):
        pool = manager.pool
        one, two = manager.load("one"), manager.load("two")
        assert not pool.release(one.key)
        assert not manager.unload("two")
        one.close()
        two.close()
        assert pool.release(one.key)
        assert pool.get_shared_components(one.key) is None
        assert {part.key for part in pool.stats().components} == {"vae", "unet of two"}
        assert manager.unload("two")
        assert manager.get_shared_components("two") is None
        assert (pool.stats().leases, pool.stats().components) == ({}, ())
