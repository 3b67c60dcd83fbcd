"""The list of models as people read it: by task, in 80 columns where names allow it."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from iopaint_core.schema import ModelInfo

_OWN = "iopaint-core"


def model_lines(models: Iterable[ModelInfo], downloaded: Mapping[ModelInfo, bool]) -> Iterator[str]:
    """Yield a line for each model under its task: name, state, licence, plugin; then why some can't be used yet."""
    models = sorted(models, key=lambda info: info.task.name)  # which keeps the order within a task
    rows = {info: (info.name, _state(info, downloaded[info]), _licence(info), _plugin(info)) for info in models}
    widths = [max(map(len, column)) for column in zip(*rows.values(), strict=True)]
    for task, infos in groupby(models, key=lambda info: info.task.name):
        yield f"{task}:"
        for info in infos:
            cells = (cell.ljust(width) for cell, width in zip(rows[info], widths, strict=True))
            yield "  " + "  ".join(cells).rstrip()
        yield ""
    unavailable: dict[str, list[str]] = {}
    for info in models:
        if info.unavailable:
            unavailable.setdefault(info.unavailable, []).append(info.name)
    for reason, names in unavailable.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield f"{shown}: {reason}"


def _state(info: ModelInfo, downloaded: bool) -> str:
    if info.unavailable:
        return "unavailable"
    return "ready" if downloaded else "to download"


def _licence(info: ModelInfo) -> str:
    """Return an SPDX identifier, or for terms at a URL what they allow; `describe` and `--json` have the URL."""
    if not info.license:
        return "unknown"
    if "://" not in info.license:
        return info.license
    return "own terms" if info.commercial else "non-commercial"


def _plugin(info: ModelInfo) -> str:
    """Return the plugin, with its package; that of a single file is its folder, which `plugins` shows."""
    is_own = info.distribution == _OWN or Path(info.distribution).is_absolute()
    return info.plugin_name if is_own else f"{info.plugin_name} ({info.distribution})"
