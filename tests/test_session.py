"""Sessions: what a model computes of an image is computed once, shared, charged, and dropped."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, make_dataclass

import numpy as np
import pytest
from conftest import photograph
from hosts import OneModel, host

from iopaint_core import (
    AsyncModelManager,
    Click,
    ImageModel,
    InputError,
    MaskModel,
    ModelError,
    ModelNameError,
    ModelPool,
    RequestError,
    Result,
    Task,
    UnknownModelError,
    report_progress,
)
from iopaint_core.session import nbytes_of

IMAGE = photograph(24, 32)


@dataclass
class State:
    grey: np.ndarray
    parts: list


class Wand(MaskModel):
    """Takes what is as bright as what is clicked on."""

    def __init__(self):
        self.encoded = []

    def encode(self, image):
        self.encoded.append(image.shape)
        report_progress(1, 2)
        grey = image.mean(axis=2).astype(np.float32)
        image[:] = 0  # the image is its own
        return State(grey, [grey.copy(), {"again": grey}])

    def decode(self, state, parameters):
        report_progress(1, 4)
        value = state.grey[parameters.clicks[0].y, parameters.clicks[0].x]
        near = np.abs(state.grey - value)
        masks = np.stack([np.where(near < limit, np.uint8(255), np.uint8(0)) for limit in (5, 20, 80)])
        if parameters.mask_input is not None:
            masks &= parameters.mask_input
        return Result(masks=masks, scores=[0.9, 0.8, 0.1])


class Plain(MaskModel):
    def forward(self, image, parameters):
        return image[..., 0].copy()


def wands(**options):
    return host(
        OneModel("wand", Wand, task=Task.SEGMENT),
        OneModel("plain", Plain, task=Task.SEGMENT),
        OneModel("other", type("Other", (ImageModel,), {"forward": lambda self, image, parameters: image})),
        **options,
    )


def encoded(manager):
    with manager.load("wand") as wand:
        return len(wand.encoded)


CLICK = {"clicks": [[3, 4, 1]]}


class TestSession:
    def test_many_calls_encode_once(self):
        manager = wands()
        with manager.session("wand", IMAGE) as session:
            first = session.run(CLICK)
            second = session.run({"clicks": [Click(9, 9)]})
        assert first.masks.shape == (3, 24, 32)
        assert first.scores == (0.9, 0.8, 0.1)
        assert first.mask[4, 3] == second.mask[9, 9] == 255
        assert encoded(manager) == 1
        assert np.array_equal(first.masks, manager.run("wand", IMAGE, parameters=CLICK).masks), "as without one"

    def test_equal_images_share_and_others_do_not(self):
        manager = wands()
        manager.session("wand", IMAGE).run(CLICK)
        manager.session("wand", IMAGE.copy()).run(CLICK)
        assert encoded(manager) == 1
        manager.session("wand", IMAGE[::-1]).run(CLICK)
        manager.session("wand", IMAGE.reshape(32, 24, 3)).run(CLICK)
        assert encoded(manager) == 3

    def test_the_mask_before_is_refined(self):
        mask = np.zeros((24, 32), np.uint8)
        mask[:9] = 255
        with wands().session("wand", IMAGE) as session:
            free = session.run(CLICK)
            by_argument = session.run(CLICK, mask=mask)
            by_parameter = session.run({**CLICK, "mask_input": mask})
        assert np.array_equal(by_argument.masks, free.masks & mask)
        assert np.array_equal(by_parameter.masks, by_argument.masks)

    def test_a_model_that_encodes_nothing_has_sessions_too(self):
        manager = wands()
        with manager.session("plain", IMAGE) as session:
            assert np.array_equal(session.run().mask, IMAGE[..., 0])
        assert manager.pool.stats().states == ()

    def test_progress_has_one_total(self):
        manager, seen = wands(), []
        session = manager.session("wand", IMAGE)
        session.run(CLICK, progress=lambda *step: seen.append(step))
        assert len({total for _, total in seen}) == 1
        assert [step for step, _ in seen] == sorted(step for step, _ in seen)
        assert seen[-1] == (4, 4)

    def test_threads_share_one_state(self):
        manager = wands()
        session = manager.session("wand", IMAGE)
        with ThreadPoolExecutor(8) as pool:
            results = [*pool.map(lambda _: session.run(CLICK).masks, range(40))]
        assert all(np.array_equal(each, results[0]) for each in results)
        assert encoded(manager) == 1
        assert not any(held.pins for held in manager.pool.stats().states)

    @pytest.mark.parametrize("copied", [True, False])
    def test_a_thread_of_a_model_that_opened_one_calls_within_its_call(self, copied):
        class Outlines(ImageModel):
            def __init__(self, context):
                self.models = context.models

            def forward(self, image, parameters):
                context = contextvars.copy_context() if copied else contextvars.Context()
                with self.models.session("plain", image) as session, ThreadPoolExecutor(1) as pool:
                    return Result(image=image, masks=pool.submit(context.run, session.run).result(60).masks)

        manager = host(
            OneModel("plain", Plain, task=Task.SEGMENT),
            OneModel("outlines", Outlines, task=Task.RESTORE),
            concurrency=1,
        )
        assert (manager.run("outlines", IMAGE).masks[0] == IMAGE[..., 0]).all()

    def test_an_event_loop(self):
        async def main():
            async with AsyncModelManager(wands()) as manager, await manager.session("wand", IMAGE) as session:
                first = await session.run(CLICK)
                with pytest.raises(InputError, match="outside the image"):
                    await session.run({"clicks": [[99, 0, 1]]})
                return first

        assert asyncio.run(main()).scores == (0.9, 0.8, 0.1)


class TestPool:
    STATE = 2 * 24 * 32 * 4

    def test_what_is_computed_is_charged(self):
        manager = wands()
        session = manager.session("wand", IMAGE)
        assert manager.pool.stats().states == ()
        session.run(CLICK)
        (held,) = manager.pool.stats().states
        assert (held.nbytes, held.pins, held.device) == (self.STATE, 0, "cpu")
        assert str(held.key).startswith("image ")
        assert str(held.key).endswith(" of wand")
        assert manager.pool.stats().devices["cpu"].resident == self.STATE

    def test_it_is_evicted_to_make_room_and_computed_again(self):
        manager = wands(pool=ModelPool({"cpu": self.STATE + 10}))
        one, two = (manager.session("wand", image) for image in (IMAGE, photograph(24, 32, 7)))
        first = one.run(CLICK)
        two.run(CLICK)
        assert len(manager.pool.stats().states) == 1
        assert np.array_equal(one.run(CLICK).masks, first.masks)
        assert encoded(manager) == 3
        assert manager.pool.stats().devices["cpu"].used <= self.STATE + 10

    def test_without_room_it_is_computed_each_time(self):
        manager = wands(pool=ModelPool({"cpu": 10}))
        session = manager.session("wand", IMAGE)
        assert np.array_equal(session.run(CLICK).masks, session.run(CLICK).masks)
        assert manager.pool.stats().states == ()
        assert manager.pool.stats().devices["cpu"].used == 0

    def test_it_goes_with_its_model(self):
        manager = wands()
        manager.session("wand", IMAGE).run(CLICK)
        assert manager.unload("wand")
        stats = manager.pool.stats()
        assert (stats.states, dict(stats.leases), stats.devices["cpu"].used) == ((), {}, 0)

    def test_it_is_dropped_when_it_is_idle_long_enough(self):
        manager = wands()
        manager.session("wand", IMAGE).run(CLICK)
        manager.pool.trim()
        assert manager.pool.stats().states == ()

    def test_a_model_that_is_dropped_while_it_works_keeps_nothing(self):
        working, dropped = threading.Event(), threading.Event()

        class Slow(Wand):
            def encode(self, image):
                working.set()
                assert dropped.wait(60)
                return super().encode(image)

        manager = host(OneModel("wand", Slow, task=Task.SEGMENT))
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(manager.session("wand", IMAGE).run, CLICK)
            assert working.wait(60)
            manager.pool.clear()
            dropped.set()
            assert result.result(60).scores == (0.9, 0.8, 0.1)
        stats = manager.pool.stats()
        assert (stats.states, dict(stats.leases)) == ((), {})

    def test_an_error_keeps_nothing_pinned(self):
        class Fails(Wand):
            def decode(self, state, parameters):
                raise ValueError("decode")

        manager = host(OneModel("wand", Fails, task=Task.SEGMENT))
        with pytest.raises(ModelError, match="wand:wand failed: ValueError: decode"):
            manager.session("wand", IMAGE).run(CLICK)
        assert [held.pins for held in manager.pool.stats().states] == [0]

    def test_bytes_of_states(self):
        array = np.zeros((10, 10), np.float32)
        assert nbytes_of(array) == 400
        assert nbytes_of({"a": array, "b": [array, (array + 1, b"abc")], "c": "text", "d": 3, "e": None}) == 803
        assert nbytes_of(State(array, [])) == 400
        assert nbytes_of(type("Own", (), {"nbytes": 12})()) == 12
        slotted = make_dataclass("Slotted", ["array", "other"], slots=True)
        assert nbytes_of(slotted(array, array + 1)) == 800
        assert nbytes_of([array, type("Less", (), {"nbytes": -500})()]) == 400
        deep = array
        for _ in range(10_000):
            deep = [deep]
        assert nbytes_of(deep) == 400


class TestBadInput:
    def test_an_image_that_was_written_to(self):
        image = photograph(100, 120)
        session = wands().session("wand", image)
        session.run(CLICK)
        image[99, 119, 2] ^= 1
        with pytest.raises(InputError, match="The image of the session of wand was written to after it was opened"):
            session.run(CLICK)
        image[99, 119, 2] ^= 1
        session.run(CLICK)
        image[:] = image[::-1].copy()
        with pytest.raises(InputError, match="written to"):
            session.run(CLICK)

    def test_a_session_that_is_closed(self):
        with wands().session("wand", IMAGE) as session:
            pass
        session.close()
        with pytest.raises(InputError, match=r"The session of wand is closed\. Open a new one"):
            session.run(CLICK)

    def test_what_is_no_model_of_masks(self):
        manager = wands()
        with pytest.raises(ModelNameError, match="other is no MaskModel: its task is inpaint"):
            manager.session("other", IMAGE)
        with pytest.raises(UnknownModelError, match=r"Did you mean wand\?"):
            manager.session("wnd", IMAGE)
        assert manager.pool.stats().counts.loads == 0

    @pytest.mark.parametrize(
        ("parameters", "options", "kind", "told"),
        [
            ({"clicks": [[32, 0, 1]]}, {}, InputError, "outside the image of 32 x 24"),
            ({"boxes": [[0, 0, 33, 5]]}, {}, InputError, "not within the image of 32 x 24"),
            (CLICK, {"mask": np.zeros((2, 3), np.uint8)}, InputError, "The image is 32 x 24 and the mask 3 x 2"),
            ({"klicks": []}, {}, RequestError, "unknown key 'klicks'"),
        ],
    )
    def test_calls(self, parameters, options, kind, told):
        manager = wands()
        with pytest.raises(kind, match=told):
            manager.session("wand", IMAGE).run(parameters, **options)
        assert not any(manager.pool.stats().leases.values())

    def test_an_image_that_is_none(self):
        with pytest.raises(InputError, match="float32"):
            wands().session("wand", IMAGE.astype(np.float32))
