"""Every set of weights once, leased out: models, and the components they are made of.

An entry is loaded by the first caller who asks for its key; others who ask meanwhile wait for the same result.
A lease pins a model and, with it, its components: what is pinned is never dropped. What a device holds, and what
is about to be loaded there or on its way out, never exceeds its budget.

The one lock guards tables and counts alone. No load, fork, check, `close`, subscriber or log call runs while it is
held. `docs/architecture/pool.md` has the states, the ledger and the tests that hold them.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import math
import threading
import time
import traceback
import weakref
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, TypeVar, cast

from iopaint_core.accounts import EventKind, PoolEvent, PoolStats
from iopaint_core.entries import (
    Component,
    Entry,
    Plan,
    SharedComponents,
    device_name,
    file_state,
    loading,
    raise_if_cancelled,
)
from iopaint_core.errors import LoadCancelledError, LoadTimeoutError, PoolError, PoolFullError, WeightsError
from iopaint_core.eviction import GDSF, EvictionPolicy
from iopaint_core.forking import renew_after_fork
from iopaint_core.schema import describe, format_bytes
from iopaint_core.table import FULL_REMEDY, Table
from iopaint_core.turns import CallLock

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from iopaint_core.entries import Share

M = TypeVar("M")
R = TypeVar("R")

_READERS = 4
"""Components read at once; more make a disk slower, not faster."""

_logger = logging.getLogger(__name__)


class StateKey(NamedTuple):
    """What the pool tells apart what models computed by."""

    model: Hashable
    serial: int
    """Of the loaded model: what another load computed, another version of its code may have."""
    name: Hashable

    def __str__(self) -> str:
        return f"{self.name} of {self.model}"


class ModelPool(Generic[M]):
    """Holds each model and each component once, however many callers use it.

    `budgets` gives bytes by device (`{"cpu": 8 << 30, "cuda:0": 6 << 30}`); a device without one has no limit.
    A caller waits `wait_for_room` seconds for others to give up what they use, and `wait_for_load` for a load.
    What was idle for `idle_ttl` seconds is dropped. `reclaim(device)` is called after something was dropped there
    for lack of memory or by `trim`.
    """

    def __init__(
        self,
        budgets: Mapping[str, int] | None = None,
        *,
        policy: EvictionPolicy | None = None,
        wait_for_room: float = 60.0,
        wait_for_load: float = 600.0,
        idle_ttl: float | None = None,
        reclaim: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for device, budget in (budgets or {}).items():
            if budget < 0:
                raise PoolError(f"The budget of {device} is {budget} bytes", "Give 0 or more")
        self._table = Table(budgets or {}, GDSF() if policy is None else policy, clock)
        self._wait_for_room = wait_for_room
        self._wait_for_load = wait_for_load
        self._idle_ttl = idle_ttl
        self._reclaim = reclaim
        self._subscribers: tuple[Callable[[PoolEvent], None], ...] = ()
        self._expiry: threading.Timer | None = None
        self._put_aside: set[Entry] = set()
        self._lock = threading.Lock()
        self._readers = threading.BoundedSemaphore(_READERS)
        self._telling = threading.Lock()
        renew_after_fork(self, self._lock)

    def lease(
        self,
        key: Hashable,
        load: Callable[[Share], M],
        *,
        measure: Callable[[M], int] | None = None,
        close: Callable[[M], None] | None = None,
        device: str = "cpu",
        wait_for_room: float | None = None,
    ) -> Lease[M]:
        """Pin the model of that key, loading it with `load` if the pool does not hold it.

        `load` runs in a thread of its own and takes its components from the `share` it is given. One caller loads
        and the others wait; what `load` raises, all of them raise, and the pool is as it was. `measure` tells the
        bytes that the model takes on `device` besides its components; `close` is called when it is dropped.

        Raises `PoolFullError`, `LoadTimeoutError`, and whatever `load` raises.
        """
        while True:
            entry = self._pin_ready(key)
            if entry is None:
                patience = self._wait_for_room if wait_for_room is None else wait_for_room
                model = Component(key, partial(load, self._share), 0, device, measure=measure, close=close)
                entry = self._pin_loading(model, patience)
            if self._all_intact([entry], (part for part in entry.checked if not part.used_only_by(entry)), entry):
                return Lease(self, entry)

    def keep(
        self, lease: Lease[M], name: Hashable, value: R, *, nbytes: int, seconds: float = 0.0
    ) -> Lease[R] | None:
        """Keep what a leased model computed, for `find`, and lease it; it goes with the model, or to make room.

        `nbytes` is what it takes on the model's device, `seconds` what it would take to compute it again. Returns
        None, and keeps nothing, if there is no room for it now.
        """
        model = lease._entry
        state = Component(StateKey(model.key, model.serial, name), _no_load, nbytes, model.device)
        entry = Entry(state, self._table.states, 0.0)
        plan = Plan((), entry.patience, loading.get(), str(entry.key))

        def attempt() -> bool | None:
            if model.retired or state.key in self._table.states:
                return False
            if self._table.shortage(plan, {entry.device: nbytes}):
                return None
            self._table.keep(entry, model, value, self._watch(entry, value), seconds)
            return True

        try:
            kept = self._when_room(plan, attempt)
        except PoolFullError:
            return None
        return Lease(cast("ModelPool[R]", self), entry) if kept else None

    def find(self, lease: Lease[M], name: Hashable) -> Lease[Any] | None:
        """Lease what `keep` kept of a model under that name; None if it is not there, or no longer."""
        model = lease._entry
        with self._lock:
            entry = self._table.states.get(StateKey(model.key, model.serial, name))
            if entry is None:
                return None
            self._table.pin(entry)
        return Lease(self, entry)

    @contextlib.contextmanager
    def calling(self, lease: Lease[M]) -> Iterator[None]:
        """Charge what a call of a leased model takes while it runs, and then what the model takes by now.

        What is idle makes room for the call; it waits for nobody, since it holds what others may wait for.
        """
        model = lease._entry
        growing = [part for part in model.parts if part.component.scratch is not None]
        self._count_calls(growing, 1)
        try:
            self._recharge(growing)
            yield
        finally:
            self._count_calls(growing, -1)
            self._recharge([*growing, model])

    def _count_calls(self, entries: Iterable[Entry], calls: int) -> None:
        with self._lock:
            for entry in entries:
                entry.calls += calls

    def _recharge(self, entries: Iterable[Entry]) -> None:
        """Charge what entries take by now, and the calls that use them."""
        for entry in entries:
            component, value = entry.component, entry.value
            if value is None or (component.measure is None and component.scratch is None):
                continue
            nbytes = component.nbytes if component.measure is None else component.measure(value)
            scratch = 0 if component.scratch is None else component.scratch(value)
            with self._lock:
                self._table.recharge(entry, nbytes + entry.calls * scratch)
            self._settle()

    def get_shared_components(self, key: Hashable) -> SharedComponents | None:
        """The components of a loaded model, or None if the pool does not hold it."""
        with self._lock:
            entry = self._table.models.get(key)
            return entry.shared if entry is not None and entry.ready else None

    def release(self, key: Hashable) -> bool:
        """Drop an idle model, and those of its components that no other model is made from.

        Returns False if there is no such model, or it is in use.
        """
        with self._lock:
            self._table.collect()
            entry = self._table.models.get(key)
            idle = entry is not None and entry.idle
            if entry is not None and idle:
                self._table.retire_with_parts(entry)
        self._settle()
        return idle

    def invalidate(self, keys: Iterable[Hashable]) -> None:
        """Have models loaded anew by who asks next: drop what is idle now, what is in use at its last lease's end.

        Components go with them as in `release`.
        """
        with self._lock:
            self._table.collect()
            for key in keys:
                entry = self._table.models.get(key)
                if entry is not None:
                    self._table.retire_with_parts(entry)
        self._settle()

    def __contains__(self, key: Hashable) -> bool:
        """Whether a model is held, or being loaded."""
        with self._lock:
            return key in self._table.models

    def trim(self, device: str | None = None, *, idle: float = 0.0) -> int:
        """Drop what has been idle for that many seconds, on one device or on all; returns the bytes dropped."""
        name = None if device is None else device_name(device)
        with self._lock:
            self._table.collect()
            latest = self._table.clock() - idle
            dropped = [
                entry
                for entry in self._table.entries()
                if entry.idle and entry.usage.last_used <= latest and name in {None, entry.device}
            ]
            gone = self._table.retire_all(dropped, EventKind.RELEASED)
        self._settle()
        self._give_back({entry.device for entry in gone})
        return sum(entry.nbytes for entry in gone)

    def clear(self) -> None:
        """Drop everything: what is idle now, what is in use once its last lease closes; forget failures."""
        with self._lock:
            self._table.collect()
            self._table.retire_all(list(self._table.entries()), EventKind.RELEASED)
            self._table.failures.clear()
        self._settle()

    def budget(self, device: str) -> int | None:
        """Return the budget of a device in bytes, None for no limit."""
        ledger = self._table.ledgers.get(device_name(device))
        return None if ledger is None else ledger.budget

    def stats(self) -> PoolStats:
        """A snapshot of what the pool holds and has done."""
        with self._lock:
            self._table.collect()
        self._settle()
        with self._lock:
            self._table.collect()
            components = tuple(entry.held() for entry in self._table.components.values())
            snapshot = PoolStats(
                {entry.key: entry.held().pins for entry in self._table.models.values()},
                components,
                tuple(entry.held() for entry in self._table.states.values()),
                {device: replace(ledger) for device, ledger in self._table.ledgers.items()},
                sum(held.nbytes * max(0, len(held.users) - 1) for held in components),
                replace(self._table.counts),
            )
        self._settle()
        return snapshot

    def subscribe(self, callback: Callable[[PoolEvent], None]) -> Callable[[], None]:
        """Have every event told to `callback`, in order, by some thread that uses the pool.

        Calling what is returned ends it. What a callback raises is logged.
        """
        with self._lock:
            self._subscribers += (callback,)
            self._table.told = True

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers = tuple(other for other in self._subscribers if other is not callback)
                self._table.told = bool(self._subscribers)

        return unsubscribe

    # Acquiring. Only these wait; none of them holds the lock while it does.

    def _await_lock(self) -> None:
        """Let other threads finish with the lock before this one blocks on it.

        It is held for a few microseconds, and a thread that blocks is woken only when it is its turn to run
        Python: of 8 threads that lease at once, each waits for most of the others.
        """
        while self._lock.locked():
            time.sleep(0)

    def _pin_ready(self, key: Hashable) -> Entry | None:
        self._await_lock()
        with self._lock:
            self._table.collect()
            entry = self._table.models.get(key)
            if entry is None or not entry.ready:
                return None
            self._table.counts.hits += 1
            self._table.pin(entry)
        self._settle_if_needed()
        return entry

    def _pin_loading(self, model: Component[M], patience: float) -> Entry:
        while True:
            begun = []
            self._await_lock()
            with self._lock:
                self._table.collect()
                entry = self._table.models.get(model.key)
                if entry is None:
                    entry = Entry(model, self._table.models, patience)
                    self._table.begin(entry)
                    begun.append(entry)
                elif entry in loading.get():
                    raise PoolError(
                        f"Loading {model.key} asks for {model.key} itself", "A loader leases other models only"
                    )
                else:
                    self._table.counts.waits += 1
                self._table.pin(entry)
            self._settle_if_needed()
            if self._loaded([entry], begun, patience):
                return entry

    def _share(self, components: Mapping[str, Component[Any]]) -> SharedComponents:
        """Take components for the model that is being loaded here; they stay pinned as long as it is."""
        chain = loading.get()
        if not chain:
            raise PoolError("share was called outside of a load", "Call it in the thread of the loader it is for")
        model = chain[-1]
        plan = Plan(tuple(components.values()), model.patience, chain, str(model.key))
        while True:
            entries = self._acquire(plan)
            if self._all_intact(entries.values(), entries.values(), model):
                break
        with self._lock:
            self._table.own(model, entries.values())
        forks = {name: entries[component.key].forked() for name, component in components.items()}
        model.shared._components.update(forks)
        return model.shared

    def _acquire(self, plan: Plan) -> dict[Hashable, Entry]:
        """Pin what a plan wants, loading what is missing: all of it, or none and an error."""
        self._raise_known_failures(plan)
        while True:
            entries, begun = self._when_room(plan, lambda: self._table.admit(plan))
            if self._loaded(list(entries.values()), begun, plan.patience):
                return entries

    def _loaded(self, entries: list[Entry], begun: list[Entry], patience: float) -> bool:
        """Wait for pinned entries, of which the caller is to start some.

        If one fails, or the wait is cut short, all are unpinned, and what was begun for nobody else is cancelled.
        False if it is to be asked for again: another caller had begun it and cancelled it, or waited less for
        room than this one would; or what it was to be made from was spoiled.
        """
        chain = loading.get()
        # Only who is outside of all loads gives up: a load goes on for those who ask again.
        deadline = math.inf if chain else time.monotonic() + self._wait_for_load
        try:
            for loader in chain[-1:]:
                self._begin_to_wait(loader, entries, begun)
            for entry in begun:
                entry.siblings = begun, entries
                self._start(entry)
            for entry in entries:
                entry.wait(deadline)
        except LoadTimeoutError:
            self._give_up(entries)
            raise
        except Exception as error:  # noqa: BLE001 - raised below, after what is being handled is forgotten
            failure = _verdict(error, entries, begun, patience)
        except BaseException:
            self._give_up(entries, begun)
            raise
        else:
            return True
        self._give_up(entries, begun)
        self._await_cancelled(begun, deadline)
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # its traceback holds this frame
        raise_if_cancelled()
        return False

    def _begin_to_wait(self, loader: Entry, entries: list[Entry], begun: list[Entry]) -> None:
        """Note what a load waits for; raises `PoolError` if that waits for the load itself."""
        with self._lock:
            loader.begun, loader.waits_for = [*loader.begun, *begun], entries
            circle = loader in self._table.awaited(entries)
        if circle:
            asked = ", ".join(str(entry.key) for entry in entries if entry.loading)
            raise PoolError(
                f"Loading {loader.key} waits for {asked}, whose loading waits for {loader.key}",
                "Two loaders must not lease each other's models",
            )

    def _await_cancelled(self, begun: list[Entry], deadline: float) -> None:
        """Wait for loads that were cancelled, so that nothing is charged any more when the error is seen."""
        for entry in begun:
            if entry.cancelled:
                entry.done.wait(min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX))
        self._settle()

    def _give_up(self, entries: Iterable[Entry], begun: Sequence[Entry] = ()) -> None:
        """Unpin entries, and cancel the loads that were begun for nobody else."""
        with self._lock:
            for entry in entries:
                self._table.unpin(entry)
            self._table.abandon(begun)
            self._table.drop_unused(reversed(begun))
            for entry in begun:
                if not entry.started:
                    self._table.fail(entry, LoadCancelledError(f"Loading {entry.key} was not begun"), None)
                    entry.done.set()
        self._settle()

    def _when_room(self, plan: Plan, attempt: Callable[[], R | None]) -> R:
        """Repeat `attempt`, with the lock held, until it gives something, or the plan's patience ends."""
        started = time.monotonic()
        try:
            while True:
                with self._lock:
                    self._table.collect()
                    evictions = self._table.counts.evictions
                    result = attempt()
                    evicted = self._table.counts.evictions > evictions
                    joined = result is None and plan not in self._table.waiting
                    if joined:
                        self._table.waiting += (plan,)
                self._settle()
                if result is not None:
                    return result
                raise_if_cancelled()
                # Who has just joined looks again: what was freed before rang no bell for it.
                if not (joined or evicted or plan.rung(started + plan.patience - time.monotonic())):
                    raise self._full(plan)
        finally:
            if plan in self._table.waiting:
                with self._lock:
                    self._table.waiting = tuple(other for other in self._table.waiting if other is not plan)
                    self._table.changed = True
                    self._table.counts.seconds_waiting += time.monotonic() - started
                self._settle()

    def _full(self, plan: Plan) -> PoolFullError:
        with self._lock:
            self._table.collect()
            short = "; ".join(
                f"{format_bytes(nbytes)} on {device}: {self._table.describe_holders(device)}"
                for device, nbytes in plan.need.items()
                if self._table.ledgers[device].over(nbytes) > 0
            )
        return PoolFullError(
            f"{plan.what} found no room in {plan.patience:g} seconds for {short or 'it, behind others who wait'}",
            FULL_REMEDY,
        )

    def _raise_known_failures(self, plan: Plan) -> None:
        for key, component in plan.components.items():
            stamp, error = self._table.failures.get(key, (None, None))
            if error is not None:
                if file_state(component) == stamp:
                    raise WeightsError(error.message, error.remedy)
                self._table.failures.pop(key, None)

    # Loading, in threads of their own

    def _start(self, entry: Entry) -> None:
        context = contextvars.copy_context()
        name = f"iopaint load {entry.key}"
        threading.Thread(target=context.run, args=(self._load, entry), name=name, daemon=True).start()

    def _load(self, entry: Entry) -> None:
        with self._lock:
            if entry.failed:  # given up before it was started
                return
            entry.started = True
        loading.set((*loading.get(), entry))
        try:
            try:
                self._load_and_charge(entry)
            except BaseException as error:  # noqa: BLE001 - whoever waits for the load raises it
                _clear_frames(error)
                state = file_state(entry.component)
                with self._lock:
                    self._table.fail(entry, error, state)
            self._settle()
        finally:
            entry.done.set()

    def _load_and_charge(self, entry: Entry) -> None:
        started = time.monotonic()
        value = self._load_or_relieve(entry)
        try:
            component = entry.component
            self._charge(entry, component.nbytes if component.measure is None else component.measure(value))
        except BaseException:
            self._close(entry, value)
            value = None  # the traceback holds this frame
            raise
        seconds = time.monotonic() - started
        with self._lock:
            self._table.finish(entry, value, self._watch(entry, value), seconds)

    def _load_or_relieve(self, entry: Entry) -> object:
        """Load; out of memory, drop what is idle on the device and try once more."""
        for part in entry.parts:
            part.wait(math.inf)
        if not all(self._checked(part, entry) for part in entry.parts):
            raise _SpoiledPartError
        values = [part.forked() for part in entry.parts]
        # A model's loader waits for those of its components; a component's waits for none.
        reading = contextlib.nullcontext() if entry.home is self._table.models else self._readers
        try:
            with reading:
                raise_if_cancelled()
                return entry.component.load(*values)
        except MemoryError as error:
            _logger.warning("Loading %s: %s; trying again without what is idle", entry.key, describe(error))
        with self._lock:
            if entry.home is self._table.models:
                self._table.disown_parts(entry)
            self._table.evict(
                [other for other in self._table.entries() if other.idle and other.device == entry.device]
            )
        self._settle()
        self._give_back({entry.device})
        try:
            with reading:
                return entry.component.load(*values)
        except MemoryError as error:
            with self._lock:
                held = self._table.describe_holders(entry.device)
            raise PoolFullError(
                f"{entry.device} ran out of memory while {entry.key} was loaded; {held}", FULL_REMEDY
            ) from error

    def _charge(self, entry: Entry, nbytes: int) -> None:
        """Correct the bytes reserved for an entry by what it takes in truth."""

        def attempt() -> bool | None:
            if self._table.shortage(plan, {entry.device: nbytes - entry.nbytes}):
                return None
            self._table.ledgers[entry.device].reserved += nbytes - entry.nbytes
            self._table.changed = True
            entry.nbytes = nbytes
            return True

        plan = Plan((), entry.patience, loading.get(), f"{entry.key}")
        self._when_room(plan, attempt)

    def _watch(self, entry: Entry, value: object) -> weakref.ref[object] | None:
        """Learn when a value is gone from memory; None if it can't be told."""

        def gone(_: object) -> None:  # may run anywhere, also while this thread holds the lock: it only enqueues
            self._table.freed.append(entry)
            self._wake()

        try:
            return weakref.ref(value, gone)
        except TypeError:
            return None

    # Checking

    def _all_intact(self, pinned: Iterable[Entry], parts: Iterable[Entry], user: Entry) -> bool:
        """Check components before `user` gets them; if one is spoiled, what was pinned is unpinned."""
        try:
            intact = all(self._checked(part, user) for part in parts)
        except BaseException:
            self._give_up(pinned)
            raise
        if not intact:
            self._give_up(pinned)
        return intact

    def _checked(self, part: Entry, user: Entry) -> bool:
        """Whether nobody wrote into the weights of a component; if somebody did, it is dropped."""
        check = part.component.check
        if check is None or not part.used_by or check(part.value):
            with self._lock:
                part.note_user(user)
            return True
        with self._lock:
            suspects = ", ".join(sorted({str(key) for key in part.used_by.values()}))
            self._table.spoil(part)
        self._settle()
        _logger.warning(
            "The shared weights of %s were written into, while in use by %s, and are dropped. A loader whose model "
            "writes into weights takes a private copy: share({...: component.private()})",
            part.key,
            suspects,
        )
        return False

    # After the lock

    def _settle_if_needed(self) -> None:
        table = self._table
        if table.lost or table.freed or table.doomed or table.events or table.changed or self._idle_ttl is not None:
            self._settle()

    def _settle(self) -> None:
        """Let go of what was dropped, wake who waits, tell subscribers."""
        while self._table.lost or self._table.freed or self._table.doomed:
            if self._table.lost or self._table.freed:
                with self._lock:
                    self._table.collect()
            try:
                entry = self._table.doomed.popleft()
            except IndexError:  # another thread was quicker
                continue
            self._let_go(entry)
        if self._table.changed:
            self._table.changed = False
            self._wake()
        while self._table.events and self._telling.acquire(blocking=False):
            try:
                while self._table.events:
                    self._deliver(self._table.events.popleft())
            finally:
                self._telling.release()
        self._schedule_expiry()

    def _let_go(self, entry: Entry) -> None:
        # Who still names the model in a variable, as `with pool.lease(...) as model` leaves it, holds no weights.
        entry.shared._components.clear()
        entry.shared = SharedComponents()  # the value may be that itself
        self._close(entry, entry.value)
        entry.value = None
        if entry.watch is None:
            self._table.freed.append(entry)
        self._wake()  # also if somebody else holds it: its bytes are waited for no longer

    def _give_back(self, devices: Iterable[str]) -> None:
        if self._reclaim is not None:
            for device in devices:
                self._reclaim(device)

    def _close(self, entry: Entry, value: object) -> None:
        if entry.component.close is not None:
            try:
                entry.component.close(value)
            except (Exception, SystemExit):
                _logger.exception("Closing %s failed", entry.key)

    def _wake(self) -> None:
        for plan in self._table.waiting:
            plan.bell.put(None)

    def _lose(self, entry: Entry) -> None:
        """A finalizer; it may run anywhere, also while this thread holds the lock: it only enqueues."""
        self._table.lost.append(entry)
        self._wake()

    def _unpin_closed(self, entry: Entry) -> None:
        """Unpin now, or have it done by who holds the lock: that may be this thread, if a finalizer closes."""
        if self._lock.locked():
            self._lose(entry)
            if self._lock.locked():  # who holds it looks, once it has given it back
                return
        else:
            with self._lock:
                self._table.unpin(entry)
        self._settle_if_needed()

    def _deliver(self, event: PoolEvent) -> None:
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except (Exception, SystemExit):
                _logger.exception("A subscriber failed on %s", event)

    def _schedule_expiry(self) -> None:
        """Have a timer look after what is idle once it may have been so for long enough."""
        if self._idle_ttl is None or self._expiry is not None:
            return
        with self._lock:
            if self._expiry is not None or not any(entry.idle for entry in self._table.entries()):
                return
            self._expiry = expiry = threading.Timer(self._idle_ttl, _expire, (weakref.ref(self),))
        expiry.daemon = True
        expiry.start()

    def _expire(self) -> None:
        with self._lock:
            self._expiry = None
        self.trim(idle=self._idle_ttl or 0.0)

    def _renew(self) -> None:
        """In a forked child: loads in progress have lost their threads, and devices their contexts.

        What is held in memory stays, shared with the parent; a copy on a device is put aside and never freed.
        """
        self._readers = threading.BoundedSemaphore(_READERS)
        self._telling = threading.Lock()
        self._expiry = None
        self._put_aside |= self._table.put_aside()
        for entry in (*self._table.entries(), *self._table.lingering, *self._put_aside):
            entry.lock = CallLock()


class Lease(Generic[M]):
    """A model pinned in the pool until this is closed; a context manager that gives the model.

    A lease that is lost without being closed is unpinned at the pool's next call.
    """

    def __init__(self, pool: ModelPool[M], entry: Entry) -> None:
        self.key = entry.key
        self._pool = pool
        self._entry = entry
        self._finalizer = weakref.finalize(self, pool._lose, entry)
        self._finalizer.atexit = False

    @property
    def closed(self) -> bool:
        """Whether the model was given back."""
        return not self._finalizer.alive

    @property
    def model(self) -> M:
        """The model; raises `PoolError` once the lease is closed."""
        self._raise_if_closed()
        return self._entry.value  # type: ignore[no-any-return] # an entry holds what its own load returned

    @property
    def components(self) -> SharedComponents:
        """The components that the model was made from, by name; raises `PoolError` once the lease is closed."""
        self._raise_if_closed()
        return self._entry.shared

    @property
    def locks(self) -> list[CallLock]:
        """What a call of the model holds: its own lock, and those of its exclusive components."""
        exclusive = (part for part in self._entry.parts if part.component.exclusive)
        return [self._entry.lock, *(part.lock for part in exclusive)]

    def close(self) -> None:
        """Give the model back; closing again does nothing."""
        if self._finalizer.detach():
            self._pool._unpin_closed(self._entry)

    def __enter__(self) -> M:
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _raise_if_closed(self) -> None:
        if self.closed:
            raise PoolError(
                f"The lease of {self.key} is closed", "Take a new one; use a model only inside its lease"
            )


class _SpoiledPartError(Exception):
    """What a component was to be made from was written into, and is dropped: the load begins anew."""


def _verdict(
    error: BaseException, entries: list[Entry], begun: list[Entry], patience: float
) -> BaseException | None:
    """What a plan raises of which a load failed; None if it is to be tried again."""
    failed = [entry for entry in entries if entry.error]
    cause = next((e.error for e in failed if e.error and not isinstance(e.error, LoadCancelledError)), error)
    cancelled_by_others = any(entry.cancelled or entry not in begun for entry in failed)
    given_up_by_others = any(entry.patience < patience for entry in failed if entry not in begun)
    again = (
        isinstance(cause, _SpoiledPartError)
        or (isinstance(cause, LoadCancelledError) and cancelled_by_others)
        or (isinstance(cause, PoolFullError) and given_up_by_others)
    )
    return None if again else cause


def _clear_frames(error: BaseException | None) -> None:
    """Let go of what the frames of a failed load hold: who keeps the error keeps no weights."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _no_load() -> NoReturn:
    raise AssertionError("what a model computed is not loaded")


def _expire(pool: weakref.ref[ModelPool[Any]]) -> None:
    alive = pool()
    if alive is not None:
        alive._expire()
