"""The manager for hosts with an event loop: nothing blocks it, and what is cancelled ends."""

import asyncio
import sys
import threading

import numpy as np
import pytest
from conftest import Red, make_plugin, photograph
from pools import WATCHDOG, Gate

from iopaint_core import (
    AsyncModelManager,
    Component,
    EventKind,
    ImageModel,
    MaskModel,
    ModelError,
    ModelLoadError,
    ModelManager,
    ModelPool,
    Task,
    hookimpl,
    report_progress,
)

MASK = np.zeros((40, 60), np.uint8)
MASK[5:9, 5:9] = 255


class Half(ImageModel):
    def forward(self, image, request):
        return image[::2, ::2]


class Bright(MaskModel):
    def forward(self, image, request):
        return np.where(image.mean(axis=2) > 127, 255, 0).astype(np.uint8)


def run(work):
    return asyncio.run(asyncio.wait_for(work, WATCHDOG))


@pytest.fixture
def models(plugins):
    """Makes an asynchronous manager of models by name; ends its threads."""
    made = []

    def models(task=Task.INPAINT, **loaders):
        for name, load in loaders.items():
            plugins.register(make_plugin(name, load=load, task=task), name)
        made.append(AsyncModelManager(ModelManager(plugins, concurrency=2)))
        return made[-1]

    yield models
    for manager in made:
        manager.close()


async def reached(gate):
    assert await asyncio.to_thread(gate.reached.wait, WATCHDOG)


def test_it_gives_what_the_manager_gives(models):
    models(Task.RESTORE, half=Half)
    models(Task.SEGMENT, bright=Bright)
    manager = models(red=Red)
    image = photograph()

    async def work():
        await manager.preload("red")
        repaired = await manager.inpaint(
            "red", image, MASK, progress=lambda step, total: steps.append(step / total)
        )
        with await manager.load("red") as model:
            assert isinstance(model, Red)
            assert not await manager.unload("red")
        await manager.switch("half")
        assert manager.manager.current.name == "half"
        return repaired, await manager.process("half", image), await manager.segment("bright", image)

    steps = []
    repaired, half, bright = run(work())
    assert np.array_equal(repaired, manager.manager.inpaint("red", image, MASK))
    assert np.array_equal(half, image[::2, ::2])
    assert bright.shape == image.shape[:2]
    assert steps[-1] == 1


def test_the_loop_goes_on_while_a_model_is_loaded_and_while_it_works(models):
    loading, working = Gate(), Gate()

    class Slow(Red):
        def forward(self, image, mask, request):
            working.wait()
            return super().forward(image, mask, request)

    manager = models(slow=lambda: loading.wait() or Slow())

    async def work():
        repaired = asyncio.create_task(manager.inpaint("slow", photograph(), MASK))
        for gate in (loading, working):
            await reached(gate)
            gate.open()
        return await repaired

    assert run(work()).shape == (40, 60, 3)


def test_pictures_are_repaired_side_by_side(models):
    inside = threading.Barrier(2)

    class Meets(Red):
        def forward(self, image, mask, request):
            inside.wait(WATCHDOG)
            return super().forward(image, mask, request)

    manager = models(one=Meets, two=Meets)

    async def work():
        return await asyncio.gather(*(manager.inpaint(name, photograph(), MASK) for name in ("one", "two")))

    assert len(run(work())) == 2


def test_work_that_is_cancelled_ends_at_its_next_step(models):
    gate, ended = Gate(), threading.Event()

    class Steps(Red):
        def forward(self, image, mask, request):
            gate.wait()
            try:
                report_progress(1, 2)
            finally:
                ended.set()
            raise AssertionError("it went on")

    manager = models(steps=Steps)

    async def work():
        repaired = asyncio.create_task(manager.inpaint("steps", photograph(), MASK))
        await reached(gate)
        repaired.cancel()
        with pytest.raises(asyncio.CancelledError):
            await repaired
        gate.open()
        assert await asyncio.to_thread(ended.wait, WATCHDOG)

    run(work())
    manager.close()
    assert set(manager.manager.pool.stats().leases.values()) == {0}


def test_a_lease_that_comes_after_its_wait_was_cancelled_is_closed(models):
    gate = Gate()
    manager = models(slow=lambda: gate.wait() or Red())

    async def work():
        lease = asyncio.create_task(manager.load("slow"))
        await reached(gate)
        lease.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lease
        gate.open()
        return await manager.inpaint("slow", photograph(), MASK)

    assert run(work()).shape == (40, 60, 3)
    stats = manager.manager.pool.stats()
    assert set(stats.leases.values()) == {0}
    assert stats.counts.loads == 1


def test_what_goes_wrong_is_raised_where_it_is_awaited(models):
    def load():
        raise OSError("the disk is asleep")

    manager = models(bad=load)
    with pytest.raises(ModelLoadError, match="the disk is asleep"):
        run(manager.inpaint("bad", photograph(), MASK))
    with pytest.raises(ModelLoadError, match="the disk is asleep"):
        run(manager.load("bad"))


def test_a_model_that_has_no_end_of_places_holds_nothing_up(models):
    class Endless(Half):
        concurrency = sys.maxsize

    manager = models(Task.RESTORE, endless=Endless)
    image = photograph()
    assert np.array_equal(run(manager.process("endless", image)), image[::2, ::2])


def test_places_that_became_no_number_are_told_and_pin_nothing(models):
    class Changing(Half):
        def forward(self, image, request):
            self.concurrency = "2"
            return image

    async def work():
        for _ in range(2):
            with pytest.raises(ModelError, match="its concurrency is '2', expected"):
                await manager.process("changing", photograph())

    manager = models(Task.RESTORE, changing=Changing)
    run(work())
    assert set(manager.manager.pool.stats().leases.values()) == {0}


def test_requests_that_wait_for_room_take_no_thread_from_a_model_that_is_ready(plugins):
    @hookimpl
    def load(info, context):
        context.share({"own": Component(info.name, object, 60)})
        return Red()

    plugins.register(make_plugin("a", "b", "c", iopaint_load_model=load), "p")
    pool = ModelPool({"cpu": 100}, wait_for_room=WATCHDOG)
    manager = AsyncModelManager(ModelManager(plugins, pool=pool), threads=2)

    async def scenario():
        loop = asyncio.get_running_loop()
        waiting = asyncio.Event()
        pool.subscribe(lambda event: event.kind is EventKind.WAITING and loop.call_soon_threadsafe(waiting.set))
        lease = await manager.load("a")
        others = [asyncio.create_task(manager.inpaint(name, photograph(), MASK)) for name in "bc"]
        await waiting.wait()
        await manager.inpaint("a", photograph(), MASK)
        await asyncio.to_thread(lease.close)
        await asyncio.gather(*others)

    run(scenario())
    manager.close()


def test_requests_that_queue_for_one_model_leave_threads_for_others(models):
    gate = Gate()

    class Slow(Red):
        def forward(self, image, mask, request):
            gate.wait()
            return image

    manager = models(slow=Slow, quick=Red)

    async def scenario():
        slow = [asyncio.create_task(manager.inpaint("slow", photograph(), MASK)) for _ in range(40)]
        await asyncio.to_thread(gate.wait_until_reached)
        await manager.inpaint("quick", photograph(), MASK)
        gate.open()
        await asyncio.gather(*slow)

    run(scenario())
