"""Where in a plugin's code something failed: for its author, who asks for it with `-v` or IOPAINT_DEBUG=1."""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path

_logger = logging.getLogger("iopaint_core")
_OURS = str(Path(__file__).parent)
_OUTSIDE = ("<frozen ", f"{_OURS}{os.sep}")
_LIBRARIES = ("pluggy", "importlib", "importlib_metadata")


def plugin_traceback(error: BaseException) -> str:
    """Return the traceback of an error, and of those that led to it, from the plugin's first frame on.

    The frames of this package, of pluggy and of the import system that lead there are left out.
    """
    told = traceback.TracebackException.from_exception(error)
    _cut(told, set())
    return "".join(told.format()).rstrip()


def _cut(told: traceback.TracebackException, seen: set[int]) -> bool:
    """Leave out frames that lead to a plugin, and errors that a host was handling; whether a plugin's are left."""
    seen.add(id(told))
    frames = list(told.stack)
    first = next((number for number, frame in enumerate(frames) if not _leads_there(frame.filename)), len(frames))
    if first < len(frames):
        told.stack = traceback.StackSummary.from_list(frames[first:])
    if told.__cause__ is not None and id(told.__cause__) not in seen:
        _cut(told.__cause__, seen)
    if told.__context__ is not None and (id(told.__context__) in seen or not _cut(told.__context__, seen)):
        told.__context__ = None
    return first < len(frames)


def _leads_there(filename: str) -> bool:
    return filename.startswith(_OUTSIDE) or Path(filename).parent.name in _LIBRARIES


def log_failure(message: str, error: BaseException) -> None:
    """Log where a plugin failed: as a warning if IOPAINT_DEBUG is set, else for hosts that log INFO."""
    level = logging.WARNING if os.environ.get("IOPAINT_DEBUG", "0") not in {"", "0"} else logging.INFO
    if _logger.isEnabledFor(level):
        _logger.log(level, "%s\n%s", message, plugin_traceback(error))


def raises_at_once() -> bool:
    """Return whether what a plugin raises is to come out as it is, for a debugger: IOPAINT_RAISE=1."""
    return os.environ.get("IOPAINT_RAISE", "0") not in {"", "0"}
