"""Where plugins come from: entry points of installed packages, single files; and how their code is imported."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
import sys
import types
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from iopaint_core.errors import PluginError
from iopaint_core.hookspecs import ANNOUNCE, BasePlugin
from iopaint_core.requirements import check_requirements
from iopaint_core.schema import HEAVY, PluginInfo

if TYPE_CHECKING:
    from pathlib import Path

    from importlib_metadata import Distribution, EntryPoint

ENTRY_POINT_GROUP = "iopaint"


class InstalledPlugin(NamedTuple):
    """A plugin that an installed package offers, before its import."""

    info: PluginInfo
    entry: EntryPoint
    requirements: tuple[str, ...]
    """`Requires-Dist` of its package."""

    @property
    def module(self) -> str:
        """The module that its entry point imports."""
        return self.entry.value.partition(":")[0].strip()

    def load(self) -> object:
        """Import what the entry point names, if the package is made for this core.

        Raises `PluginError` before the import if it requires another core, and whatever the import raises.
        """
        check_requirements(self.info.distribution, self.info.version, self.requirements)
        return _plugin_in(self.entry.load())


def installed_plugins() -> list[InstalledPlugin]:
    """Find the plugins that installed packages offer; nothing is imported."""
    import importlib_metadata

    metadata = functools.cache(_metadata)  # a package's is parsed once: it may hold a long README
    return [
        InstalledPlugin(PluginInfo(entry.name, *metadata(entry.dist)[:2]), entry, metadata(entry.dist)[2])
        for entry in importlib_metadata.entry_points(group=ENTRY_POINT_GROUP)
    ]


def _metadata(distribution: Distribution | None) -> tuple[str, str, tuple[str, ...]]:
    """Name, version and requirements; where they are broken, its plugins are found all the same."""
    try:
        metadata = distribution.metadata if distribution else None
    except FileNotFoundError:  # importlib-metadata's MetadataNotFound, which its oldest versions lack
        metadata = None
    if metadata is None:
        return "unknown", "", ()
    name, version = metadata.get("Name") or "unknown", metadata.get("Version") or ""
    return name, version, tuple(metadata.get_all("Requires-Dist") or ())


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


def heavy_imports(before: set[str], info: PluginInfo) -> tuple[str, ...]:
    """Return the packages of which many modules were imported since then, but for the plugin's own."""
    counts = Counter(name.partition(".")[0] for name in sys.modules.keys() - before)
    own = normalise(info.distribution).replace("-", "_")
    return tuple(sorted(name for name, count in counts.items() if count >= HEAVY and name != own))


@functools.cache
def normalise(name: str) -> str:
    """Compare names of distributions as pip does (packaging.python.org, "Names and normalization")."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
