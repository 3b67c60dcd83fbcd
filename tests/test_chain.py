"""Models that call models, chains, and how they report progress, share slots and are cancelled."""

import contextvars
import json
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import PIL.Image
import pytest
from commands import command
from conftest import ROOT, photograph
from hosts import OneModel, host

from iopaint_core import (
    ImageModel,
    ImageParameters,
    InpaintModel,
    InputError,
    IOPaintError,
    MaskModel,
    ModelError,
    ModelLoadError,
    ModelPool,
    PoolError,
    PoolFullError,
    RequestError,
    Result,
    Step,
    Task,
    UnavailableModelError,
    UnknownModelError,
    progress_part,
    read_chain,
    report_progress,
)

IMAGE = photograph(24, 32)
MASK = np.full((24, 32), 255, np.uint8)
DEPTH = Task("depth", gives=("maps",))
CHAIN = Task("chain")


class Bright(MaskModel):
    """Finds what is bright: the left half, and the right one, each a mask."""

    def forward(self, image, parameters):
        report_progress(1, 2)
        bright = np.where(image.mean(axis=2) > 150, np.uint8(255), np.uint8(0))
        masks = np.stack([bright, bright])
        masks[0, :, 16:], masks[1, :, :16] = 0, 0
        return Result(masks=masks, scores=[0.25, 0.75], info={"found": int((bright > 0).sum())})


class Nothing(MaskModel):
    def forward(self, image, parameters):
        return np.zeros((0, *image.shape[:2]), np.uint8)


class Erase(InpaintModel):
    def forward(self, image, mask, parameters):
        for step in range(1, 5):
            report_progress(step, 4)
        image[:] = 3
        return image


class Double(ImageModel):
    def forward(self, image, parameters):
        return image.repeat(2, axis=0).repeat(2, axis=1)


class CutOut(ImageModel):
    def forward(self, image, parameters):
        return np.dstack([image, image[..., 0]])


class Depth(ImageModel):
    def forward(self, image, parameters):
        return Result(maps={"depth": image[..., 0]})


class Tidy(ImageModel):
    """Finds, erases, enlarges: by the host's models."""

    def __init__(self, context):
        self.models = context.models

    def forward(self, image, parameters):
        with progress_part(0, 3):
            mask = self.models.run("bright", image).united_masks()
        with progress_part(1, 3):
            image = self.models.inpaint("erase", image, mask)
        with progress_part(2, 3):
            return self.models.process("double", image)


def models(*more, **options):
    return host(
        OneModel("bright", Bright, task=Task.SEGMENT),
        OneModel("nothing", Nothing, task=Task.SEGMENT),
        OneModel("erase", Erase),
        OneModel("double", Double, task=Task.RESTORE),
        OneModel("cutout", CutOut, task=Task.MATTING),
        OneModel("depth", Depth, task=DEPTH),
        OneModel("tidy", Tidy, task=CHAIN, requires=["bright", "erase", "double"]),
        *more,
        **options,
    )


def pins(manager):
    stats = manager.pool.stats()
    return [
        *stats.leases.values(),
        *(held.pins for held in stats.components),
        *(held.pins for held in stats.states),
    ]


def erased(image):
    image = image.copy()
    image[image.mean(axis=2) > 150] = 3
    return image


def doubled(image):
    return image.repeat(2, axis=0).repeat(2, axis=1)


class TestChain:
    def test_each_step_gets_what_the_one_before_gave(self):
        result = models().chain(IMAGE, [Step("bright"), Step("erase"), Step("double")])
        assert np.array_equal(result.image, doubled(erased(IMAGE)))
        assert result.scores == (0.25, 0.75)
        found = int((IMAGE.mean(axis=2) > 150).sum())
        assert result.info == {
            "steps": [{"model": "bright", "found": found}, {"model": "erase"}, {"model": "double"}]
        }

    def test_steps_that_are_made_one_by_one(self):
        result = models().chain(IMAGE, (Step(name) for name in ("bright", "erase")))
        assert (result.image == erased(IMAGE)).all()

    def test_a_mask_grows_with_the_image(self):
        result = models().chain(IMAGE, [Step("bright"), Step("double"), Step("erase")])
        assert np.array_equal(result.image, doubled(erased(IMAGE)))

    def test_the_best_of_the_masks_alone(self):
        result = models().chain(IMAGE, [Step("bright", masks="best"), Step("erase")])
        assert np.array_equal(result.image[:, :16], IMAGE[:, :16])
        assert np.array_equal(result.image[:, 16:], erased(IMAGE)[:, 16:])

    def test_a_mask_that_is_given(self):
        mask = np.zeros((24, 32), np.uint8)
        mask[3:7] = 255
        result = models().chain(IMAGE, [Step("erase", {"hd_strategy": "Original"})], mask=mask)
        assert (result.image[3:7] == 3).all()

    def test_where_nothing_is_found_the_image_stays_and_it_is_said(self, caplog):
        result = models().chain(IMAGE, [Step("nothing"), Step("erase")])
        assert np.array_equal(result.image, IMAGE)
        assert result.image is not IMAGE
        assert result.info["steps"][1] == {"model": "erase", "skipped": "no mask was found"}
        assert result.info["unchanged"] is True
        assert "No mask was found for erase, so the image is left as it is" in caplog.text

    def test_maps_come_with_the_image(self):
        result = models().chain(IMAGE, [Step("double"), Step("depth")])
        assert result.image.shape == (48, 64, 3)
        assert result.maps["depth"].shape == (48, 64)

    @pytest.mark.parametrize(
        ("steps", "kind", "told"),
        [
            ([], RequestError, "it has no steps"),
            ([Step("bright"), "erase"], RequestError, "expected Steps, got str"),
            ([Step("erase")], InputError, r"Step 1 \(erase\) takes a mask: none is given, and no step before it"),
            ([Step("double"), Step("erase")], InputError, r"Step 2 \(erase\) takes a mask"),
            (
                [Step("bright"), Step("erace")],
                UnknownModelError,
                r"Step 2 \(erace\): No plugin.*Did you mean erase\?",
            ),
            (
                [Step("bright"), Step("erase", {"radius": 1})],
                RequestError,
                r"Step 2 \(erase\): .*unknown key 'radius'",
            ),
            ([Step("depth"), Step("double")], RequestError, r"Step 1 \(depth\) gives maps, of which the next step"),
            ([Step("bright"), Step("gone")], UnavailableModelError, r"Step 2 \(gone\): gone can't be used yet: no"),
        ],
    )
    def test_a_wrong_one_is_told_before_anything_is_loaded(self, steps, kind, told):
        manager = models(OneModel("gone", Erase, unavailable="no licence"))
        with pytest.raises(kind, match=told):
            manager.chain(IMAGE, steps)
        assert manager.pool.stats().counts.loads == 0

    def test_a_step_that_is_larger_than_the_budget_is_told_before_anything_is_loaded(self):
        class Large(Double):
            nbytes = 2000

        manager = models(OneModel("large", Large, task=Task.RESTORE), pool=ModelPool({"cpu": 1000}))
        with pytest.raises(
            PoolFullError, match=r"Step 2 \(large\): large needs 2.0 kB on cpu, and the whole budget"
        ):
            manager.chain(IMAGE, [Step("double"), Step("large")])
        assert manager.pool.stats().counts.loads == 0

    def test_transparency_that_the_next_step_can_not_take(self):
        with pytest.raises(InputError, match=r"Step 2 \(double\) takes RGB, and the step before it gave RGBA"):
            models().chain(IMAGE, [Step("cutout"), Step("double")])

    def test_a_mask_that_is_not_as_large_as_the_image(self):
        manager = models()
        with pytest.raises(InputError, match=r"24.*32|32.*24"):
            manager.chain(IMAGE, [Step("erase")], mask=MASK[:-1])
        assert manager.pool.stats().leases == {}

    def test_a_step_whose_required_model_is_missing(self):
        manager = models(OneModel("needs", Tidy, task=CHAIN, requires=["bright", "gone"]))
        with pytest.raises(UnavailableModelError, match="needs requires the model 'gone'"):
            manager.chain(IMAGE, [Step("bright"), Step("needs")])
        assert manager.pool.stats().leases == {}

    def test_progress_has_one_total(self):
        seen = []
        models().chain(
            IMAGE, [Step("bright"), Step("erase"), Step("double")], progress=lambda *step: seen.append(step)
        )
        totals = {total for _, total in seen}
        assert totals == {6}, "three parts, of which the first one has two steps"
        assert [step for step, _ in seen] == sorted(step for step, _ in seen)
        assert {1, 2, 3, 4, 6} <= {step for step, _ in seen}
        assert seen[-1] == (6, 6)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("[", "expected JSON"),
            ("{}", "expected a list of steps, got dict"),
            ('[{"model": "a"}, {"name": "b"}]', "step 2 is"),
            ("[3]", "step 1 is 3, expected a model's name"),
            ('[{"model": 3}]', "expected a model's name.* got 3"),
            ('[{"model": "a", "masks": "some"}]', "masks 'all' or 'best'"),
            ('[{"model": "a", "masks": ["all"]}]', r"masks 'all' or 'best', got 'a', \['all'\]"),
        ],
    )
    def test_a_file_that_holds_none(self, text, told):
        with pytest.raises(RequestError, match=told):
            read_chain(text)


class TestModelsOfTheHost:
    def test_they_are_loaded_once_and_nothing_stays_pinned(self):
        manager = models()
        for _ in range(3):
            assert np.array_equal(manager.process("tidy", IMAGE), doubled(erased(IMAGE)))
        stats = manager.pool.stats()
        assert stats.counts.loads == 4
        assert {str(key): count for key, count in stats.leases.items()} == dict.fromkeys(
            ("tidy", "bright", "erase", "double"), 0
        )

    def test_their_progress_is_part_of_the_whole(self):
        seen = []
        models().process("tidy", IMAGE, progress=lambda *step: seen.append(step))
        assert {total for _, total in seen} == {6}
        assert [step for step, _ in seen] == sorted(step for step, _ in seen)
        assert {1, 2, 3, 4, 6} <= {step for step, _ in seen}
        assert seen[-1] == (6, 6)

    def test_without_parts_each_takes_half_of_what_is_left(self):
        class Twice(Tidy):
            def forward(self, image, parameters):
                self.models.process("double", image)
                return self.models.process("double", image)

        seen = []
        models(OneModel("twice", Twice, task=CHAIN)).run("twice", IMAGE, progress=lambda *step: seen.append(step))
        assert len({total for _, total in seen}) == 1
        assert [step for step, _ in seen] == sorted(step for step, _ in seen)
        assert seen[-1][0] == seen[-1][1]

    def test_it_never_falls_whatever_a_model_reports(self):
        class Back(ImageModel):
            def forward(self, image, parameters):
                for step, total in ((3, 4), (1, 4), (1, 2), (-1, 4), (9, 4), (2, 0)):
                    report_progress(step, total)
                return image

        seen = []
        manager = host(OneModel("back", Back, task=Task.RESTORE))
        manager.process("back", IMAGE, progress=lambda *step: seen.append(step))
        assert seen == [(3, 4), (3, 4), (3, 4), (3, 4), (4, 4), (4, 4)]

    def test_a_chain_takes_one_slot(self):
        manager = models(concurrency=1)
        assert manager.process("tidy", IMAGE).shape == (48, 64, 3)

    @pytest.mark.parametrize("copied", [True, False])
    def test_threads_of_its_own_call_within_the_call(self, copied):
        class Threads(Tidy):
            def forward(self, image, parameters):
                def double(number):
                    report_progress(number, 2)
                    return self.models.process("double", image)

                context = contextvars.copy_context() if copied else contextvars.Context()
                with ThreadPoolExecutor(1) as pool:
                    return pool.submit(context.run, double, 1).result(60)

        seen = []
        manager = models(OneModel("threads", Threads, task=CHAIN), concurrency=1)
        result = manager.run("threads", IMAGE, progress=lambda *step: seen.append(step))
        assert np.array_equal(result.image, doubled(IMAGE))
        assert seen[0] == (1, 2)
        assert seen[-1] == (2, 2)

    def test_what_cancels_the_host_cancels_them(self):
        class StopError(Exception):
            pass

        def progress(step, total):
            if step >= 3:
                raise StopError

        manager = models()
        with pytest.raises(StopError):
            manager.process("tidy", IMAGE, progress=progress)
        assert not any(pins(manager))
        assert np.array_equal(manager.process("tidy", IMAGE), doubled(erased(IMAGE)))

    @pytest.mark.parametrize("progress", [report_progress, lambda step, total: None], ids=["handed on", "its own"])
    def test_one_that_is_told_apart_counts_as_a_part_too(self, progress):
        class Tells(Tidy):
            def forward(self, image, parameters):
                result = self.models.run("erase", image, mask=MASK, progress=progress)
                ended.append(True)
                report_progress(9, 10)
                return result.image

        class StopError(Exception):
            pass

        def stop(step, total):
            raise StopError

        seen, ended = [], []
        manager = models(OneModel("tells", Tells, task=CHAIN))
        manager.run("tells", IMAGE, progress=lambda *step: seen.append(step))
        assert len({total for _, total in seen}) == 1
        assert len({step for step, _ in seen}) > 4
        assert [step for step, _ in seen] == sorted(step for step, _ in seen)
        assert seen[-1][0] == seen[-1][1]
        with pytest.raises(StopError):
            manager.run("tells", IMAGE, progress=stop)
        assert len(ended) == 1, "what is cancelled ends at the next step of the model that is called"
        assert not any(pins(manager))

    def test_two_that_call_each_other_raise(self):
        class Call(Tidy):
            def __init__(self, context, other):
                super().__init__(context)
                self.other = other

            def forward(self, image, parameters):
                return self.models.process(self.other, image)

        manager = host(
            OneModel("a", lambda context: Call(context, "b"), task=CHAIN),
            OneModel("b", lambda context: Call(context, "a"), task=CHAIN),
        )
        with pytest.raises(PoolError, match="a was called within a call of itself: a calls b, which calls a"):
            manager.process("a", IMAGE)

    def test_one_that_is_required_and_missing_is_told_before_anything_is_loaded(self):
        manager = host(OneModel("tidy", Tidy, task=CHAIN, requires=("bright",)))
        with pytest.raises(UnavailableModelError, match=r"tidy requires the model 'bright': No plugin announces"):
            manager.process("tidy", IMAGE)
        assert manager.pool.stats().counts.loads == 0

    def test_one_that_is_required_and_can_not_be_used(self):
        manager = host(
            OneModel("tidy", Tidy, task=CHAIN, requires=("bright",)),
            OneModel("bright", Bright, task=Task.SEGMENT, unavailable="pip install bright"),
        )
        assert {info.name: info.unavailable for info in manager.scan().models} == {
            "tidy": "it requires bright: pip install bright",
            "bright": "pip install bright",
        }
        with pytest.raises(UnavailableModelError, match="tidy can't be used yet: it requires bright: pip install"):
            manager.process("tidy", IMAGE)

    def test_models_that_require_each_other_are_each_looked_at_once(self):
        manager = models(
            OneModel("one", Tidy, task=CHAIN, requires=["two", "one"]),
            OneModel("two", Tidy, task=CHAIN, requires=["one", "bright"]),
        )
        assert {need.model for need in manager.forecast("one").needs} == {"one", "two", "bright"}
        assert manager.run("one", IMAGE).image.shape == (48, 64, 3)

    def test_they_are_forecast_with_it(self):
        needed = models().forecast("tidy")
        assert [need.model for need in needed.needs] == ["tidy", "bright", "erase", "double"]

    def test_a_loader_calls_none(self):
        def load(context):
            context.models.process("double", IMAGE)

        with pytest.raises(PoolError, match="eager calls another model while it is being loaded"):
            models(OneModel("eager", load, task=CHAIN)).process("eager", IMAGE)

    def test_1000_chains_by_8_threads_cancelled_at_random(self):
        class StopError(Exception):
            pass

        manager = models()
        images = [photograph(8, 8 + number, number) for number in range(8)]
        expected = [manager.process("tidy", image) for image in images]
        outcomes = []

        def work(number):
            chance = random.Random(number)
            for turn in range(125):
                last = chance.choice([1, 3, 6, 99])

                def progress(step, total, last=last):
                    if step >= last:
                        raise StopError

                which = (number + turn) % 8
                try:
                    result = manager.process("tidy", images[which], progress=progress)
                except StopError:
                    outcomes.append(True)
                else:
                    outcomes.append(np.array_equal(result, expected[which]))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert outcomes == [True] * 1000
        assert not any(pins(manager))
        assert manager.pool.stats().counts.loads == 4


def test_the_guides_example_is_run():
    guide = (ROOT / "docs" / "plugins.md").read_text().partition("\n## Models that call models\n")[2]
    (code, *_) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    namespace = {"ImageModel": ImageModel, "progress_part": progress_part}
    exec(compile(code, "plugins.md", "exec"), namespace)

    @dataclass(frozen=True)
    class Clicks(ImageParameters):
        """What to find."""

        clicks: tuple[int, ...] = ()
        """Points on it."""

    class Wand(Bright):
        def forward(self, image, parameters):
            return super().forward(image, parameters).masks[0]

    manager = host(
        OneModel("tidy", namespace["Tidy"], task=CHAIN, parameters=Clicks, requires=("wand", "cv2")),
        OneModel("wand", Wand, task=Task.SEGMENT),
        OneModel("cv2", Erase),
    )
    assert np.array_equal(manager.process("tidy", IMAGE)[:, :16], erased(IMAGE)[:, :16])


class TestConcurrency:
    def test_calls_of_one_that_is_bound_to_no_device_run_at_once(self):
        together = threading.Barrier(8)

        class Service(ImageModel):
            concurrency = 8
            device_bound = False

            def forward(self, image, parameters):
                together.wait(60)
                return image

        manager = host(OneModel("service", Service, task=Task.RESTORE), concurrency=1)
        with ThreadPoolExecutor(8) as pool:
            results = [*pool.map(lambda _: manager.process("service", IMAGE), range(8))]
        assert len(results) == 8

    def test_no_more_than_it_says(self):
        running, most = set(), []

        class Two(ImageModel):
            concurrency = 2
            device_bound = False

            def forward(self, image, parameters):
                running.add(threading.get_ident())
                most.append(len(running))
                running.discard(threading.get_ident())
                return image

        manager = host(OneModel("two", Two, task=Task.RESTORE))
        with ThreadPoolExecutor(8) as pool:
            assert len([*pool.map(lambda _: manager.process("two", IMAGE), range(200))]) == 200
        assert max(most) <= 2

    def test_to_wait_for_a_place_that_another_call_will_give_back_is_no_circle(self):
        """Both places are held: one by the call that asks for another, one by a call that ends on its own."""
        ending, asking = threading.Event(), threading.Event()

        class Two(Tidy):
            concurrency = 2
            device_bound = False

            def forward(self, image, parameters):
                if image.shape[1] == 1:
                    return image
                if image.shape[1] == 2:
                    asking.set()
                    assert ending.wait(60)
                    return image
                assert asking.wait(60)
                threading.Thread(target=self.end_once_somebody_waits).start()
                try:
                    return self.models.process("two", image[:, :1])
                finally:
                    ending.set()

            def end_once_somebody_waits(self):
                while not (self.host_models.calls.queue or ending.is_set()):
                    time.sleep(0)
                ending.set()

        manager = host(OneModel("two", Two, task=CHAIN))
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(manager.process, "two", IMAGE[:, :2])
            assert manager.process("two", IMAGE).shape == (24, 1, 3)
            assert other.result(60).shape == (24, 2, 3)

    def test_a_slot_is_given_back_once_no_call_of_the_chain_needs_it(self):
        inner_done, other_done = threading.Event(), threading.Event()

        class Outer(Tidy):
            device_bound = False

            def forward(self, image, parameters):
                image = self.models.process("double", image)
                inner_done.set()
                assert other_done.wait(60)
                return image

        manager = models(OneModel("outer", Outer, task=CHAIN), concurrency=1)
        with ThreadPoolExecutor(1) as pool:
            outer = pool.submit(manager.process, "outer", IMAGE)
            assert inner_done.wait(60)
            manager.segment("bright", IMAGE)
            other_done.set()
            assert outer.result(60).shape == (48, 64, 3)

    def test_one_that_calls_itself_as_often_as_it_may_never_hangs(self):
        class Deep(Tidy):
            concurrency = 3

            def forward(self, image, parameters):
                return image if image.shape[1] <= 1 else self.models.process("deep", image[:, :-1])

        manager = host(OneModel("deep", Deep, task=CHAIN))
        assert manager.process("deep", IMAGE[:, :3]).shape == (24, 1, 3)
        with pytest.raises(PoolError, match="deep was called within a call of itself"):
            manager.process("deep", IMAGE[:, :4])

    @pytest.mark.parametrize("concurrency", [0, -1, "8", None])
    def test_a_number_that_is_none(self, concurrency):
        class Wrong(Double):
            pass

        Wrong.concurrency = concurrency
        with pytest.raises(ModelLoadError, match=r"its concurrency is .*, expected the number of calls"):
            host(OneModel("wrong", Wrong, task=Task.RESTORE)).process("wrong", IMAGE)

    @pytest.mark.parametrize("nbytes", [-5, "10", None, 1.5, float("nan")])
    def test_bytes_that_are_no_number_of_them(self, nbytes):
        class Wrong(Double):
            pass

        Wrong.nbytes = nbytes
        manager = models(OneModel("wrong", Wrong, task=Task.RESTORE))
        with pytest.raises(ModelLoadError, match=r"wrong:wrong .*its nbytes is .*, expected the bytes"):
            manager.process("wrong", IMAGE)
        assert manager.pool.stats().devices["cpu"].used == 0

    @pytest.mark.parametrize(
        ("name", "value"), [("concurrency", 0), ("concurrency", "2"), ("nbytes", "10"), ("nbytes", float("nan"))]
    )
    def test_a_number_that_became_none_is_told_and_nobody_waits_for_ever(self, name, value):
        class Changing(Double):
            nbytes = 10

            def forward(self, image, parameters):
                setattr(self, name, value)
                return image

        manager = models(OneModel("changing", Changing, task=Task.RESTORE), concurrency=1)
        for _ in range(2):
            with pytest.raises(ModelError, match=f"changing:changing: its {name} is .*, expected the"):
                manager.process("changing", IMAGE)
        assert manager.process("double", IMAGE).shape == (48, 64, 3)
        assert manager.pool.stats().devices["cpu"].used == 10
        assert not any(pins(manager))

    def test_bytes_are_looked_at_again_after_a_call(self):
        class Growing(Double):
            nbytes = 10

            def forward(self, image, parameters):
                self.nbytes += 100
                return image

        manager = models(OneModel("growing", Growing, task=Task.RESTORE), pool=ModelPool({"cpu": 300}))
        manager.process("double", IMAGE)
        sizes = []
        for _ in range(3):
            manager.process("growing", IMAGE)
            sizes.append(manager.pool.stats().devices["cpu"].resident)
        assert sizes[:2] == [110, 210]
        assert manager.pool.stats().devices["cpu"].used == 310
        manager.unload("growing")
        assert manager.pool.stats().devices["cpu"].used == 0


class TestCommandLine:
    @pytest.fixture
    def run(self, tmp_path):
        (tmp_path / "plugins").mkdir()
        (tmp_path / "plugins" / "find.py").write_text(
            "import numpy as np\n"
            "from iopaint_core import MaskModel, ModelInfo, Task, hookimpl\n"
            "class Find(MaskModel):\n"
            "    def __init__(self, value): self.value = value\n"
            "    def forward(self, image, parameters):\n"
            "        mask = np.zeros(image.shape[:2], np.uint8); mask[2:5] = self.value; return mask\n"
            "@hookimpl\n"
            "def iopaint_available_models():\n"
            "    return [ModelInfo(name=name, task=Task.SEGMENT) for name in ('find', 'miss')]\n"
            "@hookimpl\n"
            "def iopaint_load_model(info, context): return Find(255 if info.name == 'find' else 0)\n"
        )
        PIL.Image.fromarray(IMAGE).save(tmp_path / "in.png")

        def run(steps, *more):
            (tmp_path / "chain.json").write_text(steps if isinstance(steps, str) else json.dumps(steps))
            files = ("--image", tmp_path / "in.png", "--output", tmp_path / "out.png")
            return command(
                "--plugins-dir", tmp_path / "plugins", "run", "--chain", tmp_path / "chain.json", *files, *more
            )

        return run

    def test_a_chain_from_a_file(self, run, tmp_path):
        done = run(["find", {"model": "cv2", "parameters": {"cv2_radius": 3}}], "--json")
        assert done.returncode == 0, done.stderr
        out = np.asarray(PIL.Image.open(tmp_path / "out.png"))
        assert not np.array_equal(out[2:5], IMAGE[2:5])
        assert np.array_equal(out[5:], IMAGE[5:])
        assert (np.asarray(PIL.Image.open(tmp_path / "out.mask.png"))[2:5] == 255).all()
        (told,) = json.loads(done.stdout)
        assert [step["model"] for step in told["info"]["steps"]] == ["find", "cv2"]

    def test_nothing_found_leaves_the_file_as_it_is(self, run, tmp_path):
        done = run(["miss", "cv2"])
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes() == (tmp_path / "in.png").read_bytes()
        assert "out.png unchanged: nothing was found in it" in done.stderr

    @pytest.mark.parametrize(
        ("steps", "more", "told"),
        [
            ("[", (), "invalid chain: expected JSON"),
            (["cv2"], (), "Step 1 (cv2) takes a mask: none is given"),
            (["find", "cv3"], (), "Step 2 (cv3): No plugin announces a model named cv3. Did you mean cv2?"),
            (["find", "cv2"], ("--model", "cv2"), "--chain names models and their parameters itself"),
        ],
    )
    def test_wrong_use(self, run, steps, more, told):
        done = run(steps, *more)
        assert done.returncode == 2
        assert told in done.stderr


def test_every_error_of_a_chain_is_one_of_ours():
    with pytest.raises(IOPaintError):
        models().chain(IMAGE, [Step("nobody")])
