"""The pool's books: what is held, who pins it, and the bytes of each device.

Nothing here waits, calls out, or frees: the pool calls it with its lock held, and afterwards does what was put
into `doomed` and `events`.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from typing import TYPE_CHECKING

from iopaint_core.accounts import Counts, EventKind, Ledger, PoolEvent
from iopaint_core.entries import Entry, Plan, device_name
from iopaint_core.errors import PoolFullError, WeightsError
from iopaint_core.schema import format_bytes

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

    from iopaint_core.eviction import EvictionPolicy

FULL_REMEDY = "Close leases, unload models, or raise the budget"
_FAILURES_KEPT = 256


class Table:
    """Entries of models and of components, and the ledgers that they are charged to."""

    def __init__(self, budgets: Mapping[str, int], policy: EvictionPolicy, clock: Callable[[], float]) -> None:
        self.models: dict[Hashable, Entry] = {}
        self.components: dict[Hashable, Entry] = {}
        self.states: dict[Hashable, Entry] = {}
        """What models computed and keep for a next call."""
        self.ledgers = {device_name(device): Ledger(budget) for device, budget in budgets.items()}
        self.failures: dict[Hashable, tuple[Hashable, WeightsError]] = {}
        """What is wrong with files, and in which state they were."""
        self.counts = Counts()
        self.policy = policy
        self.clock = clock
        self.told = False
        """Whether anybody wants events."""
        self.waiting: tuple[Plan, ...] = ()
        """Plans without room, the first come first."""
        self.changed = False
        """Whether those who wait should look again."""
        self.lost: deque[Entry] = deque()
        """Pinned by leases that were lost; filled by finalizers, without the lock."""
        self.freed: deque[Entry] = deque()
        """Gone from memory; filled by finalizers, without the lock."""
        self.doomed: deque[Entry] = deque()
        """Dropped, to be let go of without the lock."""
        self.lingering: set[Entry] = set()
        """Retired, but in use, or still being loaded."""
        self.unloading: set[Entry] = set()
        """Dropped, but not gone; an entry that nothing holds would not learn that its value is gone."""
        self.events: deque[PoolEvent] = deque()

    def admit(self, plan: Plan) -> tuple[dict[Hashable, Entry], list[Entry]] | None:
        """Reserve room for what a plan misses and pin what it wants, or None if there is no room yet."""
        found = {key: self.components[key] for key in plan.components if key in self.components}
        missing = [component for key, component in plan.components.items() if key not in found]
        need: dict[str, int] = {}
        for component in missing:
            need[component.device] = need.get(component.device, 0) + component.reserved
        if self.shortage(plan, need, found.values()):
            return None
        self.counts.component_hits += len(found)
        begun = [Entry(component, self.components, plan.patience) for component in missing]
        for entry in begun:
            found[entry.key] = entry
            for part in entry.component.parts:
                entry.parts.append(found[part.key])
                found[part.key].users[entry] = None
            self.begin(entry)
        wanted = {key: found[key] for key in plan.wanted}
        for entry in wanted.values():
            self.pin(entry)
        return wanted, begun

    def shortage(self, plan: Plan, need: Mapping[str, int], keep: Iterable[Entry] = ()) -> bool:
        """Whether a plan has to wait for room; evicts what is idle if that is enough, and only then."""
        held = {*keep, *plan.held()}
        plan.need = {
            device: nbytes
            for device, nbytes in need.items()
            if nbytes > 0 and self.ledger(device).budget is not None
        }
        over = {device: self.ledgers[device].over(nbytes) for device, nbytes in plan.need.items()}
        for device, nbytes in plan.need.items():
            total = nbytes + sum(entry.nbytes for entry in held if entry.device == device)
            if total > (self.ledgers[device].budget or 0):
                raise PoolFullError(
                    f"{plan.what} needs {format_bytes(total)} on {device}, and the whole budget is "
                    f"{format_bytes(self.ledgers[device].budget or 0)}",
                    f"Raise the budget of {device}, or load with a smaller dtype",
                )
        ahead = itertools.takewhile(lambda other: other is not plan, self.waiting)
        if not any(entry.nbytes for entry in plan.held()) and any(other.need.keys() & plan.need for other in ahead):
            return True
        victims = [
            self.victims(device, nbytes - self.bytes_about_to_go(device), held)
            for device, nbytes in over.items()
            if nbytes > 0
        ]
        if all(found is not None for found in victims):
            self.evict([entry for found in victims for entry in found or ()])
        elif plan not in self.waiting:
            self.tell_waiting(plan)
        return bool(victims)

    def victims(self, device: str, nbytes: int, keep: set[Entry]) -> list[Entry] | None:
        """The idle entries that make room for that many bytes, those of least priority; None if all don't."""
        idle = [entry for entry in self.entries() if entry.idle and entry.device == device and entry not in keep]
        victims: list[Entry] = []
        going: set[Entry] = set()
        for entry in sorted(idle, key=lambda entry: (entry.priority, entry.usage.last_used)):
            if nbytes <= 0:
                break
            if entry.nbytes and entry not in going:
                victims.append(entry)
                new = set(entry.with_users()) - going
                nbytes -= sum(other.nbytes for other in new if other.device == device)
                going |= new
        return victims if nbytes <= 0 else None

    def bytes_about_to_go(self, device: str) -> int:
        """Of what is dropped, and not let go of yet; what then does not go is held by somebody else."""
        return sum(entry.nbytes for entry in self.unloading if entry.device == device and entry.value is not None)

    def evict(self, victims: list[Entry]) -> None:
        """Drop idle entries to make room."""
        for entry in victims:
            self.policy.evicted(entry.priority)
        self.counts.evictions += len(victims)
        self.retire_all(victims, EventKind.EVICTED)

    def begin(self, entry: Entry) -> None:
        """Enter an entry whose load is about to start, and reserve its bytes."""
        entry.home[entry.key] = entry
        self.ledger(entry.device).reserved += entry.nbytes
        for part in entry.parts:
            self.pin(part)
        if entry.home is self.models:
            self.counts.loads += 1
        elif entry.home is self.components:
            self.counts.component_loads += 1
        self.tell(EventKind.LOADING, entry)

    def keep(
        self, entry: Entry, model: Entry, value: object, watch: weakref.ref[object] | None, seconds: float
    ) -> None:
        """Enter, and pin, what a model computed: it goes when the model does."""
        entry.parts.append(model)
        model.users[entry] = None
        self.begin(entry)
        self.pin(entry)
        self.finish(entry, value, watch, seconds)

    def recharge(self, entry: Entry, nbytes: int) -> None:
        """Charge what a loaded entry takes by now, and evict what is idle where that is more than there is."""
        if not entry.ready or nbytes == entry.nbytes or entry in self.unloading:
            return
        ledger = self.ledgers[entry.device]
        ledger.resident += nbytes - entry.nbytes
        entry.nbytes = entry.usage.nbytes = nbytes
        entry.priority = self.policy.priority(entry.usage)
        self.changed = True
        over = ledger.over(0) - self.bytes_about_to_go(entry.device)
        if over > 0:
            idle = [other for other in self.entries() if other.idle and other.device == entry.device]
            self.evict(self.victims(entry.device, over, {entry}) or idle)

    def fail(self, entry: Entry, error: BaseException, stamp: Hashable) -> None:
        """Take back all that a load had taken; `stamp` is the state of its files, None if it has none."""
        entry.error, entry.failed = error, True
        self.ledgers[entry.device].reserved -= entry.nbytes
        self.changed = True
        if entry.siblings is not None:  # the plan that began it fails with it
            self.abandon(*entry.siblings)
            entry.siblings = None
        self.disown_parts(entry)
        self.drop_unused(reversed(entry.begun))  # what is made from others before these
        entry.begun = []
        self.lingering.discard(entry)
        self.forget(entry)
        self.unpin(entry)
        if entry.home is self.models:
            self.counts.failed_loads += 1
        else:
            self.counts.failed_component_loads += 1
        # What the system could not do, as for want of file handles, it may do the next time.
        if stamp is not None and isinstance(error, WeightsError) and not isinstance(error.__cause__, OSError):
            while len(self.failures) >= _FAILURES_KEPT:
                del self.failures[next(iter(self.failures))]
            self.failures[entry.key] = (stamp, WeightsError(error.message, error.remedy))
        self.tell(EventKind.FAILED, entry)

    def finish(self, entry: Entry, value: object, watch: weakref.ref[object] | None, seconds: float) -> None:
        """Enter what a load gave; from now on it is ready, and resident."""
        ledger = self.ledgers[entry.device]
        ledger.reserved -= entry.nbytes
        ledger.resident += entry.nbytes
        entry.value, entry.watch, entry.ready = value, watch, True
        entry.usage.nbytes, entry.usage.seconds = entry.nbytes, seconds
        entry.begun, entry.waits_for, entry.siblings = [], [], None
        entry.checked = tuple(part for part in entry.parts if part.component.check is not None)
        entry.priority = self.policy.priority(entry.usage)
        if entry.home is self.components:
            self.counts.seconds_loading += seconds
        self.tell(EventKind.LOADED, entry, seconds)
        if entry.cancelled and not entry.retired:
            self.retire(entry, EventKind.RELEASED)
        self.unpin(entry)

    def pin(self, entry: Entry) -> None:
        """Keep an entry, and its parts, from being dropped."""
        self._pin_at(entry, self.clock())

    def _pin_at(self, entry: Entry, now: float) -> None:
        entry.pins += 1
        entry.cancelled = False
        self.use(entry, now)
        if entry.pins == 1:
            for part in entry.parts:
                self._pin_at(part, now)

    def unpin(self, entry: Entry) -> None:
        """Take back one pin; the last one lets go of what is retired."""
        self._unpin_at(entry, self.clock())

    def _unpin_at(self, entry: Entry, now: float) -> None:
        entry.pins -= 1
        if entry.pins:
            return
        self.changed = bool(self.waiting)
        entry.usage.last_used = now
        entry.error = None  # its traceback holds the frames of the loader, and with them tensors
        for part in entry.parts:
            self._unpin_at(part, now)
        if entry.retired and entry.ready:
            self.doom(entry)

    def use(self, entry: Entry, now: float) -> None:
        """Note a use, for the eviction policy."""
        entry.usage.uses += 1
        entry.usage.last_used = now
        entry.priority = self.policy.priority(entry.usage)

    def abandon(self, begun: Iterable[Entry], excused: Iterable[Entry] = ()) -> None:
        """Cancel loads that nobody waits for, and what only they wait for; of `excused`, a pin does not count."""
        released = Counter(excused)
        doubtful = list(begun)
        while doubtful:
            entry = doubtful.pop()
            own = 1
            if not entry.cancelled and entry.loading and entry.pins <= own + released[entry]:
                entry.cancelled = self.changed = True
                awaited = (*entry.waits_for, *entry.parts)
                released.update(awaited)
                doubtful += awaited

    def retire_all(self, entries: Iterable[Entry], kind: EventKind) -> list[Entry]:
        """Retire each of them; returns all that goes."""
        return [gone for entry in entries for gone in self.retire(entry, kind)]

    def retire(self, entry: Entry, kind: EventKind) -> list[Entry]:
        """Take an entry, and what is made from it, out of the table; it goes when nobody uses it any more.

        Returns what that was.
        """
        if entry.retired:
            return []
        entry.retired = True
        self.forget(entry)
        self.tell(kind, entry)
        retired = [entry, *self.retire_all(tuple(entry.users), kind)]
        if entry.idle:
            self.doom(entry)
        else:
            self.lingering.add(entry)
        return retired

    def retire_with_parts(self, entry: Entry) -> None:
        """Retire an entry, and with it those of its parts that nothing else is made from."""
        entry.drops_parts = True
        self.retire(entry, EventKind.RELEASED)

    def drop_unused(self, entries: Iterable[Entry]) -> None:
        """Drop what was loaded for something that failed, unless somebody else uses it by now."""
        for entry in entries:
            if entry.idle and not entry.users:
                self.retire(entry, EventKind.RELEASED)

    def doom(self, entry: Entry) -> None:
        """Move the bytes of an entry from resident to unloading; `_settle` lets go of its value."""
        if entry.home is self.models:
            self.counts.releases += 1
        self.lingering.discard(entry)
        ledger = self.ledgers[entry.device]
        ledger.resident -= entry.nbytes
        ledger.unloading += entry.nbytes
        parts = tuple(entry.parts)
        for part in parts:
            part.users.pop(entry, None)
        entry.parts.clear()
        entry.checked = ()
        self.doomed.append(entry)
        self.unloading.add(entry)
        for part in parts:
            if entry.drops_parts and part.idle and not part.users:
                self.retire_with_parts(part)

    def disown_parts(self, entry: Entry) -> None:
        """Give back the parts of an entry whose load failed."""
        for part in entry.parts:
            part.users.pop(entry, None)
            self.unpin(part)
        entry.parts.clear()
        entry.waits_for = []
        entry.shared._components.clear()

    def own(self, entry: Entry, parts: Iterable[Entry]) -> None:
        """Make parts that are pinned for an entry that is being loaded its own."""
        entry.waits_for = []
        for part in parts:
            entry.parts.append(part)
            part.users[entry] = None

    def spoil(self, entry: Entry) -> None:
        """Drop what was written into, once however many notice."""
        if not entry.retired:
            self.counts.spoiled += 1
            self.retire(entry, EventKind.SPOILED)

    def awaited(self, entries: Iterable[Entry]) -> set[Entry]:
        """All that loads wait for, if somebody waits for these."""
        awaited: set[Entry] = set()
        more = list(entries)
        while more:
            entry = more.pop()
            if entry.loading and entry not in awaited:
                awaited.add(entry)
                more += (*entry.waits_for, *entry.parts)
        return awaited

    def put_aside(self) -> set[Entry]:
        """In a forked child, give up what it can't use: loads without their threads, and copies on devices.

        What is returned is not to be freed there.
        """
        self.waiting = ()
        self.events.clear()
        aside = {
            user
            for entry in (*self.entries(), *self.lingering, *self.unloading)
            if entry.device != "cpu" or not (entry.ready or entry in self.unloading)
            for user in entry.with_users()
        }
        self.lingering -= aside
        self.unloading -= aside
        self.doomed = deque(entry for entry in self.doomed if entry not in aside)
        for entry in aside:
            entry.retired = False  # closing its lease is not to free it
            self.forget(entry)
        for entry in aside:
            for part in entry.parts:
                part.users.pop(entry, None)
                if entry.pins and part not in aside:
                    self.unpin(part)
            for awaited in entry.waits_for:
                if awaited not in aside:
                    self.unpin(awaited)
            entry.parts, entry.waits_for = [], []
        for device, ledger in self.ledgers.items():
            held = [entry for entry in (*self.entries(), *self.lingering) if entry.device == device]
            ledger.reserved = 0
            ledger.resident = sum(entry.nbytes for entry in held)
            ledger.unloading = sum(entry.nbytes for entry in self.unloading if entry.device == device)
        return aside

    def forget(self, entry: Entry) -> None:
        """Take an entry out of its table, unless another has come in its place."""
        if entry.home.get(entry.key) is entry:
            del entry.home[entry.key]

    def collect(self) -> None:
        """Unpin what lost leases held, and take out of the ledger what is gone from memory."""
        while self.lost:
            self.unpin(self.lost.popleft())
        while self.freed:
            entry = self.freed.popleft()
            entry.watch = None
            if entry in self.unloading:
                self.unloading.remove(entry)
                self.ledgers[entry.device].unloading -= entry.nbytes
                self.changed = True
                self.tell(EventKind.FREED, entry)

    def entries(self) -> Iterator[Entry]:
        """All models, components and states held, or being loaded."""
        return itertools.chain(self.models.values(), self.components.values(), self.states.values())

    def ledger(self, device: str) -> Ledger:
        """The ledger of a device."""
        return self.ledgers.setdefault(device, Ledger())

    def describe_holders(self, device: str) -> str:
        """Who holds how much of a device, for an error."""
        ledger = self.ledger(device)
        holders = sorted((entry for entry in self.entries() if entry.device == device), key=lambda e: -e.nbytes)
        lines = [
            f"{entry.key} holds {format_bytes(entry.nbytes)}"
            + (f" for {', '.join(str(user.key) for user in entry.users)}" if entry.users else "")
            for entry in holders
            if entry.nbytes
        ]
        limit = "without limit" if ledger.budget is None else f"of {format_bytes(ledger.budget)}"
        if ledger.unloading:
            lines.append(f"{format_bytes(ledger.unloading)} are dropped, but still in use somewhere")
        return f"{format_bytes(ledger.used)} {limit} are taken ({'; '.join(lines)})"

    def tell(self, kind: EventKind, entry: Entry, seconds: float = 0.0) -> None:
        """Note an event, if anybody listens."""
        if self.told:
            self.events.append(PoolEvent(kind, entry.key, entry.device, entry.nbytes, seconds))

    def tell_waiting(self, plan: Plan) -> None:
        """Note that a plan waits for room."""
        if self.told:
            for device, nbytes in plan.need.items():
                self.events.append(PoolEvent(EventKind.WAITING, plan.what, device, nbytes))
