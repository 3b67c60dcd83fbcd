"""A forked child has one thread: what other threads of the parent held, or were doing, is made anew there."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading


class Renewable(Protocol):
    """Something with locks, or with threads of its own."""

    def _renew(self) -> None:
        """Called in the child, before any other code of it."""


_renewables: weakref.WeakKeyDictionary[Renewable, threading.Lock | None] = weakref.WeakKeyDictionary()
_held: list[tuple[Renewable, threading.Lock | None]] = []


def renew_after_fork(what: Renewable, lock: threading.Lock | None = None) -> None:
    """Have it renewed in each forked child; `lock` is what guards its tables, so that they are copied whole."""
    _renewables[what] = lock


def _before() -> None:
    _held[:] = _renewables.items()
    for _, lock in _held:
        if lock is not None:
            lock.acquire()


def _release() -> list[Renewable]:
    held = _held.copy()
    _held.clear()
    for _, lock in held:
        if lock is not None:
            lock.release()
    return [what for what, _ in held]


def _in_child() -> None:
    for what in _release():
        what._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_release, after_in_child=_in_child)
