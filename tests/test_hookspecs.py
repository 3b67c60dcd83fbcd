"""The contract, and what its versioning promises: docs/hooks.md."""

import inspect
import warnings

import pluggy
import pytest
from conftest import ROOT, Red, make_plugin

import hookspecs as front_door
from iopaint_core import ModelInfo, ModelManager, PluginManager, Task, hookimpl, hookspecs

HOOKS = {name: function for name, function in vars(hookspecs).items() if name.startswith("iopaint_")}
DOCUMENT = (ROOT / "docs" / "hooks.md").read_text()


def test_the_contract_at_the_front_door_is_the_contract_of_the_package():
    assert not (ROOT / "hookspecs.py").is_symlink(), "which is a line of text on Windows"
    assert front_door.__doc__
    for name in {*HOOKS, "BasePlugin", "hookimpl", "hookspec"}:
        assert getattr(front_door, name) is getattr(hookspecs, name)
    assert {*HOOKS, "BasePlugin", "hookimpl", "hookspec"} == {*front_door.__all__}


def test_there_are_two_hooks():
    assert list(HOOKS) == ["iopaint_available_models", "iopaint_load_model"]


@pytest.mark.parametrize("name", HOOKS)
def test_each_hook_is_documented_with_its_signature(name):
    arguments = ", ".join(inspect.signature(HOOKS[name]).parameters)
    assert f"`{name}({arguments})`" in DOCUMENT
    assert inspect.getdoc(HOOKS[name])


@pytest.mark.parametrize("arguments", ["", "info", "context", "context, info"])
def test_an_implementation_takes_any_subset_of_the_arguments(arguments):
    """So a hook may gain an argument, and older plugins go on working."""
    scope = {"hookimpl": hookimpl, "Red": Red}
    exec(f"@hookimpl\ndef iopaint_load_model({arguments}):\n    return Red()", scope)
    plugins = PluginManager()
    plugins.register(make_plugin("red", iopaint_load_model=scope["iopaint_load_model"]), "red")
    with ModelManager(plugins).load("red") as model:
        assert isinstance(model, Red)


class NextVersion:
    """The hooks as a later version might specify them."""

    hookspec = pluggy.HookspecMarker("iopaint")

    @hookspec
    def iopaint_available_models(self, query):
        """Gained an argument."""

    @hookspec(firstresult=True, warn_on_impl_args={"context": DeprecationWarning("use info.context")})
    def iopaint_load_model(self, info, context):
        """Has a deprecated argument."""

    @hookspec(warn_on_impl=DeprecationWarning("announce them by iopaint_available_models"))
    def iopaint_list_models(self):
        """Deprecated."""


@pytest.fixture
def next_version():
    manager = pluggy.PluginManager("iopaint")
    manager.add_hookspecs(NextVersion)
    return manager


def test_a_hook_that_gained_an_argument_takes_todays_plugins(next_version):
    plugin = make_plugin("red", iopaint_load_model=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next_version.register(plugin)
    assert next_version.hook.iopaint_available_models(query="") == [[ModelInfo("red", task=Task.INPAINT)]]


def test_a_deprecated_argument_warns_only_those_who_take_it(next_version):
    with pytest.warns(DeprecationWarning, match=r"use info\.context"):
        next_version.register(make_plugin("red"), "takes context")

    @hookimpl
    def iopaint_load_model(info):
        return Red()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next_version.register(make_plugin("red", iopaint_load_model=iopaint_load_model), "takes info")


def test_a_deprecated_hook_warns_those_who_implement_it(next_version):
    @hookimpl
    def iopaint_list_models():
        return []

    with pytest.warns(DeprecationWarning, match="announce them by"):
        next_version.register(make_plugin("red", iopaint_load_model=None, iopaint_list_models=iopaint_list_models))


def test_a_plugin_may_implement_a_hook_of_a_later_version():
    @hookimpl(optionalhook=True)
    def iopaint_measure_model(info):
        return 0

    plugins = PluginManager()
    plugins.register(make_plugin("red", iopaint_measure_model=iopaint_measure_model), "red")
    assert not plugins.problems
