"""Results of models that lie: each is an error that names the model, and what is written is what was found."""

import json

import numpy as np
import PIL.Image
import pytest
from conftest import photograph
from hosts import OneModel, host

from iopaint_core import ImageModel, InpaintModel, MaskModel, ModelOutputError, Result, Step, Task
from iopaint_core.errors import PictureWriteError
from iopaint_core.pictures import Picture
from iopaint_core.results import write_result

IMAGE = photograph(24, 32)
MASK = np.full((24, 32), 255, np.uint8)
CIRCLE: dict[str, object] = {}
CIRCLE["circle"] = CIRCLE

WRONG = {
    "scores_none": (
        {"masks": MASK, "scores": None},
        "scores that can't be read: they are NoneType, expected a tuple",
    ),
    "scores_number": ({"masks": MASK, "scores": 0.5}, "they are float, expected a tuple of finite numbers"),
    "scores_text": ({"masks": MASK, "scores": ("high",)}, "could not convert string to float: 'high'"),
    "scores_nested": ({"masks": MASK, "scores": [[0.5, 1.0]]}, "scores that can't be read"),
    "scores_nan": ({"masks": MASK, "scores": (float("nan"),)}, "the scores .nan,., expected finite numbers"),
    "labels_none": ({"masks": MASK, "labels": None}, "labels that can't be read: they are NoneType"),
    "labels_text": ({"masks": MASK, "labels": "a"}, "they are str, expected a tuple of texts"),
    "maps_none": ({"maps": None}, "maps that is NoneType, expected a dict of maps by name"),
    "maps_list": ({"maps": [MASK]}, "maps that is list"),
    "maps_number": ({"maps": {1: MASK}}, "a map 1 that is a uint8 array"),
    "maps_objects": ({"maps": {"a": np.array([[object()]])}}, "a object array of shape .1, 1., expected an array"),
    "maps_complex": ({"maps": {"a": np.array([[1j]])}}, "expected an array .* of real numbers"),
    "info_none": ({"info": None}, "info that is NoneType, expected a dict"),
    "info_list": ({"info": [1]}, "info that is list"),
    "info_set": ({"info": {"a": {1}}}, "info that JSON can't hold: Object of type set is not JSON serializable"),
    "info_array": ({"info": {"a": np.zeros(2)}}, "info that JSON can't hold: Object of type ndarray"),
    "info_nan": ({"info": {"a": float("nan")}}, "info that JSON can't hold: Out of range float"),
    "info_key": ({"info": {(1, 2): 3}}, "info that JSON can't hold: keys must be str"),
    "info_circle": ({"info": CIRCLE}, "info that JSON can't hold: Circular reference"),
}


def giving(cls, result):
    class Wrong(cls):
        def forward(self, image, *others):
            return result(image) if callable(result) else result

    return Wrong


class TestFieldsOfAnotherType:
    @pytest.mark.parametrize(("fields", "told"), WRONG.values(), ids=WRONG)
    @pytest.mark.parametrize("cls", [ImageModel, MaskModel, InpaintModel])
    def test_an_error_that_names_the_model(self, cls, fields, told):
        image = {} if cls is MaskModel else {"image": IMAGE}
        masks = {"masks": MASK} if cls is MaskModel else {}
        manager = host(OneModel("wrong", giving(cls, Result(**image, **{**masks, **fields})), task=cls.task))
        with pytest.raises(ModelOutputError, match=f"wrong:wrong: Wrong.forward returned .*{told}"):
            manager.run("wrong", IMAGE, mask=MASK if cls is InpaintModel else None)
        assert set(manager.pool.stats().leases.values()) == {0}

    @pytest.mark.parametrize("scores", [np.array([0.25, 0.5]), [np.float32(0.25), 0.5], iter((0.25, 0.5))])
    def test_any_numbers_are_scores(self, scores):
        result = Result(masks=np.stack([MASK, MASK]), scores=scores, labels=["a", "b"])
        found = host(OneModel("find", giving(MaskModel, result), task=Task.SEGMENT)).run("find", IMAGE)
        assert (found.scores, found.labels) == ((0.25, 0.5), ("a", "b"))

    @pytest.mark.parametrize("masks", [[MASK], iter([MASK]), MASK > 0, np.zeros((0, 3, 3), np.uint8)])
    def test_the_shape_that_masks_have_is_told(self, masks):
        manager = host(OneModel("wrong", giving(MaskModel, Result(masks=masks)), task=Task.SEGMENT))
        with pytest.raises(ModelOutputError, match=r"of shape \(24, 32\) or \(N, 24, 32\)\."):
            manager.run("wrong", IMAGE)

    @pytest.mark.parametrize("image", [np.zeros((0, 0, 3), np.uint8), "an image"])
    def test_the_shape_that_an_image_has_is_told(self, image):
        manager = host(OneModel("wrong", giving(ImageModel, image), task=Task.RESTORE))
        with pytest.raises(ModelOutputError, match=r"of shape \(H, W, 3\) or \(H, W, 4\), of one pixel at least"):
            manager.chain(IMAGE, [Step("wrong"), Step("wrong")])


class TestFiles:
    @pytest.mark.parametrize(
        "result",
        [
            Result(maps={"a/b": IMAGE / 255, "a_b": IMAGE / 128}, image=IMAGE),
            Result(maps={"mask": MASK}, masks=MASK[None], image=IMAGE),
        ],
        ids=["two maps", "a map and a mask"],
    )
    def test_nothing_of_a_result_is_written_over_the_rest(self, result, tmp_path):
        with pytest.raises(PictureWriteError, match=r"The map .* would be written over .*, which holds"):
            write_result(result, Picture(PIL.Image.fromarray(IMAGE)), tmp_path / "a.png", quality=90)

    @pytest.mark.parametrize(
        ("result", "beside"),
        [
            (Result(masks=MASK[None]), []),
            (Result(masks=np.stack([MASK, MASK])), ["a.0.mask.png", "a.1.mask.png"]),
            (Result(maps={"depth": MASK, "sharp": MASK}), ["a.sharp.png"]),
            (Result(masks=MASK[None], maps={"depth": MASK}), ["a.depth.png"]),
        ],
        ids=["a mask", "masks", "maps", "a mask and a map"],
    )
    def test_what_stands_for_a_result_without_image_is_not_written_again(self, result, beside, tmp_path):
        files = write_result(result, Picture(PIL.Image.fromarray(IMAGE)), tmp_path / "a.png", quality=90)
        assert [file.name for file in files] == ["a.png", *beside]
        assert sorted(files) == sorted(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("values", "shown"),
        [
            ([2.0, 4.0, 3.0, np.nan, np.inf, -np.inf], [0, 65535, 32768, 0, 65535, 0]),
            ([3.0, 3.0], [0, 0]),
            ([np.nan, np.nan], [0, 0]),
        ],
        ids=["some that are none", "one", "none"],
    )
    def test_numbers_of_a_map_are_spread_from_black_to_white(self, values, shown, tmp_path):
        result = Result(maps={"depth": np.array([values], np.float32)})
        write_result(result, Picture(PIL.Image.fromarray(IMAGE)), tmp_path / "a.png", quality=90)
        assert np.asarray(PIL.Image.open(tmp_path / "a.png")).tolist() == [shown]

    @pytest.mark.parametrize("name", ["a.npy", "a.png"])
    def test_an_array_that_can_not_be_written_leaves_nothing_half_done(self, name, tmp_path):
        result = Result(image=IMAGE if name == "a.png" else None, maps={"depth": np.array([[object()]])})
        with pytest.raises(PictureWriteError):
            write_result(result, Picture(PIL.Image.fromarray(IMAGE)), tmp_path / name, quality=90)
        assert not [*tmp_path.glob("*.npy")]

    @pytest.mark.parametrize("name", ["../a", "..", "/a", "a\\b", "a\0b", ""])
    def test_a_map_stays_beside_the_image_whatever_its_name(self, name, tmp_path):
        (tmp_path / "out").mkdir()
        path = tmp_path / "out" / "a.png"
        result = Result(image=IMAGE, maps={name: IMAGE / 255})
        files = write_result(result, Picture(PIL.Image.fromarray(IMAGE)), path, quality=90)
        assert len(files) == 2
        assert sorted(files) == sorted(found for found in tmp_path.rglob("*") if found.is_file())
        assert {file.parent for file in files} == {path.parent}

    def test_text_that_is_none_is_escaped(self, tmp_path):
        path = tmp_path / "a.json"
        write_result(Result(info={"said": "a\ud800é"}), Picture(PIL.Image.fromarray(IMAGE)), path, quality=90)
        assert json.loads(path.read_text("utf-8"))["info"] == {"said": "a\ud800é"}


class TestJson:
    def test_what_json_holds_stays_as_it_is(self):
        info = {"seed": 7, "faces": [{"box": [1, 2.5, None]}], "by": "blur"}
        found = host(OneModel("found", giving(ImageModel, Result(image=IMAGE, info=info)), task=Task.RESTORE)).run(
            "found", IMAGE
        )
        assert json.loads(json.dumps(found.info)) == info
