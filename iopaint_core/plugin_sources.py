"""Where plugins come from: entry points of installed packages, single files; and how their code is imported."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import re
import sys
import types
from collections import Counter
from typing import TYPE_CHECKING

from iopaint_core.errors import PluginError
from iopaint_core.hookspecs import ANNOUNCE, BasePlugin
from iopaint_core.requirements import check_requirements
from iopaint_core.schema import HEAVY, PluginInfo

if TYPE_CHECKING:
    from pathlib import Path

    from importlib_metadata import EntryPoint

ENTRY_POINT_GROUP = "iopaint"


def entry_points() -> list[tuple[PluginInfo, EntryPoint]]:
    """Find the plugins that installed packages offer; nothing is imported."""
    import importlib_metadata

    return [(_plugin_info(entry), entry) for entry in importlib_metadata.entry_points(group=ENTRY_POINT_GROUP)]


def _plugin_info(entry: EntryPoint) -> PluginInfo:
    """A distribution with broken metadata has no name or version; its plugins are found all the same."""
    try:
        metadata = entry.dist.metadata if entry.dist else None
    except FileNotFoundError:  # importlib-metadata's MetadataNotFound, which its oldest versions lack
        metadata = None
    if metadata is None:
        return PluginInfo(entry.name, "unknown", version="")
    return PluginInfo(entry.name, metadata.get("Name") or "unknown", metadata.get("Version") or "")


def load_entry_point(entry: EntryPoint) -> object:
    """Import what an entry point names, if its package is made for this core.

    Raises `PluginError` before the import if it requires another core, and whatever the import raises.
    """
    if entry.dist is not None:
        with contextlib.suppress(FileNotFoundError):  # see `_plugin_info`
            metadata = entry.dist.metadata
            name, version = metadata.get("Name") or "unknown", metadata.get("Version") or ""
            check_requirements(name, version, metadata.get_all("Requires-Dist") or ())
    return _plugin_in(entry.load())


def import_file(path: Path) -> object:
    """Import a single file: its module, or the one `BasePlugin` that it defines.

    Raises whatever the import raises, and leaves `sys.modules` as it was then.
    """
    name = f"iopaint_plugin_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is no Python module")
    before = sys.modules.get(name)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    return _plugin_in(module)


def _plugin_in(found: object) -> object:
    """The one `BasePlugin` that a module defines, if it implements no hook itself; else what was found."""
    if not isinstance(found, types.ModuleType) or hasattr(found, ANNOUNCE):
        return found
    own = found.__name__
    classes = {
        value
        for value in vars(found).values()
        if isinstance(value, type)
        and issubclass(value, BasePlugin)
        and not inspect.isabstract(value)
        and (value.__module__ == own or value.__module__.startswith(f"{own}."))
    }
    return classes.pop() if len(classes) == 1 else found


def module_of(entry: EntryPoint) -> str:
    """Return the module that an entry point imports."""
    return entry.value.partition(":")[0].strip()


def heavy_imports(before: set[str], info: PluginInfo) -> tuple[str, ...]:
    """Return the packages of which many modules were imported since then, but for the plugin's own."""
    counts = Counter(name.partition(".")[0] for name in sys.modules.keys() - before)
    own = normalise(info.distribution).replace("-", "_")
    return tuple(sorted(name for name, count in counts.items() if count >= HEAVY and name != own))


@functools.cache
def normalise(name: str) -> str:
    """Compare names of distributions as pip does (packaging.python.org, "Names and normalization")."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
