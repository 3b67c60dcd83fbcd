"""Interactive segmentation from a cache of the hub to masks, with small random networks in the published format."""

import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import photograph
from sams import SIZE, make_networks, make_tokenizer, publish
from transformers import (
    Sam2ImageProcessor,
    Sam2Processor,
    Sam3ImageProcessor,
    Sam3Processor,
    SamHQProcessor,
    SamImageProcessor,
    SamProcessor,
)

from iopaint_core import (
    DownloadError,
    InputError,
    LoadContext,
    MissingWeightsError,
    ModelLoadError,
    ModelManager,
    PluginManager,
    Task,
    UnavailableModelError,
    read_picture,
    scan_models,
)
from iopaint_plugins import interactive_seg
from iopaint_plugins.interactive_seg.models import Segmenter

pytestmark = pytest.mark.torch

BY_CLICKS = [name for name in interactive_seg.MODELS if name != "sam3"]
FAMILIES = {"vit_b": "SamModel", "sam_hq_vit_b": "SamHQModel", "sam2_1_tiny": "Sam2Model"}
IMAGE = np.repeat(np.repeat(photograph(10, 17, 3), 5, axis=0), 5, axis=1)[:49, :81]
CLICK = {"clicks": [[30, 20, 1]]}
CALLS = {
    "a click": CLICK,
    "several clicks": {"clicks": [[30, 20, 1], [70, 5, 0], [0, 48, 1]]},
    "a box": {"boxes": [[5, 6, 60, 40]]},
    "a box and clicks": {"boxes": [[5, 6, 60, 40]], "clicks": [[30, 20, 1], [8, 8, 0]]},
    "boxes": {"boxes": [[5, 6, 60, 40], [0, 0, 81, 49], [50, 1, 80, 48]]},
}


@pytest.fixture(scope="module")
def networks():
    return make_networks()


@pytest.fixture(scope="module")
def cache(networks, tmp_path_factory):
    return publish(networks, tmp_path_factory.mktemp("published"))


@pytest.fixture
def plugins():
    manager = PluginManager(allow=[])
    manager.register(interactive_seg, "interactive_seg")
    return manager


@pytest.fixture(scope="module")
def host():
    """A manager that goes on, so that each network is loaded once."""
    plugins = PluginManager(allow=[])
    plugins.register(interactive_seg, "interactive_seg")
    with ModelManager(plugins, context=LoadContext(offline=True)) as manager:
        yield manager


@pytest.fixture
def manager(host, cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    return host


def processor_of(name):
    if name == "Sam2Model":
        return Sam2Processor(Sam2ImageProcessor(size={"height": SIZE, "width": SIZE}), target_size=SIZE)
    cls = SamHQProcessor if name == "SamHQModel" else SamProcessor
    sizes = {"size": {"longest_edge": SIZE}, "pad_size": {"height": SIZE, "width": SIZE}}
    return cls(SamImageProcessor(**sizes))


def by_transformers(network, image, clicks=(), boxes=()):
    """Return masks and scores of a call as transformers' own processor and model give them, in their order."""
    name = type(network).__name__
    processor = processor_of(name)
    given = {}
    if clicks:
        given["input_points"] = [[[[x, y] for x, y, _ in clicks]]]
        given["input_labels"] = [[[label for _, _, label in clicks]]]
    if boxes:
        given["input_boxes"] = [[[float(side) for side in box] for box in boxes]]
    inputs = processor(image, **given, return_tensors="pt")
    sizes = [inputs["original_sizes"]] + ([] if name == "Sam2Model" else [inputs["reshaped_input_sizes"]])
    with torch.no_grad():
        outputs = network(
            **{key: value for key, value in inputs.items() if "sizes" not in key},
            multimask_output=len(clicks) == 1 and not boxes,
        )
    (masks,) = processor.post_process_masks(outputs.pred_masks, *sizes)
    return masks.flatten(0, 1).numpy(), outputs.iou_scores.flatten().numpy()


class TestList:
    def test_all_models_of_iopaint_and_sam3_on_an_empty_disk(self, plugins):
        found = {info.name: info for info in scan_models(plugins)}
        assert {*found} == {
            *("vit_b", "vit_l", "vit_h", "mobile_sam", "sam_hq_vit_b", "sam_hq_vit_l", "sam_hq_vit_h"),
            *("sam2_tiny", "sam2_small", "sam2_base", "sam2_large"),
            *("sam2_1_tiny", "sam2_1_small", "sam2_1_base", "sam2_1_large", "sam3"),
        }
        assert {info.task for info in found.values()} == {Task.SEGMENT}
        assert all(info.license and info.title and info.description and info.homepage for info in found.values())
        assert [name for name, info in found.items() if info.unavailable] == ["mobile_sam"]
        assert len({file.repo for info in found.values() for file in info.weights}) == 15
        assert found["sam3"].license.startswith("https://")

    def test_no_library_is_imported_for_it(self):
        code = (
            "import sys; from iopaint_plugins import interactive_seg; interactive_seg.iopaint_available_models(); "
            "print({'torch', 'transformers', 'numpy', 'cv2'} & {*sys.modules})"
        )
        assert (
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
            == "set()\n"
        )

    def test_what_is_not_installed_is_told(self, plugins, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        told = {info.name: info.unavailable for info in scan_models(plugins)}
        assert told["vit_b"] == "transformers is not installed: pip install 'iopaint-core[segment]'"
        assert told["sam3"] == told["vit_b"]
        with pytest.raises(UnavailableModelError, match=r"TinyViT.*Take sam2_1_tiny"):
            ModelManager(plugins).segment("mobile_sam", IMAGE, CLICK)

    def test_a_transformers_without_sam3(self, plugins, monkeypatch, tmp_path):
        for name in ("sam", "sam2", "sam_hq"):
            (tmp_path / "transformers" / "models" / name).mkdir(parents=True)
        (tmp_path / "transformers" / "__init__.py").touch()
        monkeypatch.delitem(sys.modules, "transformers")
        monkeypatch.syspath_prepend(str(tmp_path))
        told = {info.name: info.unavailable for info in scan_models(plugins)}
        assert told["sam3"] == "The transformers that is installed has no SAM 3: pip install -U transformers"
        assert not told["sam2_large"]


class TestClicks:
    def test_every_model_of_the_table(self, manager):
        masks = {name: manager.segment(name, IMAGE, CLICK) for name in BY_CLICKS}
        for mask in masks.values():
            assert mask.shape == IMAGE.shape[:2]
            assert {*np.unique(mask)} == {0, 255}
        assert np.array_equal(masks["vit_b"], masks["vit_h"])

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    @pytest.mark.parametrize("name", FAMILIES)
    def test_they_find_what_transformers_finds(self, manager, networks, name, call):
        wanted, scores = by_transformers(networks[FAMILIES[name]], IMAGE, **call)
        result = manager.run(name, IMAGE, parameters=call)
        if call == CALLS["boxes"]:
            assert result.scores == ()
            assert np.allclose(result.info["scores"], scores, atol=1e-4)
        else:
            order = np.argsort(-scores)
            wanted = wanted[order]
            assert len(result.masks) == (3 if call is CLICK else 1)
            assert np.allclose(result.scores, scores[order], atol=1e-4)
        assert wanted.any()
        assert not wanted.all()
        assert result.masks.shape == wanted.shape
        assert ((result.masks > 0) != wanted).mean() <= 0.001  # of values that are all but 0

    @pytest.mark.parametrize("image", [photograph(64, 64), photograph(30, 30), photograph(200, 3)], ids=np.shape)
    @pytest.mark.parametrize("name", FAMILIES)
    def test_images_of_other_sizes(self, manager, networks, name, image):
        height, width = image.shape[:2]
        click = [[width - 1, height // 2, 1]]
        wanted, scores = by_transformers(networks[FAMILIES[name]], image, click)
        result = manager.run(name, image, parameters={"clicks": click})
        assert ((result.masks > 0) != wanted[np.argsort(-scores)]).mean() <= 0.001

    @pytest.mark.parametrize("name", FAMILIES)
    def test_where_one_clicks_counts(self, manager, name):
        with manager.session(name, IMAGE) as session:
            here, there = (session.run({"clicks": [place]}) for place in ([3, 4, 1], [75, 40, 1]))
        assert not np.array_equal(here.masks, there.masks)

    def test_a_session_encodes_once(self, manager, monkeypatch):
        encoded = []
        encode = Segmenter.encode
        monkeypatch.setattr(Segmenter, "encode", lambda self, image: encoded.append(0) or encode(self, image))
        image = np.ascontiguousarray(IMAGE[::-1])
        before = len(manager.pool.stats().states)
        with manager.session("sam_hq_vit_b", image) as session:
            results = [session.run(call) for call in CALLS.values()]
            again = session.run(CLICK)
            assert len(encoded) == 1
            (*_, state) = manager.pool.stats().states
            assert len(manager.pool.stats().states) == before + 1
            assert state.nbytes >= 16 * 8 * 8 * 4
            assert np.array_equal(results[0].masks, again.masks)
            assert np.array_equal(again.masks, manager.run("sam_hq_vit_b", image, parameters=CLICK).masks)
            image[:] = 0
            with pytest.raises(InputError, match="written to after it was opened"):
                session.run(CLICK)

    @pytest.mark.parametrize("name", FAMILIES)
    def test_an_earlier_mask_is_refined(self, manager, name):
        earlier = np.zeros(IMAGE.shape[:2], np.uint8)
        earlier[10:30, 20:50] = 255
        with manager.session(name, IMAGE) as session:
            free, refined = session.run(CALLS["several clicks"]), session.run(CALLS["several clicks"], mask=earlier)
            without = session.run({"clicks": [[70, 5, 0]]}, mask=earlier)
        assert len(refined.masks) == len(without.masks) == 1
        assert refined.scores != free.scores

    def test_an_earlier_mask_lies_where_the_image_does(self, manager, networks):
        """In the decoder's square of 32 x 32 the image of 81 x 49 takes 32 x 20 and nothing is masked below."""
        result = manager.session("vit_b", IMAGE).run(CLICK, mask=np.full(IMAGE.shape[:2], 255, np.uint8))
        logits = torch.full((1, 1, 32, 32), 10.0)
        logits[..., 20:, :] = -10
        inputs = processor_of("SamModel")(IMAGE, input_points=[[[[30, 20]]]], return_tensors="pt")
        asked = {name: inputs[name] for name in ("pixel_values", "input_points")}
        with torch.no_grad():
            outputs = networks["SamModel"](**asked, input_masks=logits, multimask_output=False)
        assert np.allclose(result.scores, outputs.iou_scores.flatten(), atol=1e-4)
        assert not np.allclose(result.scores, manager.session("vit_b", IMAGE).run(CLICK).scores[0], atol=1e-3)

    def test_equal_weights_are_held_once(self, manager):
        with manager.load("vit_b"), manager.load("vit_h"), manager.load("sam2_tiny"), manager.load("sam2_1_tiny"):
            users = [{*map(str, held.users)} for held in manager.pool.stats().components]
        for one, other in (("vit_b", "vit_h"), ("sam2_tiny", "sam2_1_tiny")):
            assert [{one, other} <= names for names in users if {one, other} & names] == [True]

    @pytest.mark.parametrize(("dtype", "names"), [("float16", (*FAMILIES,)), ("bfloat16", ("sam3",))])
    def test_in_half_precision(self, plugins, manager, dtype, names):
        with ModelManager(plugins, context=LoadContext(offline=True, dtype=dtype)) as halved:
            for name in names:
                call = {"prompt": "cat", "threshold": 0} if name == "sam3" else CALLS["a box and clicks"]
                mask = None if name == "sam3" else np.zeros(IMAGE.shape[:2], np.uint8)
                half, full = (each.session(name, IMAGE).run(call, mask=mask) for each in (halved, manager))
                assert (half.masks != full.masks).mean() < 0.02
                with halved.load(name) as model:
                    assert model._network.dtype == getattr(torch, dtype)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
    @pytest.mark.parametrize("name", FAMILIES)
    def test_the_smallest_images(self, manager, name, shape):
        result = manager.run(name, photograph(*shape), parameters={"clicks": [[0, 0, 1]]})
        assert result.masks.shape == (3, *shape)

    def test_pictures_with_alpha_and_grey_ones(self, manager, tmp_path):
        for mode in ("LA", "RGBA", "L"):
            PIL.Image.fromarray(IMAGE).convert(mode).save(tmp_path / "picture.png")
            image = read_picture(tmp_path / "picture.png").rgb
            assert manager.segment("vit_b", image, CLICK).shape == IMAGE.shape[:2]

    @pytest.mark.parametrize(
        ("call", "told"),
        [
            ({}, r"Nothing says what to find.*clicks=\[\[x, y, 1\]\].*boxes="),
            ({"clicks": [[1, 1, 0]]}, "no click on it"),
            ({"mask_input": np.zeros(IMAGE.shape[:2], np.uint8)}, "Nothing says what to find"),
            ({"clicks": [[81, 0, 1]]}, "outside the image of 81 x 49"),
            ({"boxes": [[0, 0, 82, 5]]}, "not within the image of 81 x 49"),
            ({**CALLS["boxes"], **CLICK}, "3 boxes were given with clicks or a mask"),
        ],
    )
    def test_calls_that_say_too_little_or_too_much(self, manager, call, told):
        with pytest.raises(InputError, match=told):
            manager.run("sam2_tiny", IMAGE, parameters=call)


class TestWords:
    @pytest.mark.parametrize(
        "call",
        [
            {"prompt": "cat"},
            {"boxes": [[5, 6, 60, 40], [1, 1, 9, 9]]},
            {"prompt": "cat", "boxes": [[5, 6, 60, 40]]},
        ],
    )
    def test_they_find_what_transformers_finds(self, manager, networks, call):
        processor = Sam3Processor(Sam3ImageProcessor(size={"height": 56, "width": 56}), make_tokenizer())
        boxes = call.get("boxes")
        inputs = processor(
            IMAGE,
            text=call.get("prompt"),
            input_boxes=boxes and [[[*map(float, box)] for box in boxes]],
            return_tensors="pt",
        )
        sizes = inputs.pop("original_sizes").tolist()
        with torch.no_grad():
            outputs = networks["Sam3Model"](**inputs)
        limit = float((outputs.pred_logits.sigmoid() * outputs.presence_logits.sigmoid()).median()) - 1e-5
        (wanted,) = processor.post_process_instance_segmentation(outputs, threshold=limit, target_sizes=sizes)
        order = wanted["scores"].argsort(descending=True)
        result = manager.run("sam3", IMAGE, parameters={**call, "threshold": limit})
        assert len(result.masks) == 3
        assert ((result.masks > 0) != wanted["masks"][order].bool().numpy()).mean() <= 0.001
        assert np.allclose(result.info["scores"], wanted["scores"][order], atol=1e-4)
        assert result.labels == (("cat",) * 3 if "prompt" in call else ())

    def test_the_mask_is_of_all_things_found(self, manager):
        result = manager.run("sam3", IMAGE, parameters={"prompt": "cat", "threshold": 0})
        assert len(result.masks) == 5
        assert np.array_equal(result.mask, result.masks.max(axis=0))

    def test_nothing_is_found(self, manager):
        result = manager.run("sam3", IMAGE, parameters={"prompt": "cat", "threshold": 1})
        assert result.masks.shape == (0, 49, 81)
        assert not result.mask.any()
        assert result.info == {"scores": [], "unchanged": True}

    @pytest.mark.parametrize(
        ("call", "told"),
        [
            ({}, "no words, and no box"),
            ({"prompt": "cat", **CLICK}, "was given clicks or a mask.*sam2_1_large"),
            ({"prompt": "cat " * 31}, "has 95 tokens, and sam3 reads 32"),
        ],
    )
    def test_calls_that_it_does_not_take(self, manager, call, told):
        with pytest.raises(InputError, match=told):
            manager.run("sam3", IMAGE, parameters=call)


class TestHub:
    def test_a_gated_repository(self, plugins, server, monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        answer = {"X-Status": "403", "X-Error-Code": "GatedRepo"}
        server.headers["/facebook/sam3/resolve/main/config.json"] = answer
        with pytest.raises(DownloadError, match=r"facebook/sam3 is gated.*hf auth login"):
            ModelManager(plugins).segment("sam3", IMAGE, {"prompt": "cat"})

    def test_a_config_that_can_not_be_read(self, plugins, cache, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_CACHE", str(cache))
        (tmp_path / "config.json").write_text('{"vision_config": ')
        manager = ModelManager(plugins, weights={"config.json": tmp_path / "config.json"})
        with pytest.raises(
            ModelLoadError, match=r"config\.json can't be read: Expecting value.*Get the file again"
        ):
            manager.segment("vit_b", IMAGE, CLICK)

    def test_offline_what_is_missing_is_told(self, plugins):
        with pytest.raises(MissingWeightsError, match=r"facebook/sam-vit-base"):
            ModelManager(plugins, context=LoadContext(offline=True)).segment("vit_b", IMAGE, CLICK)
