"""Any sequence of uses of a pool, with failures at every point, keeps its promises."""

import gc
import signal
import threading
import weakref
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule
from pools import WATCHDOG, Weights

from iopaint_core import (
    GDSF,
    LRU,
    Component,
    EventKind,
    ModelPool,
    PoolError,
    PoolFullError,
    WeightsError,
    raise_if_cancelled,
)

HOST = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 0}
MODELS = {
    "one": ("a",),
    "two": ("a", "b"),
    "three": ("a", "c"),
    "big": ("b", "d"),
    "none": (),
    "copy": ("a@gpu", "b"),
    "copies": ("a@gpu", "c@gpu"),
    "both": ("c", "c@gpu"),
    "huge": ("c", "d", "b"),
}
FAULTS = [
    "raises",
    "is damaged",
    "runs out of memory once",
    "runs out of memory",
    "lies",
    "is interrupted",
    "exits",
]


class PoolMachine(RuleBasedStateMachine):
    leases = Bundle("leases")

    @initialize(
        cpu=st.sampled_from([0, 4, 6, 9, None]),
        gpu=st.sampled_from([0, 2, 4, None]),
        policy=st.sampled_from([GDSF, LRU]),
    )
    def start(self, cpu, gpu, policy):
        self.budgets = {device: budget for device, budget in (("cpu", cpu), ("gpu", gpu)) if budget is not None}
        self.now = 0.0
        self.pool = ModelPool(self.budgets, policy=policy(), wait_for_room=0.0, clock=lambda: self.now)
        self.open = []  # leases with the components that they gave
        self.live = weakref.WeakSet()
        self.fault = (None, None)
        self.damage = Counter()
        self.kept = []
        self.events = []
        self.in_progress = 0
        self.quiet = threading.Condition()
        self.pool.subscribe(self.note)

    def note(self, event):
        self.events.append(event)
        with self.quiet:
            self.in_progress += event.kind is EventKind.LOADING
            self.in_progress -= event.kind in {EventKind.LOADED, EventKind.FAILED}
            self.quiet.notify_all()

    # Weights, and what may go wrong with them

    def component(self, key):
        name, _, device = key.partition("@")
        nbytes = HOST[name]

        def load(*parts):
            self.strike(key)
            weights = Weights(key, nbytes + (self.fault == (key, "lies")))
            self.live.add(weights)
            return weights

        return Component(
            key,
            load,
            nbytes,
            device=device or "cpu",
            parts=(self.component(name),) if device else (),
            measure=lambda weights: weights.nbytes,
            check=lambda weights: not weights.written,
            close=self.close_weights,
            stamp=lambda: self.damage[key],
        )

    def close_weights(self, weights):
        assert not any(weights is part for _, parts in self.open for part in parts), "dropped while in use"
        weights.closed += 1

    def strike(self, key):
        """Do what was planned for the load of that key."""
        where, what = self.fault
        if where != key or what is None:
            return
        if what == "raises":
            raise ZeroDivisionError(key)
        if what == "exits":
            raise SystemExit(key)
        if what == "is damaged":
            raise WeightsError(f"{key} is damaged", "Get it again")
        if what == "runs out of memory once":
            self.fault = (None, None)
            raise MemoryError(key)
        if what == "runs out of memory":
            raise MemoryError(key)
        if what == "is interrupted":
            self.fault = (None, None)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            while True:
                raise_if_cancelled()

    def load(self, name):
        def load(share):
            self.strike(name)
            parts = share({key: self.component(key) for key in MODELS[name]})
            self.strike(f"after {name}")
            return dict(parts)

        return load

    def lease_or_error(self, name):
        class Loaded(dict):  # a plain dict can't be watched, which the pool copes with too
            pass

        try:
            lease = self.pool.lease(name, lambda share: Loaded(self.load(name)(share)))
        except KeyboardInterrupt as error:
            # Who interrupts does not wait for the load to notice; what follows is to find a pool at rest.
            with self.quiet:
                assert self.quiet.wait_for(lambda: not self.in_progress, WATCHDOG)
            return None, error
        except (ZeroDivisionError, SystemExit, WeightsError, PoolError) as error:
            return None, error
        return lease, None

    # What a host may do

    @rule(target=leases, name=st.sampled_from(sorted(MODELS)))
    def lease(self, name):
        self.fault = (None, None)
        lease, error = self.lease_or_error(name)
        if lease is None:
            assert isinstance(error, PoolFullError), error
            return []
        for key, part in lease.model.items():
            assert part.key == key
            assert not part.closed
            assert part.written <= {name}, "weights that another model wrote into were handed out"
        self.open.append((lease, list(lease.model.values())))
        return [lease]

    @rule(
        name=st.sampled_from(sorted(MODELS)),
        what=st.sampled_from(FAULTS),
        place=st.integers(min_value=0, max_value=5),
    )
    def lease_that_fails(self, name, what, place):
        places = [
            name,
            *MODELS[name],
            *(key.partition("@")[0] for key in MODELS[name] if "@" in key),
            f"after {name}",
        ]
        before = self.pool.stats()
        self.fault = self.last = (places[place % len(places)], what)
        lease, error = self.lease_or_error(name)
        self.fault = (None, None)
        after = self.pool.stats()
        if isinstance(error, WeightsError):
            for key in MODELS[name]:
                self.damage[key] += 1  # the files are replaced, so that they are tried again
                self.damage[key.partition("@")[0]] += 1
        if lease is not None:
            lease.close()
            return
        assert error is not None
        del error
        unspoiled = after.counts.spoiled == before.counts.spoiled
        assert after.leases.get(name, 0) == before.leases.get(name, 0) or not unspoiled
        held = {part.key: part for part in after.components}
        for part in before.components:
            if part.pins and unspoiled:
                assert held[part.key].pins == part.pins, "a failed load changed the pins"
        for device, ledger in after.devices.items():
            assert ledger.reserved == 0, "a failed load left something charged"
            assert ledger.used <= (before.devices[device].used if device in before.devices else 0)

    @rule(held=leases)
    def close(self, held):
        for lease in held:
            self.open = [pair for pair in self.open if pair[0] is not lease]
            lease.close()
            lease.close()
            with pytest.raises(PoolError, match="closed"):
                _ = lease.model

    @rule(held=consumes(leases))
    def lose(self, held):
        for lease in held:
            self.open = [pair for pair in self.open if pair[0] is not lease]
        lease = None
        held.clear()

    @rule(name=st.sampled_from(sorted(MODELS)))
    def release(self, name):
        stats = self.pool.stats()
        idle = stats.leases.get(name) == 0
        assert self.pool.release(name) is idle
        if idle:
            assert self.pool.get_shared_components(name) is None
            assert all(
                part.users or part.pins or part.key not in MODELS[name] for part in self.pool.stats().components
            )

    @rule(device=st.sampled_from(["cpu", "gpu", None]), idle=st.sampled_from([0.0, 5.0]))
    def trim(self, device, idle):
        self.pool.trim(device, idle=idle)
        if not idle:
            for part in self.pool.stats().components:
                assert part.pins or device not in {None, part.device}

    @rule()
    def clear(self):
        self.pool.clear()
        assert not self.pool.stats().components

    @rule(seconds=st.sampled_from([1.0, 4.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule(key=st.sampled_from(["a", "b", "c@gpu"]))
    def write_into(self, key):
        for weights in list(self.live):
            if weights.key == key and any(weights is part for _, parts in self.open for part in parts):
                weights.written.update(lease.key for lease, parts in self.open if any(weights is p for p in parts))

    @precondition(lambda self: self.open)
    @rule()
    def keep_beyond_the_lease(self):
        """A host that holds on to weights keeps their bytes charged."""
        self.kept += self.open[-1][1]

    @rule()
    def let_go(self):
        self.kept.clear()

    # What holds after every step

    @invariant()
    def ledgers_tell_the_truth_and_keep_the_budget(self):
        stats = self.pool.stats()
        alive = Counter()
        for weights in self.live:
            alive[weights.key.partition("@")[2] or "cpu"] += weights.nbytes
        for device, ledger in stats.devices.items():
            assert ledger.reserved == 0
            assert min(ledger.resident, ledger.unloading) >= 0
            if device in self.budgets:
                assert ledger.used <= self.budgets[device]
                assert ledger.used == alive[device], (ledger, alive)

    @invariant()
    def pins_are_those_of_the_open_leases(self):
        stats = self.pool.stats()
        open_leases = Counter(lease.key for lease, _ in self.open)
        for name, pins in stats.leases.items():
            assert 0 <= pins <= open_leases[name]
        users = {part.key: part.users for part in stats.components}
        for part in stats.components:
            assert part.loaded
            in_use = [user for user in part.users if stats.leases.get(user) or self.pinned(stats, user)]
            assert part.pins >= len(in_use) >= 0
            if not self.open:  # else, what was dropped while in use may still be a user
                assert set(part.users) <= set(stats.leases) | set(users)

    def pinned(self, stats, key):
        return any(part.key == key and part.pins for part in stats.components)

    @invariant()
    def what_is_leased_is_whole(self):
        for lease, parts in self.open:
            assert list(lease.model.values()) == parts
            assert not any(part.closed for part in parts)

    @invariant()
    def one_of_each_is_held(self):
        stats = self.pool.stats()
        keys = [part.key for part in stats.components]
        assert len(keys) == len(set(keys))

    @invariant()
    def loads_are_misses(self):
        counts = self.pool.stats().counts
        loaded = Counter(event.kind.value for event in self.events if event.key in HOST or "@" in str(event.key))
        assert loaded["loading"] == counts.component_loads
        assert loaded["loading"] == loaded["loaded"] + loaded["failed"]
        assert counts.failed_component_loads == loaded["failed"]

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        gc.disable()
        try:
            while self.open:
                self.open.pop()[0].close()
            self.kept.clear()
            self.pool.trim()
            stats = self.pool.stats()
            assert not stats.leases
            assert not stats.components
            assert all(ledger.used == 0 for ledger in stats.devices.values()), stats.devices
            assert not list(self.live), "weights outlive their last lease"
        finally:
            gc.enable()
