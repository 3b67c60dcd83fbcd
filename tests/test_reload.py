"""Plugins come, go and change in a running process."""

import importlib
import importlib.util
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from iopaint_core import (
    ModelManager,
    PluginError,
    PluginManager,
    PluginStatus,
    Stage,
    UnknownModelError,
    scan_models,
)

IMAGE, MASK = np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 255, np.uint8)
SOURCE = """
from iopaint_core import InpaintModel, ModelInfo, hookimpl
{imports}

class Painter(InpaintModel):
    def forward(self, image, mask, parameters):
        image[:] = {value}
        return image

@hookimpl
def iopaint_available_models():
    return [ModelInfo({name!r})]

@hookimpl
def iopaint_load_model(info, context):
    return Painter()
"""
WRAPPER = """
import pluggy
from iopaint_core import hookimpl
calls = []

@hookimpl(wrapper=True)
def iopaint_load_model(info, context):
    calls.append(info.name)
    return (yield)
"""


def source(value, name="paint", imports=""):
    return SOURCE.format(value=value, name=name, imports=imports)


def painted(manager, name="paint"):
    return int(manager.inpaint(name, IMAGE, MASK)[0, 0, 0])


def statuses(plugins):
    return {info.name: info.status for info in plugins.plugins if info.distribution.startswith("my-")}


@pytest.fixture(autouse=True)
def _imports(monkeypatch):
    """Code is compiled to files, as usual, and what a test imports is gone after it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("my_", "iopaint_plugin_file_")):
            del sys.modules[name]


@pytest.fixture
def package(install):
    """Writes the modules of an installed plugin; the entry point names one of them."""

    def package(entry, modules, *, name="plugin", distribution="my-plugin"):
        dummy = distribution.replace("-", "_") + "_unused"
        site = install(distribution, "", entry=name, module=dummy)
        (site / f"{dummy}-1.0.dist-info" / "entry_points.txt").write_text(f"[iopaint]\n{name} = {entry}\n")
        for path, text in modules.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(text)
        return site

    return package


@pytest.fixture
def plugin(install):
    """Installs, and writes anew, a plugin of one module whose model paints a value."""

    def plugin(text):
        return install("my-plugin", text) / "my_plugin.py"

    return plugin


@pytest.fixture
def host(plugin):
    plugin(source(1))
    plugins = PluginManager(allow=["my-plugin"])
    plugins.discover()
    with_manager = ModelManager(plugins)
    assert painted(with_manager) == 1
    return with_manager


class TestReload:
    def test_mended_code_takes_effect(self, host, plugin):
        plugin(source(2))
        info = host.plugins.reload("plugin")
        assert (info.qualified_name, info.status) == ("my-plugin:plugin", PluginStatus.ACTIVE)
        assert painted(host) == 2

    def test_code_that_has_the_size_and_the_second_of_the_old_is_read(self, host, plugin):
        path = plugin(source(2))
        compiled = Path(importlib.util.cache_from_source(path))
        second = int.from_bytes(compiled.read_bytes()[8:12], "little")  # see `importlib._bootstrap_external`
        os.utime(path, (second, second))
        host.plugins.reload("plugin")
        assert painted(host) == 2

    def test_what_it_announces_is_asked_for_anew_without_a_scan(self, host, plugin):
        plugin(source(2, "other"))
        host.plugins.reload("my-plugin:plugin")
        with pytest.raises(UnknownModelError):
            host.find("paint")
        assert painted(host, "other") == 2

    def test_the_idle_model_of_the_old_code_is_dropped(self, host, plugin):
        (old,) = host.pool.stats().leases
        plugin(source(2))
        host.plugins.reload("plugin")
        painted(host)
        (new,) = host.pool.stats().leases
        assert (old.info.name, new.info.name) == ("paint", "paint")
        assert old != new

    def test_a_leased_model_goes_on_with_the_old_code_until_it_is_released(self, host, plugin):
        lease = host.load("paint")
        plugin(source(2))
        host.plugins.reload("plugin")
        assert painted(host) == 2
        assert lease.model(IMAGE, MASK)[0, 0, 0] == 1
        model = lease.model
        lease.close()
        assert vars(model) == {}

    def test_a_broken_one_fails_as_data_and_mended_it_is_back(self, host, plugin):
        lease = host.load("paint")
        plugin("raise OSError('no such thing')")
        assert host.plugins.reload("plugin").status is PluginStatus.FAILED
        (problem,) = host.plugins.problems
        assert (problem.plugin, problem.stage) == ("plugin", Stage.IMPORT)
        assert "no such thing" in str(problem)
        with pytest.raises(UnknownModelError):
            host.load("paint")
        assert lease.model(IMAGE, MASK)[0, 0, 0] == 1
        plugin(source(3))
        assert host.plugins.reload("plugin").status is PluginStatus.ACTIVE
        assert host.plugins.problems == ()
        assert painted(host) == 3

    def test_hooks_that_break_the_contract_are_a_problem(self, host, plugin):
        plugin(source(2).replace("iopaint_load_model", "iopaint_load_modle"))
        assert host.plugins.reload("plugin").status is PluginStatus.FAILED
        (problem,) = host.plugins.problems
        assert problem.stage is Stage.REGISTER
        assert "did you mean iopaint_load_model?" in str(problem)

    def test_one_that_failed_at_first_is_tried_again(self, plugin):
        plugin("import my_missing_package")
        plugins = PluginManager(allow=["my-plugin"])
        manager = ModelManager(plugins)
        plugins.discover()
        assert statuses(plugins) == {"plugin": PluginStatus.FAILED}
        path = plugin("import my_missing_package\n" + source(4))
        (path.parent / "my_missing_package.py").touch()
        assert plugins.reload("plugin").status is PluginStatus.ACTIVE
        assert painted(manager) == 4

    def test_a_new_version_of_the_package_is_found_with_its_module(self, host, package):
        site = package("my_plugin_two", {"my_plugin_two.py": source(5)})
        for old in site.glob("my_plugin-*.dist-info"):
            (old / "METADATA").unlink()
            (old / "entry_points.txt").unlink()
            old.rmdir()
        (info,) = site.glob("*.dist-info")
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 2.0\n")
        assert host.plugins.reload("plugin").version == "2.0"
        assert painted(host) == 5

    def test_one_whose_package_is_gone_fails(self, host, tmp_path):
        (tmp_path / "site" / "my_plugin-1.0.dist-info" / "entry_points.txt").unlink()
        assert host.plugins.reload("plugin").status is PluginStatus.FAILED
        (problem,) = host.plugins.problems
        assert "has no entry point plugin any more" in str(problem)
        with pytest.raises(UnknownModelError):
            host.find("paint")

    def test_a_single_file_is_read_anew(self, tmp_path):
        path = tmp_path / "plugins" / "my_file.py"
        path.parent.mkdir()
        path.write_text(source(1))
        plugins = PluginManager()
        plugins.discover_folder(path.parent)
        manager = ModelManager(plugins)
        assert painted(manager) == 1
        written = path.stat().st_mtime_ns
        path.write_text(source(2))
        os.utime(path, ns=(written, written))
        plugins.reload("my_file")
        assert painted(manager) == 2
        path.write_text("syntax error")
        assert plugins.reload("my_file").status is PluginStatus.FAILED
        path.write_text(source(3))
        plugins.reload("my_file")
        assert painted(manager) == 3

    def test_what_the_host_registered_is_not_reloaded(self, manager):
        with pytest.raises(PluginError, match=r"was registered by the host.*Unregister it, and register"):
            manager.plugins.reload("red")

    def test_what_a_list_leaves_out_is_never_imported(self, plugin):
        plugin("raise AssertionError('imported')")
        plugins = PluginManager(deny=["my-plugin"])
        plugins.discover()
        with pytest.raises(PluginError, match="left out by a list"):
            plugins.reload("my-plugin:plugin")
        assert "my_plugin" not in sys.modules

    def test_another_that_loads_meanwhile_gets_the_old_code_or_the_new(self, host, plugin):
        values, errors, ends = set(), [], threading.Event()

        def work():
            while not ends.is_set():
                try:
                    values.add(painted(host))
                    host.unload("paint")
                except Exception as error:  # noqa: BLE001 - none is expected
                    errors.append(error)
                    return

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for value in range(2, 22):
            plugin(source(value))
            assert host.plugins.reload("plugin").status is PluginStatus.ACTIVE
        ends.set()
        for thread in threads:
            thread.join()
        assert errors == []
        assert values <= set(range(1, 22))
        assert painted(host) == 21


class TestModules:
    """What goes out of `sys.modules`, and what stays."""

    @pytest.mark.parametrize("module", ["__init__", "plugin"])
    def test_helpers_in_the_package_are_read_anew(self, package, module):
        """The entry point names the package, or a module in it."""
        entry = "my_package" if module == "__init__" else "my_package.plugin"
        text = source("helper.value", imports="from my_package import helper")
        files = {"my_package/__init__.py": "", f"my_package/{module}.py": text, "my_package/helper.py": "value = 1"}
        package(entry, files)
        plugins = PluginManager(allow=["my-plugin"])
        manager = ModelManager(plugins)
        plugins.discover()
        assert painted(manager) == 1
        package(entry, {"my_package/helper.py": "value = 2"})
        plugins.reload("plugin")
        assert painted(manager) == 2

    @pytest.fixture
    def two(self, package):
        """Two plugins of one package, one of them with a module below its own."""
        package(
            "my_package.one",
            {"my_package/__init__.py": "", "my_package/one.py": source(1, "one")},
            name="one",
            distribution="my-one",
        )
        importing = source(2, "two", "from my_package.two import below")
        package(
            "my_package.two",
            {"my_package/two/__init__.py": importing, "my_package/two/below.py": ""},
            name="two",
            distribution="my-two",
        )
        plugins = PluginManager(allow=["my-one", "my-two"])
        plugins.discover()
        assert statuses(plugins) == {"one": PluginStatus.ACTIVE, "two": PluginStatus.ACTIVE}
        return plugins

    def test_other_plugins_and_a_package_that_they_share_stay(self, two):
        names = ("my_package", "my_package.one", "my_package.two", "my_package.two.below")
        before = [sys.modules[name] for name in names]
        two.reload("one")
        after = [sys.modules[name] for name in names]
        assert [one is other for one, other in zip(before, after, strict=True)] == [True, False, True, True]
        two.reload("two")
        last = [sys.modules[name] for name in names]
        assert [one is other for one, other in zip(after, last, strict=True)] == [True, True, False, False]

    def test_the_models_of_other_plugins_stay_loaded(self, two):
        manager = ModelManager(two)
        manager.preload("one", "two")
        two.reload("one")
        manager.find("one")
        assert [key.info.name for key in manager.pool.stats().leases] == ["two"]

    def test_what_the_old_code_imports_is_the_old_if_the_new_fails(self, two, package):
        one = sys.modules["my_package.one"]
        package("my_package.one", {"my_package/one.py": "raise ValueError"}, name="one", distribution="my-one")
        assert two.reload("one").status is PluginStatus.FAILED
        assert importlib.import_module("my_package.one") is one
        assert sys.modules["my_package"].one is one


class TestUnregister:
    def test_its_models_are_neither_listed_nor_found(self, host):
        assert host.plugins.unregister("plugin").status is PluginStatus.DISABLED
        assert scan_models(host.plugins) == []
        with pytest.raises(UnknownModelError):
            host.load("paint")
        assert host.pool.stats().leases == {}

    def test_a_leased_model_goes_on(self, host):
        with host.load("paint") as model:
            host.plugins.unregister("plugin")
            host.scan()
            assert model(IMAGE, MASK)[0, 0, 0] == 1
        assert host.pool.stats().leases == {}

    def test_only_a_reload_brings_it_back(self, host):
        host.plugins.unregister("plugin")
        host.plugins.discover()
        assert statuses(host.plugins) == {"plugin": PluginStatus.DISABLED}
        assert host.plugins.reload("plugin").status is PluginStatus.ACTIVE
        assert painted(host) == 1

    def test_its_wrappers_are_gone(self, host, tmp_path):
        folder = tmp_path / "wrappers"
        folder.mkdir()
        (folder / "my_wrapper.py").write_text(WRAPPER)
        host.plugins.discover_folder(folder)
        calls = sys.modules["iopaint_plugin_file_my_wrapper"].calls
        host.unload("paint")
        host.preload("paint")
        assert calls == ["paint"]
        host.plugins.unregister("my_wrapper")
        host.unload("paint")
        host.preload("paint")
        assert calls == ["paint"]

    def test_again_changes_nothing(self, host):
        host.plugins.unregister("plugin")
        assert host.plugins.unregister("plugin").status is PluginStatus.DISABLED

    def test_what_the_host_registers_in_its_place_loads(self, manager, install):
        painted(manager, "red")
        install("my-new", source(7, "red"))
        manager.plugins.unregister("red")
        manager.plugins.register(importlib.import_module("my_new"), "red")
        assert painted(manager, "red") == 7


class TestNames:
    @pytest.mark.parametrize("method", ["reload", "unregister"])
    def test_an_unknown_one_is_an_error_with_the_nearest(self, host, method):
        with pytest.raises(PluginError, match=r"No plugin is named plugni \(did you mean plugin\?\)"):
            getattr(host.plugins, method)("plugni")

    @pytest.mark.parametrize("method", ["reload", "unregister"])
    def test_an_ambiguous_one_is_an_error_with_the_choices(self, host, method, install):
        install("my-other", source(2, "other"))
        plugins = PluginManager(allow=["my-plugin", "my-other"])
        plugins.discover()
        with pytest.raises(PluginError, match="Name one of: my-other:plugin, my-plugin:plugin"):
            getattr(plugins, method)("plugin")
        assert getattr(plugins, method)("My_Other:plugin").distribution == "my-other"
