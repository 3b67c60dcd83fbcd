import gc
import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from iopaint_core import Model, ModelPool, PoolError

WATCHDOG = 30  # seconds; a hang fails the test instead of hanging it


class Fake(Model):
    def __init__(self, name=""):
        self.name = name
        self.closed = 0

    @property
    def components(self):
        return {"unet": self}

    def close(self):
        self.closed += 1


def together(count, call):
    """Run `call(i)` in threads that start at one moment; the results in order, errors as results."""
    start = threading.Barrier(count)
    results = [None] * count

    def run(i):
        start.wait(WATCHDOG)
        try:
            results[i] = call(i)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
        assert not thread.is_alive(), "a caller hangs"
    return results


def test_a_model_is_loaded_once_and_held_while_idle():
    pool = ModelPool()
    with pool.lease("a", Fake) as first:
        pass
    with pool.lease("a", Fake) as second:
        assert second is first
    stats = pool.stats()
    assert (stats.counts.loads, stats.counts.hits, stats.leases) == (1, 1, {"a": 0})


def test_64_callers_at_once_load_once():
    pool = ModelPool()
    release = threading.Event()
    loads = []

    def load():
        loads.append(1)
        release.wait(WATCHDOG)
        return Fake()

    def call(i):
        if i == 0:
            while pool.stats().waits < 62:
                release.wait(0.001)
            release.set()
            return None
        with pool.lease("a", load) as model:
            return model

    results = together(64, call)
    assert len(loads) == 1
    assert len(set(map(id, results[1:]))) == 1
    assert isinstance(results[1], Fake)
    assert pool.stats().leases == {"a": 0}


def test_different_keys_load_side_by_side():
    pool = ModelPool()
    both_loading = threading.Barrier(2)

    def load():
        both_loading.wait(WATCHDOG)  # passes only if the other load runs meanwhile
        return Fake()

    results = together(2, lambda i: pool.lease(i, load).model)
    assert all(isinstance(result, Fake) for result in results)


def test_what_a_load_raises_everyone_who_waits_raises_and_the_pool_is_as_before():
    pool = ModelPool()
    release = threading.Event()

    def fail():
        release.wait(WATCHDOG)
        raise ValueError("no weights")

    def call(i):
        if i == 0:
            while pool.stats().waits < 6:
                release.wait(0.001)
            release.set()
            return None
        return pool.lease("a", fail)

    results = together(8, call)
    assert all(isinstance(result, ValueError) for result in results[1:])
    stats = pool.stats()
    assert (stats.leases, stats.failed_loads) == ({}, 1)
    with pool.lease("a", Fake) as model:
        assert isinstance(model, Fake)


def test_ctrl_c_in_one_load_makes_those_who_wait_load_for_themselves():
    pool = ModelPool()
    waiting = threading.Event()

    def interrupted():
        while not pool.stats().waits:
            waiting.wait(0.001)
        raise KeyboardInterrupt

    def call(i):
        if i == 0:
            with pytest.raises(KeyboardInterrupt):
                pool.lease("a", interrupted)
            return None
        while not pool.stats().loads:
            waiting.wait(0.001)
        return pool.lease("a", Fake).model

    assert isinstance(together(2, call)[1], Fake)


def test_what_is_leased_is_never_released():
    pool = ModelPool()
    lease = pool.lease("a", Fake)
    model = lease.model
    assert pool.release("a") is False
    assert model.closed == 0
    lease.close()
    assert pool.release("a") is True
    assert model.closed == 1
    assert pool.release("a") is False
    assert pool.stats().leases == {}


def test_a_lease_closes_once_and_is_of_no_use_after():
    pool = ModelPool()
    first, second = pool.lease("a", Fake), pool.lease("a", Fake)
    first.close()
    first.close()
    assert pool.stats().leases == {"a": 1}
    with pytest.raises(PoolError, match="The lease of a is closed"):
        _ = first.model
    assert second.model


def test_a_lost_lease_is_unpinned():
    pool = ModelPool()
    pool.lease("a", Fake)
    gc.collect()
    assert pool.stats().leases == {"a": 0}
    assert pool.release("a")


def test_a_loader_that_asks_for_its_own_key_is_told_instead_of_hanging():
    pool = ModelPool()
    with pytest.raises(PoolError, match="asks for a itself"):
        pool.lease("a", lambda: pool.lease("a", Fake).model)
    assert pool.stats().leases == {}


def test_a_loader_may_lease_other_models():
    pool = ModelPool()
    pool.lease("a", lambda: Fake(pool.lease("b", Fake).model))
    assert set(pool.stats().leases) == {"a", "b"}


def test_components_of_a_loaded_model_are_seen_and_not_changed():
    pool = ModelPool()
    assert pool.get_shared_components("a") is None
    with pool.lease("a", Fake) as model:
        components = pool.get_shared_components("a")
        assert dict(components) == {"unet": model}
        with pytest.raises(TypeError):
            components["vae"] = None


def test_leases_and_releases_from_many_threads_leave_nothing_pinned():
    pool = ModelPool()

    def call(i):
        for turn in range(200):
            key = (i + turn) % 3
            with pool.lease(key, Fake) as model:
                assert model.closed == 0
            pool.release((key + 1) % 3)
        return True

    assert together(16, call) == [True] * 16
    stats = pool.stats()
    assert set(stats.leases.values()) <= {0}
    assert stats.counts.loads - stats.releases == len(stats.leases)


class Pool(RuleBasedStateMachine):
    """Any sequence of leases, closes, losses, failures and releases keeps the counts right."""

    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.pool = ModelPool()
        self.open = {}
        self.models = {}

    @rule(target=leases, key=st.sampled_from("abc"))
    def lease(self, key):
        lease = self.pool.lease(key, lambda: Fake(key))
        assert lease.model.name == key
        assert lease.model.closed == 0
        assert self.models.setdefault(key, lease.model) is lease.model
        self.open[key] = self.open.get(key, 0) + 1
        return [lease]

    @rule(key=st.sampled_from("abc"))
    def fail(self, key):
        if key not in self.models:
            with pytest.raises(ZeroDivisionError):
                self.pool.lease(key, lambda: 1 / 0)

    @rule(held=leases)
    def close(self, held):
        if held and held[0]._finalizer.alive:
            self.open[held[0].key] -= 1
        for lease in held:
            lease.close()

    @rule(held=consumes(leases))
    def lose(self, held):
        for lease in held:
            if lease._finalizer.alive:
                self.open[lease.key] -= 1
        lease = None
        held.clear()

    @rule(key=st.sampled_from("abc"))
    def release(self, key):
        idle = key in self.models and not self.open[key]
        assert self.pool.release(key) is idle
        if idle:
            assert self.models.pop(key).closed == 1
            del self.open[key]

    @invariant()
    def counts_are_right(self):
        stats = self.pool.stats()
        assert stats.leases == self.open
        assert stats.counts.loads - stats.failed_loads - stats.releases == len(stats.leases)


TestAnySequence = Pool.TestCase
