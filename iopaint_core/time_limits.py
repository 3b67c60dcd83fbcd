"""Time that a plugin takes: who takes long is named while one waits, and can be given up on."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from iopaint_core.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

LONG = 5.0
"""Seconds after which a plugin is named in the log."""
VARIABLE = "IOPAINT_PLUGIN_TIMEOUT"

_logger = logging.getLogger(__name__)


class Watch:
    """Names in the log whoever takes longer than `LONG`, from a thread that ends with the `with` block."""

    def __init__(self) -> None:
        self._now: tuple[str, float] | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Watch:
        threading.Thread(target=self._look, name="iopaint-watch", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Say what is being done: it is logged if that takes long."""
        self._now = what, time.monotonic()
        try:
            yield
        finally:
            self._now = None

    def _look(self) -> None:
        told = None
        while not self._ended.wait(LONG / 5):
            now = self._now
            if now is not None and now is not told and time.monotonic() - now[1] >= LONG:
                told = now
                _logger.warning(
                    "%s has taken %.0f seconds, and goes on. IOPAINT_DISABLE_PLUGINS leaves the plugin out; "
                    "%s=SECONDS gives up on what takes longer",
                    now[0],
                    time.monotonic() - now[1],
                    VARIABLE,
                )


def plugin_timeout() -> float | None:
    """Return the seconds of IOPAINT_PLUGIN_TIMEOUT, after which a plugin is given up on; None if it is not set.

    Raises `PluginError` for what is no number of seconds.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise PluginError(f"{VARIABLE} expected seconds above 0, got {text!r}", f"Set {VARIABLE}=30, or unset it")
    return seconds


def within(seconds: float | None, what: str, call: Callable[[], T]) -> T:
    """Return what `call` returns; with a limit, it runs in a thread, and is left alone there when that is over.

    Raises what it raises, and `PluginError` if it takes longer.
    """
    if seconds is None:
        return call()
    given: list[T] = []
    raised: list[BaseException] = []
    context = contextvars.copy_context()

    def run() -> None:
        try:
            given.append(context.run(call))
        except BaseException as error:  # noqa: BLE001 - raised below
            raised.append(error)

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise PluginError(f"it took longer than {VARIABLE}, which is {seconds:g} seconds", f"Raise {VARIABLE}")
    if raised:
        raise raised[0]
    return given[0]
