import logging
import sys
import textwrap
import threading

import pytest
from conftest import Red, make_plugin

from iopaint_core import (
    BasePlugin,
    InpaintModel,
    LoadContext,
    ModelInfo,
    ModelLoadError,
    ModelManager,
    ModelType,
    PluginError,
    PluginManager,
    PluginStatus,
    Stage,
    hookimpl,
    scan,
)

GOOD = """
from iopaint_core import InpaintModel, ModelInfo, ModelType, hookimpl

class Copy(InpaintModel):
    def forward(self, image, mask, request):
        return image

@hookimpl
def iopaint_available_models():
    return [ModelInfo(name="NAME", type=ModelType.PLUGIN)]

@hookimpl
def iopaint_load_model(info, context):
    return Copy()
"""


def discovered(**lists):
    plugins = PluginManager(**lists)
    plugins.discover()
    return plugins


def names(report, distribution):
    return [info.name for info in report.models if info.distribution == distribution]


def problem_of(report, distribution):
    (problem,) = [problem for problem in report.problems if problem.distribution == distribution]
    return problem


def test_installed_plugins_are_found_without_configuration(install):
    install("acme-Copy", GOOD.replace("NAME", "copy"), entry="copier", version="2.3")
    report = scan()
    (info,) = [info for info in report.models if info.distribution == "acme-Copy"]
    assert (info.name, info.plugin_name, info.type) == ("copy", "copier", ModelType.PLUGIN)
    (plugin,) = [plugin for plugin in report.plugins if plugin.distribution == "acme-Copy"]
    assert (plugin.name, plugin.version, plugin.status) == ("copier", "2.3", PluginStatus.ACTIVE)
    assert "cv2" in names(report, "iopaint-core")


HOOK = GOOD.replace("NAME", "copy")
FAULTY = {
    "import error": (
        "import a_module_that_nobody_has",
        Stage.IMPORT,
        ModuleNotFoundError,
        "a_module_that_nobody_has",
    ),
    "syntax error": ("def", Stage.IMPORT, SyntaxError, "invalid syntax"),
    "system exit": ("import sys; sys.exit(3)", Stage.IMPORT, SystemExit, "3"),
    "misspelled hook": (
        HOOK.replace("iopaint_available_models", "iopaint_availble_models"),
        Stage.REGISTER,
        PluginError,
        "iopaint_availble_models is no hook (did you mean iopaint_available_models?)",
    ),
    "no hookimpl": (
        HOOK.replace("@hookimpl\ndef iopaint_available", "def iopaint_available"),
        Stage.REGISTER,
        PluginError,
        "iopaint_available_models lacks its @hookimpl",
    ),
    "unmarked and misspelled": (
        HOOK + "\ndef iopaint_load_models(): ...\n",
        Stage.REGISTER,
        PluginError,
        "iopaint_load_models is no hook (did you mean iopaint_load_model?)",
    ),
    "unknown argument": (HOOK.replace("(info, context)", "(model)"), Stage.REGISTER, PluginError, "model"),
    "defaulted argument": (
        HOOK.replace("(info, context)", "(info, context=None)"),
        Stage.REGISTER,
        PluginError,
        "gives its argument 'context' a default",
    ),
    "one hook only": (
        HOOK[: HOOK.rindex("@hookimpl")],
        Stage.REGISTER,
        PluginError,
        "iopaint_load_model is missing",
    ),
    "no hook": ("", Stage.REGISTER, PluginError, "implements no hook"),
    "wrapped announcement": (
        HOOK.replace("@hookimpl\ndef iopaint_available", "@hookimpl(wrapper=True)\ndef iopaint_available").replace(
            "    return [Model", "    return (yield) or [Model"
        ),
        Stage.REGISTER,
        PluginError,
        "takes no wrappers",
    ),
    "exception": (
        HOOK.replace("    return [Model", "    1 / 0; return [Model"),
        Stage.SCAN,
        ZeroDivisionError,
        "zero",
    ),
    "exit when asked": (
        HOOK.replace("    return [Model", "    raise SystemExit(2); return [Model"),
        Stage.SCAN,
        SystemExit,
        "2",
    ),
    "late exception": (
        HOOK.replace("    return [Model", "    yield 1 / 0; [Model"),
        Stage.SCAN,
        ZeroDivisionError,
        "zero",
    ),
    "panic": (
        HOOK.replace("return [Model", "raise type('PanicException', (BaseException,), {}); [Model"),
        Stage.SCAN,
        BaseException,
        "PanicException",
    ),
    "string": (HOOK.replace("return [Model", "return 'copy' or [Model"), Stage.SCAN, PluginError, "returned str"),
    "none": (HOOK.replace("return [Model", "return None and [Model"), Stage.SCAN, PluginError, "returned NoneType"),
    "bare model": (
        HOOK.replace("[ModelInfo(", "ModelInfo(").replace("PLUGIN)]", "PLUGIN)"),
        Stage.SCAN,
        PluginError,
        "returned ModelInfo",
    ),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_plugin_costs_its_own_models_alone(install, fault):
    source, stage, error, words = FAULTY[fault]
    module = "faulty_" + fault.replace(" ", "_")
    install("faulty", source, version="0.9", module=module)
    install("sound", HOOK, module="sound_beside_" + module)
    plugins = discovered()
    report = scan(plugins)
    assert names(report, "sound") == ["copy"]
    assert "cv2" in names(report, "iopaint-core")
    assert names(report, "faulty") == []
    problem = problem_of(report, "faulty")
    assert (problem.plugin, problem.version, problem.stage) == ("plugin", "0.9", stage)
    assert isinstance(problem.error, error)
    assert words in str(problem)
    assert problem.remedy
    (status,) = [plugin.status for plugin in report.plugins if plugin.distribution == "faulty"]
    assert status is PluginStatus.FAILED
    assert scan(plugins) == report, "a second scan tells the same"
    with plugins_load(plugins, "sound:plugin") as model:
        assert isinstance(model, InpaintModel)


def plugins_load(plugins, qualified):
    distribution = qualified.split(":")[0]
    return ModelManager(plugins).load(f"{distribution}:plugin:copy")


@pytest.mark.parametrize(
    "source", ["raise KeyboardInterrupt", HOOK.replace("return [", "raise KeyboardInterrupt\n    [")]
)
def test_ctrl_c_is_never_swallowed(install, source):
    install("interrupted", source, module=f"interrupted_{len(source)}")
    with pytest.raises(KeyboardInterrupt):
        scan()


def test_an_error_that_can_not_print_itself_is_still_told(install):
    install("mute", "class Mute(BaseException):\n    def __str__(self): return 1 / 0\nraise Mute")
    assert "Mute" in str(problem_of(scan(), "mute"))


def test_two_entry_points_of_one_module_are_told(install):
    site = install("doubled", HOOK)
    (site / "doubled-1.0.dist-info" / "entry_points.txt").write_text("[iopaint]\na = doubled\nb = doubled\n")
    report = scan()
    assert names(report, "doubled") == ["copy"]
    assert "registered already, as doubled:a" in str(problem_of(report, "doubled"))


@pytest.mark.parametrize(
    "entry",
    [
        "3",
        "'copy'",
        "type('Sub', (ModelInfo,), {})(name='x')",
        "ModelInfo(name='copy', type=ModelType.PLUGIN)",
    ],
)
def test_a_wrong_entry_costs_itself_alone(install, entry):
    install("mixed", HOOK.replace("PLUGIN)]", f"PLUGIN), {entry}]"), module=f"mixed_{abs(hash(entry))}")
    report = scan()
    assert names(report, "mixed") == ["copy"]
    assert problem_of(report, "mixed").stage is Stage.SCAN


def test_equal_entry_point_names_of_two_packages_live_side_by_side(install):
    install("one", GOOD.replace("NAME", "first"))
    install("two", GOOD.replace("NAME", "second"))
    report = scan()
    assert (names(report, "one"), names(report, "two")) == (["first"], ["second"])


def test_the_origin_of_a_model_can_not_be_forged(install):
    install("forger", HOOK.replace("type=", "plugin_name='opencv', distribution='iopaint-core', type="))
    (info,) = [info for info in scan().models if info.name == "copy"]
    assert (info.plugin_name, info.distribution) == ("plugin", "forger")


class TestLists:
    @pytest.fixture(autouse=True)
    def _installed(self, install):
        marker = "import sys; sys.modules['imported_{0}'] = sys\n" + HOOK
        for module in ("listed_one", "listed_two"):
            sys.modules.pop(module, None)
            sys.modules.pop(f"imported_{module}", None)
        install("Listed.One", marker.format("listed_one").replace("{}", ""), module="listed_one")
        install("listed-two", marker.format("listed_two"), module="listed_two")

    def imported(self):
        return [name for name in ("one", "two") if f"imported_listed_{name}" in sys.modules]

    def test_a_denied_package_is_never_imported(self):
        report = scan(discovered(deny=["listed_one"]))
        assert self.imported() == ["two"]
        (plugin,) = [plugin for plugin in report.plugins if plugin.distribution == "Listed.One"]
        assert plugin.status is PluginStatus.DISABLED
        assert not report.problems

    def test_a_package_that_is_not_allowed_is_never_imported(self):
        report = scan(discovered(allow=["LISTED-TWO"]))
        assert self.imported() == ["two"]
        assert {info.distribution for info in report.models} == {"listed-two"}

    def test_an_empty_allow_list_allows_nothing(self):
        assert scan(discovered(allow=[])).models == ()
        assert self.imported() == []

    def test_the_environment_denies(self, monkeypatch):
        monkeypatch.setenv("IOPAINT_DISABLE_PLUGINS", "Listed_One, iopaint-core")
        assert {info.distribution for info in scan().models} == {"listed-two"}

    def test_the_environment_allows(self, monkeypatch):
        monkeypatch.setenv("IOPAINT_PLUGINS", "listed-one")
        assert {info.distribution for info in scan().models} == {"Listed.One"}

    def test_argument_and_environment_restrict_together(self, monkeypatch):
        monkeypatch.setenv("IOPAINT_PLUGINS", "listed-one,listed-two")
        assert {info.distribution for info in scan(discovered(allow=["listed-two", "iopaint-core"])).models} == {
            "listed-two"
        }

    def test_one_plugin_of_a_package_can_be_denied(self):
        report = scan(discovered(deny=["iopaint-core:opencv"]))
        assert "opencv" not in {info.plugin_name for info in report.models}
        assert "lama" in {info.plugin_name for info in report.models}
        assert {"Listed.One", "listed-two"} <= {info.distribution for info in report.models}

    def test_a_listed_name_that_is_not_installed_is_a_problem(self):
        plugins = discovered(deny=["listed-three"])
        plugins.discover()
        (problem,) = scan(plugins).problems
        assert problem.stage is Stage.CONFIGURE
        assert "did you mean listed-" in str(problem)


def test_a_distribution_without_metadata_does_not_break_discovery(install):
    site = install("nameless", GOOD.replace("NAME", "nameless"))
    (site / "nameless-1.0.dist-info" / "METADATA").write_text("")
    install("sound", HOOK, module="sound_beside_nameless")
    report = scan()
    assert names(report, "sound") == ["copy"]
    assert "nameless" in [info.name for info in report.models]


class TestFolders:
    def test_each_file_is_a_plugin(self, plugins, tmp_path):
        (tmp_path / "copier.py").write_text(HOOK)
        (tmp_path / "broken.py").write_text("import a_module_that_nobody_has")
        (tmp_path / "_helper.py").write_text("raise AssertionError")
        plugins.discover_folder(tmp_path)
        plugins.discover_folder(tmp_path)
        report = scan(plugins)
        assert [(info.name, info.plugin_name, info.distribution) for info in report.models] == [
            ("copy", "copier", str(tmp_path))
        ]
        assert [(problem.plugin, problem.stage) for problem in report.problems] == [("broken", Stage.IMPORT)]
        with ModelManager(plugins).load("copier:copy") as model:
            assert type(model).__name__ == "Copy"

    def test_no_folder_is_looked_into_unasked(self, tmp_path, monkeypatch):
        (tmp_path / "copier.py").write_text(HOOK)
        monkeypatch.chdir(tmp_path)
        assert "copy" not in [info.name for info in scan().models]

    def test_a_missing_folder_is_an_error(self, plugins, tmp_path):
        with pytest.raises(PluginError, match="is no folder"):
            plugins.discover_folder(tmp_path / "nowhere")


class RedPlugin(BasePlugin):
    name = "reds"

    @property
    def available_models(self):
        return [ModelInfo(name="red", type=ModelType.PLUGIN)]

    def load_model(self, info, context):
        return Red()


class TestBasePlugin:
    @pytest.mark.parametrize("plugin", [RedPlugin, RedPlugin()])
    def test_it_is_registered_as_class_or_instance(self, plugins, plugin):
        assert plugins.register(plugin).qualified_name == "host:reds"
        with ModelManager(plugins).load("reds:red") as model:
            assert isinstance(model, Red)

    def test_an_entry_point_names_the_class(self, install):
        site = install(
            "classy",
            textwrap.dedent("""
            from iopaint_core import BasePlugin, InpaintModel, ModelInfo, ModelType
            class Plugin(BasePlugin):
                available_models = [ModelInfo(name="classy", type=ModelType.PLUGIN)]
                def load_model(self, info, context): ...
        """),
        )
        (site / "classy-1.0.dist-info" / "entry_points.txt").write_text("[iopaint]\nc = classy:Plugin\n")
        assert names(scan(), "classy") == ["classy"]

    def test_without_its_methods_it_can_not_be_made(self, plugins):
        class Half(BasePlugin):
            available_models = ()

        with pytest.raises(TypeError, match="load_model"):
            plugins.register(Half)


class TestRegister:
    def test_a_host_is_told_at_once_what_is_wrong(self, plugins):
        with pytest.raises(PluginError, match="iopaint_load_model is missing"):
            plugins.register(make_plugin("red", iopaint_load_model=None), "red")
        assert plugins.plugins == ()

    def test_a_name_is_taken_once(self, plugins):
        plugins.register(make_plugin("red"), "red")
        with pytest.raises(PluginError, match="registered already, as host:red"):
            plugins.register(make_plugin("blue"), "red")
        assert [info.name for info in scan(plugins).models] == ["red"]


class TestLoading:
    context = LoadContext()

    def load(self, plugins, name):
        (info,) = [info for info in scan(plugins).models if info.name == name]
        return plugins.load_model(info, self.context)

    def test_only_the_owner_of_a_model_loads_it(self, plugins):
        @hookimpl(tryfirst=True)
        def hijack(info, context):
            raise AssertionError("this is not my model")

        plugins.register(make_plugin("red"), "reds")
        plugins.register(make_plugin("other", iopaint_load_model=hijack), "hijacker")
        assert isinstance(self.load(plugins, "red"), Red)

    def test_wrappers_of_every_plugin_run_around_a_load(self, plugins):
        calls = []

        def wrapper(name):
            @hookimpl(wrapper=True, specname="iopaint_load_model")
            def around(info, context):
                calls.append((name, info.name, context))
                model = yield
                model.touched = [*getattr(model, "touched", []), name]
                return model

            return around

        plugins.register(make_plugin("red"), "reds")
        plugins.register(make_plugin("other", around=wrapper("with models")), "others")
        plugins.register(
            make_plugin(iopaint_available_models=None, iopaint_load_model=None, around=wrapper("alone")), "timer"
        )
        model = self.load(plugins, "red")
        assert sorted(model.touched) == ["alone", "with models"]
        assert sorted(calls, key=str) == [("alone", "red", self.context), ("with models", "red", self.context)]

    @pytest.mark.parametrize("error", [ValueError("no such weights"), SystemExit(1)])
    def test_what_a_loader_raises_is_the_cause_of_a_load_error(self, plugins, error):
        def fail():
            raise error

        plugins.register(make_plugin("bad", load=fail), "bad")
        with pytest.raises(ModelLoadError, match="bad:bad could not be loaded") as caught:
            self.load(plugins, "bad")
        assert caught.value.__cause__ is error

    def test_a_missing_package_is_named_with_what_to_do(self, plugins):
        def fail():
            import a_module_that_nobody_has  # noqa: F401

        plugins.register(make_plugin("bad", load=fail), "bad")
        with pytest.raises(ModelLoadError, match="Install a_module_that_nobody_has"):
            self.load(plugins, "bad")

    def test_a_model_of_a_plugin_that_is_gone_is_an_error(self, plugins):
        with pytest.raises(ModelLoadError, match="is not registered"):
            plugins.load_model(ModelInfo("red", ModelType.PLUGIN, "nobody"), self.context)


def test_two_managers_know_nothing_of_each_other(plugins):
    plugins.register(make_plugin("red"), "red")
    assert scan(PluginManager()).models == ()


def test_threads_that_discover_together_find_each_plugin_once(install, caplog):
    install("shared", HOOK)
    plugins = PluginManager()
    start = threading.Barrier(8)

    def discover():
        start.wait()
        plugins.discover()

    threads = [threading.Thread(target=discover) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert plugins.problems == ()
    assert names(scan(plugins), "shared") == ["copy"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
