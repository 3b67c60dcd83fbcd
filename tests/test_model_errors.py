"""Whatever a model raises reaches its host as a `ModelError` with its names; what the host raises, as it is."""

import asyncio

import numpy as np
import pytest
from hosts import OneModel, host

from iopaint_core import (
    AsyncModelManager,
    ImageModel,
    InpaintModel,
    InputError,
    MaskModel,
    ModelError,
    ModelLoadError,
    Task,
    report_preview,
    report_progress,
)

IMAGE = np.full((8, 8, 3), 90, np.uint8)
MASK = np.full((8, 8), 255, np.uint8)
RAISED = [
    ValueError, SystemExit, GeneratorExit, StopIteration, StopAsyncIteration, asyncio.CancelledError, MemoryError,
    BaseException, RecursionError, OSError, AssertionError, NotImplementedError,
]  # fmt: skip


class MuteError(Exception):
    def __str__(self):
        raise SystemExit


def erasing(error, **fields):
    class Erase(InpaintModel):
        def forward(self, image, mask, parameters):
            raise error

    return host(OneModel("erase", Erase, task=Task.INPAINT, **fields))


def wand(**functions):
    methods = {"encode": lambda self, image: image, "decode": lambda self, state, parameters: MASK, **functions}
    return host(OneModel("wand", type("Wand", (MaskModel,), methods), task=Task.SEGMENT))


def raising(error):
    def function(*_):
        raise error

    return function


NAMED = {"ids": lambda error: type(error).__name__}


@pytest.mark.parametrize("error", [*(kind("not today") for kind in RAISED), MuteError()], **NAMED)
class TestWhateverItRaises:
    def check(self, call, error):
        with pytest.raises(ModelError, match=rf"^\w+:\w+ failed: {type(error).__name__}") as caught:
            call()
        assert caught.value.__cause__ is error
        assert caught.value.remedy

    def test_forward(self, error):
        manager = erasing(error)
        self.check(lambda: manager.inpaint("erase", IMAGE, MASK), error)
        assert set(manager.pool.stats().leases.values()) == {0}

    def test_encode(self, error):
        manager = wand(encode=raising(error))
        self.check(lambda: manager.segment("wand", IMAGE), error)
        self.check(manager.session("wand", IMAGE).run, error)
        assert set(manager.pool.stats().leases.values()) == {0}

    def test_decode(self, error):
        manager = wand(decode=raising(error))
        self.check(lambda: manager.segment("wand", IMAGE), error)
        self.check(manager.session("wand", IMAGE).run, error)
        assert set(manager.pool.stats().leases.values()) == {0}

    def test_an_event_loop_goes_on(self, error):
        async def main():
            async with AsyncModelManager(erasing(error)) as manager:
                for _ in range(2):
                    with pytest.raises(ModelError) as caught:
                        await manager.inpaint("erase", IMAGE, MASK)
                    assert caught.value.__cause__ is error
                return "went on"

        assert asyncio.run(main()) == "went on"

    def test_close(self, error, caplog):
        manager = wand(close=raising(error))
        manager.segment("wand", IMAGE)
        manager.close()
        assert f"wand:wand failed: {type(error).__name__}" in caplog.text
        assert manager.pool.stats().leases == {}


def test_a_model_without_a_host_is_named_by_its_class():
    class Breaks(ImageModel):
        def forward(self, image, parameters):
            raise KeyError("missing")

    with pytest.raises(ModelError, match=r"^Breaks failed: KeyError: 'missing'. Report it to the author of Breaks"):
        Breaks().run(IMAGE)


def test_what_a_model_says_on_purpose_comes_as_it_is():
    error = InputError("nothing around it", "Mask less")
    with pytest.raises(InputError) as caught:
        erasing(error).inpaint("erase", IMAGE, MASK)
    assert caught.value is error


def test_ctrl_c_is_ctrl_c():
    with pytest.raises(KeyboardInterrupt):
        erasing(KeyboardInterrupt()).inpaint("erase", IMAGE, MASK)


def test_a_package_that_is_missing_is_named_in_the_remedy():
    with pytest.raises(ModelError, match=r"No module named 'spandrel'. Install spandrel"):
        erasing(ModuleNotFoundError("No module named 'spandrel'", name="spandrel")).inpaint("erase", IMAGE, MASK)


class StopError(Exception):
    """Of a host."""


class Reports(InpaintModel):
    """Reports, and makes something else of what is raised then."""

    report = staticmethod(lambda image: report_progress(1, 2))
    answer = "raises"

    def forward(self, image, mask, parameters):
        try:
            self.report(image)
        except BaseException as error:
            if self.answer == "raises":
                raise ValueError("something else") from error
            if self.answer == "passes":
                raise
        return image


@pytest.mark.parametrize("answer", ["raises", "passes", "swallows"])
@pytest.mark.parametrize("told", ["progress", "preview"])
@pytest.mark.parametrize("error", [StopError(), SystemExit(3), asyncio.CancelledError()], **NAMED)
class TestWhatTheHostRaises:
    def test_it_cancels_the_call_and_comes_as_it_is(self, answer, told, error):
        report = {"progress": lambda image: report_progress(1, 2), "preview": report_preview}[told]
        model = type("Reports", (Reports,), {"answer": answer, "report": staticmethod(report)})
        manager = host(OneModel("reports", model, task=Task.INPAINT))
        with pytest.raises(type(error)) as caught:
            manager.inpaint("reports", IMAGE, MASK, **{told: raising(error)})
        assert caught.value is error
        assert set(manager.pool.stats().leases.values()) == {0}


class ReportsToo(ImageModel):
    answer = "passes"
    report = staticmethod(Reports.report)

    def forward(self, image, parameters):
        return Reports.forward(self, image, None, parameters)


class TestModelsWithinModels:
    def outer(self, **inner):
        class Outer(ImageModel):
            def __init__(self, models):
                self.models = models

            def forward(self, image, parameters):
                return self.models.run("inner", image, **inner)

        return OneModel("outer", lambda context: Outer(context.models), task=Task.RESTORE)

    @pytest.mark.parametrize("answer", ["raises", "passes", "swallows"])
    def test_what_the_host_raises_comes_through_both(self, answer):
        inner = type("Inner", (ReportsToo,), {"answer": answer})
        error = StopError()
        manager = host(OneModel("inner", inner, task=Task.RESTORE), self.outer())
        with pytest.raises(StopError) as caught:
            manager.process("outer", IMAGE, progress=raising(error))
        assert caught.value is error

    def test_what_the_inner_one_raises_names_the_inner_one(self):
        def forward(self, image, parameters):
            raise ValueError("inside")

        inner = type("Inner", (ImageModel,), {"forward": forward})
        manager = host(OneModel("inner", inner, task=Task.RESTORE), self.outer())
        with pytest.raises(ModelError, match=r"^inner:inner failed: ValueError: inside"):
            manager.process("outer", IMAGE)

    def test_what_the_outer_ones_callback_raises_is_the_outer_ones_fault(self):
        error = StopError("of the outer model")
        manager = host(OneModel("inner", ReportsToo, task=Task.RESTORE), self.outer(progress=raising(error)))
        with pytest.raises(ModelError, match=r"^outer:outer failed: StopError: of the outer model") as caught:
            manager.process("outer", IMAGE)
        assert caught.value.__cause__ is error


class TestWhatItSaysOfItself:
    def dying(self, name):
        def dies(self):
            raise SystemExit("not today")

        return type("Dying", (Reports,), {name: property(dies), "answer": "swallows"})

    @pytest.mark.parametrize("name", ["concurrency", "nbytes", "device_bound", "info", "task"])
    def test_a_property_that_raises_is_an_error_of_its_load(self, name):
        manager = host(OneModel("dying", self.dying(name)), OneModel("sound", type("Sound", (Reports,), {})))
        with pytest.raises(ModelLoadError, match=r"^dying:dying could not be loaded: .*\. Report it to the author"):
            manager.inpaint("dying", IMAGE, MASK)
        assert manager.inpaint("sound", IMAGE, MASK).shape == IMAGE.shape
        assert set(manager.pool.stats().leases) == {
            key for key in manager.pool.stats().leases if str(key) == "sound"
        }

    @pytest.mark.parametrize("name", ["concurrency", "nbytes", "device_bound"])
    def test_one_that_raises_later_is_an_error_of_the_call(self, name):
        class Later(Reports):
            answer = "swallows"
            dies = False

        def read(self):
            if Later.dies:
                raise SystemExit("not today")
            return 1

        setattr(Later, name, property(read))
        manager = host(OneModel("later", Later))
        manager.inpaint("later", IMAGE, MASK)
        Later.dies = True
        with pytest.raises(ModelError, match=rf"^later:later.*{name} raised SystemExit: not today"):
            manager.inpaint("later", IMAGE, MASK)
        Later.dies = False
        assert manager.inpaint("later", IMAGE, MASK).shape == IMAGE.shape
        assert set(manager.pool.stats().leases.values()) == {0}
