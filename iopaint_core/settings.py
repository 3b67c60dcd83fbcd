"""What the host, its environment and its home folder say of how to load models."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from iopaint_core.errors import OptionsError, PluginError, did_you_mean
from iopaint_core.options import LoadOptions, option_names
from iopaint_core.schema import LoadContext, Problem, Stage, describe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails

    from iopaint_core.schema import ModelInfo, PluginInfo

OPTIONS_FILE = "options.toml"
"""In the home folder: a table of options for each plugin."""


def default_context() -> LoadContext:
    """Load on the CPU; offline if IOPAINT_OFFLINE or HF_HUB_OFFLINE asks for it; cache in IOPAINT_HOME."""
    import platformdirs

    offline = any(
        os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}
        for name in ("IOPAINT_OFFLINE", "HF_HUB_OFFLINE")
    )
    home = os.environ.get("IOPAINT_HOME")
    return LoadContext(offline=offline, cache=Path(home) if home else platformdirs.user_cache_path("iopaint"))


def model_folders() -> tuple[Path, ...]:
    """Return the folders that the user names for plugins to find models in: IOPAINT_MODEL_DIRS."""
    return tuple(Path(name) for name in os.environ.get("IOPAINT_MODEL_DIRS", "").split(os.pathsep) if name)


def option_variable(plugin: str, option: str) -> str:
    """Return the name of the environment variable that sets an option: `IOPAINT_<PLUGIN>_<OPTION>`."""
    return re.sub(r"[^A-Z0-9]", "_", f"iopaint_{plugin}_{option}".upper())


class OptionSources:
    """Where the values of load options come from: the host's own, over the environment's, over a file's.

    The environment and the file are read when a model that declares options is first asked for; the options made
    then stay. A model that declares none reads neither, so what is wrong with them costs it nothing.
    """

    def __init__(self, given: Mapping[str, Mapping[str, object]], file: Path) -> None:
        self._given = given
        self._file = file
        self._made: dict[tuple[str, type[LoadOptions]], LoadOptions] = {}

    def options_of(self, info: ModelInfo, models: Iterable[ModelInfo]) -> LoadOptions:
        """Return the checked options of a model; its plugin's others, among `models`, may declare more.

        Raises `OptionsError` for what is set wrongly, `PluginError` if its class can't be used.
        """
        key = info.plugin_name, info.load_options
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._make(info, models)
        return made

    def unused(self, plugins: Iterable[PluginInfo]) -> list[Problem]:
        """Return what no plugin reads: options of one that is not installed, and a file that can't be read."""
        names = {plugin.name for plugin in plugins}
        problems = []
        sources: list[tuple[Mapping[str, object], str]] = [(self._given, "The host")]
        try:
            sources.append((self._read(), str(self._file)))
        except OptionsError as error:
            problems.append(_problem(OPTIONS_FILE, OPTIONS_FILE, error))
        for tables, source in sources:
            for name in sorted(tables.keys() - names):
                unknown = OptionsError(
                    f"{source} sets options of {name}, and no plugin of that name is installed"
                    f"{did_you_mean(name, names)}",
                    "Correct the name, or take them out",
                )
                problems.append(_problem(name, name, unknown))
        return problems

    def problems(self, plugins: Iterable[PluginInfo], models: Iterable[ModelInfo]) -> list[Problem]:
        """Return all that is wrong with the options, values included."""
        models = list(models)
        found = {str(problem.error): problem for problem in self.unused(plugins)}
        for info in models:
            try:
                self.options_of(info, models)
            except (OptionsError, PluginError) as error:
                found.setdefault(str(error), _problem(info.plugin_name, info.distribution, error))
        return list(found.values())

    def _make(self, info: ModelInfo, models: Iterable[ModelInfo]) -> LoadOptions:
        plugin, declared = info.plugin_name, option_names(info.load_options)
        values: dict[str, _Value] = {}
        if declared:
            source = f" ({self._file})"
            values |= {name: _Value(value, source) for name, value in _table(self._read(), plugin).items()}
            variables = {name: option_variable(plugin, name) for name in declared}
            values |= {
                name: _Value(os.environ[variable], f" ({variable})")
                for name, variable in variables.items()
                if os.environ.get(variable)
            }
        values |= {name: _Value(value, "") for name, value in _table(self._given, plugin).items()}
        siblings = [other for other in models if other.plugin_name == plugin]
        known = {name for other in (info, *siblings) for name in option_names(other.load_options)}
        if unknown := [
            f"{name!r}{value.source} is not an option{did_you_mean(name, known)}"
            for name, value in values.items()
            if name not in known
        ]:
            raise _wrong(plugin, unknown, sorted(known))
        return _checked(info, {name: value for name, value in values.items() if name in declared})

    def _read(self) -> Mapping[str, object]:
        """Return the tables of the file; none if there is no file."""
        try:
            with self._file.open(encoding="utf-8-sig") as file:
                import tomllib

                return tomllib.loads(file.read())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            fault, remedy = f"can't be read: {error.strerror}", "Make it readable"
        except (ValueError, RecursionError) as error:
            fault = f"can't be read as TOML: {error}"
            remedy = 'Give each plugin a table: [plugin], and below it option = "value"'
        # Raised here, where no error is handled: the frames of its context would hold the file's text.
        raise OptionsError(f"{self._file} {fault}", remedy)


@dataclass(frozen=True)
class _Value:
    """A value as it was found. It may be a key: it does not print, not even with the locals of a traceback."""

    found: object = field(repr=False)
    source: str
    """For an error, in parentheses; empty for the host's own."""


def _checked(info: ModelInfo, values: Mapping[str, _Value]) -> LoadOptions:
    """Make the options of a model. Of a wrong value, an error tells the type alone."""
    try:
        options = info.load_options()
        if values:
            from pydantic import TypeAdapter

            adapter = TypeAdapter(info.load_options)
            options = adapter.validate_python({name: value.found for name, value in values.items()})
        hash(options)
        return options
    except Exception as error:
        from pydantic import ValidationError

        if not isinstance(error, ValidationError):
            raise PluginError(
                f"{info.load_options.__name__}, the options of {info.plugin_name}, can't be made: "
                f"{describe(error)}",
                f"Report it to the author of {info.distribution}",
            ) from error
        faults = [_fault(item, values) for item in error.errors(include_url=False)]
    # Raised here, where no error is handled: pydantic's, as its context, would show the values.
    raise _wrong(info.plugin_name, faults, option_names(info.load_options))


def _fault(item: ErrorDetails, values: Mapping[str, _Value]) -> str:
    if not item["loc"]:
        return item["msg"]
    value = values.get(str(item["loc"][0]))
    source = "" if value is None else value.source
    return f"{'.'.join(map(str, item['loc']))!r}{source} is {type(item['input']).__name__}: {item['msg']}"


def _wrong(plugin: str, faults: list[str], names: list[str]) -> OptionsError:
    return OptionsError(
        f"The options of {plugin} are wrong: {'; '.join(faults)}", f"The options are: {', '.join(names) or 'none'}"
    )


def _table(tables: Mapping[str, object], plugin: str) -> Mapping[str, object]:
    table = tables.get(plugin, {})
    if not isinstance(table, Mapping):
        raise OptionsError(
            f"The options of {plugin} are wrong: expected them by name, got {type(table).__name__}",
            "Write [plugin] and below it option = value in a file, {'plugin': {'option': value}} in Python",
        )
    return table


def _problem(plugin: str, distribution: str, error: OptionsError | PluginError) -> Problem:
    return Problem(plugin, distribution, "", Stage.CONFIGURE, error, error.remedy)
