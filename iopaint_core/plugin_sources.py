"""Where plugins come from: entry points of installed packages, single files; and how their code is imported."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
import sys
import types
from collections import Counter
from email.parser import HeaderParser
from typing import TYPE_CHECKING, NamedTuple

from iopaint_core.errors import ContractError, PluginError
from iopaint_core.hookspecs import ANNOUNCE, BasePlugin
from iopaint_core.requirements import check_requirements
from iopaint_core.schema import HEAVY, UNKNOWN, PluginInfo

if TYPE_CHECKING:
    from pathlib import Path

    from importlib_metadata import EntryPoint, IDistribution

ENTRY_POINT_GROUP = "iopaint"


class InstalledPlugin(NamedTuple):
    """A plugin that an installed package offers, before its import."""

    info: PluginInfo
    entry: EntryPoint | PluginError
    """What to import; or why that can't be read, and then the plugin is named as its package."""
    requirements: tuple[str, ...] = ()
    """`Requires-Dist` of its package."""

    @property
    def module(self) -> str:
        """The module that its entry point imports."""
        return "" if isinstance(self.entry, PluginError) else self.entry.value.partition(":")[0].strip()

    def load(self) -> object:
        """Import what the entry point names, if the package is made for this core.

        Raises `PluginError` before the import if it requires another core, and whatever the import raises.
        """
        if isinstance(self.entry, PluginError):
            raise self.entry
        check_requirements(self.info.distribution, self.info.version, self.requirements)
        return _plugin_in(self.entry.load())


def installed_plugins() -> list[InstalledPlugin]:
    """Find the plugins that installed packages offer; nothing is imported.

    Of a package that is installed in several places, the one that Python imports counts.
    """
    import importlib_metadata

    found: list[InstalledPlugin] = []
    for distribution in importlib_metadata.distributions():
        plugins = _offered(distribution)
        if plugins and _is_first(distribution, plugins[0].info):
            found += plugins
    return found


def _is_first(distribution: IDistribution, info: PluginInfo) -> bool:
    """Tell whether Python imports this copy of a package, and not another that comes before it on `sys.path`."""
    import importlib_metadata

    if info.distribution == UNKNOWN:
        return True
    first = next(iter(importlib_metadata.distributions(name=info.distribution)), distribution)
    return first.locate_file("") == distribution.locate_file("")


def _offered(distribution: IDistribution) -> list[InstalledPlugin]:
    """Return the plugins of one package."""
    try:
        if f"[{ENTRY_POINT_GROUP}]" not in (distribution.read_text("entry_points.txt") or ""):
            return []
        entries = distribution.entry_points.select(group=ENTRY_POINT_GROUP)
    except Exception as error:  # noqa: BLE001 - its reader raises what comes, for a file that is no such file
        name, version, _ = _metadata(distribution)
        remedy = 'Write it as packaging.python.org, "Entry points specification", says'
        fault = ContractError(f"its entry_points.txt can't be read: {type(error).__name__}: {error}", remedy)
        return [InstalledPlugin(PluginInfo(name, name, version), fault)]
    name, version, requirements = _metadata(distribution)
    return [InstalledPlugin(PluginInfo(entry.name, name, version), entry, requirements) for entry in entries]


def _metadata(distribution: IDistribution) -> tuple[str, str, tuple[str, ...]]:
    """Return name, version and requirements, as far as they can be read.

    Only the headers are parsed: `distribution.metadata` parses a long README too.
    """
    try:
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    except (OSError, UnicodeDecodeError):
        text = ""
    headers = HeaderParser().parsestr(text)
    requirements = headers.get_all("Requires-Dist") or ()
    return headers.get("Name") or UNKNOWN, headers.get("Version") or "", tuple(requirements)


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
