"""What a model takes, as it declares it: checked, described, and the same for every way in."""

import asyncio
import base64
import json
import pickle
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Annotated

import cv2
import numpy as np
import PIL.Image
import pytest
from annotated_types import Ge, Le
from conftest import ROOT, make_plugin, photograph

from iopaint_core import (
    AsyncModelManager,
    InpaintModel,
    InputError,
    MaskModel,
    ModelInfo,
    ModelManager,
    ModelType,
    Stage,
    batch,
    hookimpl,
    scan_models,
)
from iopaint_core.errors import PluginError, RequestError
from iopaint_core.parameters import (
    IOPAINT_FIELDS,
    Box,
    Click,
    HDStrategy,
    Hint,
    ImageParameters,
    InpaintParameters,
    InpaintRequest,
    MaskParameters,
    Parameters,
    check_declaration,
    iopaint_flags,
)
from iopaint_plugins.diffusion.parameters import DiffusionParameters
from iopaint_plugins.erase import ErasePersonParameters, EraseTextParameters
from iopaint_plugins.interactive_seg.models import Sam3Parameters
from iopaint_plugins.opencv import CV2Parameters
from iopaint_plugins.person import PersonParameters
from iopaint_plugins.text import TextParameters


class Kind(str, Enum):
    """How to blur."""

    GAUSSIAN = "gaussian"
    BOX = "box"


@dataclass(frozen=True)
class Weighted:
    """A name with a weight."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True)
class BlurParameters(InpaintParameters):
    """How `blur` blurs."""

    radius: Annotated[int, Ge(1), Le(100), Hint(widget="slider", unit="px")] = 15
    """Radius of the Gaussian."""
    kind: Kind = Kind.GAUSSIAN
    """Shape of the
    kernel."""
    strength: float = 0.5
    """How much of it is seen."""
    styles: tuple[Weighted, ...] = ()
    """Styles and their weights."""
    prompt: str = ""
    """What to think of."""

    @property
    def variant(self):
        return tuple(style.name for style in getattr(self, "styles", ())) or None

    def for_outpainting(self):
        return replace(self, strength=1.0) if hasattr(self, "strength") else self


class TestParse:
    @pytest.mark.parametrize(
        "data",
        [
            {"radius": 20, "hd_strategy": "Resize"},
            '{"radius": 20, "hd_strategy": "Resize"}',
            b'\xef\xbb\xbf{"radius": 20, "hd_strategy": "Resize"}',
            BlurParameters(radius=20, hd_strategy="Resize"),
            InpaintRequest(radius=20, hd_strategy=HDStrategy.RESIZE),
        ],
        ids=["mapping", "JSON", "bytes with a BOM", "instance", "IOPaint's request"],
    )
    def test_every_way_in_gives_an_instance_of_the_models_class(self, data):
        parsed = BlurParameters.parse(data)
        assert type(parsed) is BlurParameters
        assert parsed == BlurParameters(radius=20, hd_strategy=HDStrategy.RESIZE)
        assert parsed.hd_strategy is HDStrategy.RESIZE
        assert json.dumps(InpaintRequest(radius=20)) == '{"radius": 20}'

    def test_nothing_means_the_defaults(self):
        assert BlurParameters.parse() == BlurParameters.parse({}) == BlurParameters()

    def test_what_was_parsed_is_not_parsed_again_and_what_was_made_from_it_is(self):
        parsed = BlurParameters.parse({"radius": 20})
        assert BlurParameters.parse(parsed) is parsed
        with pytest.raises(RequestError, match="'radius' is 0"):
            BlurParameters.parse(replace(parsed, radius=0))

    def test_an_instance_of_another_class_is_taken_by_its_fields(self):
        @dataclass(frozen=True)
        class Other(InpaintParameters):
            radius: int = 3
            sharpness: int = 1

        assert BlurParameters.parse(InpaintParameters(sd_mask_blur=2)) == BlurParameters(sd_mask_blur=2)
        assert BlurParameters.parse(Other()).radius == 3
        assert InpaintParameters.parse(BlurParameters(prompt="x", sd_scale=0.5)) == InpaintParameters(sd_scale=0.5)
        with pytest.raises(RequestError, match="unknown key 'sharpness'"):
            BlurParameters.parse(Other(sharpness=2))

    def test_every_field_of_iopaint_may_be_given_to_every_model(self):
        assert ImageParameters.parse(dict.fromkeys(IOPAINT_FIELDS, "x")) == ImageParameters()
        with pytest.raises(RequestError, match="'prompt' is 3"):
            BlurParameters.parse({"prompt": 3})

    @pytest.mark.parametrize(
        ("data", "told"),
        [
            ({"radius": 200}, ["'radius' is 200: ", "less than or equal to 100", "The keys are: hd_strategy,"]),
            ('{"radius": "wide"}', ["'radius' is 'wide'", "valid integer"]),
            ({"hd_strategy": "Shrink"}, ["'Original', 'Resize' or 'Crop'"]),
            ({"radios": 3, "sd_mask_blur": -1}, ["unknown key 'radios' (did you mean radius?)", "'sd_mask_blur'"]),
            ({"strength": float("nan")}, ["'strength' is nan", "finite"]),
            ('{"sd_scale": Infinity}', ["'sd_scale' is inf"]),
            ({"styles": [{"name": "a", "scales": 2}]}, ["'styles.0.scales' is an unknown key"]),
            ({"styles": (Weighted(3),)}, ["'styles.0.name' is 3"]),
            ("[1, 2]", ["expected a JSON object, a mapping of names, or BlurParameters, got [1, 2]"]),
            ("{", ["expected JSON, got '{'"]),
            ("[" * 100_000, ["expected JSON"]),
            ({3: 4}, ["expected a JSON object"]),
            (7, ["got 7"]),
        ],
    )
    def test_an_error_says_which_key_what_was_found_and_what_was_expected(self, data, told):
        with pytest.raises(RequestError) as caught:
            BlurParameters.parse(data)
        for words in told:
            assert words in str(caught.value)

    def test_an_error_never_holds_a_huge_value(self):
        huge = "A" * 1_000_000
        wrong = [
            {"radius": huge},
            {huge: 1},
            huge,
            {f"key{i}": 1 for i in range(100_000)},
            {"styles": [huge] * 1000},
            {"strength": np.zeros((100, 100, 3))},
        ]
        for data in wrong:
            with pytest.raises(RequestError) as caught:
                BlurParameters.parse(data)
            assert len(str(caught.value)) < 3000

    def test_clicks_and_boxes_come_in_iopaints_form_and_by_name(self):
        parsed = MaskParameters.parse('{"clicks": [[3, 4, 0], {"x": 5, "y": 6}], "boxes": [[1, 2, 3, 4]]}')
        assert parsed.clicks == (Click(3, 4, positive=False), Click(5, 6))
        assert parsed.boxes == (Box(left=1, top=2, right=3, bottom=4),)
        assert np.arange(25).reshape(5, 5)[parsed.boxes[0].slices].shape == (2, 2)
        with pytest.raises(RequestError, match=r"clicks\.0\.\w' is -1"):
            MaskParameters.parse({"clicks": [Click(-1, 3)]})

    def test_a_class_with_slots_is_served_too(self):
        @dataclass(frozen=True, slots=True)
        class Slots(ImageParameters):
            strength: float = 0.5

        assert Slots.parse({"strength": 1}).strength == 1.0


class TestSchema:
    def test_it_holds_types_bounds_defaults_docstrings_and_hints(self):
        schema = BlurParameters.json_schema()
        assert schema["title"] == "BlurParameters"
        assert schema["description"] == "How `blur` blurs."
        assert schema["properties"]["radius"] == {
            "title": "Radius",
            "type": "integer",
            "minimum": 1,
            "maximum": 100,
            "default": 15,
            "description": "Radius of the Gaussian.",
            "x-widget": "slider",
            "x-unit": "px",
        }
        assert schema["properties"]["kind"]["description"] == "Shape of the\nkernel."
        assert schema["$defs"]["Kind"]["enum"] == ["gaussian", "box"]
        json.dumps(schema)

    @pytest.mark.parametrize("cls", [InpaintParameters, ImageParameters, MaskParameters, BlurParameters])
    def test_every_field_is_described(self, cls):
        schema = cls.json_schema()
        assert set(schema["properties"]) == set(cls.names())
        assert all(entry["description"] for entry in schema["properties"].values())

    def test_its_author_is_warned_of_a_field_without_docstring(self):
        @dataclass(frozen=True)
        class Terse(ImageParameters):
            told: int = 1
            """Told."""
            untold: int = 2

        with pytest.warns(UserWarning, match=r"Terse has fields without a docstring below them: untold$"):
            Terse.json_schema()
        assert Terse.parse({"untold": 3}).untold == 3, "calls warn of nothing"

    def test_a_class_without_source_is_described_without_docstrings(self):
        space = {"dataclass": dataclass, "Base": ImageParameters, "__name__": "nowhere"}
        exec("@dataclass(frozen=True)\nclass Made(Base):\n    level: int = 1\n    '''Level.'''", space)
        assert "description" not in space["Made"].json_schema()["properties"]["level"]

    def test_the_flags_of_iopaint_follow_from_the_fields(self):
        assert iopaint_flags(BlurParameters) == {
            "need_prompt": True,
            "support_strength": False,
            "support_outpainting": True,
            "support_lcm_lora": False,
            "support_controlnet": False,
            "support_brushnet": False,
            "support_powerpaint_v2": False,
        }
        assert not any(iopaint_flags(MaskParameters).values())


class TestOnly:
    def test_it_has_the_frameworks_fields_and_those_named(self):
        subset = BlurParameters.only("radius", "sd_scale")
        assert subset.names() == (*InpaintParameters.names(), "radius")
        assert issubclass(subset, BlurParameters)
        assert BlurParameters.only("sd_scale", "radius") is subset
        assert BlurParameters.only(*BlurParameters.names()) is BlurParameters
        assert set(subset.json_schema()["properties"]) == set(subset.names())
        assert subset.json_schema()["title"] == "BlurParameters"
        assert subset.json_schema()["properties"]["radius"]["description"] == "Radius of the Gaussian."

    def test_the_others_are_neither_taken_nor_there(self):
        subset = BlurParameters.only("radius", "styles")
        with pytest.raises(RequestError, match=r"unknown key 'strength'\. The keys are: .*, radius, styles\."):
            subset.parse({"strength": 1.0})
        parsed = subset.parse({"radius": 2, "prompt": "ignored"})
        assert repr(parsed).startswith("BlurParameters.only(radius, styles)(")
        with pytest.raises(AttributeError, match=r"only\(radius, styles\) has no field 'strength'"):
            _ = parsed.strength
        assert parsed.for_outpainting() is parsed
        assert parsed.variant is None
        assert subset.parse({"styles": [{"name": "a"}]}).variant == ("a",)
        with pytest.raises(TypeError):
            subset(strength=1.0)

    def test_a_subset_of_a_subset_is_smaller(self):
        subset = BlurParameters.only("radius", "styles").only("radius")
        assert subset.names() == (*InpaintParameters.names(), "radius")
        with pytest.raises(PluginError, match="no field 'styles'"):
            subset.only("styles")

    def test_an_unknown_name_is_an_error(self):
        with pytest.raises(PluginError, match=r"no field 'radios' \(did you mean radius\?\)"):
            BlurParameters.only("radios")

    def test_instances_are_pickled(self):
        parsed = BlurParameters.only("radius").parse({"radius": 3})
        again = pickle.loads(pickle.dumps(parsed))
        assert again == parsed
        assert type(again) is type(parsed)


class TestDeclarations:
    def test_what_is_no_frozen_dataclass(self):
        class Bare(InpaintParameters):
            radius: int = 3

        for wrong in (Bare, BlurParameters(), int, "blur"):
            with pytest.raises(PluginError, match=r"expected a subclass of Parameters|is not a frozen dataclass"):
                check_declaration(wrong)

    def test_a_field_without_default(self):
        @dataclass(frozen=True)
        class Needy(InpaintParameters):
            radius: int = field(kw_only=True)

        with pytest.raises(PluginError, match="Needy: the field 'radius' has no default"):
            check_declaration(Needy)

    def test_a_default_out_of_bounds(self):
        @dataclass(frozen=True)
        class Wild(InpaintParameters):
            radius: Annotated[int, Le(3)] = 4

        with pytest.raises(PluginError, match=r"Wild: the default of 'radius' is 4: .*less than or equal to 3"):
            Wild.parse({})

    def test_a_type_that_json_cannot_hold(self):
        @dataclass(frozen=True)
        class Arrays(InpaintParameters):
            size: int = 1
            weights: np.ndarray | None = None

        @dataclass(frozen=True)
        class Calls(InpaintParameters):
            size: int = 1
            call: Callable[[], None] = print

        for cls, name in ((Arrays, "weights"), (Calls, "call")):
            with pytest.raises(PluginError, match=f"{cls.__name__}: JSON can't hold the type of '{name}'"):
                cls.json_schema()
            with pytest.raises(PluginError, match=f"{cls.__name__}: JSON can't hold the type of '{name}'"):
                cls.parse({})

    def test_a_name_of_the_frameworks_with_another_type(self):
        @dataclass(frozen=True)
        class Odd(InpaintParameters):
            sd_scale: str = "half"

        @dataclass(frozen=True)
        class Fine(InpaintParameters):
            hd_strategy: HDStrategy = HDStrategy.RESIZE
            sd_mask_blur: Annotated[int, Le(20)] = 3

        with pytest.raises(PluginError, match="'sd_scale' is float, and it declares it as str"):
            Odd.parse({})
        assert Fine.parse({}).hd_strategy is HDStrategy.RESIZE

    def test_annotations_may_be_strings(self, tmp_path, monkeypatch):
        (tmp_path / "strings.py").write_text(
            textwrap.dedent(
                """
                from __future__ import annotations
                from dataclasses import dataclass
                from typing import TYPE_CHECKING, Annotated
                from annotated_types import Le
                from iopaint_core.parameters import ImageParameters
                if TYPE_CHECKING:
                    from decimal import Decimal

                @dataclass(frozen=True)
                class Good(ImageParameters):
                    radius: Annotated[int, Le(100)] = 15
                    '''Radius.'''

                @dataclass(frozen=True)
                class Bad(ImageParameters):
                    amount: Decimal | None = None

                def make():
                    @dataclass(frozen=True)
                    class Local(Good):
                        width: Annotated[int, Le(3)] = 1
                        '''Width.'''
                    return Local
                """
            )
        )
        monkeypatch.syspath_prepend(tmp_path)
        import strings

        local = strings.make()
        assert local.parse({"radius": 3, "width": 2}).width == 2
        assert local.json_schema()["properties"]["width"]["description"] == "Width."
        with pytest.raises(RequestError, match="'radius' is 101"):
            local.parse({"radius": 101})
        with pytest.raises(PluginError, match=r"the type of 'amount' names Decimal.*outside of `if TYPE_CHECKING`"):
            strings.Bad.parse({})


def test_declaring_a_model_and_calling_it_without_parameters_imports_no_pydantic():
    code = """
        import sys
        from iopaint_core import ModelManager, scan_models
        from iopaint_plugins.diffusion.parameters import DiffusionParameters
        DiffusionParameters.only("prompt")
        assert "cv2" in [info.name for info in scan_models()]
        assert not {"pydantic", "numpy"} & set(sys.modules)
        import numpy as np
        image = np.zeros((9, 9, 3), np.uint8)
        ModelManager().inpaint("cv2", image, image[..., 0])
        assert "pydantic" not in sys.modules
        ModelManager().inpaint("cv2", image, image[..., 0], {"cv2_radius": 3})
        assert "pydantic" in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_the_base_class_has_no_fields_and_no_variant():
    assert Parameters.parse({"hd_strategy": "Crop"}) == Parameters()
    assert Parameters().variant is None


COUNTED = []


@dataclass(frozen=True)
class CountedParameters(InpaintParameters):
    """Counts how often values are checked."""

    level: Annotated[int, Ge(0), Le(255)] = 9
    """How bright."""
    style: str = ""
    """What is loaded with the model."""

    def __post_init__(self):
        COUNTED.append(threading.get_ident())

    @property
    def variant(self):
        return {"list": ["unhashable"]}.get(self.style, self.style or None)


class Painter(InpaintModel):
    """Paints a level, and remembers how many leases there were meanwhile."""

    def __init__(self, manager, variant):
        self.manager, self.variant, self.leases, self.seen = manager, variant, [], []

    def forward(self, image, mask, parameters):
        self.leases.append(sum(self.manager().pool.stats().leases.values()))
        self.seen.append(parameters)
        image[:] = parameters.level
        return image


@pytest.fixture
def painters(plugins):
    """A manager whose model `paint` takes `CountedParameters`, and what its loader made."""
    made = []

    class Plugin:
        @hookimpl
        def iopaint_available_models(self):
            return [ModelInfo("paint", ModelType.PLUGIN, parameters=CountedParameters)]

        @hookimpl
        def iopaint_load_model(self, info, context):
            made.append(Painter(lambda: manager, context.variant))
            return made[-1]

    plugins.register(Plugin(), "paint")
    manager = ModelManager(plugins)
    CountedParameters.parse({})
    COUNTED.clear()
    yield manager, made
    COUNTED.clear()


IMAGE, MASK = photograph(), np.full((40, 60), 255, np.uint8)


class TestCalls:
    def test_values_are_checked_once_and_the_model_is_leased_once(self, painters):
        manager, made = painters
        assert (manager.inpaint("paint", IMAGE, MASK, {"level": 3}) == 3).all()
        assert len(COUNTED) == 1
        assert made[0].leases == [1]

    def test_so_they_are_for_an_event_loop_and_in_a_thread(self, painters):
        manager, made = painters

        async def call():
            asynchronous = AsyncModelManager(manager)
            try:
                return await asynchronous.inpaint("paint", IMAGE, MASK, {"level": 3})
            finally:
                asynchronous.close()

        assert (asyncio.run(call()) == 3).all()
        assert len(COUNTED) == 1
        assert threading.get_ident() not in COUNTED
        assert made[0].leases == [1]

    def test_so_they_are_for_a_folder_of_pictures(self, painters, tmp_path):
        manager, made = painters
        (tmp_path / "in").mkdir()
        for name in "abc":
            PIL.Image.fromarray(IMAGE).save(tmp_path / "in" / f"{name}.png")
        PIL.Image.fromarray(MASK).save(tmp_path / "mask.png")
        jobs = batch.plan(tmp_path / "in", tmp_path / "mask.png", tmp_path / "out")
        outcomes = list(batch.run(manager, "paint", jobs, batch.Options(parameters='{"level": 3}')))
        assert [outcome.status for outcome in outcomes] == [batch.Status.REPAIRED] * 3
        assert len(COUNTED) == 1
        assert made[0].leases == [1, 1, 1]

    def test_a_wrong_value_is_told_before_anything_is_loaded(self, painters):
        manager, made = painters
        with pytest.raises(RequestError, match="'level' is 300"):
            manager.inpaint("paint", IMAGE, MASK, CountedParameters(level=300))
        assert made == []

    def test_a_loaded_model_checks_what_it_is_called_with_by_its_own_class(self, painters):
        manager, _ = painters
        with manager.load("paint") as model:
            assert (model(IMAGE, MASK, {"level": 7}) == 7).all()
            with pytest.raises(RequestError, match=r"unknown key 'lever' \(did you mean level\?\)"):
                model(IMAGE, MASK, {"lever": 7})

    def test_the_class_is_a_problem_of_its_plugin_if_it_is_none(self, plugins):
        class Bare(InpaintParameters):
            level: int = 3

        def wrong():
            return [ModelInfo("wrong", ModelType.PLUGIN, parameters=Bare)]

        plugins.register(make_plugin(iopaint_available_models=hookimpl(wrong)), "wrong")
        plugins.register(make_plugin("red"), "red")
        report = ModelManager(plugins).scan()
        assert [info.name for info in report.models] == ["red"]
        assert [(problem.plugin, problem.stage) for problem in report.problems] == [("wrong", Stage.SCAN)]
        assert "Bare: it is not a frozen dataclass. Decorate it with" in str(report.problems[0])

    def test_a_mask_to_refine_comes_as_an_array_or_as_a_file_in_base64(self):
        class Refined(MaskModel):
            def forward(self, image, parameters):
                return 255 - parameters.mask_input

        mask = np.zeros(IMAGE.shape[:2], np.uint8)
        mask[3:9, 4:20] = 255
        by_array = MaskParameters.parse({"mask_input": mask})
        file = base64.b64encode(cv2.imencode(".png", mask)[1].tobytes()).decode()
        by_text = MaskParameters.parse(json.dumps({"mask_input": file}))
        assert by_array.mask_input.base is mask, "an array is not copied"
        for parsed in (by_array, by_text, MaskParameters.parse(by_array)):
            assert np.array_equal(parsed.mask_input, mask)
            assert not parsed.mask_input.flags.writeable
        mask_schema = MaskParameters.json_schema()["properties"]["mask_input"]
        assert mask_schema["anyOf"] == [{"type": "string", "contentEncoding": "base64"}, {"type": "null"}]
        assert (mask_schema["x-widget"], mask_schema["default"]) == ("mask", None)
        assert np.array_equal(Refined()(IMAGE, {"mask_input": mask}), 255 - mask)
        assert np.array_equal(Refined()(IMAGE, MaskParameters(mask_input=mask)), 255 - mask)
        assert MaskParameters.parse({"mask_input": None}).mask_input is None
        with pytest.raises(InputError, match=r"The image is \d+ x \d+ and the mask_input 5 x 4"):
            Refined()(IMAGE, {"mask_input": mask[:4, :5]})
        for text in ("####", base64.b64encode(b"no image").decode()):
            with pytest.raises(RequestError, match=r"'mask_input' is .* expected an image file in base64"):
                Refined()(IMAGE, {"mask_input": text})
        with pytest.raises(RequestError, match="expected an array, or an image file in base64, got list"):
            Refined()(IMAGE, {"mask_input": [[0]]})
        with pytest.raises(RequestError, match=r"expected a uint8 array of shape \(H, W\), got float64"):
            Refined()(IMAGE, {"mask_input": mask / 255})

    def test_boxes_outside_the_image_are_refused(self):
        class Boxed(MaskModel):
            def forward(self, image, parameters):
                mask = np.zeros(image.shape[:2], np.uint8)
                for box in parameters.boxes:
                    mask[box.slices] = 255
                return mask

        assert (Boxed()(IMAGE, {"boxes": [[10, 20, 60, 40]]}) > 0).sum() == 50 * 20
        for box in ([-1, 0, 5, 5], [0, 0, 61, 5], [5, 0, 5, 5], [0, 5, 5, 4]):
            with pytest.raises(InputError, match=r"empty, or not within the image of 60 x 40\. Give left < right"):
                Boxed()(IMAGE, {"boxes": [box]})


class TestVariants:
    def test_each_is_a_model_of_its_own_and_its_loader_is_told(self, painters):
        manager, made = painters
        for style in ("", "a", "b", "a"):
            manager.inpaint("paint", IMAGE, MASK, {"style": style})
        assert [model.variant for model in made] == [None, "a", "b"]
        with manager.load("paint", variant="b") as model:
            assert model is made[2]
        assert manager.unload("paint")
        assert manager.pool.stats().leases == {}

    def test_a_model_that_has_none_is_not_loaded_with_one(self, manager):
        with pytest.raises(RequestError, match="red has no variants, and 'a' is asked for"):
            manager.load("red", variant="a")

    def test_one_that_is_not_hashable_is_told(self, painters):
        manager, made = painters
        with pytest.raises(
            PluginError, match=r"CountedParameters\.variant of paint is not hashable: unhashable type"
        ):
            manager.inpaint("paint", IMAGE, MASK, {"style": "list"})
        assert made == []


class TestDocs:
    def test_the_guides_example_is_run(self, plugins):
        guide = (
            (ROOT / "docs" / "plugins.md").read_text().partition("\n## Parameters\n")[2].partition("## Loading")[0]
        )
        (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
        space = {"__name__": "a_guide"}
        exec(code, space)
        announce = hookimpl(lambda: [space["info"]])
        hooks = {"iopaint_available_models": announce}
        plugins.register(make_plugin(load=space["Blur"], **hooks), "blur")
        manager = ModelManager(plugins)
        one, other = (manager.inpaint("blur", IMAGE, MASK, {"radius": radius}) for radius in (2, 20))
        assert not np.array_equal(one, other)
        with pytest.raises(RequestError, match="'radius' is 101"):
            manager.inpaint("blur", IMAGE, MASK, '{"radius": 101}')

    def test_every_field_of_the_first_party_models_is_in_the_table(self):
        table = (ROOT / "docs" / "parameters.md").read_text()
        for cls in (
            *(InpaintParameters, ImageParameters, MaskParameters, CV2Parameters, DiffusionParameters),
            *(TextParameters, PersonParameters, EraseTextParameters, ErasePersonParameters),
            Sam3Parameters,
        ):
            for name, entry in cls.json_schema()["properties"].items():
                assert f"`{name}`" in table, "the table lacks it"
                assert f"`{json.dumps(entry['default'])}`" in table, f"the default of {name}"


def test_a_model_that_reads_no_field_of_its_own_declares_none():
    assert {info.name: info.parameters for info in scan_models() if info.plugin_name == "lama"} == {
        "lama": InpaintParameters,
        "anime-lama": InpaintParameters,
    }


def test_cv2_reads_what_it_declares(reads):
    read = reads(CV2Parameters)
    ModelManager().inpaint("cv2", IMAGE, np.eye(40, 60, dtype=np.uint8) * 255)
    assert read == {*CV2Parameters.names()} - {*InpaintParameters.names()}
