import os
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import Red, make_plugin, photograph
from pools import in_thread, together

from iopaint_core import (
    Component,
    ImageModel,
    InpaintModel,
    LoadContext,
    MaskModel,
    ModelError,
    ModelLoadError,
    ModelManager,
    ModelNameError,
    ModelPool,
    PoolError,
    PoolFullError,
    Task,
    UnknownModelError,
    hookimpl,
)

WATCHDOG = 30
MASK = np.zeros((40, 60), np.uint8)
MASK[5:9, 5:9] = 255


class Half(ImageModel):
    def forward(self, image, request):
        return image[::2, ::2]


class Bright(MaskModel):
    def forward(self, image, request):
        return np.where(image.mean(axis=2) > 127, 255, 0).astype(np.uint8)


def test_a_host_names_a_model_and_gets_a_repaired_picture():
    image = photograph()
    repaired = ModelManager().inpaint("cv2", image, MASK)
    assert np.array_equal(repaired[MASK == 0], image[MASK == 0])
    assert not np.array_equal(repaired[MASK > 0], image[MASK > 0])


def test_the_three_shapes_are_run_by_their_methods(plugins):
    for name, load, task in [
        ("red", Red, Task.INPAINT),
        ("half", Half, Task.RESTORE),
        ("cut", Half, Task.MATTING),
        ("bright", Bright, Task.SEGMENT),
    ]:
        plugins.register(make_plugin(name, load=load, task=task), name)
    manager = ModelManager(plugins)
    assert manager.inpaint("red", photograph(), MASK).shape == (40, 60, 3)
    assert manager.process("half", photograph()).shape == (20, 30, 3)
    assert manager.process("cut", photograph()).shape == (20, 30, 3)
    assert manager.segment("bright", photograph()).shape == (40, 60)
    with pytest.raises(ModelNameError, match="half is no InpaintModel"):
        manager.inpaint("half", photograph(), MASK)
    assert set(manager.pool.stats().leases.values()) == {0}


def test_a_model_is_loaded_once_for_many_calls(manager):
    for _ in range(3):
        manager.inpaint("red", photograph(), MASK)
    stats = manager.pool.stats()
    assert (stats.counts.loads, stats.counts.hits) == (1, 2)


def test_a_leased_model_is_not_unloaded(manager):
    with manager.load("red") as model:
        assert isinstance(model, Red)
        assert not manager.unload("red")
    assert manager.unload("red")
    assert not manager.unload("red")


def test_a_plugin_learns_under_what_conditions_to_load(plugins, monkeypatch, tmp_path):
    seen = []

    @hookimpl
    def iopaint_load_model(info, context):
        seen.append(context)
        return Red()

    plugins.register(make_plugin("red", iopaint_load_model=iopaint_load_model), "red")
    asked = LoadContext(device="cuda:1", dtype="float16", offline=True, cache=tmp_path)
    ModelManager(plugins, context=asked).load("red").close()
    monkeypatch.setenv("IOPAINT_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ModelManager(plugins).load("red").close()
    conditions = [(context.device, context.dtype, context.offline, context.cache) for context in seen]
    assert conditions == [("cuda:1", "float16", True, tmp_path), ("cpu", None, True, tmp_path)]
    monkeypatch.undo()
    assert ModelManager(plugins).context.cache.is_relative_to(Path.home())


@pytest.mark.parametrize("result", [None, "model", object(), Half()])
def test_a_loader_that_returns_something_else_than_its_task_says_is_an_error_and_leaves_nothing(plugins, result):
    plugins.register(make_plugin("bad", load=lambda: result), "bad")
    manager = ModelManager(plugins)
    with pytest.raises(ModelLoadError, match="bad:bad could not be loaded: its plugin returned"):
        manager.load("bad")
    assert manager.pool.stats().leases == {}


def test_a_load_that_failed_can_be_tried_again(plugins):
    tries = []

    def load():
        tries.append(1)
        if len(tries) == 1:
            raise OSError("the disk is asleep")
        return Red()

    plugins.register(make_plugin("red", load=load), "red")
    manager = ModelManager(plugins)
    with pytest.raises(ModelLoadError, match="the disk is asleep"):
        manager.load("red")
    assert isinstance(manager.load("red").model, Red)


def test_an_unknown_name_is_answered_with_the_nearest(manager):
    with pytest.raises(UnknownModelError, match="Did you mean red"):
        manager.inpaint("rde", photograph(), MASK)


def test_a_model_that_came_after_the_scan_is_found(plugins, manager):
    manager.scan()
    plugins.register(make_plugin("blue"), "blue")
    assert manager.find("blue").plugin_name == "blue"


class Meeting(InpaintModel):
    """Counts how many calls are inside at once, and lets a test hold them there."""

    inside = 0
    most = 0
    lock = threading.Lock()
    entered = threading.Semaphore(0)
    leave = threading.Event()

    def forward(self, image, mask, request):
        cls = type(self)
        with cls.lock:
            cls.inside += 1
            cls.most = max(cls.most, cls.inside)
        cls.entered.release()
        assert cls.leave.wait(WATCHDOG)
        with cls.lock:
            cls.inside -= 1
        return image


def meet(names, concurrency, expected):
    """Call each model in a thread of its own; how many were inside at once when `expected` had entered."""

    class Here(Meeting):
        lock, entered, leave = threading.Lock(), threading.Semaphore(0), threading.Event()

    from iopaint_core import PluginManager

    plugins = PluginManager()
    plugins.register(make_plugin(*set(names), load=Here), "meeting")
    manager = ModelManager(plugins, concurrency=concurrency)
    threads = [
        threading.Thread(target=manager.inpaint, args=(name, photograph(), MASK), daemon=True) for name in names
    ]
    for thread in threads:
        thread.start()
    for _ in range(expected):
        assert Here.entered.acquire(timeout=WATCHDOG)
    Here.leave.set()
    for thread in threads:
        thread.join(WATCHDOG)
        assert not thread.is_alive()
    return Here.most


def test_calls_of_one_model_come_one_after_the_other():
    assert meet(["a"] * 8, concurrency=8, expected=1) == 1


def test_models_run_side_by_side_up_to_the_bound():
    assert meet(["a", "b", "c"], concurrency=3, expected=3) == 3
    assert meet(["a", "b", "c", "d"], concurrency=2, expected=2) == 2


def test_who_waits_for_a_model_takes_no_slot_from_another():
    assert meet(["a", "a", "a", "b"], concurrency=2, expected=2) == 2


def test_many_threads_get_what_one_would(manager):
    image = photograph()
    expected = manager.inpaint("red", image, MASK)
    results = []

    def work():
        results.extend(np.array_equal(manager.inpaint("red", image, MASK), expected) for _ in range(20))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
    assert results == [True] * 160
    assert set(manager.pool.stats().leases.values()) == {0}
    assert manager.pool.stats().counts.loads == 1


def nesting(inner):
    """A model that calls another."""

    class Outer(Red):
        def forward(self, image, mask, request):
            return self.manager.inpaint(inner, image, mask)

    return Outer


def nested(plugins, inner):
    plugins.register(make_plugin("outer", load=nesting(inner)), "outer")
    plugins.register(make_plugin("inner"), "inner")
    manager = ModelManager(plugins, concurrency=1)
    with manager.load("outer") as model:
        model.manager = manager
        return in_thread(lambda: manager.inpaint("outer", photograph(), MASK))()


def test_a_model_that_calls_another_needs_no_second_slot(plugins):
    assert (nested(plugins, "inner")[MASK > 0] == (255, 0, 0)).all()


def test_a_model_that_calls_itself_is_told_instead_of_hanging(plugins):
    with pytest.raises(PoolError, match="outer was called within a call of itself"):
        nested(plugins, "outer")


@pytest.mark.parametrize(
    "between", [lambda manager: None, lambda manager: manager.unload("a")], ids=["held", "dropped"]
)
def test_a_plugin_that_returns_one_model_twice_is_refused(plugins, between):
    model = Red()
    plugins.register(make_plugin("a", "b", load=lambda: model), "p")
    manager = ModelManager(plugins)
    manager.load("a").close()
    between(manager)
    with pytest.raises(ModelLoadError, match="returned a model that it returned before"):
        manager.load("b")


def test_on_a_cpu_one_model_runs_for_each_core_by_default(plugins):
    assert ModelManager(plugins)._slots.limit == os.cpu_count()
    assert ModelManager(plugins, context=LoadContext(device="cuda"))._slots.limit == 1


def sized(*names):
    """Plugin of models that share 10 bytes, and have as many of their own as their names say: `a5` five."""

    @hookimpl
    def iopaint_load_model(info, context):
        if info.name.startswith("bad"):
            raise OSError("the disk is asleep")
        context.share({"shared": Component("shared", object, 10), "own": own(info.name)})
        return Red()

    return make_plugin(*names, iopaint_load_model=iopaint_load_model)


def own(name):
    return Component(name, object, int(name[1:]))


class TestPreload:
    def test_what_is_preloaded_is_held_idle(self, plugins):
        plugins.register(sized("a1", "b2"), "sized")
        manager = ModelManager(plugins)
        manager.preload("a1", "b2")
        assert leases(manager) == {"a1": 0, "b2": 0}
        manager.inpaint("a1", photograph(), MASK)
        assert manager.pool.stats().counts.loads == 2


def leases(manager):
    return {str(key): count for key, count in manager.pool.stats().leases.items()}


class TestSwitch:
    @pytest.fixture
    def manager(self, plugins):
        plugins.register(sized("a5", "b7", "c90", "d91", "bad"), "sized")
        return ModelManager(plugins, pool=ModelPool({"cpu": 100}, wait_for_room=0.2))

    def test_the_model_switched_to_stays_loaded_and_the_one_before_is_let_go(self, manager):
        assert manager.current is None
        manager.switch("a5")
        manager.switch("b7")
        assert manager.current.name == "b7"
        assert leases(manager) == {"a5": 0, "b7": 1}
        manager.switch("b7")
        assert leases(manager) == {"a5": 0, "b7": 1}

    def test_without_room_for_both_the_one_before_goes_first(self, manager):
        manager.switch("a5")
        manager.switch("c90")
        assert leases(manager) == {"c90": 1}
        assert manager.pool.stats().counts.component_loads == 3, "what both share stayed"

    @pytest.mark.parametrize(
        ("name", "error"), [("bad", ModelLoadError), ("d91", PoolFullError), ("e5", UnknownModelError)]
    )
    @pytest.mark.parametrize("before", ["a5", "c90"])
    def test_a_switch_that_fails_leaves_the_one_before(self, manager, before, name, error):
        manager.switch(before)
        with pytest.raises(error):
            manager.switch(name)
        assert manager.current.name == before
        assert leases(manager) == {before: 1}
        manager.inpaint(before, photograph(), MASK)

    def test_without_room_for_both_a_load_that_fails_brings_the_one_before_back(self, plugins):
        @hookimpl
        def iopaint_load_model(info, context):
            context.share({"own": Component(info.name, object, 90)})
            if info.name == "bad":
                raise OSError("the disk is asleep")
            return Red()

        plugins.register(make_plugin("good", "bad", iopaint_load_model=iopaint_load_model), "large")
        manager = ModelManager(plugins, pool=ModelPool({"cpu": 100}, wait_for_room=0.2))
        manager.switch("good")
        with pytest.raises(ModelLoadError, match="the disk is asleep"):
            manager.switch("bad")
        assert manager.current.name == "good"
        assert leases(manager) == {"good": 1}

    def test_many_threads_switch_and_one_model_stays(self, manager):
        together(16, lambda i: manager.switch(("a5", "b7", "c90")[i % 3]))
        assert sorted(leases(manager).values())[-1] == 1
        assert leases(manager)[manager.current.name] == 1


class TestForecast:
    def test_what_models_share_is_told_before_anything_is_loaded(self, plugins):
        plugins.register(sized("a5", "b7"), "sized")
        manager = ModelManager(plugins)
        found = manager.forecast("a5", "b7")
        rows = [(need.model, need.component, need.nbytes, need.shared_with) for need in found.needs]
        assert rows == [
            ("a5", "shared", 10, ("b7",)),
            ("a5", "own", 5, ()),
            ("b7", "shared", 10, ("a5",)),
            ("b7", "own", 7, ()),
        ]
        assert (found.separately, found.together) == ({"cpu": 32}, {"cpu": 22})
        assert manager.pool.stats().counts.loads == 0
        manager.preload("a5", "b7")
        assert manager.pool.stats().devices["cpu"].resident == 22

    def test_models_of_one_name_are_told_apart_as_they_were_asked_for(self, plugins):
        for number in (1, 2):

            @hookimpl
            def load(info, context):
                number = 1 + ("p2" in info.qualified_name)
                context.share({"own": Component(number, object, number)})
                return Red()

            plugins.register(make_plugin("same", iopaint_load_model=load), f"p{number}")
        forecast = ModelManager(plugins).forecast("p1:same", "p2:same")
        assert [(need.model, need.nbytes) for need in forecast.needs] == [("p1:same", 1), ("p2:same", 2)]

    def test_a_model_of_one_piece_is_measured_and_dropped(self, plugins):
        loaded = []

        class Large(Red):
            nbytes = 90

            def close(self):
                loaded.remove(self)

        plugins.register(make_plugin("large", load=lambda: loaded.append(model := Large()) or model), "large")
        (need,) = ModelManager(plugins).forecast("large").needs
        assert (need.component, need.nbytes, need.shared_with) == ("model", 90, ())
        assert loaded == []

    def test_a_loader_that_catches_everything_is_asked_all_the_same(self, plugins):
        @hookimpl
        def iopaint_load_model(info, context):
            try:
                context.share({"own": Component("own", object, 5)})
            except Exception:  # noqa: BLE001 - as plugins do
                return

        plugins.register(make_plugin("a", iopaint_load_model=iopaint_load_model), "a")
        assert ModelManager(plugins).forecast("a").together == {"cpu": 5}

    def test_what_is_wrong_is_raised(self, plugins):
        plugins.register(sized("bad"), "sized")
        with pytest.raises(ModelLoadError, match="the disk is asleep"):
            ModelManager(plugins).forecast("bad")
        with pytest.raises(UnknownModelError):
            ModelManager(plugins).forecast("worse")


def more_than_the_host_has():
    """What torch raises."""
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    return caught.value


class TestOutOfMemory:
    @pytest.mark.parametrize(
        "error",
        [
            pytest.param(lambda: MemoryError("no memory"), id="Python"),
            pytest.param(type("OutOfMemoryError", (RuntimeError,), {}), id="CUDA"),
            pytest.param(more_than_the_host_has, id="CPU", marks=pytest.mark.torch),
            pytest.param(lambda: RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), id="MPS"),
        ],
    )
    def test_a_call_makes_room_and_tries_once_more(self, plugins, error):
        error = error()

        class Hungry(Red):
            def forward(self, image, mask, request):
                if error in raised:
                    return super().forward(image, mask, request)
                raised.append(error)
                raise error

        raised = []
        plugins.register(make_plugin("hungry", load=Hungry), "hungry")
        plugins.register(sized("a5"), "sized")
        manager = ModelManager(plugins)
        manager.preload("a5")
        assert manager.inpaint("hungry", photograph(), MASK)[6, 6, 0] == 255
        assert raised == [error]
        assert leases(manager) == {"hungry": 0}

    def test_if_it_runs_out_again_the_error_is_raised_and_nothing_stays_pinned(self, plugins):
        class Huge(Red):
            def forward(self, image, mask, request):
                raise MemoryError("no memory")

        plugins.register(make_plugin("huge", load=Huge), "huge")
        manager = ModelManager(plugins)
        with pytest.raises(
            ModelError, match=r"huge:huge failed: MemoryError: no memory\. Take a smaller image"
        ) as caught:
            manager.inpaint("huge", photograph(), MASK)
        assert isinstance(caught.value.__cause__, MemoryError)
        assert leases(manager) == {"huge": 0}
