"""How far a call is: one total for the host, whatever the parts of the work and the models within it report."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with (step, total) while a model works; what it raises cancels the work."""

_logger = logging.getLogger(__name__)


class _Call:
    """A call that a host made, and what its `progress` was told so far."""

    def __init__(self, progress: Progress | None, is_call: bool) -> None:
        self.progress = progress
        self.total = 0
        """Set by the first report."""
        self.done = 0.0
        """Fraction of the work."""
        self.raised: BaseException | None = None
        """What a callback of the host raised: it cancels the call, whatever the model makes of it."""
        self.innermost = _Part(self, 0.0, 1.0, is_call)
        self._lock = threading.RLock()  # what a callback does may report, too

    def report(self, done: float, total: int) -> None:
        """Tell the host; steps never fall, and the total stays."""
        with self._lock:
            self.total = self.total or total
            self.done = max(self.done, min(done, 1.0))
            if self.progress is not None:
                with self.cancelled_by():
                    self.progress(int(self.done * self.total + 1e-6), self.total)

    @contextlib.contextmanager
    def cancelled_by(self) -> Iterator[None]:
        """Remember what a callback of the host raises."""
        try:
            yield
        except BaseException as error:
            self.raised = error
            raise


@dataclass(frozen=True)
class _Part:
    """A stretch of a call's work, as fractions of the whole."""

    call: _Call
    start: float
    end: float
    is_call: bool = False
    """A model that is called within takes up all of it."""

    def report(self, step: float, total: float) -> None:
        """Report how far this part is, in its own steps."""
        width = max(self.end - self.start, 1e-6)
        done = min(max(step / total, 0.0), 1.0) if total > 0 else 0.0
        self.call.report(self.start + width * done, max(1, round(total / width)))

    def finish(self) -> None:
        """Report that it is done, unless the host knows."""
        if not self.call.total or self.call.done < self.end - 1e-9:
            self.report(1, 1)


_part: contextvars.ContextVar[_Part | None] = contextvars.ContextVar("iopaint_progress", default=None)
_calls: set[_Call] = set()
"""Calls that hosts made and that run: a thread without a context belongs to the only one."""


def report_progress(step: int, total: int) -> None:
    """Tell the host how far the work is; called inside `forward`. What the host raises cancels the work.

    Threads that a model starts run in a context of their own: give them the call's, with
    `executor.submit(contextvars.copy_context().run, work)`. Without it, they report for the only call of the
    process that runs; while there are several, what they report is dropped, with a warning.
    """
    part = _part.get()
    if part is None:
        calls = [*_calls]
        if len(calls) > 1:
            _logger.warning(
                "Progress is reported by a thread without a context while %d calls run, and is dropped. Start the "
                "thread's work with contextvars.copy_context().run",
                len(calls),
            )
        part = calls[0].innermost if len(calls) == 1 else None
    if part is not None:
        part.report(step, total)


@contextlib.contextmanager
def progress_part(part: int, parts: int) -> Iterator[None]:
    """Have what is reported inside count as one of several equal parts, numbered from 0; it is done at the end.

        for number, tile in enumerate(tiles):
            with progress_part(number, len(tiles)):
                ...

    A model that is called inside is that part.
    """
    with nested_part(part, parts, is_call=True):
        yield


@contextlib.contextmanager
def nested_part(part: int, parts: int, *, is_call: bool = False) -> Iterator[None]:
    """Split what is being done into parts; with `is_call`, a model that is called inside takes up all of one."""
    outer = _part.get()
    if outer is None:
        yield
        return
    width = (outer.end - outer.start) / parts
    start = outer.start + width * part
    inner = _Part(outer.call, start, start + width, is_call)
    with _within(inner):
        yield
        inner.finish()


@contextlib.contextmanager
def call_progress(progress: Progress | None, *, is_call: bool = False) -> Iterator[None]:
    """Run a model's call, of which `progress` is told; with `is_call`, what is called inside is all of it.

    Within another model's call it counts as a part of that: the one that `progress_part` says, or else half of what
    is left. What cancels that one cancels it, though it has a `progress` of its own.
    """
    outer = _part.get()
    if outer is None:
        call = _Call(progress, is_call)
        _calls.add(call)
        try:
            with _within(call.innermost):
                yield
                call.innermost.finish()
        finally:
            _calls.discard(call)
        return
    start, end = outer.start, outer.end
    if not outer.is_call:
        start = min(max(start, outer.call.done), end)
        end = start + (end - start) / 2
    inner = _Part(outer.call, start, end, is_call)
    with _within(inner):
        if progress is None:
            yield
        else:
            own = _Call(_passed_on(progress, inner), is_call)
            with _within(own.innermost):
                yield
                own.innermost.finish()
        inner.finish()


def _passed_on(progress: Progress, part: _Part) -> Progress:
    """Return what tells `progress`, and the call around how far that part of it is."""

    def report(step: int, total: int) -> None:
        with _within(part):
            progress(step, total)
        part.report(step, total)

    return report


def host_callback(callback: Callable[[T], None] | None) -> Callable[[T], None] | None:
    """Return a callback of the host such that what it raises cancels the call that runs."""
    part = _part.get()
    if callback is None or part is None:
        return callback

    def called(value: T) -> None:
        with part.call.cancelled_by():
            callback(value)

    return called


def cancellation() -> BaseException | None:
    """Return what a callback of the host raised in the call that runs."""
    part = _part.get()
    return None if part is None else part.call.raised


@contextlib.contextmanager
def _within(part: _Part) -> Iterator[None]:
    before, part.call.innermost = part.call.innermost, part
    token = _part.set(part)
    try:
        yield
    finally:
        _part.reset(token)
        part.call.innermost = before
