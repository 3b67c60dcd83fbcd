"""Models that call models: without a circle they work, whoever calls them; with one, calls end, and never hang."""

import asyncio
import contextvars
import multiprocessing
import signal
import string
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from conftest import make_plugin
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import WATCHDOG, Gate, in_thread, together, until

from iopaint_core import (
    AsyncModelManager,
    Component,
    ImageModel,
    ModelManager,
    ModelPool,
    PluginManager,
    PoolError,
    Task,
    hookimpl,
)
from iopaint_core.turns import _wait_graph

IMAGE = np.zeros((1, 1, 3), np.uint8)

_calls = contextvars.ContextVar("calls")
"""Whom each model calls in the request that this context works on."""
_way = contextvars.ContextVar("way", default="")
"""The models that this context runs in, the outermost first."""


class Models:
    """Models of one letter each, which call one another as each request says, and add 1 to an image.

    `b` is called through the first of `managers`, which share a pool, and `b1` through the second. `shared` names
    the exclusive components of a model.
    """

    def __init__(self, names, *, concurrency=8, managers=1, shared=None, in_threads=False):
        models = self

        class Calling(ImageModel):
            def __init__(self, name):
                self.name = name

            def forward(self, image, request):
                return models.forward(self.name, image)

        @hookimpl
        def iopaint_load_model(info, context):
            models.while_loading(info.name)
            parts = (shared or {}).get(info.name, ())
            context.share({part: Component(part, object, 1, exclusive=True) for part in parts})
            return Calling(info.name)

        plugins = PluginManager()
        plugins.register(make_plugin(*names, task=Task.RESTORE, iopaint_load_model=iopaint_load_model), "calling")
        pool = ModelPool()
        self.managers = [ModelManager(plugins, pool=pool, concurrency=concurrency) for _ in range(managers)]
        self.names = names
        self.in_threads = in_threads
        """A model calls others side by side, in threads of its own."""
        self.inside = lambda way: None
        """Called in each model, before it calls others."""
        self.while_loading = lambda name: None

    def forward(self, name, image):
        token = _way.set(_way.get() + name)
        try:
            self.inside(_way.get())
            if self.in_threads:
                with ThreadPoolExecutor() as threads:
                    results = [
                        threads.submit(contextvars.copy_context().run, self.process, callee, IMAGE)
                        for callee in _calls.get({}).get(name, ())
                    ]
                return sum((result.result() for result in results), image + 1)
            for callee in _calls.get({}).get(name, ()):
                image = self.process(callee, image)
            return image + 1
        finally:
            _way.reset(token)

    def process(self, callee, image=IMAGE):
        return self.managers[int(callee[1:] or 0)].process(callee[0], image)

    def run(self, callee, calls):
        """How many models run in a request that calls one, if they call one another as `calls` says."""
        token = _calls.set(calls)
        try:
            return int(self.process(callee)[0, 0, 0])
        finally:
            _calls.reset(token)

    def run_path(self, path):
        """`a>b>c`: `a` calls `b`, which calls `c`."""
        callees = path.split(">")
        return self.run(callees[0], {caller[0]: [callee] for caller, callee in pairwise(callees)})

    def run_paths(self, *paths):
        """Run paths at once: the outermost models wait until all of them run. Results and errors, in order."""
        self.meet(len(paths))
        return together(len(paths), lambda i: self.run_path(paths[i]))

    def meet(self, count):
        barrier = threading.Barrier(count)
        self.inside = lambda way: barrier.wait(WATCHDOG) if len(way) == 1 else None

    def wait_until_awaited(self, name):
        """Wait until some call waits for a model that is being called."""
        with self.managers[0].load(name):
            lease = self.managers[0].load(name)
        until(lambda: lease.locks[0].queue)
        lease.close()

    def assert_nothing_held(self):
        self.inside = lambda way: None
        calls = [f"{name}{manager}" for name in self.names for manager in range(len(self.managers))]
        assert together(len(calls), lambda i: self.run(calls[i], {})) == [1] * len(calls)
        assert set(self.managers[0].pool.stats().leases.values()) == {0}


class TestInACircle:
    @pytest.mark.parametrize(
        "paths",
        [
            ["a>b", "b>a"],
            ["a>b1", "b1>a"],
            ["a>b", "b>c", "c>a"],
            ["a>x>b", "b>y>z>a"],
            ["a>b", "b>c", "c>d", "d>e", "e>a", "x>a"],
        ],
    )
    def test_one_call_gets_an_error_and_the_others_their_results(self, paths):
        models = Models("abcdexyz", managers=2)
        outcomes = models.run_paths(*paths)
        assert [type(outcome) for outcome in outcomes].count(PoolError) == 1
        for path, outcome in zip(paths, outcomes, strict=True):
            assert isinstance(outcome, PoolError) or outcome == path.count(">") + 1
        models.assert_nothing_held()

    def test_the_error_names_it(self):
        models = Models("abx")
        gate = Gate()
        models.inside = lambda way: gate.wait() if way == "b" else None
        last = in_thread(lambda: models.run_path("b>a"))
        gate.wait_until_reached()
        first = in_thread(lambda: models.run_path("a>x>b"))
        models.wait_until_awaited("b")
        gate.open()
        with pytest.raises(
            PoolError, match="Waiting for a would never end: b waits for a; a calls x, which waits for b"
        ):
            last()
        assert first() == 3

    def test_the_error_names_models_that_share_an_exclusive_component(self):
        models = Models("abcd", shared={"a": ["s"], "b": ["t"], "c": ["t"], "d": ["s"]})
        gate = Gate()
        models.inside = lambda way: gate.wait() if way == "c" else None
        last = in_thread(lambda: models.run_path("c>d"))
        gate.wait_until_reached()
        first = in_thread(lambda: models.run_path("a>b"))
        models.wait_until_awaited("b")
        gate.open()
        with pytest.raises(
            PoolError,
            match="c waits for d, which shares a component with a; a waits for b, which shares a component with c",
        ):
            last()
        assert first() == 2
        models.assert_nothing_held()

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("a>a", "a was called within a call of itself: a calls a"),
            ("a>b>c>a", "a was called within a call of itself: a calls b, which calls c, which calls a"),
            ("x>a>d", "d was called within a call of a, with which it shares a component: a calls d"),
        ],
    )
    def test_a_single_caller_is_told(self, path, message):
        models = Models("abcdx", shared={"a": ["s"], "d": ["s"]})
        with pytest.raises(PoolError, match=message):
            in_thread(lambda: models.run_path(path))()
        models.assert_nothing_held()

    def test_a_model_that_can_do_without_the_other_goes_on(self):
        models = Models("ab")
        process = models.process

        def process_or_not(callee, image=IMAGE):
            try:
                return process(callee, image)
            except PoolError:
                return image

        models.process = process_or_not
        assert sorted(models.run_paths("a>b", "b>a")) == [1, 2]

    def test_calls_of_a_loader_count(self):
        models = Models("abc")
        models.while_loading = lambda name: models.process("c") if name == "b" else None
        outcomes = models.run_paths("a>b", "c>a")
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert len(errors) == 1
        assert "would never end" in str(errors[0])
        models.assert_nothing_held()

    def test_calls_from_threads_of_a_model_count_if_they_run_in_copies_of_its_context(self):
        models = Models("abc", in_threads=True)
        models.meet(2)
        requests = [("a", {"a": "cb"}), ("b", {"b": "a"})]
        outcomes = together(2, lambda i: models.run(*requests[i]))
        assert [type(outcome) for outcome in outcomes].count(PoolError) == 1
        models.assert_nothing_held()

    def test_calls_of_an_asynchronous_manager_end_too(self):
        models = Models("ab")
        models.meet(2)
        manager = AsyncModelManager(models.managers[0])

        async def call(name, calls):
            _calls.set(calls)
            return await manager.process(name, IMAGE)

        async def scenario():
            calls = call("a", {"a": "b"}), call("b", {"b": "a"})
            return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), WATCHDOG)

        outcomes = asyncio.run(scenario())
        manager.close()
        assert [type(outcome) for outcome in outcomes].count(PoolError) == 1
        models.assert_nothing_held()


class TestWithoutACircle:
    @pytest.mark.parametrize("concurrency", [1, 8])
    def test_chains_of_50_work_side_by_side(self, concurrency):
        models = Models(string.ascii_letters[:50], concurrency=concurrency)
        path = ">".join(models.names)
        assert together(3, lambda i: models.run_path(path[20 * i :])) == [50, 40, 30]
        models.assert_nothing_held()

    def test_models_that_share_exclusive_components_in_either_order_take_turns(self):
        inside = Counter()
        models = Models("abc", shared={"a": "st", "b": "ts", "c": "s"})

        def alone(way):
            inside["now"] += 1
            inside["most"] = max(inside["most"], inside["now"])
            time.sleep(0)
            inside["now"] -= 1

        models.inside = alone
        assert together(6, lambda i: [models.run("abc"[i % 3], {}) for _ in range(10)]) == [[1] * 10] * 6
        assert inside["most"] == 1

    @pytest.mark.parametrize("path", ["a>b", "a>b1"])
    def test_who_waits_for_a_model_takes_no_slot_from_another_and_has_one_again_when_it_runs(self, path):
        models = Models("abcde", concurrency=2, managers=2)
        gates = {way: Gate() for way in ("b", "ab", "c")}
        models.inside = lambda way: gates[way].wait() if way in gates else None
        calls = [in_thread(lambda: models.run(path[2:], {}))]
        gates["b"].wait_until_reached()
        calls.append(in_thread(lambda: models.run_path(path)))
        models.wait_until_awaited("b")
        calls.append(in_thread(lambda: models.run("c", {})))
        gates["c"].wait_until_reached()
        gates["b"].open()
        gates["ab"].wait_until_reached()
        calls.append(in_thread(lambda: models.run("d", {})))
        until(lambda: models.managers[0]._slots.queue)
        gates["ab"].open()
        gates["c"].open()
        assert [call() for call in calls] == [1, 2, 1, 1]

    def test_a_call_within_another_needs_no_slot_and_lets_nobody_go_first(self):
        models = Models("abc", concurrency=1)
        gate = Gate()
        order = []
        models.inside = lambda way: order.append(way) or (way == "a" and gate.wait())
        first = in_thread(lambda: models.run_path("a>b"))
        gate.wait_until_reached()
        second = in_thread(lambda: models.run_path("c"))
        until(lambda: models.managers[0]._slots.queue)
        gate.open()
        assert (first(), second()) == (2, 1)
        assert order == ["a", "ab", "c"]

    @pytest.mark.parametrize(
        "paths",
        [
            ["a>b1", "c1>d"],  # each has the only slot that the other waits for
            ["a>b1", "c1>a"],  # the first waits for a slot whose holder waits for its model
            ["a>b1>d", "c1>b>d1"],
        ],
    )
    def test_chains_that_have_each_others_only_slot_work(self, paths):
        models = Models("abcd", concurrency=1, managers=2)
        assert models.run_paths(*paths) == [path.count(">") + 1 for path in paths]
        models.assert_nothing_held()

    def test_a_model_may_call_others_from_threads_with_one_slot(self):
        models = Models("abcd", concurrency=1, in_threads=True)
        calls = {"a": "bcc", "b": "d", "c": "d"}
        assert together(4, lambda i: models.run("abca"[i], calls)) == [7, 2, 2, 7]
        models.assert_nothing_held()

    def test_a_model_that_waits_in_one_of_its_threads_keeps_no_slot_in_another(self):
        models = Models("acdex", concurrency=1, managers=2, in_threads=True)
        gate = Gate()
        steps = {"e": gate.wait, "ax": lambda: models.wait_until_awaited("c"), "axd": gate.open}
        models.inside = lambda way: steps.get(way, int)()
        calls = [in_thread(lambda: models.run("e1", {}))]
        gate.wait_until_reached()
        calls.append(in_thread(lambda: models.run("c", {"c": "e"})))
        models.wait_until_awaited("e")
        calls.append(in_thread(lambda: models.run("a", {"a": "cx", "x": "d"})))
        assert [call() for call in calls] == [1, 2, 4]
        models.assert_nothing_held()

    def test_threads_of_one_model_do_not_wait_for_one_another(self):
        models = Models("abc", in_threads=True)
        gates = {"ab": Gate(), "c": Gate()}
        models.inside = lambda way: gates[way].wait() if way in gates else None
        second = in_thread(lambda: models.run_path("c>b"))
        gates["c"].wait_until_reached()
        first = in_thread(lambda: models.run("a", {"a": "bc"}))
        gates["ab"].wait_until_reached()
        models.wait_until_awaited("c")
        gates["c"].open()
        models.wait_until_awaited("b")
        gates["ab"].open()
        assert (first(), second()) == (3, 2)

    def test_what_began_within_a_call_and_outlives_it_is_a_call_like_others(self):
        models = Models("a", concurrency=1)
        contexts = []
        models.inside = lambda way: contexts.append(contextvars.copy_context())
        models.run_path("a")
        assert in_thread(lambda: contexts[0].run(models.process, "a"))().all()
        models.assert_nothing_held()


@pytest.mark.process
def test_ctrl_c_ends_a_wait_and_leaves_nothing_held():
    models = Models("ab", concurrency=2)
    gate = Gate()
    models.inside = lambda way: gate.wait() if way == "b" else None
    holder = in_thread(lambda: models.run_path("b"))
    gate.wait_until_reached()

    def interrupt():
        models.wait_until_awaited("b")
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    interrupting = in_thread(interrupt)
    with pytest.raises(KeyboardInterrupt):
        models.run_path("a>b")
    interrupting()
    gate.open()
    assert holder() == 1
    models.assert_nothing_held()


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_forked_child_waits_for_no_call_of_its_parent():
    models = Models("ab", concurrency=1)
    gate = Gate()
    models.inside = lambda way: gate.wait()
    calls = [in_thread(lambda: models.run_path("a")), in_thread(lambda: models.run_path("a"))]
    models.wait_until_awaited("a")
    models.inside = lambda way: None
    child = multiprocessing.get_context("fork").Process(target=models.run_path, args=("b>a",))
    with _wait_graph._lock:  # as if another thread were at it
        child.start()
    child.join(WATCHDOG)
    ended = child.exitcode
    child.kill()
    gate.open()
    assert [call() for call in calls] == [1, 1]
    assert ended == 0


@st.composite
def crowds(draw, *, in_order):
    """Models, and requests at once; in order if each model calls only such as come after it in the alphabet."""
    names = "abcdef"[: draw(st.integers(2, 6))]
    managers = draw(st.integers(1, 2))
    concurrency = draw(st.integers(1, 6))
    shared = {} if in_order else draw(st.dictionaries(st.sampled_from(names), st.just("s"), max_size=2))
    models = Models(
        names, concurrency=concurrency, managers=managers, shared=shared, in_threads=draw(st.booleans())
    )

    def callees(names):
        callee = st.builds("{}{}".format, st.sampled_from(names), st.integers(0, managers - 1))
        return st.lists(callee, max_size=2)

    calls = st.fixed_dictionaries(
        {name: callees(names[i + 1 :] if in_order else names) for i, name in enumerate(names[:-1])}
    )
    requests = draw(st.lists(st.tuples(st.sampled_from(names), calls), min_size=2, max_size=6))
    if len({name for name, _ in requests}) == len(requests) <= concurrency and not shared:
        models.meet(len(requests))
    return models, requests


def run_requests(models, requests):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        return together(len(requests), lambda i: models.run(*requests[i]))
    finally:
        sys.setswitchinterval(before)


def count(callee, calls):
    return 1 + sum(count(other, calls) for other in calls.get(callee[0], ()))


def all_succeed(models, requests):
    assert run_requests(models, requests) == [count(*request) for request in requests]
    models.assert_nothing_held()


@settings(max_examples=30)
@given(crowds(in_order=True))
def test_requests_without_a_circle_all_succeed(crowd):
    all_succeed(*crowd)


@pytest.mark.slow
@settings(max_examples=300)
@given(crowds(in_order=True))
def test_many_requests_without_a_circle_all_succeed(crowd):
    all_succeed(*crowd)


def all_end(models, requests):
    for request, outcome in zip(requests, run_requests(models, requests), strict=True):
        if isinstance(outcome, PoolError):
            assert "would never end" in str(outcome) or "was called within a call of" in str(outcome)
        else:
            assert outcome == count(*request)
    models.assert_nothing_held()


@settings(max_examples=60)
@given(crowds(in_order=False))
def test_requests_with_any_circles_end_and_leave_nothing_held(crowd):
    all_end(*crowd)


@pytest.mark.slow
@settings(max_examples=300)
@given(crowds(in_order=False))
def test_many_requests_with_any_circles_end_and_leave_nothing_held(crowd):
    all_end(*crowd)
