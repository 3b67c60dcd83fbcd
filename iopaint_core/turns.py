"""Turns: a call of a model begins once all that it needs is free; to wait for it in a circle is an error.

A call needs its model, those components of it that serve one caller at a time, and a slot of the device. It takes
them all at once, or takes none and waits. A slot serves a whole chain, a call and the calls within it, and is given
back while one of them waits. So who waits holds nothing but the models of the calls around it, and only models can
be waited for in a circle. That is looked up whenever a call is about to wait.
"""

from __future__ import annotations

import contextvars
import threading
from typing import TYPE_CHECKING

from iopaint_core.errors import PoolError
from iopaint_core.forking import renew_after_fork

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence
    from types import TracebackType

_SLICE = 0.5
"""Seconds for which a call that waits blocks at a time."""

_current: contextvars.ContextVar[Turn | None] = contextvars.ContextVar("iopaint_turn", default=None)
"""The call that this context runs in."""


class CallLock:
    """What at most `limit` calls hold at a time: a model, or a component that keeps state."""

    def __init__(self, limit: int = 1) -> None:
        self.limit = limit
        self.holders: set[Turn] = set()
        self.queue: dict[Turn, None] = {}
        """Calls that wait for it, the first come first."""

    def is_free_for(self, turn: Turn) -> bool:
        """Whether the call holds it, or may take it."""
        return len(self.holders) < self.limit or turn in self.holders

    def take(self, turn: Turn) -> None:
        """Have the call hold it."""
        self.holders.add(turn)

    def give_back(self, turn: Turn) -> None:
        """Have the call hold it no more."""
        self.holders.discard(turn)


class DeviceSlots:
    """What at most `limit` chains hold at a time, each of them once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.holders: set[_Chain] = set()
        self.queue: dict[Turn, None] = {}
        """Calls that wait for one, the first come first."""

    def is_free_for(self, turn: Turn) -> bool:
        """Whether the chain of the call holds one, or may take one."""
        return len(self.holders) < self.limit or turn.chain in self.holders

    def take(self, turn: Turn) -> None:
        """Have the chain of the call hold one."""
        self.holders.add(turn.chain)
        turn.chain.slots.add(self)

    def give_back(self, turn: Turn) -> None:
        """Have the chain of the call hold none."""
        self.holders.discard(turn.chain)
        turn.chain.slots.discard(self)


class Turn:
    """A call of a model: a context manager that waits until the call may begin.

    Raises `PoolError` if what it would wait for is held by a call that it runs in, or by one that waits for such.
    """

    def __init__(self, key: Hashable, locks: Sequence[CallLock], slots: DeviceSlots | None) -> None:
        self.key = key
        self.caller = _current.get()
        """The call that it runs in."""
        self.chain: _Chain = _Chain() if self.caller is None else self.caller.chain
        self.locks = locks
        self.slots = slots
        """Of the device that it needs one of; None for a call that is not bound to one."""
        self.needs: tuple[CallLock | DeviceSlots, ...] = (*locks, slots) if slots else (*locks,)
        self.gate = threading.Lock()
        """Locked while it waits, until it holds what it needs."""
        self.context: contextvars.Context | None = None
        """In which a thread of the model's own acts for it."""

    def __enter__(self) -> Turn:
        try:
            _wait_graph.begin(self)
            self._token = _current.set(self)
        except BaseException:
            _wait_graph.end(self)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        self.context = None  # it names this
        _wait_graph.end(self)

    def callers(self) -> Iterator[Turn]:
        """The calls that it runs in, the innermost first."""
        caller = self.caller
        while caller is not None:
            yield caller
            caller = caller.caller


class _Chain:
    """A call and the calls within it: those in copies of its context, too, which may run in other threads."""

    def __init__(self) -> None:
        self.turns: set[Turn] = set()
        """Those that wait or run."""
        self.waiting: set[Turn] = set()
        """Those that wait: one at most, unless a model calls others from several threads."""
        self.slots: set[DeviceSlots] = set()
        """Of which devices it holds a slot: several if its calls go through several managers."""


class _WaitGraph:
    """Who waits for whom, in the whole process: calls within calls may go through several managers and pools.

    A call that waits does so for the holders of its locks, and a holder for all calls within it.
    """

    def __init__(self) -> None:
        self._renew()
        renew_after_fork(self)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def begin(self, turn: Turn) -> None:
        """Return once the call holds what it needs."""
        chain = turn.chain
        with self._lock:
            chain.turns.add(turn)
            if _try_take(turn):
                return
            _raise_if_circle(turn)
            turn.gate.acquire(blocking=False)
            given_back = [*chain.slots]
            turn.needs = (*dict.fromkeys((*turn.needs, *given_back)),)
            chain.waiting.add(turn)
            for need in turn.needs:
                need.queue[turn] = None
            _give_back(turn, given_back)
        # In slices: a Ctrl-C that comes just before a lock blocks is noticed only when it wakes.
        while not turn.gate.acquire(timeout=_SLICE):
            pass

    def end(self, turn: Turn) -> None:
        """Give back what the call holds, or its places in the queues."""
        chain = turn.chain
        with self._lock:
            chain.turns.discard(turn)
            if turn in chain.waiting:
                _leave_queues(turn)
            held: list[CallLock | DeviceSlots] = [*turn.locks]
            held += chain.slots if chain.waiting else chain.slots - {other.slots for other in chain.turns}
            _give_back(turn, held)


_wait_graph = _WaitGraph()


def is_within_call() -> bool:
    """Whether this context runs in a model's call."""
    return _current.get() is not None


# Called with the lock of the graph held.


def _try_take(turn: Turn) -> bool:
    """Have the call hold all that it needs, if that is free."""
    for need in turn.needs:
        if not need.is_free_for(turn):
            return False
    for need in turn.needs:
        need.take(turn)
    return True


def _give_back(turn: Turn, held: Sequence[CallLock | DeviceSlots]) -> None:
    """Give back what is held for the call, to those who wait for it."""
    for need in held:
        need.give_back(turn)
    for need in held:
        for waiting in [*need.queue]:
            if _try_take(waiting):
                _leave_queues(waiting)
                waiting.gate.release()


def _leave_queues(turn: Turn) -> None:
    turn.chain.waiting.discard(turn)
    for need in turn.needs:
        need.queue.pop(turn, None)


def _raise_if_circle(turn: Turn) -> None:
    blocked = _blocked_holders(turn)
    callers = set(turn.callers())
    seen: set[Turn] = set()
    # Each step is a call that waits, and who holds what it waits for.
    ways = [[(turn, holder)] for holder in _holders(turn) if holder in blocked]
    for way in ways:  # longer ones are added meanwhile
        _, holder = way[-1]
        if holder in callers:
            raise _circle_error(way)
        for waiting in _waiting_within(holder, turn) - seen:
            seen.add(waiting)
            ways += [[*way, (waiting, other)] for other in _holders(waiting) if other in blocked]


def _blocked_holders(turn: Turn) -> set[Turn]:
    """Return the calls, of those that `turn` would wait for, that could not end if it did.

    What several calls may hold comes free when one of them ends. So those that can end are sought until there are
    no more (the reduction of a resource graph; Holt, "Some Deadlock Properties of Computer Systems", 1972).
    """
    within: dict[Turn, set[Turn]] = {}
    more = [turn]
    while more:
        for holder in _holders(more.pop()):
            if holder not in within:
                within[holder] = _waiting_within(holder, turn)
                more += within[holder]
    blocked = set(within)
    found = True
    while found:
        ending = {holder for holder in blocked if not any(_is_blocked(each, blocked) for each in within[holder])}
        blocked -= ending
        found = bool(ending)
    return blocked


def _is_blocked(waiting: Turn, blocked: set[Turn]) -> bool:
    """Whether all holders of something that a call waits for are among those that can't end."""
    return any(not lock.is_free_for(waiting) and lock.holders <= blocked for lock in waiting.locks)


def _waiting_within(holder: Turn, turn: Turn) -> set[Turn]:
    """Return the calls within a call that wait, or that of `turn`, which is about to."""
    return {waiting for waiting in (*holder.chain.waiting, turn) if holder in waiting.callers()}


def _holders(turn: Turn) -> list[Turn]:
    return [holder for lock in turn.locks if not lock.is_free_for(turn) for holder in lock.holders]


def _circle_error(circle: Sequence[tuple[Turn, Turn]]) -> PoolError:
    (turn, holder), *others = circle
    remedy = "A model calls only models that neither call it nor share an exclusive component with it"
    if not others:
        which = "itself" if holder.key == turn.key else f"{holder.key}, with which it shares a component"
        return PoolError(f"{turn.key} was called within a call of {which}: {_path(holder, turn, 'calls')}", remedy)
    callers = [circle[-1][1], *(holder for _, holder in circle[:-1])]
    steps = [
        _path(caller, waiting, "waits for")
        + ("" if holder.key == waiting.key else f", which shares a component with {holder.key}")
        for caller, (waiting, holder) in zip(callers, circle, strict=True)
    ]
    return PoolError(f"Waiting for {turn.key} would never end: {'; '.join(steps)}", remedy)


def _path(outer: Turn, inner: Turn, last: str) -> str:
    """The calls that lead from one to another within it."""
    between = []
    for caller in inner.callers():
        if caller is outer:
            break
        between.append(caller)
    return (
        f"{outer.key} " + "".join(f"calls {turn.key}, which " for turn in reversed(between)) + f"{last} {inner.key}"
    )
