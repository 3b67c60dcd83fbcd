"""What all plugins offer together: one scan, and names that lead to models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from iopaint_core.errors import (
    AmbiguousModelError,
    ContractError,
    ModelNameError,
    UnavailableModelError,
    UnknownModelError,
    nearest,
)
from iopaint_core.plugins import PluginManager
from iopaint_core.schema import ModelInfo, ModelType, PluginInfo, Problem, Stage, Task
from iopaint_core.values import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


@dataclass(frozen=True)
class ScanReport:
    """What a scan found, and what went wrong on the way."""

    models: tuple[ModelInfo, ...]
    """By distribution, plugin and name, without duplicates."""
    plugins: tuple[PluginInfo, ...]
    problems: tuple[Problem, ...]


def scan(plugins: PluginManager | None = None) -> ScanReport:
    """Ask every plugin for its models; without `plugins`, discover those that are installed."""
    if plugins is None:
        plugins = PluginManager()
        plugins.discover()
    models: list[ModelInfo] = []
    problems: list[Problem] = []
    for plugin, task, announced in plugins.announcements():
        found, faults = _accept(plugin, task, announced)
        models += found
        problems += [plugins.problem(plugin, Stage.SCAN, fault) for fault in faults]
    usable = tuple(_usable(info, models) for info in models)
    return ScanReport(usable, plugins.plugins, plugins.problems + tuple(problems))


def scan_models(plugins: PluginManager | None = None) -> list[ModelInfo]:
    """The models that every plugin offers; `scan` tells what went wrong too."""
    return list(scan(plugins).models)


def scan_plugin_models(plugins: PluginManager | None = None) -> list[ModelInfo]:
    """The models that `scan_models` returns with the label `ModelType.PLUGIN`."""
    return [info for info in scan(plugins).models if info.type is ModelType.PLUGIN]


def find_model(name: str, models: Iterable[ModelInfo]) -> ModelInfo:
    """The model that `name`, `plugin:name` or `distribution:plugin:name` means.

    A model that can be used goes before those of its name that can't be: a file that several plugins find is usable
    to the one that knows what it is.

    Raises `UnknownModelError` with the nearest names, `AmbiguousModelError` with the names that tell apart.
    """
    models = list(models)
    found = [info for info in models if name in _names(info)]
    found = [info for info in found if not info.unavailable] or found
    if len(found) == 1:
        return found[0]
    if found:
        distinct = len({info.qualified_name for info in found}) == len(found)
        choices = tuple(_names(info)[1 if distinct else 2] for info in found)
        raise AmbiguousModelError(
            f"{len(found)} plugins announce a model named {name}",
            f"Name one of: {', '.join(choices)}",
            choices,
        )
    choices = nearest(name, [info.name for info in models])
    remedy = f"Did you mean {' or '.join(choices)}?" if choices else ""
    raise UnknownModelError(
        f"No plugin announces a model named {name}",
        f"{remedy} `iopaint-core list` shows all".strip(),
        choices,
    )


def _usable(info: ModelInfo, models: Sequence[ModelInfo]) -> ModelInfo:
    """Return a model, marked as unavailable if one that it requires is."""
    if not info.requires or info.unavailable:
        return info
    try:
        required = with_required(info, lambda name: find_model(name, models))
    except UnavailableModelError:  # there is no such model: whoever loads it is told
        return info
    reason = next((f"it requires {each.name}: {each.unavailable}" for each in required if each.unavailable), "")
    return replace(info, unavailable=reason) if reason else info


def with_required(info: ModelInfo, find: Callable[[str], ModelInfo]) -> list[ModelInfo]:
    """Return a model and all that it requires, directly or not, each once; `find` leads from names to models.

    Raises `UnavailableModelError` if one of them is missing, or its name is ambiguous.
    """
    found = {info.full_name}
    more = [info]
    for each in more:  # longer ones are added meanwhile
        for name in each.requires:
            try:
                required = find(name)
            except ModelNameError as error:
                raise UnavailableModelError(
                    f"{each.name} requires the model {name!r}: {error.message}",
                    error.remedy or f"Install a plugin that announces it; {each.distribution} says which",
                ) from error
            if required.full_name not in found:
                found.add(required.full_name)
                more.append(required)
    return more


def _names(info: ModelInfo) -> tuple[str, str, str]:
    return info.name, info.qualified_name, info.full_name


def _accept(plugin: PluginInfo, task: Task, announced: list[object]) -> tuple[list[ModelInfo], list[ContractError]]:
    """The valid ones among what a plugin announced, by name and marked as its own, and what is wrong with others.

    `task` is their default.
    """
    accepted: dict[str, ModelInfo] = {}
    faults = []
    for info in announced:
        try:
            if type(info) is not ModelInfo:
                raise ContractError(
                    f"it announces {shown(info)}, expected a ModelInfo, and none of a subclass",
                    "Make it so: ModelInfo(name=...)",
                )
            if type(task) is not Task:
                raise ContractError(
                    f"the task of its BasePlugin is {shown(task)}, expected a Task", "Task.RESTORE is one"
                )
            if info.name in accepted:
                raise ContractError(f"it announces {info.name} a second time", "Announce each name once")
            accepted[info.name] = info.announced_by(plugin, task)
        except ContractError as error:
            faults.append(error)
    return [accepted[name] for name in sorted(accepted)], faults
