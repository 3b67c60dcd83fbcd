import gc
import signal
import sys
import threading
import weakref

import pytest
from hypothesis import settings
from pool_machine import PoolMachine
from pools import WATCHDOG, Gate, Weights, component, in_child, in_thread, model, together, until

from iopaint_core import (
    GDSF,
    LRU,
    EventKind,
    LoadTimeoutError,
    Model,
    ModelPool,
    PoolError,
    PoolFullError,
    WeightsError,
    raise_if_cancelled,
)
from iopaint_core.eviction import Usage
from iopaint_core.turns import DeviceSlots, Turn


class TestPool(PoolMachine.TestCase):
    settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


class Fake(Model):
    def __init__(self, share=None):
        self.closed = 0

    def close(self):
        self.closed += 1


def used(pool, device="cpu"):
    return pool.stats().devices[device].used


# One load for each key


def test_a_model_is_loaded_once_and_held_while_idle():
    pool = ModelPool()
    with pool.lease("a", Fake) as first:
        pass
    with pool.lease("a", Fake) as second:
        assert second is first
    stats = pool.stats()
    assert (stats.counts.loads, stats.counts.hits, stats.leases) == (1, 1, {"a": 0})


def test_64_callers_at_once_load_once(quick_switches):
    pool = ModelPool()
    gate = Gate()

    def load(share):
        gate.wait()
        return Fake()

    def call(i):
        if i == 0:
            until(lambda: pool.stats().counts.waits == 62)
            gate.open()
            return None
        with pool.lease("a", load) as loaded:
            return loaded

    results = together(64, call)
    assert pool.stats().counts.loads == 1
    assert len(set(map(id, results[1:]))) == 1
    assert isinstance(results[1], Fake)
    assert pool.stats().leases == {"a": 0}


def test_different_models_and_different_components_load_side_by_side():
    pool = ModelPool()
    meeting = threading.Barrier(4)

    def meet(*parts):
        meeting.wait(WATCHDOG)  # passes only if the three others load meanwhile
        return Weights("w")

    def call(i):
        return pool.lease(i, model(*(component((i, part), load=meet) for part in range(2))))

    assert all(len(lease.model) == 2 for lease in together(2, call))


def test_what_a_load_raises_everyone_who_waits_raises_and_the_pool_is_as_before():
    pool = ModelPool()
    gate = Gate()

    def fail(share):
        gate.wait()
        raise ValueError("no weights")

    def call(i):
        if i == 0:
            until(lambda: pool.stats().counts.waits == 6)
            gate.open()
            return None
        return pool.lease("a", fail)

    results = together(8, call)
    assert all(isinstance(result, ValueError) for result in results[1:])
    stats = pool.stats()
    assert (stats.leases, stats.counts.failed_loads) == ({}, 1)
    with pool.lease("a", Fake) as loaded:
        assert isinstance(loaded, Fake)


def test_a_loader_that_asks_for_its_own_model_is_told_instead_of_hanging():
    pool = ModelPool()
    with pytest.raises(PoolError, match="asks for a itself"):
        pool.lease("a", lambda share: pool.lease("a", Fake).model)
    assert pool.stats().leases == {}


def test_a_loader_may_lease_other_models():
    pool = ModelPool()
    pool.lease("a", lambda share: Fake(pool.lease("b", Fake).model))
    assert set(pool.stats().leases) == {"a", "b"}


def test_loaders_that_lease_each_others_models_are_told_instead_of_hanging():
    pool = ModelPool()
    both = threading.Barrier(2)

    def load(other):
        def load(share):
            both.wait(WATCHDOG)
            return pool.lease(other, Fake).model

        return load

    results = together(2, lambda i: pool.lease("ab"[i], load("ba"[i])))
    assert all(isinstance(result, PoolError) for result in results)
    assert "whose loading waits for" in str(results[0])
    stats = pool.stats()
    assert (stats.leases, stats.counts.failed_loads) == ({}, 2)


def test_a_load_goes_on_when_its_callers_have_given_up():
    pool = ModelPool(wait_for_load=0.01)
    gate = Gate()
    slow = component("slow", load=lambda: gate.wait() or Weights("slow"))
    loaded = threading.Event()
    pool.subscribe(lambda event: event.kind is EventKind.LOADED and event.key == "a" and loaded.set())
    with pytest.raises(LoadTimeoutError, match="It goes on"):
        pool.lease("a", model(slow))
    gate.open()
    assert loaded.wait(WATCHDOG)
    assert pool.stats().counts.failed_loads == 0


# Leases


def test_what_is_leased_is_never_released():
    pool = ModelPool()
    lease = pool.lease("a", Fake, close=Fake.close)
    loaded = lease.model
    assert pool.release("a") is False
    assert loaded.closed == 0
    lease.close()
    assert pool.release("a") is True
    assert loaded.closed == 1
    assert pool.release("a") is False
    assert pool.stats().leases == {}


def test_a_lease_closes_once_and_is_of_no_use_after():
    pool = ModelPool()
    first, second = pool.lease("a", Fake), pool.lease("a", Fake)
    first.close()
    first.close()
    assert pool.stats().leases == {"a": 1}
    for use in (lambda: first.model, lambda: first.components):
        with pytest.raises(PoolError, match=r"The lease of a is closed.*Take a new one"):
            use()
    assert second.model


def test_a_lost_lease_is_unpinned(no_collector):
    pool = ModelPool()
    pool.lease("a", model(component("unet")))
    assert pool.stats().leases == {"a": 0}
    assert pool.release("a")
    assert used(pool) == 0


def test_a_lease_that_is_lost_in_the_middle_of_a_critical_section_does_no_harm(quick_switches):
    """A finalizer may fire in any allocation, also while its own thread holds the pool's lock."""
    pool = ModelPool({"cpu": 3})
    gc.set_threshold(1)
    try:
        for turn in range(300):
            cycle = [pool.lease(turn % 3, model(component(turn % 3)))]
            cycle.append(cycle)
            del cycle
            pool.stats()
    finally:
        gc.set_threshold(700, 10, 10)
    gc.collect()
    assert set(pool.stats().leases.values()) <= {0}


# Components


def test_a_lease_may_be_closed_by_the_collector_in_the_middle_of_a_critical_section(no_collector):
    pool = ModelPool()

    class Session:
        """Garbage in a cycle, that closes what it leased."""

        def __init__(self):
            self.lease = pool.lease("a", Fake)
            self.me = self

        def __del__(self):
            self.lease.close()

    def use(threshold):
        Session()
        gc.set_threshold(gc.get_count()[0] + threshold)
        gc.enable()
        pool.stats()
        gc.disable()
        gc.collect(0)

    thresholds = gc.get_threshold()
    try:
        in_thread(lambda: [use(threshold) for threshold in range(1, 60)])()
    finally:
        gc.set_threshold(*thresholds)
    assert pool.stats().leases == {"a": 0}


def test_models_share_components_by_key_across_loaders():
    pool = ModelPool()
    one = pool.lease("one", model(component("vae", 3), component("unet-1", 5)))
    two = pool.lease("two", model(component("vae", 3), component("unet-2", 5)))
    assert one.model["vae"] is two.model["vae"]
    stats = pool.stats()
    assert stats.devices["cpu"].resident == 13
    assert stats.saved == 3
    held = {part.key: part for part in stats.components}
    assert held["vae"].users == ("one", "two")
    assert (held["vae"].pins, held["unet-1"].pins) == (2, 1)


def test_components_of_a_loaded_model_are_seen_and_not_changed():
    pool = ModelPool()
    assert pool.get_shared_components("a") is None
    with pool.lease("a", model(component("unet"))) as loaded:
        components = pool.get_shared_components("a")
        assert dict(components) == dict(loaded)
        with pytest.raises(TypeError):
            components["vae"] = None
    assert pool.get_shared_components("a") is not None
    pool.release("a")
    assert pool.get_shared_components("a") is None


def test_reference_counting_frees_what_no_model_uses_any_more(no_collector):
    pool = ModelPool()
    for name in ("one", "two"):
        pool.lease(name, model(component("vae", 3), component(name, 5))).close()
    pool.release("one")
    assert {part.key for part in pool.stats().components} == {"vae", "two"}
    pool.release("two")
    assert pool.stats().components == ()
    assert used(pool) == 0


def test_each_model_gets_a_fork_and_the_original_is_held_once():
    pool = ModelPool()
    vae = component("vae", fork=lambda weights: [weights])
    one, two = (pool.lease(name, model(vae)).model["vae"] for name in ("one", "two"))
    assert one is not two
    assert one[0] is two[0]


def test_a_private_copy_is_nobody_elses_and_is_charged():
    pool = ModelPool()
    shared = component("unet", 5)
    one = pool.lease("one", model(shared))
    two = pool.lease("two", model(shared.private()))
    three = pool.lease("three", model(shared.private()))
    assert len({id(part) for lease in (one, two, three) for part in lease.model.values()}) == 3
    assert used(pool) == 15


def test_share_belongs_to_the_load_it_was_given_to():
    pool = ModelPool()
    kept = []
    pool.lease("a", lambda share: kept.append(share) or Fake())
    with pytest.raises(PoolError, match="outside of a load"):
        kept[0]({})


# Budgets


def test_the_second_component_never_evicts_the_first():
    """InvokeAI #7522."""
    pool = ModelPool({"cpu": 10}, wait_for_room=0)
    pool.lease("old", model(component("a", 4), component("b", 4))).close()
    with pool.lease("new", model(component("c", 5), component("d", 5))) as parts:
        assert not any(part.closed for part in parts.values())
    assert used(pool) == 10


def test_idle_components_make_room_and_only_as_many_as_are_needed():
    pool = ModelPool({"cpu": 10}, policy=LRU(), wait_for_room=0)
    for name in "abc":
        pool.lease(name, model(component(name, 3))).close()
    pool.lease("d", model(component("d", 3))).close()
    assert {part.key for part in pool.stats().components} == {"b", "c", "d"}
    assert pool.stats().counts.evictions == 1


def test_what_a_model_takes_never_makes_room_for_the_rest_of_it():
    pool = ModelPool({"cpu": 12}, policy=LRU(), wait_for_room=0)
    for name in ("oldest", "other"):
        pool.lease(name, model(component(name, 5))).close()
    with pool.lease("both", model(component("oldest", 5), component("new", 6))) as parts:
        assert parts["oldest"].closed == 0
        assert used(pool) == 11
    assert pool.stats().counts.component_loads == 3


def test_nothing_is_evicted_for_a_load_that_finds_no_room_all_the_same():
    pool = ModelPool({"cpu": 10}, wait_for_room=0)
    pool.lease("idle", model(component("idle", 4))).close()
    with pool.lease("busy", model(component("busy", 4))):
        with pytest.raises(PoolFullError):
            pool.lease("large", model(component("large", 8)))
        assert {part.key for part in pool.stats().components} == {"idle", "busy"}


def test_who_finds_no_room_in_time_learns_who_holds_how_much():
    pool = ModelPool({"cpu": 4_000_000_000}, wait_for_room=0.01)
    with pool.lease("sd", model(component("unet", 3_000_000_000))):
        with pytest.raises(PoolFullError) as caught:
            pool.lease("xl", model(component("unet-xl", 2_500_000_000)))
        assert str(caught.value) == (
            "xl found no room in 0.01 seconds for 2.50 GB on cpu: 3.00 GB of 4.00 GB are taken (unet holds 3.00 GB "
            "for sd). Close leases, unload models, or raise the budget."
        )
    assert pool.stats().devices["cpu"].reserved == 0
    pool.lease("xl", model(component("unet-xl", 2_500_000_000)))


def test_what_is_larger_than_the_whole_budget_is_refused_at_once():
    pool = ModelPool({"cpu": 10}, wait_for_room=WATCHDOG)
    with pytest.raises(
        PoolFullError, match=r"needs 11 B on cpu, and the whole budget is 10 B. Raise the budget of cpu"
    ):
        pool.lease("a", model(component("a", 6), component("b", 5)))
    assert used(pool) == 0


def test_a_budget_of_zero_holds_what_takes_nothing_and_refuses_the_rest():
    pool = ModelPool({"cpu": 0})
    pool.lease("none", Fake)
    with pytest.raises(PoolFullError, match="the whole budget is 0 B"):
        pool.lease("a", model(component("a", 1)))
    with pytest.raises(PoolError, match=r"The budget of cpu is -1 bytes. Give 0 or more"):
        ModelPool({"cpu": -1})


def test_who_waits_gets_the_room_that_a_closed_lease_leaves():
    pool = ModelPool({"cpu": 10}, wait_for_room=WATCHDOG)
    waiting = threading.Event()
    pool.subscribe(lambda event: event.kind is EventKind.WAITING and waiting.set())
    first = pool.lease("a", model(component("a", 8)))
    second = in_thread(lambda: pool.lease("b", model(component("b", 8))))
    assert waiting.wait(WATCHDOG)
    first.close()
    assert second().model["b"].key == "b"
    assert pool.stats().counts.seconds_waiting > 0


def test_who_waits_gets_the_room_that_a_lost_lease_leaves():
    pool = ModelPool({"cpu": 10}, wait_for_room=WATCHDOG)
    waiting = threading.Event()
    pool.subscribe(lambda event: event.kind is EventKind.WAITING and waiting.set())
    leases = [pool.lease("a", model(component("a", 8)))]
    second = in_thread(lambda: pool.lease("b", model(component("b", 8))))
    assert waiting.wait(WATCHDOG)
    leases.clear()
    assert second().model["b"].key == "b"


def test_who_came_first_gets_room_first_however_little_the_next_one_wants():
    pool = ModelPool({"cpu": 10}, wait_for_room=WATCHDOG)
    waiting = []
    pool.subscribe(lambda event: event.kind is EventKind.WAITING and waiting.append(event.key))
    order = []
    pool.subscribe(lambda event: event.kind is EventKind.LOADED and order.append(event.key))
    first, second = (pool.lease(name, model(component(name, 4))) for name in "ab")
    large = in_thread(lambda: pool.lease("large", model(component("LARGE", 10))).close())
    until(lambda: waiting == ["large"])
    small = in_thread(lambda: pool.lease("small", model(component("SMALL", 1))).close())
    until(lambda: pool.stats().counts.loads == 4)
    first.close()
    second.close()
    large()
    small()
    assert order.index("LARGE") < order.index("SMALL")


def test_who_waits_gets_the_room_that_a_load_leaves_which_takes_less_than_it_said():
    pool = ModelPool({"cpu": 10}, wait_for_room=WATCHDOG)
    gate = Gate()
    smaller = component("a", 8, load=lambda: gate.wait() or Weights("a", 2), measure=lambda weights: weights.nbytes)
    first = in_thread(lambda: pool.lease("first", model(smaller)))
    gate.wait_until_reached()
    second = in_thread(lambda: pool.lease("second", model(component("b", 8))))
    until(lambda: pool._table.waiting)
    gate.open()
    assert (list(first().model), list(second().model)) == (["a"], ["b"])


def test_idle_components_make_room_when_what_was_dropped_is_held_by_somebody_else():
    pool = ModelPool({"cpu": 10}, wait_for_room=0)
    with pool.lease("held", model(component("a", 4))) as loaded:
        kept = loaded["a"]
    pool.lease("idle", model(component("b", 6))).close()
    pool.release("held")
    del loaded
    with pool.lease("new", model(component("c", 6))):
        assert used(pool) == 10
    assert kept.closed


def test_what_is_made_from_a_victim_counts_for_the_room_that_it_makes():
    pool = ModelPool({"cpu": 12}, policy=LRU(), wait_for_room=0)
    pool.lease("first", model(component("a", 4)), measure=lambda parts: 5).close()
    pool.lease("second", model(component("b", 3))).close()
    pool.lease("new", model(component("c", 9))).close()
    assert {part.key for part in pool.stats().components} == {"b", "c"}


def test_who_would_wait_longer_for_room_tries_again_when_the_first_gives_up():
    pool = ModelPool({"cpu": 10})
    kept = pool.lease("kept", model(component("a", 8)))
    gate = Gate()

    def load(share):
        gate.wait()
        return share({"b": component("b", 8)})

    hasty = in_thread(lambda: pool.lease("new", load, wait_for_room=0))
    gate.wait_until_reached()
    patient = in_thread(lambda: pool.lease("new", load, wait_for_room=WATCHDOG))
    until(lambda: pool.stats().counts.waits == 1)
    gate.open()
    with pytest.raises(PoolFullError):
        hasty()
    kept.close()
    with patient() as loaded:
        assert list(loaded) == ["b"]


def test_bytes_stay_charged_until_they_are_gone_from_memory(no_collector):
    pool = ModelPool({"cpu": 10}, wait_for_room=0)
    lease = pool.lease("a", model(component("a", 8)))
    kept = lease.model["a"]
    lease.close()
    pool.release("a")
    assert pool.stats().devices["cpu"].unloading == 8
    with pytest.raises(PoolFullError, match="8 B are dropped, but still in use somewhere"):
        pool.lease("b", model(component("b", 8)))
    del kept
    assert used(pool) == 0
    pool.lease("b", model(component("b", 8)))


def test_a_component_that_is_larger_than_it_said_is_charged_in_full_or_not_kept():
    pool = ModelPool({"cpu": 10}, wait_for_room=0)
    grown = component("a", 2, load=lambda: Weights("a", 9), measure=lambda weights: weights.nbytes)
    with pool.lease("busy", model(component("busy", 4))), pytest.raises(PoolFullError, match="a found no room"):
        pool.lease("a", model(grown))
    assert used(pool) == 4
    pool.lease("a", model(grown))
    assert used(pool) == 9


def test_what_a_load_takes_at_most_has_room_while_it_lasts_and_is_given_back():
    pool = ModelPool({"cpu": 10}, wait_for_room=WATCHDOG)
    gate = Gate()
    copying = component("a", 3, load=lambda: gate.wait() or Weights("a"), load_nbytes=8)
    pool.lease("idle", model(component("idle", 4))).close()
    loading = in_thread(lambda: pool.lease("a", model(copying)))
    gate.wait_until_reached()
    assert [part.key for part in pool.stats().components] == ["a"]
    assert pool.stats().devices["cpu"].reserved == 8
    waiting = in_thread(lambda: pool.lease("b", model(component("b", 7))))
    until(lambda: pool._table.waiting)
    gate.open()
    with loading(), waiting():
        assert (pool.stats().devices["cpu"].reserved, used(pool)) == (0, 10)


def test_what_calls_take_is_charged_while_they_run_though_a_measure_fails_once():
    pool, faults = ModelPool({"cpu": 100}), [RuntimeError()]

    def measure(weights):
        if faults:
            raise faults.pop()
        return weights.nbytes

    sound = component("a", 3, scratch=lambda weights: 20)  # and no `measure`
    shaky = component("b", 5, scratch=lambda weights: 10, load=lambda: Weights("b", 5))
    with pool.lease("m", model(sound, shaky)) as parts:
        object.__setattr__(shaky, "measure", measure)
        lease = pool.lease("m", model(sound, shaky))
        with pytest.raises(RuntimeError), pool.calling(lease):
            raise AssertionError("is not reached")
        with pool.calling(lease), pool.calling(lease):
            assert used(pool) == 3 + 5 + 2 * 20 + 2 * 10
        assert used(pool) == 3 + 5
        assert list(parts) == ["a", "b"]
        lease.close()


def test_a_load_that_takes_more_than_the_whole_budget_is_refused_at_once():
    pool = ModelPool({"cpu": 10}, wait_for_room=WATCHDOG)
    with pytest.raises(PoolFullError, match="needs 11 B on cpu"):
        pool.lease("a", model(component("a", 3, load_nbytes=11)))


def test_what_is_loaded_and_can_not_be_kept_is_closed():
    loaded = Weights("a", 9)
    pool = ModelPool({"cpu": 8}, wait_for_room=0)
    with pytest.raises(PoolFullError):
        pool.lease("a", model(component("a", 2, load=lambda: loaded, measure=lambda weights: weights.nbytes)))
    assert loaded.closed == 1
    assert used(pool) == 0


def test_a_model_is_charged_for_what_it_holds_beside_its_components():
    pool = ModelPool({"gpu": 10}, wait_for_room=0)
    lease = pool.lease("a", Fake, measure=lambda loaded: 7, device="gpu")
    assert used(pool, "gpu") == 7
    with pytest.raises(PoolFullError):
        pool.lease("b", Fake, measure=lambda loaded: 7, device="gpu")
    lease.close()
    pool.lease("b", Fake, measure=lambda loaded: 7, device="gpu")


def test_what_is_cheap_to_bring_back_per_byte_goes_first():
    policy = GDSF()
    cheap, dear = Usage(nbytes=100, seconds=0.1, uses=1), Usage(nbytes=100, seconds=9.0, uses=1)
    large = Usage(nbytes=10_000, seconds=9.0, uses=1)
    assert policy.priority(cheap) < policy.priority(dear)
    assert policy.priority(large) < policy.priority(dear)
    often = Usage(nbytes=100, seconds=0.1, uses=50)
    assert policy.priority(cheap) < policy.priority(often)
    policy.evicted(policy.priority(dear))
    assert policy.priority(cheap) > 9.0 / 100, "what is long unused is worth less than what comes now"


def test_lru_drops_what_was_used_longest_ago():
    now = [0.0]
    pool = ModelPool({"cpu": 2}, policy=LRU(), wait_for_room=0, clock=lambda: now[0])
    for name in ("a", "b", "a", "c"):
        now[0] += 1
        pool.lease(name, model(component(name, 1))).close()
    assert {part.key for part in pool.stats().components} == {"a", "c"}


# Device copies


def copy_of(host, device="fake:0", **options):
    return component(
        (host.key, device),
        host.nbytes,
        load=lambda weights: Weights(weights.key, host.nbytes),
        device=device,
        parts=(host,),
        **options,
    )


def test_a_device_copy_comes_from_the_host_copy_and_goes_without_a_copy_back():
    pool = ModelPool({"fake:0": 8}, wait_for_room=0)
    one, two = component("one", 5), component("two", 5)
    pool.lease("a", model(copy_of(one))).close()
    stats = pool.stats()
    assert {part.key: part.device for part in stats.components} == {"one": "cpu", ("one", "fake:0"): "fake:0"}
    pool.lease("b", model(copy_of(two))).close()
    assert {part.key for part in pool.stats().components} == {"one", "two", ("two", "fake:0")}
    loads = pool.stats().counts.component_loads
    pool.lease("a", model(copy_of(one))).close()
    assert pool.stats().counts.component_loads == loads + 1, "the host copy was still there"


def test_out_of_memory_drops_what_is_idle_on_the_device_and_tries_once_more():
    reclaimed = []
    pool = ModelPool(reclaim=reclaimed.append)
    pool.lease("idle", model(copy_of(component("idle", 5)))).close()
    room = []

    def load(weights):
        room.append(used(pool, "fake:0") - 5)
        if len(room) == 1:
            raise MemoryError("the device is full")
        return Weights("b", 5)

    host = component("b", 5)
    pool.lease("b", model(component("b@", 5, load=load, device="fake:0", parts=(host,)))).close()
    assert room == [5, 0]
    assert reclaimed == ["fake:0"]
    assert "idle" in {part.key for part in pool.stats().components}, "the host copy stays"


def test_out_of_memory_twice_is_an_error_with_the_ledger():
    pool = ModelPool()

    def load():
        raise MemoryError("the device is full")

    lease = pool.lease("busy", model(component("busy", 5, device="fake:0")))
    with pytest.raises(
        PoolFullError, match=r"fake:0 ran out of memory while b was loaded; .*busy holds 5 B for busy"
    ):
        pool.lease("b", model(component("b", 5, load=load, device="fake:0")))
    assert lease.model["busy"].closed == 0
    assert used(pool, "fake:0") == 5


def test_cuda_is_its_first_device():
    pool = ModelPool({"cuda": 5}, wait_for_room=0)
    pool.lease("a", model(component("a", 5, device="cuda:0"))).close()
    assert set(pool.stats().devices) == {"cuda:0", "cpu"}
    assert pool.trim("cuda") == 5


# Failures, deadlines, cancelling


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_load_that_fails_at_any_component_leaves_nothing_charged(at, no_collector):
    pool = ModelPool()
    alive = weakref.WeakSet()

    def load(i):
        if i == at:
            raise ValueError(f"component {i}")
        weights = Weights(i, 5)
        alive.add(weights)
        return weights

    parts = [component(i, 5, load=lambda i=i: load(i)) for i in range(3)]
    with pytest.raises(ValueError, match=f"component {at}"):
        pool.lease("a", model(*parts))
    assert pool.stats().components == ()
    assert used(pool) == 0
    assert not list(alive)


def test_an_error_that_is_kept_keeps_no_weights(no_collector):
    pool = ModelPool()
    alive = weakref.WeakSet()

    def load(share):
        weights = Weights("a")
        alive.add(weights)
        raise ValueError("after the weights")

    with pytest.raises(ValueError, match="after the weights") as kept:
        pool.lease("a", load)
    assert kept.value.__traceback__ is not None
    assert not list(alive)


def test_a_damaged_file_is_not_read_again_until_it_changes():
    pool = ModelPool()
    state, reads = [1], []

    def load():
        reads.append(1)
        raise WeightsError("a.safetensors is cut off", "Get it again")

    broken = component("a", load=load, stamp=lambda: state[0])
    for _ in range(3):
        with pytest.raises(WeightsError, match=r"cut off. Get it again"):
            pool.lease("m", model(broken))
    assert len(reads) == 1
    state[0] = 2
    with pytest.raises(WeightsError):
        pool.lease("m", model(broken))
    assert len(reads) == 2
    pool.clear()
    with pytest.raises(WeightsError):
        pool.lease("m", model(broken))
    assert len(reads) == 3


@pytest.mark.parametrize("state", [lambda: 1, lambda: 1 / 0], ids=["same files", "files that can't be looked at"])
def test_what_the_system_could_not_do_is_tried_again(state):
    pool = ModelPool({"cpu": 1})
    attempts = []

    def load():
        attempts.append(1)
        if len(attempts) == 1:
            raise WeightsError("a can't be read", "Try again") from OSError("too many open files")
        return Weights("a")

    read = component("a", load=load, stamp=state)
    with pytest.raises(WeightsError):
        pool.lease("m", model(read))
    with pool.lease("m", model(read)) as loaded:
        assert list(loaded) == ["a"]


def test_an_error_that_causes_itself_is_raised():
    def load(share):
        one, other = ValueError("one"), KeyError("other")
        one.__cause__, other.__cause__ = other, one
        raise one

    with pytest.raises(ValueError, match="one"):
        in_thread(lambda: ModelPool().lease("a", load))()


def test_a_loader_that_never_returns_costs_its_callers_a_deadline_and_others_nothing():
    pool = ModelPool(wait_for_load=0.05)
    gate = Gate()

    def load(share):
        gate.wait()
        return Fake()

    with pytest.raises(LoadTimeoutError, match=r"Loading a takes longer.*It goes on"):
        pool.lease("a", load)
    assert pool.lease("b", Fake).model
    gate.open()
    loaded = threading.Event()
    pool.subscribe(lambda event: event.kind is EventKind.LOADED and loaded.set())
    until(lambda: pool.stats().leases.get("a") == 0 and not pool.release("none"))
    with pool.lease("a", Fake):
        assert pool.stats().counts.loads == 2, "who asks again gets what went on loading"


@pytest.mark.process
def test_ctrl_c_gives_up_a_load_that_nobody_else_wants():
    pool = ModelPool()
    ended = threading.Event()
    pool.subscribe(lambda event: event.key == "unet" and event.kind is EventKind.FAILED and ended.set())

    def load():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        while True:
            raise_if_cancelled()

    with pytest.raises(KeyboardInterrupt):
        pool.lease("a", model(component("vae", 3), component("unet", 5, load=load)))
    assert ended.wait(WATCHDOG)
    until(lambda: not pool.stats().components)
    assert used(pool) == 0


@pytest.mark.process
def test_ctrl_c_does_not_take_a_load_from_those_who_wait_for_it_too():
    pool = ModelPool()

    def load():
        until(lambda: pool.stats().counts.waits == 1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        until(lambda: pool.stats().leases == {"a": 1})
        raise_if_cancelled()
        return Weights("unet")

    lease_it = lambda: pool.lease("a", model(component("unet", load=load)))  # noqa: E731 - called in two threads
    other = in_thread(lambda: until(lambda: pool.stats().counts.loads) or lease_it())
    with pytest.raises(KeyboardInterrupt):
        lease_it()
    assert other().model["unet"].key == "unet"
    assert pool.stats().counts.component_loads == 1


def test_a_cancelled_load_that_somebody_joins_meanwhile_is_begun_again():
    pool = ModelPool()
    failing, joined = Gate(), Gate()
    tries = []

    def load():
        tries.append(1)
        if len(tries) == 1:
            failing.open()
            joined.wait()
            until(lambda: cancelled() or False)
        return Weights("slow")

    def cancelled():
        try:
            raise_if_cancelled()
        except PoolError:
            return True
        return False

    def fail():
        failing.wait()
        raise ValueError("the other component")

    first = in_thread(lambda: pool.lease("a", model(component("slow", load=load), component("bad", load=fail))))
    joined.open()
    with pytest.raises(ValueError, match="the other component"):
        first()
    assert pool.lease("b", model(component("slow", load=load))).model["slow"].key == "slow"


# Spoiled weights


def test_weights_that_a_model_wrote_into_reach_no_other_model(caplog):
    pool = ModelPool()
    spoiled = []
    pool.subscribe(lambda event: event.kind is EventKind.SPOILED and spoiled.append(event.key))
    vae = component("vae", check=lambda weights: not weights.written)
    pool.lease("good", model(vae)).close()
    with pool.lease("bad", model(vae)) as parts:
        parts["vae"].written.add("bad")
    with pool.lease("good", model(vae)) as parts:
        assert not parts["vae"].written
    assert spoiled == ["vae", "good", "bad"]
    assert "The shared weights of vae were written into, while in use by bad" in caplog.text
    assert "component.private()" in caplog.text
    assert pool.stats().counts.spoiled == 1


# Dropping


def test_trim_drops_what_is_idle_on_a_device_or_for_a_time():
    now = [0.0]
    pool = ModelPool(clock=lambda: now[0])
    pool.lease("a", model(component("a", 3))).close()
    now[0] = 10
    pool.lease("b", model(component("b", 4, device="fake:0"))).close()
    busy = pool.lease("c", model(component("c", 5)))
    assert pool.trim(idle=5) == 3
    assert pool.trim("fake:0") == 4
    assert pool.trim() == 0
    busy.close()
    assert pool.trim() == 5


def test_trim_of_a_device_drops_the_copies_made_from_what_is_there_too():
    reclaimed = []
    pool = ModelPool(reclaim=reclaimed.append)
    host = component("a", 5)
    copy = component("copy", 7, load=lambda host: Weights("copy", 7), device="gpu", parts=(host,))
    pool.lease("m", model(copy)).close()
    assert pool.trim("cpu") == 12
    assert sorted(reclaimed) == ["cpu", "gpu"]


def test_what_is_cleared_while_it_loads_is_released_once():
    pool = ModelPool()
    gate = Gate()
    lease = in_thread(lambda: pool.lease("a", lambda share: gate.wait() or Fake()))
    gate.wait_until_reached()
    pool.clear()
    gate.open()
    assert pool.stats().counts.releases == 0
    lease().close()
    assert pool.stats().counts.releases == 1


def test_clear_drops_what_is_in_use_when_its_last_lease_closes():
    pool = ModelPool()
    lease = pool.lease("a", model(component("a", 3)))
    pool.clear()
    assert lease.model["a"].closed == 0
    with pool.lease("a", model(component("a", 3))) as fresh:
        assert fresh["a"] is not lease.model["a"]
        assert used(pool) == 6
        lease.close()
        assert used(pool) == 3


def test_what_is_idle_for_its_time_to_live_goes_by_itself():
    pool = ModelPool(idle_ttl=0.01)
    freed = threading.Event()
    pool.subscribe(lambda event: event.kind is EventKind.RELEASED and event.key == "unet" and freed.set())
    for _ in range(2):
        pool.lease("a", model(component("unet"))).close()
        assert freed.wait(WATCHDOG)
        freed.clear()


def test_a_process_does_not_wait_for_a_time_to_live_to_end():
    before = set(threading.enumerate())
    pool = ModelPool(idle_ttl=WATCHDOG)
    pool.lease("a", Fake).close()
    begun = set(threading.enumerate()) - before
    assert begun
    assert all(thread.daemon for thread in begun)


def test_a_pool_that_nobody_holds_is_not_kept_by_its_timer():
    pool = ModelPool(idle_ttl=WATCHDOG)
    pool.lease("a", model(component("unet"))).close()
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None


def test_closing_that_raises_is_logged_and_harms_nothing(caplog):
    pool = ModelPool()
    pool.lease("a", Fake, close=lambda loaded: 1 / 0).close()
    assert pool.release("a")
    assert "Closing a failed" in caplog.text


# Events and counts


def test_a_host_is_told_what_happens_in_order():
    pool = ModelPool({"cpu": 5}, wait_for_room=0)
    events = []
    stop = pool.subscribe(lambda event: events.append((event.kind.value, event.key)))
    pool.lease("a", model(component("x", 5))).close()
    pool.lease("b", model(component("y", 5))).close()
    assert events == [
        ("loading", "a"),
        ("loading", "x"),
        ("loaded", "x"),
        ("loaded", "a"),
        ("loading", "b"),
        ("evicted", "x"),
        ("evicted", "a"),
        ("freed", "a"),
        ("freed", "x"),
        ("loading", "y"),
        ("loaded", "y"),
        ("loaded", "b"),
    ]
    stop()
    pool.clear()
    assert events[-1] == ("loaded", "b")


def test_who_listens_no_more_leaves_the_others_told():
    pool, heard = ModelPool(), []
    stop = pool.subscribe(lambda event: None)
    pool.subscribe(lambda event: heard.append(event.kind))
    stop()
    pool.lease("a", Fake).close()
    assert heard == [EventKind.LOADING, EventKind.LOADED]


def test_a_subscriber_that_exits_costs_nobody_a_load(caplog):
    pool = ModelPool()
    pool.subscribe(lambda event: sys.exit(1))
    assert isinstance(in_thread(lambda: pool.lease("a", Fake))().model, Fake)
    assert "A subscriber failed" in caplog.text


def test_a_subscriber_that_fails_or_uses_the_pool_does_no_harm(caplog):
    pool = ModelPool()
    pool.subscribe(lambda event: 1 / 0)
    pool.subscribe(lambda event: pool.stats())
    assert pool.lease("a", Fake).model
    assert "A subscriber failed" in caplog.text


# Interleavings that broke others


def test_what_is_found_is_pinned_in_the_same_step(quick_switches):
    """InvokeAI #7513: found and locked in two steps, an entry vanished in between."""
    pool = ModelPool({"cpu": 3}, wait_for_room=WATCHDOG)

    def call(i):
        for turn in range(60):
            name = (i + turn) % 5
            with pool.lease(name, model(component(name, 1))) as parts:
                assert parts[name].closed == 0
                assert parts[name].key == name
            if i == 0:
                pool.trim()
        return True

    assert together(64, call) == [True] * 64
    stats = pool.stats()
    assert set(stats.leases.values()) <= {0}
    assert stats.devices["cpu"].used <= 3


def test_a_victim_that_is_wanted_again_while_it_goes_hangs_nobody():
    """Ollama #17408: the model being evicted was acquired again, and both sides waited for ever."""
    pool = ModelPool({"cpu": 5}, wait_for_room=WATCHDOG)
    closing = Gate()

    def close(weights):
        closing.wait()

    pool.lease("a", model(component("a", 5, close=close))).close()
    other = in_thread(lambda: pool.lease("b", model(component("b", 5))).close())
    closing.wait_until_reached()
    again = in_thread(lambda: pool.lease("a", model(component("a", 5))).model["a"])
    until(lambda: pool.stats().counts.loads == 3)
    closing.open()
    other()
    assert again().key == "a"


def test_what_was_just_loaded_is_not_evicted_before_its_caller_has_it():
    """Ray #65825."""
    pool = ModelPool({"cpu": 1}, wait_for_room=WATCHDOG)

    def call(i):
        for _ in range(20):
            with pool.lease(i, model(component(i, 1))) as parts:
                assert parts[i].closed == 0
        return True

    assert together(8, call) == [True] * 8


def test_plans_that_want_the_same_in_different_order_do_not_lock_each_other_out(quick_switches):
    pool = ModelPool({"cpu": 6}, wait_for_room=WATCHDOG)
    orders = [("a", "b"), ("b", "a"), ("b", "c"), ("c", "a")]

    def call(i):
        for turn in range(25):
            order = orders[(i + turn) % len(orders)]
            with pool.lease(order, model(*(component(key, 3) for key in order))) as parts:
                assert list(parts) == list(order)
        return True

    assert together(16, call) == [True] * 16


def test_leases_and_releases_from_many_threads_leave_nothing_pinned(quick_switches):
    pool = ModelPool()

    def call(i):
        for turn in range(100):
            key = (i + turn) % 3
            with pool.lease(key, Fake, close=Fake.close) as loaded:
                assert loaded.closed == 0
            pool.release((key + 1) % 3)
        return True

    assert together(16, call) == [True] * 16
    stats = pool.stats()
    assert set(stats.leases.values()) <= {0}
    assert stats.counts.loads - stats.counts.releases == len(stats.leases)


# Leaks, forks


def test_after_the_last_lease_and_a_trim_nothing_is_left(no_collector):
    pool = ModelPool()
    alive = weakref.WeakSet()

    class Parts(dict):
        pass

    def load(share):
        parts = Parts(share({"vae": component("vae", 3), "unet": component("unet", 5)}))
        alive.add(parts["vae"])
        alive.add(parts["unet"])
        return parts

    for _ in range(3):
        with pool.lease("a", load):
            assert len(alive) == 2
        pool.trim()
        assert not list(alive)
        assert used(pool) == 0


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
class TestForkedChild:
    def test_keeps_what_is_loaded_and_can_load_more(self):
        pool = ModelPool()
        gate = Gate()
        pool.lease("loaded", model(component("a", 3))).close()
        pool.lease("copy", model(component("b", 4, device="fake:0"))).close()
        loading = in_thread(lambda: pool.lease("slow", lambda share: gate.wait() or Fake()))
        gate.wait_until_reached()

        def child():
            assert pool.lease("loaded", Fake).model["a"].key == "a"
            stats = pool.stats()
            assert stats.devices["fake:0"].used == 0, "a device's context does not survive a fork"
            assert "copy" not in stats.leases
            assert "slow" not in stats.leases, "its thread did not come along"
            assert isinstance(pool.lease("slow", Fake).model, Fake)

        assert in_child(child)
        gate.open()
        loading()

    def test_unpins_the_host_copies_of_what_was_on_a_device_once(self):
        pool = ModelPool({"cpu": 5}, wait_for_room=0)
        host = component("a", 5)
        copy = component("copy", 5, load=lambda host: Weights("copy"), device="gpu", parts=(host,))
        on_device = pool.lease("on device", model(copy))
        on_host = pool.lease("on host", model(host))

        def child():
            on_device.close()
            assert [part.pins for part in pool.stats().components] == [1]
            with pytest.raises(PoolFullError):
                pool.lease("new", model(component("b", 5)))
            on_host.close()
            pool.lease("new", model(component("b", 5)))
            assert used(pool) == 5

        assert in_child(child)
        assert on_device.model["copy"].key == "copy"

    def test_gives_up_what_a_load_in_progress_had_pinned(self):
        pool = ModelPool()
        gate = Gate()
        parts = component("a", 3), component("slow", 4, load=lambda: gate.wait() or Weights("slow"))
        loading = in_thread(lambda: pool.lease("m", model(*parts)))
        gate.wait_until_reached()
        until(lambda: any(part.loaded for part in pool.stats().components))

        def child():
            pool.trim()
            assert used(pool) == 0

        assert in_child(child)
        gate.open()
        loading()

    def test_reads_though_its_parent_was_reading_as_much_as_it_may_at_once(self):
        pool, gates = ModelPool(), [Gate() for _ in range(4)]
        parts = [
            component(i, load=lambda gate=gate: gate.wait() or Weights("slow")) for i, gate in enumerate(gates)
        ]
        loading = in_thread(lambda: pool.lease("slow", model(*parts)))
        for gate in gates:
            gate.wait_until_reached()
        assert in_child(lambda: pool.lease("new", model(component("a"))))
        for gate in gates:
            gate.open()
        loading()

    def test_accounts_for_what_was_dropped_while_in_use(self):
        pool = ModelPool()
        lease = pool.lease("m", model(component("a", 3)))
        pool.clear()

        def child():
            assert used(pool) == 3
            lease.close()
            assert used(pool) == 0

        assert in_child(child)

    def test_can_call_a_model_that_another_thread_was_calling(self):
        pool = ModelPool()
        lease = pool.lease("m", Fake)
        with Turn("m", lease.locks, DeviceSlots(1)):
            assert in_child(lambda: Turn("m", lease.locks, DeviceSlots(1)).__enter__())
