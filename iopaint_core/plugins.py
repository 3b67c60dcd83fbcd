"""Find plugins, let each in on its own, and call its hooks.

pluggy isolates nothing, so each plugin is imported, registered, checked and asked inside one guard: whatever
it does wrong becomes a `Problem`, it is unregistered, and the others go on.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.util
import inspect
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

from iopaint_core import hookspecs
from iopaint_core.errors import (
    AskedError,
    ContractError,
    ModelLoadError,
    PluginError,
    PoolError,
    did_you_mean,
)
from iopaint_core.hookspecs import ANNOUNCE, HOOKS, BasePlugin
from iopaint_core.plugin_sources import InstalledPlugin, heavy_imports, import_file, installed_plugins, normalise
from iopaint_core.process_state import process_state_kept
from iopaint_core.reloading import drop_bytecode_of, import_anew
from iopaint_core.remedies import load_remedy, remedy_for
from iopaint_core.schema import HOST, PluginInfo, PluginStatus, Problem, Stage, describe
from iopaint_core.time_limits import VARIABLE, Watch, plugin_timeout, within
from iopaint_core.tracebacks import log_failure, raises_at_once
from iopaint_core.values import type_name
from iopaint_core.version import __version__
from iopaint_core.wrappers import WrapperError, run_wrapped

if TYPE_CHECKING:
    from iopaint_core.schema import LoadContext, ModelInfo, Task

_logger = logging.getLogger(__name__)

MOST_MODELS = 100_000
"""Of one plugin: an iterator without end is a fault of it, and no host waits for ever."""
_asked: contextvars.ContextVar[PluginInfo | None] = contextvars.ContextVar("iopaint_asked_plugin", default=None)
"""The plugin that is being imported, or asked for its models."""


class PluginManager:
    """The plugins of one host. Making it imports nothing; `discover` does.

    `allow` and `deny` hold names of distributions, or `distribution:plugin` for one plugin of several. The
    environment's IOPAINT_PLUGINS (allow) and IOPAINT_DISABLE_PLUGINS (deny), separated by commas, restrict
    further. What they leave out is never imported. `allow=None` allows all, an empty one nothing.
    """

    def __init__(self, *, allow: Iterable[str] | None = None, deny: Iterable[str] = ()) -> None:
        allowed = _names(allow), _from_environment("IOPAINT_PLUGINS")
        self._allow = [names for names in allowed if names is not None]
        self._deny = (_names(deny) or set()) | (_from_environment("IOPAINT_DISABLE_PLUGINS") or set())
        self._pluggy = pluggy.PluginManager("iopaint")
        self._pluggy.add_hookspecs(hookspecs)
        self._plugins: dict[str, PluginInfo] = {}
        self._sources: dict[str, InstalledPlugin | Path] = {}
        """Where the code of a plugin is imported from, unless the host registered it."""
        self._code: dict[str, PluginCode] = {}
        self._problems: list[Problem] = []
        self._changes = 0
        self._lock = threading.RLock()  # looking at a plugin may run its code, which may look at us
        self._discovery = threading.Lock()

    @property
    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin found so far with its status, by distribution and name."""
        with self._lock:
            return tuple(sorted(self._plugins.values(), key=_origin))

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What went wrong so far; a plugin that failed stays out of this manager."""
        with self._lock:
            return tuple(self._problems)

    @property
    def changes(self) -> int:
        """How often a plugin came or went: what it announced is to be asked for again when this has changed."""
        return self._changes

    def code_of(self, info: ModelInfo) -> PluginCode | None:
        """The code that loads a model now; None if its plugin is not registered."""
        return self._code.get(f"{info.distribution}:{info.plugin_name}")

    def discover(self) -> None:
        """Find, import and register the plugins that installed packages offer as entry points."""
        _refuse_within_plugins()
        with self._discovery, Watch() as watch:
            installed = installed_plugins()
            self._check_lists([plugin.info for plugin in installed])
            for plugin in sorted(installed, key=lambda plugin: _origin(plugin.info)):
                info = plugin.info
                if info.qualified_name in self._plugins:
                    continue
                self._sources[info.qualified_name] = plugin
                if not self._permits(info):
                    self._plugins[info.qualified_name] = replace(info, status=PluginStatus.DISABLED)
                    continue
                self._admit(plugin.load, info, watch)

    def discover_folder(self, folder: Path) -> None:
        """Import each `*.py` of a folder as a plugin, except those whose names begin with `_`.

        One that implements no hook and defines one `BasePlugin` is that plugin.
        Whoever may write to the folder may run code in this process, so only a host asks for it.
        """
        if not folder.is_dir():
            raise PluginError(f"{folder} is no folder", "Name a folder that holds single-file plugins")
        folder = folder.absolute()  # it tells plugins apart, also from another working directory
        _refuse_within_plugins()
        with self._discovery, Watch() as watch:
            for path in sorted(folder.glob("[!_.]*.py")):
                info = PluginInfo(path.stem, str(folder), version="")
                if info.qualified_name in self._plugins:
                    continue
                self._sources[info.qualified_name] = path
                self._admit(functools.partial(import_file, path), info, watch)

    def register(self, plugin: object, name: str | None = None, *, distribution: str = HOST) -> PluginInfo:
        """Register a plugin that the host brings along; a wrong one raises `PluginError`."""
        name = name or getattr(plugin, "name", None) or getattr(plugin, "__name__", None)
        if not isinstance(name, str):
            raise PluginError(f"{plugin!r} has no name", "Pass one: register(plugin, 'name')")
        info = PluginInfo(name, distribution, version="")
        self._register(plugin, info)
        return info

    def unregister(self, name: str) -> PluginInfo:
        """Take out a plugin, `plugin` or `distribution:plugin`, with its hooks and wrappers.

        Models of it that are leased go on until they are released. `discover` does not bring it back; `reload`
        does, or `register` for one that the host brought along.

        Raises `PluginError` for a name that is not one plugin's.
        """
        with self._discovery, self._lock:
            info = replace(self._named(name), status=PluginStatus.DISABLED)
            self._withdraw(info)
            self._plugins[info.qualified_name] = info
        return info

    def reload(self, name: str) -> PluginInfo:
        """Import the code of a plugin anew, as it is on disk now, and register it; one that failed is tried again.

        Its module goes, and all below it; if that is one of a package, the modules of the package too, but for
        those of other plugins. The code of before serves until then, and leased models of it until they are
        released. What is wrong with the new code is a `Problem`, and the status of what is returned `FAILED`.

        Raises `PluginError` for a name that is not one plugin's, for a plugin that a list leaves out, and for one
        that the host registered.
        """
        _refuse_within_plugins()
        with self._discovery, Watch() as watch:
            info = self._named(name)
            source = self._sources.get(info.qualified_name)
            if source is None:
                raise PluginError(
                    f"{info.qualified_name} was registered by the host, and there is no file to import it from",
                    "Unregister it, and register what takes its place",
                )
            importlib.invalidate_caches()
            load: Callable[[], object]
            if isinstance(source, Path):
                drop_bytecode_of(source)
                load = functools.partial(import_file, source)
            else:
                if not self._permits(info):
                    raise PluginError(
                        f"{info.qualified_name} is left out by a list of plugins",
                        "Take it out of IOPAINT_DISABLE_PLUGINS and deny=, or add it to IOPAINT_PLUGINS and allow=",
                    )
                info, load = self._installed(info)
            with self._lock:
                self._problems = [problem for problem in self._problems if _origin_of(problem) != _origin(info)]
            self._admit(load, replace(info, status=PluginStatus.ACTIVE), watch, replaces=True)
            return self._plugins[info.qualified_name]

    def announcements(self) -> Iterator[tuple[PluginInfo, Task, list[object]]]:
        """Ask each plugin, in the order of `plugins`, for its models' default task and for them; unchecked."""
        _refuse_within_plugins()
        with self._lock:
            implementations = self._pluggy.hook.iopaint_available_models.get_hookimpls()
            asked = [(self._plugins[impl.plugin_name], impl) for impl in implementations]
        seconds = self._timeout()
        with Watch() as watch, process_state_kept(seeds=False):
            for info, implementation in sorted(asked, key=lambda pair: _origin(pair[0])):
                what = f"the plugin {info.qualified_name}, asked for its models,"
                try:
                    with watch.doing(what), _asking(info):
                        answer = within(seconds, what, functools.partial(_announced, implementation))
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # noqa: BLE001 - see `_admit`
                    self._fail(info, Stage.SCAN, error)
                else:
                    yield info, *answer

    def load_model(self, info: ModelInfo, context: LoadContext, kind: type = object) -> object:
        """Run the implementation of the plugin that announced `info` inside the wrappers of every plugin.

        A wrapper that fails, or returns no `kind`, is a `Problem` of its plugin, and the load goes on without it.

        Raises `ModelLoadError`, with what the plugin raised as its cause; a `PoolError` or `MemoryError` as it is.
        """
        owner = f"{info.distribution}:{info.plugin_name}"
        with self._lock:
            implementations = self._pluggy.hook.iopaint_load_model.get_hookimpls()
        own = [impl for impl in implementations if impl.plugin_name == owner and not _is_wrapper(impl)]
        if not own:
            raise ModelLoadError(
                f"{info.qualified_name} can't be loaded: its plugin {owner} is not registered",
                "Scan again, and look at `iopaint-core plugins` for what became of it",
            )
        arguments = {"info": info, "context": context}

        def load() -> object:
            return own[0].function(*(arguments[name] for name in own[0].argnames))

        for wrapper in filter(_is_wrapper, implementations):  # the innermost first
            failed = functools.partial(self._note_wrapper, wrapper.plugin_name, info)
            load = functools.partial(run_wrapped, wrapper, arguments, load, kind, failed, self._timeout())
        try:
            return load()
        except (KeyboardInterrupt, MemoryError, PoolError):
            raise
        except BaseException as error:
            if not isinstance(error, AskedError):
                _note_failure(f"{info.qualified_name} could not be loaded", error)
            raise ModelLoadError(
                f"{info.qualified_name} could not be loaded: {describe(error)}", load_remedy(error, info)
            ) from error

    def problem(self, info: PluginInfo, stage: Stage, error: BaseException) -> Problem:
        """Return what went wrong as data, with a remedy for whoever can do something: a user, or its author."""
        stage = Stage.REGISTER if isinstance(error, _RegisterError) else stage
        source = self._sources.get(info.qualified_name)
        return Problem(info.name, info.distribution, info.version, stage, error, remedy_for(info, source, error))

    def _note_wrapper(self, name: str, around: ModelInfo, error: WrapperError) -> None:
        """Keep what is wrong with a wrapper, once."""
        message = f"A wrapper of {name} failed around the load of {around.qualified_name}"
        _note_failure(message, error.__cause__ or error)
        with self._lock:
            info = self._plugins.get(name)
            if info is None:  # it was unregistered meanwhile
                return
            problem = self.problem(info, Stage.WRAP, error)
            if str(problem) not in map(str, self._problems):
                _logger.warning("%s went on without a wrapper: %s", around.qualified_name, problem)
                self._problems.append(problem)

    def _fail(self, info: PluginInfo, stage: Stage, error: BaseException) -> None:
        """Unregister a plugin and keep what went wrong."""
        _note_failure(f"The plugin {info.qualified_name} failed", error)
        with self._lock:
            self._withdraw(info)
            self._plugins[info.qualified_name] = replace(info, status=PluginStatus.FAILED)
            self._problems.append(self.problem(info, stage, error))

    def _timeout(self) -> float | None:
        """The seconds that a plugin may take; a wrong setting of it is a problem, once."""
        try:
            return plugin_timeout()
        except PluginError as error:
            problem = Problem(VARIABLE, VARIABLE, "", Stage.CONFIGURE, error, error.remedy)
            if str(problem) not in map(str, self._problems):
                self._problems.append(problem)
            return None

    def _withdraw(self, info: PluginInfo) -> None:
        if self._pluggy.has_plugin(info.qualified_name):
            self._pluggy.unregister(name=info.qualified_name)
            del self._code[info.qualified_name]
            self._changes += 1

    def _named(self, name: str) -> PluginInfo:
        """The plugin that `plugin` or `distribution:plugin` means. Raises `PluginError`."""
        known = self.plugins
        found = [info for info in known if normalise(name) in map(normalise, (info.name, info.qualified_name))]
        if len(found) == 1:
            return found[0]
        if found:
            choices = ", ".join(info.qualified_name for info in found)
            raise PluginError(f"{len(found)} plugins are named {name}", f"Name one of: {choices}")
        names = [name for info in known for name in (info.name, info.qualified_name)]
        raise PluginError(
            f"No plugin is named {name}{did_you_mean(name, names)}",
            "`iopaint-core plugins` shows all; discover() finds what was installed meanwhile",
        )

    def _installed(self, info: PluginInfo) -> tuple[PluginInfo, Callable[[], object]]:
        """The plugin as its package is installed now, and what imports it anew."""
        for plugin in installed_plugins():
            if plugin.info.qualified_name == info.qualified_name:
                self._sources[info.qualified_name] = plugin
                sources = [source for source in self._sources.values() if not isinstance(source, Path)]
                others = [source.module for source in sources if source is not plugin]
                return plugin.info, functools.partial(import_anew, plugin.module, others, plugin.load)

        def missing() -> object:
            raise PluginError(
                f"{info.distribution} has no entry point {info.name} any more",
                "Install a version that has it, or unregister it",
            )

        return info, missing

    def _admit(self, load: Callable[[], object], info: PluginInfo, watch: Watch, *, replaces: bool = False) -> None:
        """Import a plugin and register it; what it does wrong becomes a problem.

        `SystemExit` is no `Exception`, nor are the panics of extensions written in Rust.
        """
        before, started = set(sys.modules), time.monotonic()
        what = f"the import of the plugin {info.qualified_name}"
        try:
            with watch.doing(what), process_state_kept(), _asking(info):
                plugin = within(self._timeout(), what, load)
                seconds, heavy = time.monotonic() - started, heavy_imports(before, info)
                info = replace(info, seconds=seconds, heavy_imports=heavy)
                self._register(plugin, info, replaces=replaces)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything
            self._fail(info, Stage.IMPORT, error)

    def _register(self, plugin: object, info: PluginInfo, *, replaces: bool = False) -> None:
        code = PluginCode(plugin)
        if isinstance(plugin, type) and issubclass(plugin, BasePlugin):
            plugin = plugin()
        with self._lock:
            if replaces:
                self._withdraw(info)
            if self._pluggy.has_plugin(info.qualified_name) or self._pluggy.is_registered(plugin):
                taken = self._pluggy.get_name(plugin) or info.qualified_name
                raise _RegisterError(f"it is registered already, as {taken}")
            try:
                self._pluggy.register(plugin, info.qualified_name)
            except pluggy.PluginValidationError as error:
                raise _RegisterError(*self._unknown_arguments(plugin, error)) from None
            if faults := list(self._faults(plugin)):
                self._pluggy.unregister(plugin)
                raise _RegisterError("; ".join(faults))
            self._plugins[info.qualified_name] = info
            self._code[info.qualified_name] = code
            self._changes += 1

    def _faults(self, plugin: object) -> Iterator[str]:
        """What is wrong with the hooks of a plugin that pluggy itself lets pass."""
        hooks = [
            (caller, impl, impl.wrapper or impl.hookwrapper)
            for caller in self._pluggy.get_hookcallers(plugin) or []
            for impl in caller.get_hookimpls()
            if impl.plugin is plugin
        ]
        for caller, impl, wrapper in hooks:
            if not caller.has_spec() and not impl.optionalhook:
                yield f"{caller.name} is no hook{did_you_mean(caller.name, HOOKS)}"
            if impl.kwargnames:
                yield f"{caller.name} gives its argument {impl.kwargnames[0]!r} a default; take it without one"
            if wrapper and caller.name == ANNOUNCE:
                yield f"{ANNOUNCE} takes no wrappers"
        yield from self._unmarked(plugin)
        implemented = {caller.name for caller, _, wrapper in hooks if not wrapper} & set(HOOKS)
        if not hooks:
            yield "it implements no hook"
        for missing in set(HOOKS) - implemented if implemented else ():
            yield f"{missing} is missing: implement both hooks"

    def _unknown_arguments(self, plugin: object, error: Exception) -> tuple[str, str]:
        """What is wrong with a plugin whose hooks have arguments that pluggy refuses, and the remedy."""
        for name in HOOKS:
            options = self._pluggy.parse_hookimpl_opts(plugin, name)
            if options is not None:
                given = inspect.signature(getattr(hookspecs, name)).parameters
                unknown = inspect.signature(getattr(plugin, name)).parameters.keys() - given.keys()
                if unknown:
                    found, expected = ", ".join(sorted(unknown)), ", ".join(given) or "nothing"
                    return (
                        f"{name} takes {found}, and iopaint-core {__version__} gives it {expected}",
                        "Take what it gives; for a newer iopaint-core: pip install -U iopaint-core",
                    )
        return " ".join(str(error).split()), "Mend the hooks: see iopaint_core/hookspecs.py"

    def _unmarked(self, plugin: object) -> Iterator[str]:
        """Functions named like hooks that pluggy does not see."""
        for name in dir(plugin):
            if name.startswith("iopaint_") and self._pluggy.parse_hookimpl_opts(plugin, name) is None:
                if name in HOOKS:
                    yield f"{name} lacks its @hookimpl"
                elif inspect.isroutine(getattr(plugin, name)):
                    yield f"{name} is no hook{did_you_mean(name, HOOKS)}"

    def _permits(self, info: PluginInfo) -> bool:
        names = {normalise(info.distribution), normalise(info.qualified_name)}
        return not names & self._deny and all(names & allowed for allowed in self._allow)

    def _check_lists(self, found: list[PluginInfo]) -> None:
        known = {normalise(name) for info in found for name in (info.distribution, info.qualified_name)}
        told = {problem.plugin for problem in self._problems if problem.stage is Stage.CONFIGURE}
        for name in sorted(set().union(self._deny, *self._allow) - known - told):
            error = PluginError(
                f"a list of plugins names {name}, which is not installed{did_you_mean(name, known)}"
            )
            remedy = "Correct the name or install the package"
            self._problems.append(Problem(name, name, "", Stage.CONFIGURE, error, remedy))


class PluginCode:
    """What a plugin was registered from: its module, its class, or the object itself. Compared by identity."""

    def __init__(self, source: object) -> None:
        self._source = source

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PluginCode) and self._source is other._source

    def __hash__(self) -> int:
        return id(self._source)


class _RegisterError(ContractError):
    """A plugin's hooks do not fit the hook specifications."""

    def __init__(self, message: str, remedy: str = "Mend the hooks: see iopaint_core/hookspecs.py") -> None:
        super().__init__(message, remedy)


def missing_packages(*names: str, install: str) -> str:
    """Return which packages are missing, and the remedy, for `ModelInfo.unavailable`; empty if none is.

    They are looked up by the names under which they are imported, without the import.
    """
    missing = [name for name in names if sys.modules.get(name) is None and importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed: {install}"


def _names(names: Iterable[str] | None) -> set[str] | None:
    return None if names is None else {normalise(name) for name in names}


def _from_environment(variable: str) -> set[str] | None:
    value = os.environ.get(variable)
    return None if value is None else _names(name for name in value.split(",") if name.strip())


def _origin_of(problem: Problem) -> tuple[str, str]:
    return normalise(problem.distribution), problem.plugin


def _origin(info: PluginInfo) -> tuple[str, str]:
    return normalise(info.distribution), info.name


def _announced(implementation: pluggy.HookImpl) -> tuple[Task, list[object]]:
    """Ask a plugin for its models' default task, and for them."""
    plugin = implementation.plugin
    task = plugin.task if isinstance(plugin, BasePlugin) else BasePlugin.task
    return task, _materialise(implementation.function())


@contextlib.contextmanager
def _asking(info: PluginInfo) -> Iterator[None]:
    token = _asked.set(info)
    try:
        yield
    finally:
        _asked.reset(token)


def _refuse_within_plugins() -> None:
    """Raise `ContractError` in a plugin that looks at all plugins while it is looked at: that would not end."""
    info = _asked.get()
    if info is not None:
        raise ContractError(
            f"{info.qualified_name} scans for plugins while it is imported or asked for its models",
            "Scan in iopaint_load_model, or call other models there by context.models",
        )


def _is_wrapper(implementation: pluggy.HookImpl) -> bool:
    return implementation.wrapper or implementation.hookwrapper


def _note_failure(message: str, error: BaseException) -> None:
    """Log where a plugin failed; or, for a debugger, raise it."""
    if raises_at_once():
        raise error
    log_failure(message, error)


def _materialise(models: object) -> list[object]:
    if not isinstance(models, Iterable) or isinstance(models, (str, bytes)):
        raise ContractError(
            f"{ANNOUNCE} returned {type_name(models)}, not an iterable of ModelInfo",
            "Return a list: [ModelInfo(...)]",
        )
    announced = list(itertools.islice(models, MOST_MODELS + 1))
    if len(announced) > MOST_MODELS:
        raise ContractError(
            f"{ANNOUNCE} returned more than {MOST_MODELS} models", "Announce models that can be loaded"
        )
    return announced
