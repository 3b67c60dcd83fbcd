"""What to do about a plugin that failed, for whoever reads it: the user of a package, or the author of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from iopaint_core.errors import ContractError, IOPaintError
from iopaint_core.schema import UNKNOWN
from iopaint_core.values import plain

if TYPE_CHECKING:
    from iopaint_core.plugin_sources import InstalledPlugin
    from iopaint_core.schema import ModelInfo, PluginInfo


def remedy_for(info: PluginInfo, source: InstalledPlugin | Path | None, error: BaseException) -> str:
    """Return what to do about a plugin that failed.

    It is for the author of a single file or of a host's plugin, and for the user of a package, with a word for its
    author. What a plugin raises with a remedy of its own, or lacks, comes before that.
    """
    advice = error.remedy if isinstance(error, IOPaintError) and isinstance(error.remedy, str) else ""
    if advice and not isinstance(error, ContractError):
        return plain(advice)
    if isinstance(error, ModuleNotFoundError) and isinstance(error.name, str):
        advice = f"Install {plain(error.name).partition('.')[0]}"
    shows = f"`iopaint-core plugins --traceback {info.name}` shows where it fails"
    if isinstance(source, Path):
        return advice or f"Correct {source}: {shows}"
    if source is None:
        return advice or f"Correct the plugin that the host registers as {info.name}: {shows}"
    known = info.distribution != UNKNOWN
    update = f"Update the package: pip install -U {info.distribution}" if known else "Install its package again"
    if isinstance(error, ModuleNotFoundError):
        return f"{advice}, or the extra of {info.distribution} that brings it"
    return f"{update}; or disable it with IOPAINT_DISABLE_PLUGINS. Its author: {advice or shows}"


def load_remedy(error: BaseException, info: ModelInfo) -> str:
    """Return what to do about a model that could not be loaded."""
    if isinstance(error, IOPaintError) and error.remedy:
        return plain(str(error.remedy))
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"Install {error.name}, or the extra of {info.distribution} that brings it"
    return f"Report it to the author of {info.distribution} if the cause is not yours to mend"
