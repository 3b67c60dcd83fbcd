"""Values that plugins give: each is made plain, or refused in words, and none costs anyone else anything."""

import dataclasses
import enum
import json
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iopaint_core import (
    ImageParameters,
    InpaintParameters,
    LoadOptions,
    ModelInfo,
    ModelManager,
    ModelType,
    Parameters,
    PluginError,
    PluginManager,
    Task,
    WeightFile,
    hookimpl,
    scan,
)
from iopaint_core.cli import _described

URL = "https://example.org/a.pth"


def dies(*_):
    raise SystemExit("not today")


class LyingText(str):
    """Text that ends the process when it is compared, hashed, shown or asked for anything."""

    __slots__ = ()
    __eq__ = __ne__ = __hash__ = __str__ = __repr__ = __format__ = __len__ = __contains__ = dies
    encode = strip = lower = split = isprintable = startswith = partition = dies


class LyingList(list):
    __hash__ = None
    __eq__ = __repr__ = __iter__ = dies


class Liar:
    __eq__ = __hash__ = __str__ = __repr__ = __bool__ = __fspath__ = __iter__ = __len__ = dies
    __class__ = property(dies)


class Claims:
    """Says that it is a ModelInfo, and has nothing of one."""

    __class__ = ModelInfo


class Meta(type):
    """Of classes that do the same, once they are made."""

    made = False

    def __eq__(cls, other):
        return dies() if Meta.made else cls is other

    def __hash__(cls):
        return dies() if Meta.made else id(cls)

    __repr__ = dies


class PathLike:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


@dataclasses.dataclass(frozen=True)
class FileOfTheirs(WeightFile):
    __eq__ = __hash__ = __repr__ = dies


@dataclasses.dataclass(frozen=True)
class TaskOfTheirs(Task):
    __eq__ = __hash__ = __repr__ = dies


Lies = Meta("Lies", (), {})
LyingParameters = dataclasses.dataclass(frozen=True)(Meta("LyingParameters", (InpaintParameters,), {}))
LyingOptions = dataclasses.dataclass(frozen=True)(Meta("LyingOptions", (LoadOptions,), {}))
Meta.made = True

HOSTILE = [
    None, True, 0, -1, 1.5, float("nan"), 10**400, "", " ", "a", "a:b", "a\nb", "\udc80", "\0", "x" * 10_000, b"a",
    [], ["MIT"], {}, {"a": 1}, {1}, (), (None,), ("a",), object(), object, dies, URL, 2 + 1j, Ellipsis, enum.Enum,
    LyingText("a"), LyingText("inpaint"), LyingText(URL), LyingList(), Liar(), Claims(), Lies, Lies(),
    Path("a"), PathLike("a"), PathLike(b"a"), PathLike(LyingText("a")), PathLike(3), Path("a\0b"),
    WeightFile(url=URL), [WeightFile(url=URL)], FileOfTheirs(url=URL), (FileOfTheirs(url=URL),), (LyingText(URL),),
    Task.RESTORE, Task, TaskOfTheirs("own"), ModelType.PLUGIN, ModelType, "plugin", ModelInfo("inner"),
    Parameters, ImageParameters, InpaintParameters, InpaintParameters(), LyingParameters, LyingOptions, LoadOptions,
    LoadOptions(), (LyingText("a"),), [LyingText("a")], ["a", None], "image", ["image", LyingText("masks")],
    [Liar()], types.ModuleType("a"),
]  # fmt: skip
numbers = st.sampled_from(range(len(HOSTILE)))
"""Of hostile values: none of them can be shown by Hypothesis."""


def fields(cls):
    return st.sampled_from([field.name for field in dataclasses.fields(cls)])


def announcing(models):
    module = types.ModuleType("plugin")

    @hookimpl
    def iopaint_available_models():
        return models()

    @hookimpl
    def iopaint_load_model(info, context): ...

    module.iopaint_available_models, module.iopaint_load_model = iopaint_available_models, iopaint_load_model
    return module


def check_scan(models):
    """Scan a plugin that announces `models()` beside an innocent one; True if it has no problems."""
    plugins = PluginManager(allow=[])
    plugins.register(announcing(models), "hostile")
    plugins.register(announcing(lambda: [ModelInfo("innocent")]), "innocent")
    manager = ModelManager(plugins)
    report = manager.scan()
    assert [info.name for info in report.models if info.plugin_name == "innocent"] == ["innocent"]
    assert manager.find("innocent:innocent").name == "innocent"
    assert len({*report.models}) == len(report.models)
    assert [*report.models] == [*report.models]
    json.dumps([_described(info, False) for info in report.models]).encode()
    for info in report.models:
        str(info).encode()
        assert manager.find(info.full_name) == info
    for problem in report.problems:
        assert problem.plugin == "hostile"
        assert str(problem).encode()
        assert problem.remedy
    return not report.problems


def check_made(make):
    """Whether it is made; if not, `PluginError` says why, what was found and what to do."""
    try:
        made = make()
    except PluginError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert refused.remedy
        assert str(refused).encode()
        assert len(str(refused)) < 600
        return False
    assert hash(made) == hash(dataclasses.replace(made))
    assert made == dataclasses.replace(made)
    repr(made).encode()
    return True


@given(fields(ModelInfo), numbers)
def test_any_value_of_a_model(name, number):
    value = HOSTILE[number]

    def make():
        return ModelInfo(**{"name": "x", name: value})

    if name in {"plugin_name", "distribution"} and issubclass(type(value), str):
        return  # the catalog puts its own in their place
    assert check_made(make) == check_scan(lambda: [make()])


@given(fields(WeightFile), numbers)
def test_any_value_of_a_file(name, number):
    def make():
        return WeightFile(**{"url": URL, name: HOSTILE[number]})

    made = check_made(make)
    assert check_scan(lambda: [ModelInfo("x", weights=(make(),))]) == made


@given(fields(Task), numbers)
def test_any_value_of_a_task(name, number):
    def make():
        return Task(**{"name": "own", name: HOSTILE[number]})

    assert check_made(make) == check_scan(lambda: [ModelInfo("x", task=make())])


@pytest.mark.parametrize("cls", [ModelInfo, WeightFile, Task])
def test_every_value_of_every_field(cls):
    """All of them, made alone; the tests above have some of them scanned."""
    needed = {ModelInfo: {"name": "x"}, WeightFile: {"url": URL}, Task: {"name": "own"}}[cls]
    made = [
        check_made(lambda name=field.name, value=value: cls(**{**needed, name: value}))
        for field in dataclasses.fields(cls)
        for value in HOSTILE
    ]
    assert 0 < sum(made) < len(made)


@given(numbers)
def test_anything_announced(number):
    check_scan(lambda: [HOSTILE[number]])
    check_scan(lambda: HOSTILE[number])


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        ({"weights": [WeightFile(url=URL)]}, {"weights": (WeightFile(url=URL),)}),
        ({"weights": WeightFile(url=URL)}, {"weights": (WeightFile(url=URL),)}),
        ({"path": "a/file"}, {"path": Path("a/file")}),
        ({"type": "diffusers_sd"}, {"type": ModelType.DIFFUSERS_SD}),
        ({"requires": ["lama"]}, {"requires": ("lama",)}),
        ({"title": LyingText("a")}, {"title": "a"}),
    ],
)
def test_what_is_meant_well_is_made_right(fields, made):
    assert ModelInfo("x", **fields) == ModelInfo("x", **made)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": ""}, "name expected text that can be printed, without colons, got ''. Give it a name"),
        ({"name": "a:b"}, "name expected .*, got 'a:b'"),
        ({"name": "a\nb"}, r"name expected .*, got 'a\\nb'"),
        ({"name": 7}, "name expected str, got 7. Give it as text"),
        ({"name": "x", "weights": (URL,)}, f"weights expected WeightFiles, got '{URL}'. Give a tuple of them"),
        ({"name": "x", "license": ["MIT"]}, r"license expected str, got \['MIT'\]"),
        ({"name": "x", "commercial": "no"}, "commercial expected a bool, got 'no'. Give True or False"),
        (
            {"name": "x", "type": "upscale"},
            "type expected a ModelType, got 'upscale'. Give one of ModelType.INPAINT",
        ),
        ({"name": "x", "task": "inpaint"}, "task expected a Task, got 'inpaint'. Give Task.INPAINT"),
        ({"name": "x", "path": 3}, "path expected a Path, got 3"),
        ({"name": "x", "requires": "lama"}, "requires expected names of models, got 'lama'"),
    ],
)
def test_what_is_wrong_is_told_when_it_is_made(fields, told):
    with pytest.raises(PluginError, match=f"^invalid ModelInfo: {told}"):
        ModelInfo(**fields)


def test_models_without_end_are_a_problem():
    def endless():
        while True:
            yield ModelInfo("a")

    plugins = PluginManager(allow=[])
    plugins.register(announcing(endless), "endless")
    (problem,) = scan(plugins).problems
    assert "more than 100000 models" in str(problem)
