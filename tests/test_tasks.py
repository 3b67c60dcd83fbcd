"""Open tasks and full results: what a model of any task gives reaches hosts that never heard of it."""

import json
import re
from dataclasses import dataclass

import cv2
import numpy as np
import PIL.Image
import pytest
from commands import command
from conftest import ROOT, photograph
from hosts import OneModel, host

from iopaint_core import (
    ImageModel,
    ImageParameters,
    InpaintModel,
    InpaintParameters,
    InputError,
    LoadContext,
    MaskModel,
    MaskParameters,
    ModelError,
    ModelManager,
    ModelNameError,
    ModelOutputError,
    PluginError,
    PluginManager,
    Result,
    Task,
)

IMAGE = photograph(24, 32)
MASK = np.zeros((24, 32), np.uint8)
MASK[4:9, 6:12] = 255
DEPTH = Task("depth", gives=("maps",))
FIND = Task("find-words", gives=("masks", "scores", "labels"))
COLORIZE = Task("colorize")
TRIMAP = Task("trimap-matting", takes_mask=True, gives=("masks",))
CLASSIFY = Task("classify", gives=("info",))


class Depth(ImageModel):
    def forward(self, image, parameters):
        return Result(maps={"depth": image.mean(axis=2).astype(np.float32) / 255})


@dataclass(frozen=True)
class Words(MaskParameters):
    """What to find."""

    words: tuple[str, ...] = ("cat", "dog")
    """What is looked for."""


class Find(MaskModel[Words]):
    def forward(self, image, parameters):
        masks = np.stack([np.roll(MASK, 3 * number, axis=1) for number in range(len(parameters.words))])
        scores = [0.5 + number / 10 for number in range(len(masks))]
        return Result(masks=masks, scores=scores, labels=list(parameters.words))


class Colorize(ImageModel):
    def forward(self, image, parameters):
        return cv2.applyColorMap(image, cv2.COLORMAP_JET)


class CutOut(ImageModel):
    def forward(self, image, parameters):
        return Result(image=np.dstack([image, MASK]), masks=MASK)


class Refine(MaskModel):
    def forward(self, image, parameters):
        return np.where(parameters.mask_input == 128, np.uint8(77), parameters.mask_input)


class Classify(ImageModel):
    def forward(self, image, parameters):
        return Result(info={"class": "noise", "mean": float(image.mean())})


class Seeded(InpaintModel):
    def forward(self, image, mask, parameters):
        image[:] = 9
        return Result(image=image, info={"seed": 42})


PLUGIN_FILE = """
import numpy as np
from iopaint_core import ImageModel, MaskModel, ModelInfo, Result, Task, hookimpl

class Depth(ImageModel):
    def forward(self, image, parameters):
        depth = image.mean(axis=2)
        return Result(maps={"depth": depth.astype(np.float32), "level": depth.astype(np.uint16) * 200})

class Find(MaskModel):
    def forward(self, image, parameters):
        masks = np.zeros((2, *image.shape[:2]), np.uint8)
        masks[0, :4], masks[1, :, :4] = 255, 255
        return Result(masks=masks, scores=[0.25, 0.75], labels=["top", "left"], info={"words": 2})

class CutOut(ImageModel):
    def forward(self, image, parameters):
        matte = np.full(image.shape[:2], 128, np.uint8)
        return Result(image=np.dstack([image, matte]), masks=matte)

class Classify(ImageModel):
    def forward(self, image, parameters):
        return Result(info={"class": "noise"})

MODELS = {
    "depth": (Depth, Task("depth", gives=("maps",))),
    "find": (Find, Task("find-words", gives=("masks", "scores", "labels"))),
    "cutout": (CutOut, Task.MATTING),
    "classify": (Classify, Task("classify", gives=("info",))),
}

@hookimpl
def iopaint_available_models():
    return [
        ModelInfo(
            name=name, task=task, title=f"The {name}", description="For tests.", homepage="https://example.org"
        )
        for name, (_, task) in MODELS.items()
    ]

@hookimpl
def iopaint_load_model(info, context):
    return MODELS[info.name][0]()
"""


@pytest.fixture(scope="module")
def manager():
    return host(
        OneModel("depth", Depth, task=DEPTH),
        OneModel("find", Find, task=FIND, parameters=Words),
        OneModel("colorize", Colorize, task=COLORIZE),
        OneModel("cutout", CutOut, task=Task.MATTING),
        OneModel("refine", Refine, task=TRIMAP),
        OneModel("classify", Classify, task=CLASSIFY),
        OneModel("seeded", Seeded),
    )


class TestTask:
    def test_what_it_takes_and_gives_decides_what_kind_of_model_it_is(self):
        kinds = {
            task.name: task.parameters_class
            for task in (Task.INPAINT, Task.RESTORE, Task.MATTING, Task.SEGMENT, DEPTH, FIND, COLORIZE, TRIMAP)
        }
        assert kinds == {
            "inpaint": InpaintParameters,
            "restore": ImageParameters,
            "matting": ImageParameters,
            "segment": MaskParameters,
            "depth": ImageParameters,
            "find-words": MaskParameters,
            "colorize": ImageParameters,
            "trimap-matting": MaskParameters,
        }
        assert str(DEPTH) == "depth"
        assert Task("depth", gives=["maps"]) == DEPTH, "it is data"
        assert Task("depth", gives="maps") == DEPTH

    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            ({"name": ""}, "expected a name such as 'depth'"),
            ({"name": "Depth of field"}, "got 'Depth of field'"),
            ({"name": None}, "got None"),
            ({"name": "depth", "gives": ("depth",)}, "it gives 'depth', which no Result holds.*image, masks"),
            ({"name": "depth", "gives": ()}, "it gives nothing"),
        ],
    )
    def test_a_wrong_one_is_refused(self, fields, told):
        with pytest.raises(PluginError, match=told):
            Task(**fields)


class TestRun:
    def test_a_map(self, manager):
        result = manager.run("depth", IMAGE)
        assert result.image is None
        assert result.maps["depth"].dtype == np.float32
        assert np.array_equal(result.maps["depth"], IMAGE.mean(axis=2).astype(np.float32) / 255)

    def test_masks_with_scores_and_labels(self, manager):
        result = manager.run("find", IMAGE, parameters={"words": ["boat", "car", "sky"]})
        assert result.masks.shape == (3, 24, 32)
        assert result.scores == (0.5, 0.6, 0.7)
        assert result.labels == ("boat", "car", "sky")
        assert np.array_equal(result.mask, result.masks[2]), "the highest score"
        assert np.array_equal(manager.segment("find", IMAGE, {"words": ["a", "b"]}), np.roll(MASK, 3, axis=1))
        assert np.array_equal(result.united_masks(), result.masks.max(axis=0))

    def test_nothing_found_is_no_mask_at_all(self, manager):
        result = manager.run("find", IMAGE, parameters={"words": ["a"]})
        assert Result(masks=result.masks[:0]).united_masks().tolist() == np.zeros((24, 32)).tolist()
        assert Result(masks=result.masks[:0]).mask.dtype == np.uint8
        assert Result().mask is None

    def test_an_image_of_a_task_of_its_own(self, manager):
        assert np.array_equal(manager.process("colorize", IMAGE), cv2.applyColorMap(IMAGE, cv2.COLORMAP_JET))

    def test_a_cut_out_and_its_matte(self, manager):
        result = manager.run("cutout", IMAGE)
        assert result.image.shape == (24, 32, 4)
        assert np.array_equal(result.masks, MASK[None])
        assert np.array_equal(manager.process("cutout", IMAGE), result.image)

    def test_a_mask_for_something_else_than_inpainting(self, manager):
        trimap = np.full((24, 32), 128, np.uint8)
        trimap[:4] = 255
        expected = np.where(trimap == 128, 77, trimap)
        assert np.array_equal(manager.run("refine", IMAGE, mask=trimap).mask, expected)
        assert np.array_equal(manager.run("refine", IMAGE, parameters={"mask_input": trimap}).mask, expected)

    def test_what_is_no_array(self, manager):
        assert manager.run("classify", IMAGE).info["class"] == "noise"

    def test_the_seed_that_was_drawn(self, manager):
        result = manager.run("seeded", IMAGE, mask=MASK)
        assert result.info == {"seed": 42}
        assert (result.image[MASK > 0] == 9).all()
        assert np.array_equal(result.image[MASK == 0], IMAGE[MASK == 0])
        assert np.array_equal(manager.inpaint("seeded", IMAGE, MASK), result.image)

    def test_any_model_without_a_host(self):
        assert np.array_equal(CutOut().run(IMAGE).mask, MASK)
        depth = Depth()
        depth.task = DEPTH
        assert depth.run(IMAGE).maps.keys() == {"depth"}
        with pytest.raises(ModelOutputError, match=r"returned no image, expected an image\. Call `run`"):
            depth(IMAGE)


def test_the_guides_example_is_run():
    guide = (ROOT / "docs" / "plugins.md").read_text().partition("\n## Tasks and results\n")[2]
    (code, *_) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    code = code.replace("ModelInfo(", "info = ModelInfo(")
    namespace = {}
    exec(compile(code, "plugins.md", "exec"), namespace)
    info = namespace["info"]
    result = host(OneModel("depth", namespace["Depth"], task=info.task)).run("depth", IMAGE)
    assert np.allclose(result.maps["depth"], 1 - IMAGE.min(axis=2) / 255)


def test_a_plugin_has_a_folder_of_its_own(tmp_path):
    folders = []

    class Keeping(Depth):
        def __init__(self, context):
            folders.append(context.data_dir)

    plugins = PluginManager(allow=[])
    for distribution, name in (("host", "keeping"), ("/home/user/plugins", "keeping"), ("..", "..")):
        plugins.register(OneModel("depth", Keeping, task=DEPTH), name, distribution=distribution)
    manager = ModelManager(plugins, context=LoadContext(cache=tmp_path / "home"))
    for info in manager.scan().models:
        manager.run(info.full_name, IMAGE)
    assert len(set(folders)) == 3
    assert all(folder.resolve().is_relative_to(tmp_path / "home" / "plugins") for folder in folders)
    assert not any(folder.exists() for folder in folders), "it is the plugin that makes it"


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "options", "told"),
        [
            ("seeded", {}, "seeded takes a mask, and none was given: its task is inpaint. Pass one"),
            ("refine", {}, "refine takes a mask, and none was given: its task is trimap-matting"),
            ("depth", {"mask": MASK}, "depth takes no mask, and one was given: its task is depth. Leave it out"),
            ("refine", {"mask": MASK[:5]}, "The image is 32 x 24 and the mask 32 x 5"),
            ("seeded", {"mask": MASK.T}, "The image is 32 x 24 and the mask 24 x 32"),
            ("refine", {"mask": MASK, "parameters": {"mask_input": MASK}}, "a mask and a mask_input. Give one"),
        ],
    )
    def test_masks(self, manager, name, options, told):
        with pytest.raises(InputError, match=told):
            manager.run(name, IMAGE, **options)

    def test_a_shorthand_that_is_not_the_models(self, manager):
        with pytest.raises(ModelNameError, match=r"no image: its task is depth\. Call `run`"):
            manager.process("depth", IMAGE)
        with pytest.raises(ModelNameError, match=r"find is no ImageModel: its task is find-words\. Call `run`"):
            manager.process("find", IMAGE)
        with pytest.raises(ModelNameError, match="depth is no InpaintModel"):
            manager.inpaint("depth", IMAGE, MASK)

    @pytest.mark.parametrize(
        ("task", "result", "told"),
        [
            (DEPTH, Result(), "returned a result without maps, expected maps, as its task .depth. says"),
            (DEPTH, IMAGE, "returned a result without maps"),
            (DEPTH, Result(maps={"depth": [1, 2]}), "a map 'depth' that is list, expected an array"),
            (DEPTH, Result(maps={"depth": np.zeros(3)}), r"a map 'depth' that is a float64 array of shape \(3,\)"),
            (Task.MATTING, Result(masks=MASK), "returned a result without image, expected image, as its task"),
            (
                Task.MATTING,
                Result(image=IMAGE, masks=MASK[:3]),
                r"array of shape \(3, 32\), expected masks as a uint8",
            ),
            (Task.MATTING, Result(image=IMAGE, scores=[1.0]), "returned 1 scores for 0 masks, expected one of"),
            (Task.MATTING, Result(image=IMAGE, masks=MASK, labels=["a", "b"]), "returned 2 labels for 1 masks"),
            (
                Task.MATTING,
                Result(image=IMAGE / 255),
                "returned a float64 array of shape .24, 32, 3., expected an image",
            ),
            (Task.RESTORE, None, "returned a result without image"),
            (Task("x", gives=("image", "info")), IMAGE, "returned a result without info, expected image, info"),
        ],
    )
    def test_a_result_that_is_not_what_the_task_gives(self, task, result, told):
        class Wrong(ImageModel):
            def forward(self, image, parameters):
                return result

        with pytest.raises(ModelOutputError, match=f"wrong:wrong: Wrong.forward {told}|wrong:wrong.*{told}"):
            host(OneModel("wrong", Wrong, task=task)).run("wrong", IMAGE)

    @pytest.mark.parametrize(
        ("result", "told"),
        [
            (Result(masks=MASK, labels=["a"]), "returned a result without scores, expected masks, scores, labels"),
            (
                np.zeros((2, 3, 4), np.uint8),
                r"shape \(2, 3, 4\), expected masks as a uint8 array of shape \(24, 32\)",
            ),
            (MASK > 0, "returned a bool array"),
        ],
    )
    def test_masks_that_are_not_what_the_task_gives(self, result, told):
        class Wrong(MaskModel):
            def forward(self, image, parameters):
                return result

        with pytest.raises(ModelOutputError, match=told):
            host(OneModel("wrong", Wrong, task=FIND)).run("wrong", IMAGE)

    def test_what_an_inpainting_model_can_not_give(self):
        class Wrong(InpaintModel):
            def forward(self, image, mask, parameters):
                return Result(image=image, masks=mask)

        with pytest.raises(
            ModelOutputError, match="a Result with masks, scores, labels or maps, expected an image, and"
        ):
            host(OneModel("wrong", Wrong)).run("wrong", IMAGE, mask=MASK)

    def test_a_mask_model_that_has_nothing_to_run(self):
        class Empty(MaskModel):
            pass

        with pytest.raises(ModelError, match="Empty has neither `forward`, nor `encode` and `decode`"):
            Empty()(IMAGE)


class TestCommandLine:
    @pytest.fixture
    def run(self, tmp_path):
        plugins = tmp_path / "plugins"
        plugins.mkdir()
        (plugins / "many.py").write_text(PLUGIN_FILE)
        PIL.Image.fromarray(IMAGE).save(tmp_path / "in.png")

        def run(*arguments):
            return command("--plugins-dir", plugins, *arguments)

        return run

    def read(self, path):
        return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)

    def test_maps_are_written(self, run, tmp_path):
        out = tmp_path / "out.png"
        done = run("run", "--model", "depth", "--image", tmp_path / "in.png", "--output", out, "--json")
        assert done.returncode == 0, done.stderr
        depth = IMAGE.mean(axis=2).astype(np.float32)
        spread = (depth - depth.min()) / (depth.max() - depth.min()) * 65535
        assert self.read(out).dtype == np.uint16
        assert np.abs(self.read(out) - spread).max() <= 1
        assert np.array_equal(self.read(tmp_path / "out.level.png"), depth.astype(np.uint16) * 200)
        (told,) = json.loads(done.stdout)
        assert told["files"] == [str(out), str(tmp_path / "out.level.png")]
        assert told["maps"]["depth"] == {"shape": [24, 32], "dtype": "float32"}

    def test_a_file_whose_name_is_no_text_is_reported(self, run, tmp_path):
        image = (tmp_path / "in.png").rename(tmp_path / "in\udcff.png")
        done = run("run", "--model", "depth", "--image", image, "--output", tmp_path / "out.npy", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["image"] == str(image)

    def test_a_map_is_written_as_it_is(self, run, tmp_path):
        done = run("run", "--model", "depth", "--image", tmp_path / "in.png", "--output", tmp_path / "out.npy")
        assert done.returncode == 0, done.stderr
        assert np.array_equal(np.load(tmp_path / "out.npy"), IMAGE.mean(axis=2).astype(np.float32))

    def test_masks_are_written_each_and_the_best_one(self, run, tmp_path):
        out = tmp_path / "out.png"
        done = run("run", "--model", "find", "--image", tmp_path / "in.png", "--output", out, "--json")
        assert done.returncode == 0, done.stderr
        masks = [self.read(tmp_path / f"out.{number}.mask.png") for number in (0, 1)]
        assert (masks[0][:4] == 255).all()
        assert (masks[1][:, :4] == 255).all()
        assert np.array_equal(self.read(out), masks[1])
        (told,) = json.loads(done.stdout)
        assert (told["scores"], told["labels"], told["info"]) == ([0.25, 0.75], ["top", "left"], {"words": 2})
        assert told["status"] == "repaired"
        assert told["error"] is None

    def test_an_image_and_its_matte_are_written(self, run, tmp_path):
        out = tmp_path / "out.png"
        assert run("run", "--model", "cutout", "--image", tmp_path / "in.png", "--output", out).returncode == 0
        assert self.read(out).shape == (24, 32, 4)
        assert (self.read(tmp_path / "out.mask.png") == 128).all()

    def test_what_is_no_image_is_written_as_json(self, run, tmp_path):
        out = tmp_path / "out.json"
        assert run("run", "--model", "classify", "--image", tmp_path / "in.png", "--output", out).returncode == 0
        assert json.loads(out.read_text())["info"] == {"class": "noise"}

    def test_models_are_listed_and_described(self, run):
        (depth,) = [model for model in json.loads(run("list", "--json").stdout) if model["name"] == "depth"]
        assert depth["task"] == "depth"
        assert (depth["takes_mask"], depth["gives"], depth["title"]) == (False, ["maps"], "The depth")
        described = json.loads(run("describe", "depth", "--json").stdout)
        assert described["parameters"]["properties"]["scale"]["default"] is None
        assert {**described, "parameters": depth["parameters"]} == depth
        text = run("describe", "depth").stdout
        for line in ("title: The depth", "homepage: https://example.org", "gives: maps", "takes mask: no"):
            assert line in text.splitlines()
        unknown = run("describe", "deph")
        assert (unknown.returncode, "Did you mean depth?" in unknown.stderr) == (2, True)

    def test_a_missing_requirement_costs_its_own_model_alone(self, run, tmp_path):
        (tmp_path / "plugins" / "needs.py").write_text(
            "from iopaint_core import ModelInfo, hookimpl\n"
            "@hookimpl\n"
            "def iopaint_available_models(): return [ModelInfo(name='needs', requires=['nobody'])]\n"
            "@hookimpl\n"
            "def iopaint_load_model(info, context): pass\n"
        )
        done = run("download", "needs", "depth", "find")
        assert done.returncode == 1
        assert "Error: needs requires the model 'nobody': No plugin announces a model named nobody" in done.stderr
        assert {"depth: is here", "find: is here"} <= set(done.stderr.splitlines())
        assert "needs" in run("list", "--missing").stdout

    def test_a_task_of_a_third_party_is_one_to_download(self, run):
        assert run("download", "--all", "--task", "depth").returncode == 0
        wrong = run("download", "--all", "--task", "deph")
        assert wrong.returncode == 2
        assert "No model's task is 'deph' (did you mean depth?)" in wrong.stderr
