"""Load options: declared by plugins, set by the host, its environment and its home; secrets are never shown.

And models that can't be used yet: listed, with the reason.
"""

import asyncio
import copy
import dataclasses
import json
import logging
import os
import pickle
import subprocess
import sys
import traceback
import types
from dataclasses import dataclass, field
from typing import Literal

import checkpointfiles
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Red, make_plugin, photograph

import iopaint_plugins.diffusion
from iopaint_core import (
    AsyncModelManager,
    LoadContext,
    LoadOptions,
    ModelError,
    ModelInfo,
    ModelLoadError,
    ModelManager,
    ModelPool,
    ModelType,
    OptionsError,
    PluginError,
    Secret,
    Stage,
    UnavailableModelError,
    WeightFile,
    hookimpl,
    missing_packages,
    scan,
)
from iopaint_core.cli import main
from iopaint_plugins import interactive_seg

KEY = "sk-5c1f-never-shown"
FILES = {"image": "photo", "mask": "mask", "output": "out"}
IMAGE, MASK = photograph(), np.full((40, 60), 255, dtype=np.uint8)


@dataclass(frozen=True)
class ServiceOptions(LoadOptions):
    url: str = "http://127.0.0.1/"
    api_key: Secret = Secret("")
    tries: int = 3
    tiled: bool = False
    mode: Literal["fast", "good"] = "fast"


def declares(options=ServiceOptions, *names, seen=None, **more):
    """A plugin whose models declare `options`; what its loader gets is added to `seen`."""

    @hookimpl
    def iopaint_available_models():
        return [ModelInfo(name, ModelType.PLUGIN, load_options=options, **more) for name in names or ("painter",)]

    @hookimpl
    def iopaint_load_model(context):
        if seen is not None:
            seen.append(context.options)
        return Red()

    hooks = {"iopaint_available_models": iopaint_available_models, "iopaint_load_model": iopaint_load_model}
    return make_plugin(**hooks)


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = tmp_path / "iopaint"
    home.mkdir()
    monkeypatch.setenv("IOPAINT_HOME", str(home))
    return home


@pytest.fixture
def seen(home, plugins):
    """What the loader of `painter`, of the plugin `my.service`, got."""
    seen = []
    plugins.register(declares(seen=seen), "my.service")
    plugins.register(make_plugin("red"), "red")
    return seen


def loaded(plugins, seen, **options):
    """The options that a new manager loads `painter` with."""
    ModelManager(plugins, options=options).preload("painter")
    return seen[-1]


class TestSecret:
    def test_it_is_never_shown(self):
        secret = Secret(KEY)
        options = ServiceOptions(api_key=secret)
        shown = [repr(secret), str(secret), f"{secret}", f"{secret!r}", "%s" % secret, repr(options)]  # noqa: UP031
        shown += [repr({secret: secret}), repr(dataclasses.asdict(options))]
        assert not [text for text in shown if KEY in text]
        assert all("*****" in text for text in shown)
        assert not hasattr(secret, "__dict__")
        with pytest.raises(TypeError) as raised:
            f"{secret:>40}"
        assert KEY not in str(raised.value)

    def test_json_does_not_hold_it(self):
        from pydantic import TypeAdapter

        options = ServiceOptions(api_key=Secret(KEY))
        written = TypeAdapter(ServiceOptions).dump_json(options)
        assert json.loads(written)["api_key"] == "**********"
        with pytest.raises(TypeError, match="Secret is not JSON serializable"):
            json.dumps(dataclasses.asdict(options))

    def test_pickles_do_not_hold_it(self):
        for value in (Secret(KEY), ServiceOptions(api_key=Secret(KEY))):
            with pytest.raises(TypeError, match="cannot pickle Secret"):
                pickle.dumps(value)

    def test_it_is_compared_and_copied_by_its_text(self):
        assert Secret(KEY) == Secret(KEY) != Secret("other")
        assert hash(Secret(KEY)) == hash(Secret(KEY))
        assert Secret(KEY) != KEY
        assert copy.copy(Secret(KEY)) == copy.deepcopy(Secret(KEY)) == Secret(KEY)
        assert Secret(KEY).get_secret_value() == KEY
        assert (bool(Secret(KEY)), bool(Secret(""))) == (True, False)

    def test_one_that_is_not_set_shows_that(self):
        assert (repr(Secret("")), repr(Secret(KEY))) == ("Secret('')", "Secret('**********')")

    def test_it_takes_text_only(self):
        with pytest.raises(TypeError, match="expected str, got bytes"):
            Secret(KEY.encode())


class TestClass:
    def undecorated():
        class Options(LoadOptions):
            url: str = ""

        return Options

    @dataclass(frozen=True)
    class Required(LoadOptions):
        url: str

    @dataclass(frozen=True, eq=False)
    class AllEqual(LoadOptions):
        url: str = ""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"url": ""}, "expected a subclass of LoadOptions, got dict"),
            (ServiceOptions(), "expected a subclass of LoadOptions, got ServiceOptions"),
            (LoadContext, "expected a subclass of LoadOptions, got LoadContext"),
            (undecorated(), "expected a frozen dataclass, and Options is none"),
            (Required, "expected a default for each option, and Required has none for url"),
            (AllEqual, "AllEqual is none, or has eq=False"),
        ],
    )
    def test_a_wrong_one_costs_its_own_plugin_alone(self, plugins, options, message):
        plugins.register(declares(options), "wrong")
        plugins.register(make_plugin("red"), "red")
        report = scan(plugins)
        assert [info.name for info in report.models] == ["red"]
        (problem,) = report.problems
        assert (problem.plugin, problem.stage) == ("wrong", Stage.SCAN)
        assert message in str(problem)

    def test_a_reason_that_is_no_text_is_refused(self):
        with pytest.raises(PluginError, match="unavailable expected str, got True"):
            ModelInfo("a", ModelType.PLUGIN, unavailable=True)

    @dataclass(frozen=True)
    class Unknown(LoadOptions):
        url: "Nowhere" = ""  # noqa: F821 - that is the mistake

    @dataclass(frozen=True)
    class Unhashable(LoadOptions):
        urls: list[str] = field(default_factory=list)

    @dataclass(frozen=True)
    class Raising(LoadOptions):
        url: str = ""

        def __post_init__(self):
            raise KeyError("no url")

    @pytest.mark.parametrize(
        ("options", "given", "message"),
        [
            (
                Unknown,
                {"url": ""},
                "Unknown, the options of service, can't be made: PydanticUserError: .*not fully defined",
            ),
            (Unhashable, {}, "Unhashable, the options of service, can't be made: TypeError: unhashable"),
            (Raising, {}, "Raising, the options of service, can't be made: KeyError: 'no url'"),
        ],
    )
    def test_one_that_can_not_be_used_is_an_error_of_its_models_alone(self, plugins, options, given, message):
        plugins.register(declares(options), "service")
        plugins.register(make_plugin("red"), "red")
        manager = ModelManager(plugins, options={"service": given})
        with pytest.raises(PluginError, match=message):
            manager.load("painter")
        manager.preload("red")


class TestSources:
    def test_the_defaults_without_any(self, plugins, seen):
        assert loaded(plugins, seen) == ServiceOptions()

    def test_a_model_that_declares_none_gets_none(self, plugins):
        contexts = []

        @hookimpl
        def iopaint_load_model(context):
            contexts.append(context)
            return Red()

        plugins.register(make_plugin("plain", iopaint_load_model=iopaint_load_model), "plain")
        ModelManager(plugins).preload("plain")
        assert type(contexts[0].options) is LoadOptions

    def test_each_goes_before_the_next(self, plugins, seen, home, monkeypatch):
        (home / "options.toml").write_text('["my.service"]\nurl = "file"\ntries = 7\nmode = "good"\n')
        monkeypatch.setenv("IOPAINT_MY_SERVICE_URL", "environment")
        monkeypatch.setenv("IOPAINT_MY_SERVICE_TRIES", "8")
        found = loaded(plugins, seen, **{"my.service": {"url": "host"}})
        assert found == ServiceOptions(url="host", tries=8, mode="good")

    def test_texts_of_the_environment_become_what_the_option_is(self, plugins, seen, monkeypatch):
        for name, value in {"API_KEY": KEY, "TRIES": "5", "TILED": "yes", "MODE": "good", "URL": ""}.items():
            monkeypatch.setenv(f"IOPAINT_MY_SERVICE_{name}", value)
        found = loaded(plugins, seen)
        assert found == ServiceOptions(api_key=Secret(KEY), tries=5, tiled=True, mode="good"), "empty: not set"

    def test_a_secret_may_be_given_as_one(self, plugins, seen):
        for key in (KEY, Secret(KEY)):
            assert loaded(plugins, seen, **{"my.service": {"api_key": key}}).api_key == Secret(KEY)

    def test_a_file_may_begin_with_a_mark_of_its_encoding(self, plugins, seen, home):
        (home / "options.toml").write_text('["my.service"]\nurl = "é"\n', encoding="utf-8-sig")
        assert loaded(plugins, seen).url == "é"

    def test_the_home_is_the_contexts(self, plugins, seen, tmp_path):
        (tmp_path / "options.toml").write_text('["my.service"]\ntries = 9\n')
        ModelManager(plugins, context=LoadContext(cache=tmp_path)).preload("painter")
        assert seen[-1].tries == 9

    def test_models_of_one_plugin_may_declare_different_ones(self, home):
        @dataclass(frozen=True)
        class Other(LoadOptions):
            colour: str = "red"

        contexts = {}

        @hookimpl
        def iopaint_available_models():
            return [ModelInfo(o.__name__, ModelType.PLUGIN, load_options=o) for o in (ServiceOptions, Other)]

        @hookimpl
        def iopaint_load_model(info, context):
            contexts[info.name] = context.options
            return Red()

        plugin = make_plugin(
            iopaint_available_models=iopaint_available_models, iopaint_load_model=iopaint_load_model
        )
        manager = ModelManager(options={"two": {"colour": "blue", "tries": 1}})
        manager.plugins.register(plugin, "two")
        manager.preload("ServiceOptions", "Other")
        assert contexts == {"ServiceOptions": ServiceOptions(tries=1), "Other": Other("blue")}

    def test_no_pydantic_is_imported_where_no_value_is_set(self, home):
        (home / "options.toml").write_text("[opencv]\n")
        code = (
            "import sys; from iopaint_core import ModelManager; manager = ModelManager(); manager.scan(); "
            "manager.preload('cv2'); print('pydantic' in sys.modules)"
        )
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


class TestPool:
    def test_declared_options_make_another_model_and_others_do_not(self, plugins, seen, home):
        pool = ModelPool()
        for tries in (1, 2, 1):
            manager = ModelManager(plugins, pool=pool, options={"my.service": {"tries": tries}})
            manager.preload("painter", "red")
        assert [options.tries for options in seen] == [1, 2]
        assert sorted(map(str, pool.stats().leases)) == ["painter", "painter", "red"]

    def test_another_key_is_another_model(self, plugins, seen):
        pool = ModelPool()
        for key in ("one", "two", "one"):
            ModelManager(plugins, pool=pool, options={"my.service": {"api_key": key}}).preload("painter")
        assert [options.api_key.get_secret_value() for options in seen] == ["one", "two"]

    def test_it_is_unloaded_by_its_name(self, plugins, seen):
        manager = ModelManager(plugins, options={"my.service": {"tries": 2}})
        manager.preload("painter")
        assert manager.unload("painter")
        assert not manager.pool.stats().leases


def sources(home, monkeypatch, name, value):
    """Set an option wrongly in one way after the other, with what the error should call it."""
    yield {"my.service": {name: value}}, f"'{name}' is"
    with monkeypatch.context() as patch:
        patch.setenv(f"IOPAINT_MY_SERVICE_{name.upper()}", str(value))
        yield {}, f"'{name}' (IOPAINT_MY_SERVICE_{name.upper()}) is"
    (home / "options.toml").write_text(f'["my.service"]\n{name} = {json.dumps(value)}\n')
    yield {}, f"'{name}' ({home / 'options.toml'}) is"


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [("tries", "valid integer"), ("tiled", "valid boolean"), ("mode", "should be 'fast' or 'good'")],
    )
    def test_a_wrong_value_is_told_by_its_source_and_type_and_never_shown(
        self, plugins, seen, home, monkeypatch, name, kind
    ):
        for options, expected in sources(home, monkeypatch, name, KEY):
            with pytest.raises(OptionsError) as raised:
                loaded(plugins, seen, **options)
            assert f"{expected} str: Input" in str(raised.value)
            assert kind in str(raised.value)
            assert "The options are: url, api_key, tries, tiled, mode" in str(raised.value)
            assert raised.value.__cause__ is raised.value.__context__ is None
            told = traceback.TracebackException.from_exception(raised.value, capture_locals=True)
            frames = [frame.locals for frame in told.stack if "iopaint_core" in frame.filename]
            assert len(frames) > 3
            assert KEY not in repr(frames)
            assert KEY not in "".join(traceback.format_exception(raised.value))
        assert not seen, "nothing was loaded"

    @pytest.mark.parametrize("value", [[KEY], {"key": KEY}, 5])
    def test_a_secret_of_a_wrong_type(self, plugins, seen, value):
        with pytest.raises(OptionsError) as raised:
            loaded(plugins, seen, **{"my.service": {"api_key": value}})
        assert f"'api_key' is {type(value).__name__}: Input should be a valid string" in str(raised.value)
        assert KEY not in "".join(traceback.format_exception(raised.value))

    def test_an_unknown_option(self, plugins, seen, home):
        with pytest.raises(OptionsError, match=r"'tryes' is not an option \(did you mean tries\?\)"):
            loaded(plugins, seen, **{"my.service": {"tryes": 5}})
        (home / "options.toml").write_text('["my.service"]\napi_kay = "' + KEY + '"\n')
        with pytest.raises(OptionsError, match=r"'api_kay' \(.*options\.toml\) is not an option \(did you") as told:
            loaded(plugins, seen)
        assert KEY not in str(told.value)

    def test_options_of_a_model_that_has_none(self, plugins, seen):
        with pytest.raises(OptionsError, match=r"options of red are wrong: 'tries' is not an option. .*: none"):
            ModelManager(plugins, options={"red": {"tries": 5}}).load("red")

    def test_no_table(self, plugins, seen, home):
        with pytest.raises(OptionsError, match="expected them by name, got str"):
            loaded(plugins, seen, **{"my.service": "tries=5"})
        (home / "options.toml").write_text('"my.service" = 5\n')
        with pytest.raises(OptionsError, match="expected them by name, got int"):
            loaded(plugins, seen)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"[my.service\n", "can't be read as TOML: .*line 1, column 12"),
            ("url = 'é'".encode("utf-16"), "can't be read as TOML: .*utf-8"),
            (b"a = " + b"[" * 100_000, "can't be read as TOML"),
            (None, "can't be read: Is a directory. Make it readable"),
        ],
    )
    def test_a_file_that_can_not_be_read_costs_those_who_read_it(
        self, plugins, seen, home, caplog, content, message
    ):
        if content is None:
            (home / "options.toml").mkdir()
        else:
            (home / "options.toml").write_bytes(content)
        manager = ModelManager(plugins)
        (problem,) = manager.scan().problems
        assert (problem.plugin, problem.stage) == ("options.toml", Stage.CONFIGURE)
        assert "options.toml can't be read" in caplog.text
        with pytest.raises(OptionsError, match=message) as raised:
            manager.load("painter")
        assert raised.value.__context__ is None
        manager.preload("red")

    def test_a_file_that_is_mended_is_read_again(self, plugins, seen, home):
        (home / "options.toml").write_text("[")
        manager = ModelManager(plugins)
        with pytest.raises(OptionsError):
            manager.load("painter")
        (home / "options.toml").write_text('["my.service"]\ntries = 1\n')
        manager.preload("painter")
        assert seen[-1].tries == 1

    def test_options_of_a_plugin_that_is_not_installed_cost_nothing_and_are_told(self, plugins, seen, home, caplog):
        (home / "options.toml").write_text("[my_service]\ntries = 1\n")
        manager = ModelManager(plugins, options={"nowhere": {"tries": 1}})
        problems = manager.scan().problems
        assert [problem.plugin for problem in problems] == ["nowhere", "my_service"]
        assert "The host sets options of nowhere, and no plugin of that name is installed" in str(problems[0])
        assert "options.toml sets options of my_service" in caplog.text
        assert "(did you mean my.service?)" in caplog.text
        manager.preload("painter", "red")


class TestNoSecretLeaves:
    def test_in_what_the_pool_and_the_manager_tell(self, plugins, home, caplog):
        caplog.set_level(logging.DEBUG)
        events = []

        class Service(Red):
            def forward(self, image, mask, request):
                raise RuntimeError(f"refused with {self.options}")

        @hookimpl
        def iopaint_available_models():
            return [ModelInfo(name, ModelType.PLUGIN, load_options=ServiceOptions) for name in ("runs", "fails")]

        @hookimpl
        def iopaint_load_model(info, context):
            if info.name == "fails":
                raise RuntimeError(f"{context}")
            model = Service()
            model.options = context.options
            return model

        hooks = {"iopaint_available_models": iopaint_available_models, "iopaint_load_model": iopaint_load_model}
        plugins.register(make_plugin(**hooks), "service")
        manager = ModelManager(plugins, options={"service": {"api_key": KEY}})
        manager.pool.subscribe(events.append)
        told = []
        with manager.load("runs") as model:
            assert model.options.api_key.get_secret_value() == KEY
            told += [repr(manager.pool.stats()), repr(manager.forecast("runs"))]
        for name in ("runs", "fails"):
            with pytest.raises((ModelError, ModelLoadError)) as raised:
                manager.inpaint(name, IMAGE, MASK)
            told += traceback.format_exception(raised.value)
        manager.unload("runs")
        told += [repr(events), repr(manager.scan()), caplog.text]
        assert events
        assert "Secret('**********')" in "".join(told)
        assert KEY not in "".join(told)


class TestCommandLine:
    @pytest.fixture
    def run(self, home, tmp_path):
        """Runs a command with a plugin of one file, `service.py`, whose model paints if its key is right."""
        (tmp_path / "plugins").mkdir()
        (tmp_path / "plugins" / "service.py").write_text(f"""
from dataclasses import dataclass
from iopaint_core import InpaintModel, LoadOptions, ModelInfo, ModelType, Secret, WeightFile, hookimpl
@dataclass(frozen=True)
class Options(LoadOptions):
    api_key: Secret = Secret("")
    tries: int = 3
class Painter(InpaintModel):
    def forward(self, image, mask, request):
        return image
@hookimpl
def iopaint_available_models():
    yield ModelInfo("painter", ModelType.PLUGIN, load_options=Options)
    yield ModelInfo("later", ModelType.PLUGIN, unavailable="pip install it")
@hookimpl
def iopaint_load_model(context):
    if context.options.api_key.get_secret_value() != {KEY!r} or context.options.tries != 5:
        raise ValueError(f"wrong: {{context.options}}")
    return Painter()
""")
        import PIL.Image

        PIL.Image.fromarray(IMAGE).save(tmp_path / "photo.png")
        PIL.Image.fromarray(MASK).save(tmp_path / "mask.png")

        def run(*arguments):
            result = CliRunner().invoke(main, ["--plugins-dir", str(tmp_path / "plugins"), *arguments])
            assert KEY not in result.output
            return result

        return run

    @pytest.fixture
    def repair(self, run, tmp_path):
        files = [f"--{name}={tmp_path / file}.png" for name, file in FILES.items()]

        def repair(*arguments, model="painter"):
            return run("run", "--model", model, *files, *arguments)

        return repair

    def test_options_are_given_to_the_model(self, repair, tmp_path):
        done = repair("-o", f"api_key={KEY}", "--option", "tries=5")
        assert done.exit_code == 0, done.output
        assert (tmp_path / "out.png").exists()

    def test_keys_come_from_the_environment_too(self, repair, monkeypatch):
        monkeypatch.setenv("IOPAINT_SERVICE_API_KEY", KEY)
        assert repair("-o", "tries=5").exit_code == 0
        done = repair("-o", "tries=4", "--overwrite")
        assert (done.exit_code, "wrong: Options(api_key=Secret('**********'), tries=4)" in done.output) == (1, True)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([KEY], "-o expected KEY=VALUE"),
            ([f"apikey={KEY}"], "painter has no load option 'apikey' (did you mean api_key?)"),
            ([f"tries={KEY}"], "'tries' is str: Input should be a valid integer"),
        ],
    )
    def test_wrong_ones_are_told_before_anything_is_loaded(self, repair, tmp_path, given, message):
        done = repair("-o", *given)
        assert done.exit_code == 2
        assert message in done.output
        assert not (tmp_path / "out.png").exists()

    def test_a_model_without_options(self, repair):
        done = repair("-o", "tries=5", model="cv2")
        assert done.exit_code == 2
        assert "cv2 has no load option 'tries'. Its load options are: none." in done.output

    def test_what_can_not_be_used_yet_is_listed_and_not_run(self, run, repair):
        listed = {model["name"]: model["unavailable"] for model in json.loads(run("list", "--json").stdout)}
        assert (listed["later"], listed["painter"]) == ("pip install it", "")
        lines = run("list").stdout.splitlines()
        assert ["later", "unavailable"] in [line.split()[:2] for line in lines]
        assert "later: pip install it" in lines
        done = repair(model="later")
        assert (done.exit_code, "Error: later can't be used yet: pip install it" in done.output) == (1, True)
        done = run("pool", "later")
        assert (done.exit_code, "later can't be used yet: pip install it" in done.output) == (1, True)
        done = run("download", "later")
        assert (done.exit_code, done.stderr) == (0, "later: is here; it can't be used yet: pip install it\n")
        done = run("doctor")
        assert done.exit_code == 0
        assert "Can't be used yet: later: pip install it" in done.stderr.splitlines()

    def test_doctor_tells_what_is_set_and_what_is_wrong(self, run, home, monkeypatch):
        monkeypatch.setenv("IOPAINT_SERVICE_API_KEY", KEY)
        rows = [line.split(maxsplit=1) for line in run("doctor").stdout.splitlines()]
        assert ["IOPAINT_SERVICE_API_KEY", "set"] in rows
        assert ["IOPAINT_SERVICE_TRIES", "not set"] in rows
        (home / "options.toml").write_text(f'[service]\ntries = "{KEY}"\n[servise]\ntries = 1\n')
        done = run("doctor")
        assert done.exit_code == 1
        assert "Problem: service (" in done.stderr
        assert f"'tries' ({home / 'options.toml'}) is str: Input should be a valid integer" in done.stderr
        assert "options of servise, and no plugin of that name is installed (did you mean service?)" in done.stderr
        (home / "options.toml").write_text("[service")
        done = run("doctor")
        assert done.exit_code == 1
        assert done.stderr.count("can't be read as TOML") == 1

    def test_doctor_searches_the_machine_once(self, home):
        (home / "stable_diffusion").mkdir()
        code = (
            "import sys; searched = []; sys.addaudithook(lambda event, args: searched.append(str(args[0])) "
            "if event in ('os.listdir', 'os.scandir') else None); from iopaint_core.cli import main; "
            "main(['doctor'], standalone_mode=False); print(searched.count(sys.argv[1]), file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(home / "stable_diffusion")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr.splitlines()[-1] == "1"


class TestUnavailable:
    @pytest.fixture
    def manager(self, plugins):
        file = WeightFile(url="http://127.0.0.1:9/never-asked")
        plugins.register(declares(LoadOptions, "later", unavailable="pip install it", weights=(file,)), "later")
        return ModelManager(plugins)

    def test_every_use_is_an_error_with_the_reason(self, manager):
        assert [info.unavailable for info in manager.scan().models] == ["pip install it"]
        for use in (manager.load, manager.preload, manager.switch, manager.forecast):
            with pytest.raises(UnavailableModelError, match=r"^later can't be used yet: pip install it$"):
                use("later")
        with pytest.raises(UnavailableModelError):
            manager.inpaint("later", IMAGE, MASK)
        with pytest.raises(UnavailableModelError):
            asyncio.run(AsyncModelManager(manager).inpaint("later", IMAGE, MASK))
        assert not manager.pool.stats().counts.loads

    def test_packages_that_are_missing_are_named(self, monkeypatch):
        assert missing_packages("json", "pickle", install="pip install x") == ""
        monkeypatch.setitem(sys.modules, "made_by_hand", types.ModuleType("made_by_hand"))
        assert missing_packages("made_by_hand", install="") == "", "imported, though nowhere to be found"
        assert missing_packages("json", "no_such", install="pip install x") == (
            "no_such is not installed: pip install x"
        )
        assert missing_packages("no_such", "nor_this", install="get them") == (
            "no_such and nor_this are not installed: get them"
        )

    def test_our_own_models_without_their_extras(self, home):
        checkpointfiles.write(home / "stable_diffusion" / "mine.safetensors", checkpointfiles.sd1())
        code = (
            "import sys; sys.modules |= dict.fromkeys(['torch', 'diffusers', 'onnxruntime']); "
            "from iopaint_core import scan_models; print([(m.name, m.unavailable) for m in scan_models()])"
        )
        environment = {**os.environ, "IOPAINT_HOME": str(home)}
        listed = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
        lama = "torch is not installed: pip install 'iopaint-core[restore]'"
        sam = "torch is not installed: pip install 'iopaint-core[segment]'"
        diffusion = "torch and diffusers are not installed: pip install 'iopaint-core[diffusion]'"
        matting = "onnxruntime is not installed: pip install 'iopaint-core[matting]'"
        reasons = dict(eval(listed))
        assert {name for name, reason in reasons.items() if not reason} == {
            *("cv2", "erase-person", "erase-text", "patchmatch", "person", "text")
        }
        restore = ["lama", "anime-lama", "realesr-general-x4v3", "GFPGANv1.4", "CodeFormer"]
        restore += ["piddnad/ddcolor_modelscope"]
        assert (
            reasons.items()
            >= {
                "mine.safetensors": diffusion,
                "mobile_sam": interactive_seg.MOBILE_SAM.unavailable,
                **dict.fromkeys(interactive_seg.MODELS, sam),
                **dict.fromkeys(restore, lama),
                **dict.fromkeys(["u2net", "birefnet-general"], matting),
            }.items()
        )

    def test_damaged_files_are_listed_with_the_reason_beside_sound_ones(self, home, plugins):
        folder = home / "stable_diffusion"
        for place in ("a", "b", "c"):
            checkpointfiles.write(folder / place / "model.safetensors", checkpointfiles.sd1())
        for place in ("b", "c"):
            with (folder / place / "model.safetensors").open("rb") as whole:  # of 2 GB
                cut = whole.read(4000)
            for name in ("model", "twin"):
                (folder / place / f"{name}.safetensors").write_bytes(cut)
        checkpointfiles.write(folder / "d:d.safetensors", checkpointfiles.sd1())
        plugins.register(iopaint_plugins.diffusion, "diffusion")
        report = scan(plugins)
        assert not report.problems
        reasons = {info.name: info.unavailable for info in report.models}
        names = ["b/model", "c/model", "c/twin", "d?d", "model", "twin"]
        assert list(reasons) == [f"{name}.safetensors" for name in names]
        assert "can't be read as safetensors" in reasons["c/model.safetensors"]
        assert "Rename it" in reasons["d?d.safetensors"]
        assert reasons["model.safetensors"] == ""
        with pytest.raises(UnavailableModelError, match=r"can't be used yet: .*It may be cut off or damaged"):
            ModelManager(plugins).load("c/model.safetensors")
