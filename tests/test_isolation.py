"""No plugin costs anyone else anything: wrappers, scans within scans, time, the process, versions, tracebacks."""

import contextlib
import gc
import json
import locale
import logging
import os
import random
import shutil
import signal
import socket
import sys
import threading
import types
import warnings

import numpy as np
import PIL.Image
import pytest
from commands import command
from conftest import Red, make_plugin, photograph

from iopaint_core import (
    BasePlugin,
    InpaintModel,
    ModelError,
    ModelInfo,
    ModelLoadError,
    ModelManager,
    PluginError,
    PluginManager,
    Stage,
    UnknownModelError,
    __version__,
    hookimpl,
    scan,
    time_limits,
)

IMAGE, MASK = photograph(8, 8), np.full((8, 8), 255, np.uint8)
GOOD = """
from iopaint_core import InpaintModel, ModelInfo, hookimpl
class Same(InpaintModel):
    def forward(self, image, mask, parameters):
        return image
@hookimpl
def iopaint_available_models():
    return [ModelInfo("NAME")]
@hookimpl
def iopaint_load_model(info, context):
    return Same()
"""


def names(report):
    return {info.name for info in report.models}


def problem_of(report, plugin):
    (problem,) = [problem for problem in report.problems if problem.plugin == plugin]
    return problem


class Other(InpaintModel):
    """What a wrapper may return in a model's place."""

    def forward(self, image, mask, parameters):
        return np.zeros_like(image)


def raises_before(info):
    raise ValueError("before")
    yield


def raises_after(info):
    yield
    raise ValueError("after")


def ends_the_process_before(info):
    raise SystemExit("before")
    yield


def ends_the_process_after(info):
    yield
    raise SystemExit("after")


def forgets_to_return(info):
    yield


def returns_something_else(info):
    yield
    return "the model"


def never_yields(info):
    return
    yield


def yields_twice(info):
    model = yield
    yield
    return model


class Lies:
    __class__ = property(lambda self: 1 / 0)
    __repr__ = __eq__ = None


def lies_about_itself(info):
    yield
    return Lies()


WRONG = [
    raises_before, raises_after, ends_the_process_before, ends_the_process_after, forgets_to_return,
    returns_something_else, never_yields, yields_twice, lies_about_itself,
]  # fmt: skip


def old_style(function):
    """The same as a wrapper of pluggy's old style, where there is one."""

    def wrapper(info):
        outcome = yield
        if function is raises_after:
            raise ValueError("after")
        if function is returns_something_else:
            outcome.force_result("the model")
        elif function is forgets_to_return:
            outcome.force_result(None)
        elif function is lies_about_itself:
            outcome.force_result(Lies())
        elif function is yields_twice:
            yield

    own = {raises_after, returns_something_else, forgets_to_return, yields_twice, lies_about_itself}
    return wrapper if function in own else function


def wrapping(function, **options):
    module = types.ModuleType("wrapping")
    module.around = hookimpl(**(options or {"wrapper": True}), specname="iopaint_load_model")(function)
    return module


def host(*wrappers, load=Red):
    plugins = PluginManager(allow=[])
    plugins.register(make_plugin("red", load=load), "innocent", distribution="iopaint-innocent")
    for number, wrapper in enumerate(wrappers):
        plugins.register(wrapper, f"culprit-{number}", distribution="iopaint-culprit")
    return ModelManager(plugins)


class TestWrappers:
    @pytest.mark.parametrize("function", WRONG)
    @pytest.mark.parametrize("style", ["wrapper", "hookwrapper"])
    def test_a_wrong_one_costs_nobody_the_model(self, function, style, caplog):
        if style == "hookwrapper":
            function = old_style(function)
        manager = host(wrapping(function, **{style: True}))
        assert (manager.inpaint("red", IMAGE, MASK) == (255, 0, 0)).all()
        problem = problem_of(manager.scan(), "culprit-0")
        assert (problem.stage, problem.distribution) == (Stage.WRAP, "iopaint-culprit")
        assert "wrapper" in str(problem)
        assert "iopaint-innocent" not in str(problem)
        assert problem.remedy
        assert "went on without a wrapper" in caplog.text
        manager.unload("red")
        manager.inpaint("red", IMAGE, MASK)
        assert len(manager.scan().problems) == 1, "it is told once"

    @pytest.mark.parametrize("function", WRONG)
    def test_those_around_it_and_within_it_do_their_work(self, function):
        def counting(info):
            model = yield
            model.counted = getattr(model, "counted", 0) + 1
            return model

        manager = host(wrapping(counting), wrapping(function), wrapping(counting))
        with manager.load("red") as model:
            assert model.counted == 2

    def test_the_last_registered_is_the_outermost_and_one_may_replace_the_model(self):
        order = []

        def replacing(info):
            order.append("replacing")
            yield
            return Other()

        def outermost(info):
            order.append("outermost")
            model = yield
            assert isinstance(model, Other)
            return model

        manager = host(wrapping(replacing), wrapping(outermost))
        assert not manager.inpaint("red", IMAGE, MASK).any()
        assert order == ["outermost", "replacing"]
        assert manager.scan().problems == ()

    @pytest.mark.parametrize("style", ["wrapper", "hookwrapper"])
    @pytest.mark.parametrize("error", [ValueError("no weights"), SystemExit(3), StopIteration("none")])
    def test_what_the_loader_raises_passes_through(self, error, style):
        def load():
            raise error

        def passes(info):
            return (yield)

        def looks(info):
            outcome = yield
            assert outcome.exception is error

        manager = host(wrapping(passes if style == "wrapper" else looks, **{style: True}), load=load)
        with pytest.raises(ModelLoadError, match="innocent:red could not be loaded") as caught:
            manager.load("red")
        assert caught.value.__cause__ is error
        assert manager.scan().problems == ()

    @pytest.mark.parametrize("answer", ["raises another", "returns nothing"])
    def test_what_the_loader_raises_is_not_lost_in_a_wrong_wrapper(self, answer):
        def load():
            raise ValueError("no weights")

        def wrong(info):
            try:
                yield
            except ValueError:
                if answer == "raises another":
                    raise KeyError("of the wrapper") from None

        manager = host(wrapping(wrong), load=load)
        with pytest.raises(ModelLoadError, match="innocent:red could not be loaded: ValueError: no weights"):
            manager.load("red")
        assert problem_of(manager.scan(), "culprit-0").stage is Stage.WRAP

    @pytest.mark.parametrize("style", ["wrapper", "hookwrapper"])
    def test_one_that_is_no_generator_is_refused_when_it_is_registered(self, style):
        with pytest.raises(PluginError, match="generator") as caught:
            host(wrapping(lambda info: Other(), **{style: True}))
        assert caught.value.remedy

    def test_one_may_answer_for_a_loader_that_fails(self):
        def load():
            raise ValueError("no weights")

        def answers(info):
            try:
                return (yield)
            except ValueError:
                return Other()

        manager = host(wrapping(answers), load=load)
        assert not manager.inpaint("red", IMAGE, MASK).any()

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_one_that_hangs_is_given_up_on(self, when, monkeypatch):
        monkeypatch.setenv("IOPAINT_PLUGIN_TIMEOUT", "0.2")
        never = threading.Event()

        def hangs(info):
            if when == "before":
                never.wait()
            model = yield
            never.wait()
            return model

        manager = host(wrapping(hangs))
        try:
            assert (manager.inpaint("red", IMAGE, MASK) == (255, 0, 0)).all()
            assert "longer than IOPAINT_PLUGIN_TIMEOUT, which is 0.2 seconds" in str(manager.scan().problems[0])
        finally:
            never.set()

    def test_a_limit_that_is_none_is_no_fault_of_theirs(self, monkeypatch):
        monkeypatch.setenv("IOPAINT_PLUGIN_TIMEOUT", "soon")

        def counting(info):
            model = yield
            model.counted = True
            return model

        manager = host(wrapping(counting))
        with manager.load("red") as model:
            assert model.counted
        assert [problem.plugin for problem in manager.scan().problems] == ["IOPAINT_PLUGIN_TIMEOUT"]

    def test_a_debugger_gets_what_it_raises(self, monkeypatch):
        monkeypatch.setenv("IOPAINT_RAISE", "1")
        with pytest.raises(ValueError, match="after"):
            host(wrapping(raises_after)).load("red")


SCANS = {
    "a scan": "from iopaint_core import scan_models\n",
    "a host": "from iopaint_core import ModelManager\ndef scan_models():\n    ModelManager().scan()\n",
}


class TestScansWithinScans:
    @pytest.mark.parametrize("how", SCANS)
    @pytest.mark.parametrize("when", ["import", "announcement"])
    def test_each_is_answered_in_words(self, install, how, when):
        for name in ("one", "two"):
            source = SCANS[how] + GOOD.replace("NAME", name)
            if when == "import":
                source += "scan_models()\n"
            else:
                source = source.replace("return [", "scan_models()\n    return [")
            install(f"scans-{name}", source, entry=name, module=f"scans_{name}_{when}_{how[2:]}")
        install("innocent-one", GOOD.replace("NAME", "innocent"), module=f"innocent_{when}_{len(how)}")
        report = scan()
        assert {"innocent", "cv2"} <= names(report)
        assert not {"one", "two"} & names(report)
        for name in ("one", "two"):
            told = str(problem_of(report, name))
            assert f"scans-{name}:{name} scans for plugins while it is imported or asked for its models" in told
            assert "context.models" in told

    def test_a_loader_may_scan(self, plugins):
        def load():
            assert "red" in names(scan(plugins))
            return Red()

        plugins.register(make_plugin("red", load=load), "red")
        ModelManager(plugins).load("red").close()


class TestTime:
    @pytest.fixture
    def gate(self, monkeypatch):
        """A module whose `wait` returns once the test ends, or the gate is opened."""
        gate = types.ModuleType("a_gate")
        gate.opened = threading.Event()
        gate.wait = gate.opened.wait
        monkeypatch.setitem(sys.modules, "a_gate", gate)
        yield gate
        gate.opened.set()

    @pytest.mark.parametrize("when", ["import", "announcement"])
    def test_one_that_takes_long_is_named_while_one_waits(self, install, gate, monkeypatch, caplog, when):
        monkeypatch.setattr(time_limits, "LONG", 0.05)
        source = GOOD.replace("NAME", "slow")
        source = f"import a_gate\na_gate.wait()\n{source}" if when == "import" else source.replace(
            "return [", "import a_gate; a_gate.wait()\n    return ["
        )  # fmt: skip
        install("takes-long", source, module=f"takes_long_{when}")
        told = []

        class Opens(logging.Handler):
            def emit(self, record):
                told.append(record.getMessage())
                gate.opened.set()

        handler = Opens()
        logging.getLogger("iopaint_core.time_limits").addHandler(handler)
        try:
            assert "slow" in names(scan())
        finally:
            logging.getLogger("iopaint_core.time_limits").removeHandler(handler)
        assert "takes-long:plugin" in told[0]
        assert "IOPAINT_DISABLE_PLUGINS" in told[0]
        assert "IOPAINT_PLUGIN_TIMEOUT" in told[0]

    @pytest.mark.parametrize("when", ["import", "announcement"])
    def test_one_that_hangs_can_be_skipped(self, install, gate, monkeypatch, when):
        monkeypatch.setenv("IOPAINT_PLUGIN_TIMEOUT", "0.5")
        source = GOOD.replace("NAME", "hung")
        source = f"import a_gate\na_gate.wait()\n{source}" if when == "import" else source.replace(
            "return [", "import a_gate; a_gate.wait()\n    return ["
        )  # fmt: skip
        install("hangs-for-ever", source, entry="hung", module=f"hangs_{when}")
        report = scan()
        assert "cv2" in names(report)
        assert "hung" not in names(report)
        problem = problem_of(report, "hung")
        assert "it took longer than IOPAINT_PLUGIN_TIMEOUT, which is 0.5 seconds" in str(problem)

    @pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf", "1e300"])
    def test_a_limit_that_is_none(self, monkeypatch, value):
        monkeypatch.setenv("IOPAINT_PLUGIN_TIMEOUT", value)
        report = scan()
        assert "cv2" in names(report)
        assert f"expected seconds above 0, got '{value}'" in str(problem_of(report, "IOPAINT_PLUGIN_TIMEOUT"))

    @pytest.mark.process
    def test_seconds_and_heavy_imports_are_told(self, tmp_path):
        plugins, heavy = tmp_path / "plugins", tmp_path / "site" / "heavy_library"
        plugins.mkdir()
        heavy.mkdir(parents=True)
        (heavy / "__init__.py").write_text("".join(f"from heavy_library import m{i}\n" for i in range(60)))
        for i in range(60):
            (heavy / f"m{i}.py").write_text("")
        source = f"import sys\nsys.path.append({str(heavy.parent)!r})\nimport heavy_library\n"
        (plugins / "much.py").write_text(source + GOOD.replace("NAME", "much"))
        done = command("--plugins-dir", plugins, "plugins", "--json")
        (plugin,) = [each for each in json.loads(done.stdout)["plugins"] if each["name"] == "much"]
        assert plugin["heavy_imports"] == ["heavy_library"]
        assert 0 < plugin["seconds"] < 60
        (line,) = [
            line
            for line in command("--plugins-dir", plugins, "plugins").stdout.splitlines()
            if line.startswith("much ")
        ]
        assert line.endswith("heavy_library")


CHANGES = """
import gc, locale, logging, os, random, signal, socket, sys, threading, warnings
class Lies(str):
    def __eq__(self, other): raise SystemExit("not today")
    __hash__ = str.__hash__
def change():
    os.chdir("/")
    os.environ["HOSTILE"] = "1"
    os.environ["HOME"] = "/nowhere"
    os.environ.pop("PATH", None)
    warnings.simplefilter("error")
    warnings.showwarning = print
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    logging.basicConfig(level=1, force=True)
    logging.disable(logging.CRITICAL)
    sys.path[:] = [Lies("/nowhere")]
    sys.path, sys.argv, os.environ = ["/elsewhere"], [], {}
    logging.root.handlers, warnings.filters = [], []
    sys.meta_path.reverse()
    if hasattr(sys.__stderr__, "reconfigure"):
        sys.__stderr__.reconfigure(encoding="utf-16", errors="strict")
    sys.stdout = sys.stderr = sys.stdin = None
    sys.excepthook = threading.excepthook = print
    sys.setrecursionlimit(5000)
    socket.setdefaulttimeout(0.001)
    random.seed(0)
    gc.disable()
"""


def state():
    return {
        "directory": os.getcwd(),  # noqa: PTH109 - as it is spelled
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "objects": [id(each) for each in (sys.path, sys.argv, os.environ, logging.root.handlers, warnings.filters)],
        "path": list(sys.path),
        "arguments": list(sys.argv),
        "finders": list(sys.meta_path),
        "streams": (sys.stdout, sys.stderr, sys.stdin),
        "hooks": (sys.excepthook, threading.excepthook),
        "limits": (sys.getrecursionlimit(), socket.getdefaulttimeout(), gc.isenabled()),
        "random": random.getstate(),
        "locale": locale.setlocale(locale.LC_ALL),
    }


def changing(source, when):
    if when == "announcement":
        return source.replace("return [", "change()\n    return [")
    return f"{source}change()\n"


class TestTheProcess:
    @pytest.mark.parametrize("when", ["import", "failing import", "announcement"])
    def test_what_a_plugin_changes_is_as_before(self, install, when):
        source = CHANGES + GOOD.replace("NAME", "changes")
        source = changing(source, when)
        if when == "failing import":
            source += "raise SystemExit\n"
        install("changes-all", source, entry="changes", module=f"changes_{when.replace(' ', '_')}")
        before = state()
        report = scan()
        after = state()
        if when == "announcement":  # others may draw random numbers during a scan, and each but once
            del before["random"], after["random"]
        assert after == before
        assert "cv2" in names(report)
        assert ("changes" in names(report)) == (when != "failing import")

    @pytest.mark.torch
    @pytest.mark.parametrize("when", ["import", "announcement"])
    def test_of_torch_too(self, install, when):
        import torch

        source = "import torch\ndef change():\n    torch.set_default_dtype(torch.float16)\n"
        source += "    torch.set_num_threads(3)\n"
        source += "    torch.use_deterministic_algorithms(True)\n    torch.set_grad_enabled(False)\n"
        source += "    torch.manual_seed(1)\n    torch.set_float32_matmul_precision('medium')\n"
        source += GOOD.replace("NAME", "changes")
        source = changing(source, when)
        install("changes-torch", source, module=f"changes_torch_{when}")

        def settings():
            return (
                torch.get_default_dtype(),
                torch.get_num_threads(),
                torch.are_deterministic_algorithms_enabled(),
                torch.is_grad_enabled(),
                when == "announcement" or torch.get_rng_state().tolist(),
                torch.get_float32_matmul_precision(),
            )

        before = settings()
        assert "changes" in names(scan())
        assert settings() == before

    @pytest.mark.process
    @pytest.mark.parametrize("arguments", ["list", "plugins", "describe loud"])
    def test_standard_output_is_the_commands(self, loud, arguments):
        done = command("--plugins-dir", loud, *arguments.split(), "--json")
        assert json.loads(done.stdout)
        for way in ("descriptor", "print", "a child"):
            assert f"import by {way}" in done.stderr
            assert f"announcement by {way}" in done.stderr

    @pytest.mark.process
    def test_so_it_is_while_a_model_works(self, loud, tmp_path):
        PIL.Image.fromarray(IMAGE).save(tmp_path / "a.png")
        PIL.Image.fromarray(MASK).save(tmp_path / "m.png")
        files = ["--image", tmp_path / "a.png", "--mask", tmp_path / "m.png", "--output", tmp_path / "out.png"]
        done = command("--plugins-dir", loud, "run", "--model", "loud", *files, "--json")
        assert json.loads(done.stdout)[0]["status"] == "repaired", done.stderr
        for way in ("descriptor", "print", "a child"):
            assert f"work by {way}" in done.stderr

    @pytest.fixture
    def loud(self, tmp_path):
        source = "import os, subprocess\ndef say(when):\n    os.write(1, f'{when} by descriptor\\n'.encode())\n"
        source += "    print(f'{when} by print', flush=True)\n    subprocess.run(['echo', f'{when} by a child'])\n"
        source += "say('import')\n" + GOOD.replace("NAME", "loud")
        source = source.replace("return [", "say('announcement')\n    return [")
        plugins = tmp_path / "plugins"
        plugins.mkdir()
        (plugins / "loud.py").write_text(source.replace("return image", "say('work')\n        return image"))
        return plugins


class TestBrokenMetadata:
    """Of a package that is installed beside an innocent one."""

    @pytest.fixture
    def broken(self, install):
        def broken(file, content):
            install("sound", GOOD.replace("NAME", "sound"), entry="sound")
            site = install("broken", GOOD.replace("NAME", "shaky"), entry="shaky")
            (site / "broken-1.0.dist-info" / file).write_bytes(content)
            return scan()

        return broken

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"[iopaint]\nshaky = broken\n; J\xf6rg\n", "UnicodeDecodeError"),
            (b"[iopaint]\nshaky\n", "TypeError"),
            (b"\xff\xfe", "UnicodeDecodeError"),
        ],
    )
    def test_entry_points_that_cannot_be_read_are_a_problem_of_its_own(self, broken, content, reason):
        report = broken("entry_points.txt", content)
        told = str(problem_of(report, "broken"))
        assert f"its entry_points.txt can't be read: {reason}" in told
        assert "pip install -U broken" in told
        assert "sound" in [info.name for info in report.models]

    @pytest.mark.parametrize(
        "content", [b"", b"Author: J\xf6rg\nName: broken\n", b"\n\nName: broken\n", b"Name:\n"]
    )
    def test_its_plugins_work_without_a_name(self, broken, content):
        report = broken("METADATA", content)
        assert {"sound", "shaky"} <= {info.name for info in report.models}

    def test_two_without_a_name_both_work(self, install):
        for name in ("nameless_one", "nameless_two"):
            site = install(name, GOOD.replace("NAME", name), entry=name)
            (site / f"{name}-1.0.dist-info" / "METADATA").write_text("")
        assert {"nameless_one", "nameless_two"} <= {info.name for info in scan().models}

    def test_one_without_a_name_is_not_to_be_updated_by_it(self, install):
        site = install("nameless", "raise RuntimeError", entry="shaky")
        (site / "nameless-1.0.dist-info" / "METADATA").write_text("")
        told = str(problem_of(scan(), "shaky"))
        assert "Install its package again" in told
        assert "-U unknown" not in told

    def test_a_copy_that_python_does_not_import_offers_no_plugins(self, install, tmp_path, monkeypatch):
        site = install("shadowed", GOOD.replace("NAME", "shadowed"), entry="shadowed", version="1.0")
        newer = tmp_path / "newer"
        info = newer / "shadowed-2.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shadowed\nVersion: 2.0\n")
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.syspath_prepend(str(newer))
        assert "shadowed" not in [info.name for info in scan().plugins]

    def test_of_two_copies_the_first_on_the_path_counts(self, install, tmp_path, monkeypatch):
        site = install("copied", GOOD.replace("NAME", "first"), entry="copied", version="2.0")
        older = tmp_path / "older"
        shutil.copytree(site, older)
        (older / "copied-2.0.dist-info" / "METADATA").write_text("Name: Copied\nVersion: 1.0\n")
        monkeypatch.syspath_prepend(str(older))
        monkeypatch.syspath_prepend(str(site))
        assert [info.version for info in scan().plugins if info.name == "copied"] == ["2.0"]


class TestVersions:
    def requiring(self, install, *requirements, source="raise RuntimeError('imported')"):
        module = f"requires_{abs(hash(requirements))}"
        site = install("from-elsewhere", source, entry="elsewhere", version="3.0", module=module)
        with (site / f"{module}-3.0.dist-info" / "METADATA").open("a") as file:
            file.writelines(f"Requires-Dist: {each}\n" for each in requirements)
        return str(problem_of(scan(), "elsewhere"))

    @pytest.mark.parametrize("name", ["iopaint-core", "IOPaint_Core", "iopaint.core"])
    def test_one_for_a_newer_core_is_not_imported(self, install, name):
        told = self.requiring(install, "numpy>=1", f"{name}<100,>=99")
        assert f"from-elsewhere 3.0 requires iopaint-core<100,>=99, and this is iopaint-core {__version__}" in told
        assert "pip install -U 'iopaint-core<100,>=99'" in told
        assert "pdate the package" not in told

    @pytest.mark.parametrize("least", [f"{__version__}.1", "1000", "0.1.0.post1", "0.2a1", "1!0"])
    def test_any_version_that_is_newer(self, install, least):
        assert f"requires iopaint-core>={least}, and this is" in self.requiring(install, f"iopaint-core>={least}")

    def test_one_for_an_older_core(self, install):
        told = self.requiring(install, "iopaint-core<0.0.5")
        assert f"Install a version of from-elsewhere for iopaint-core {__version__}" in told

    @pytest.mark.parametrize(
        "requirement",
        [
            f"iopaint-core=={__version__}",
            "iopaint-core>=0",
            f"iopaint-core >= {__version__}",
            f"iopaint-core>={__version__}.0.0",
            "iopaint-core",
            "iopaint-core-extra>=99",
            "iopaint-core>=99; extra == 'next'",
            "iopaint-core>=99; python_version < '3'",
            "iopaint-core>=ninety",
        ],
    )
    def test_what_does_not_concern_it(self, install, requirement):
        assert "RuntimeError: imported" in self.requiring(install, requirement)

    def test_the_version_is_that_of_the_distribution(self):
        import importlib_metadata

        assert importlib_metadata.version("iopaint-core") == __version__

    @pytest.mark.parametrize("wrapper", [False, True])
    def test_an_argument_that_a_hook_does_not_have(self, plugins, wrapper):
        @hookimpl(wrapper=wrapper)
        def iopaint_load_model(info, context, gpu_plan):
            return (yield) if wrapper else None

        with pytest.raises(PluginError) as caught:
            plugins.register(make_plugin("red", iopaint_load_model=iopaint_load_model), "red")
        told = str(caught.value)
        assert f"iopaint_load_model takes gpu_plan, and iopaint-core {__version__} gives it info, context" in told
        assert "pip install -U iopaint-core" in told


def test_an_entry_point_of_a_module_with_one_class_is_that_class(install):
    source = """
from abc import abstractmethod
from iopaint_core import BasePlugin, InpaintModel, ModelInfo
class Family(BasePlugin):
    @abstractmethod
    def path(self): ...
class Mine(Family):
    available_models = [ModelInfo("of-a-class")]
    def path(self): ...
    def load_model(self, info, context): ...
"""
    install("one-class", source)
    assert "of-a-class" in names(scan())


FAULTY = "def deep():\n    return {}['missing']\n"


def faulty(stage):
    source = FAULTY + GOOD.replace("NAME", "faulty")
    wrapper = "@hookimpl(wrapper=True, specname='iopaint_load_model')\ndef around():\n    yield deep()\n"
    return {
        "import": source + "deep()\n",
        "scan": source.replace("return [", "deep()\n    return ["),
        "load": source.replace("return Same()", "return deep()"),
        "wrap": source + wrapper,
        "forward": source.replace("return image", "return deep()"),
    }[stage]


class TestTracebacks:
    def test_a_problem_has_the_plugins_frames(self, install):
        install("faulty-import", FAULTY + "deep()\n", entry="faulty")
        told = problem_of(scan(), "faulty").traceback
        lines = told.splitlines()
        assert lines[0].startswith("Traceback")
        assert lines[1].endswith('faulty_import.py", line 3, in <module>')
        assert "line 2, in deep" in told
        assert lines[-1] == "KeyError: 'missing'"
        assert "iopaint_core" not in told

    @pytest.mark.process
    def test_a_command_shows_it(self, tmp_path):
        plugins = tmp_path / "plugins"
        plugins.mkdir()
        (plugins / "faulty.py").write_text(faulty("import"))
        done = command("--plugins-dir", plugins, "plugins", "--traceback", "faulty")
        assert (done.returncode, "line 2, in deep" in done.stdout) == (0, True)
        assert "Nothing is wrong with opencv." in command("plugins", "--traceback", "opencv").stdout
        done = command("plugins", "--traceback", "opencw")
        assert (done.returncode, "did you mean opencv?" in done.stderr) == (2, True)

    @pytest.mark.parametrize("stage", ["import", "scan", "load", "wrap", "forward"])
    @pytest.mark.parametrize("debug", [True, False])
    def test_any_host_logs_it_if_asked(self, install, monkeypatch, caplog, stage, debug):
        monkeypatch.setenv("IOPAINT_DEBUG", "1" if debug else "0")
        install("faulty-one", faulty(stage), entry="faulty", module=f"faulty_{stage}_{debug}")
        raised = {
            "import": UnknownModelError,
            "scan": UnknownModelError,
            "load": ModelLoadError,
            "forward": ModelError,
        }
        with pytest.raises(raised[stage]) if stage in raised else contextlib.nullcontext():
            ModelManager().inpaint("faulty", IMAGE, MASK)
        assert ("line 2, in deep" in caplog.text) == debug
        assert "UnknownModelError" not in caplog.text, "what the host was doing is nothing of the plugin's"

    @pytest.mark.parametrize("stage", ["import", "scan", "load", "forward"])
    def test_a_debugger_gets_it_at_once(self, install, monkeypatch, stage):
        monkeypatch.setenv("IOPAINT_RAISE", "1")
        install("faulty-one", faulty(stage), entry="faulty", module=f"raising_{stage}")
        with pytest.raises(KeyError, match="missing"):
            ModelManager().inpaint("faulty", IMAGE, MASK)


class TestRemedies:
    def test_an_author_of_a_file_is_not_told_to_update_a_package(self, plugins, tmp_path):
        (tmp_path / "mine.py").write_text("def iopaint_available_models(): return []\n")
        (tmp_path / "broken.py").write_text("1 / 0\n")
        (tmp_path / "text.py").write_text(GOOD.replace('[ModelInfo("NAME")]', "'a'"))
        (tmp_path / "lacks.py").write_text("import a_module_that_nobody_has\n")
        plugins.discover_folder(tmp_path)
        told = {problem.plugin: problem.remedy for problem in scan(plugins).problems}
        assert told.keys() == {"mine", "broken", "text", "lacks"}
        assert not any("package" in remedy or "pip install -U" in remedy for remedy in told.values())
        assert str(tmp_path / "broken.py") in told["broken"]
        assert "iopaint-core plugins --traceback broken" in told["broken"]
        assert told["text"] == "Return a list: [ModelInfo(...)]"
        assert told["lacks"] == "Install a_module_that_nobody_has"

    def test_a_user_of_a_package_is(self, install):
        install("broken-package", "1 / 0\n", entry="broken")
        install("text-package", GOOD.replace('[ModelInfo("NAME")]', "'a'"), entry="text")
        install("lacking-package", "import a_module_that_nobody_has\n", entry="lacks")
        told = {problem.plugin: problem.remedy for problem in scan().problems}
        assert "pip install -U broken-package" in told["broken"]
        assert "IOPAINT_DISABLE_PLUGINS" in told["broken"]
        assert "Its author: Return a list: [ModelInfo(...)]" in told["text"]
        assert told["lacks"] == "Install a_module_that_nobody_has, or the extra of lacking-package that brings it"


class TestNoAbstractClass:
    def test_a_class_that_can_not_be_made_is_told(self, plugins):
        class Half(BasePlugin):
            pass

        with pytest.raises(TypeError, match="load_model"):
            plugins.register(Half, "half")


def test_a_model_info_of_a_wrapper_is_still_its_owners(plugins):
    seen = []

    @hookimpl(wrapper=True, specname="iopaint_load_model")
    def around(info):
        seen.append(info.full_name)
        return (yield)

    plugins.register(make_plugin("red"), "innocent")
    plugins.register(types.SimpleNamespace(around=around, __name__="w"), "w")
    ModelManager(plugins).load("red").close()
    assert seen == [ModelInfo("red", plugin_name="innocent", distribution="host").full_name]
