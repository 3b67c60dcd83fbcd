"""Networks in ONNX files: one session each, what it takes charged, its memory given back, clear errors."""

import time
from collections import UserDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import onnx
import pytest
from conftest import make_plugin, photograph
from onnx import TensorProto, helper, numpy_helper
from onnxfiles import save, save_heavy, save_network, save_wide
from pools import in_child

from iopaint_core import (
    Component,
    IdentityIndex,
    ImageModel,
    LoadContext,
    ModelLoadError,
    ModelManager,
    ModelPool,
    OnnxSession,
    PoolError,
    Task,
    WeightsError,
    hookimpl,
    onnx_component,
)

LAYER = 64 * 512 * 512 * 4
"""Bytes of a value on its way through a network of `save_wide`."""


def picture(side=512):
    return np.random.default_rng(0).random((1, 3, side, side), dtype=np.float32)


def opened(path, **how):
    return onnx_component(path, LoadContext(), **how).load_alone()


def lease(pool, name, component):
    return pool.lease(name, lambda share: share({"network": component}))


def anonymous_bytes():
    resident, backed = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(backed)) * 4096


class Watched(UserDict):
    """Inputs that do something in the middle of a run."""

    def __init__(self, inputs, act):
        super().__init__(inputs)
        self.act = act

    def keys(self):
        self.act()
        return super().keys()


allocated = []
"""What something else holds."""


class Loud(type(Path())):
    """A path with which something else allocates 100 MB whenever it is opened."""

    def __fspath__(self):
        allocated.append(np.ones(100_000_000, np.uint8))
        return str(self)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("small") / "small.onnx", 32)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return save_wide(tmp_path_factory.mktemp("wide") / "wide.onnx")


class TestRun:
    def test_it_takes_and_gives_arrays_by_the_files_names(self, small):
        session = opened(small)
        assert dict(session.inputs) == {"input.1": (1, 3, 32, 32)}
        assert session.outputs == ("matte",)
        (weights,) = (numpy_helper.to_array(tensor) for tensor in onnx.load(small).graph.initializer)
        dot = np.zeros((1, 3, 32, 32), np.float32)
        dot[0, 1, 10, 20] = 1
        (found,) = session.run({"input.1": dot})
        assert found.shape == (1, 1, 32, 32)
        assert np.allclose(found[0, 0, 9:12, 19:22], weights[0, 1, ::-1, ::-1], atol=1e-6)
        assert np.count_nonzero(found) == 9

    def test_eight_threads_share_one_session_and_get_equal_results(self, small):
        pool, image = ModelPool(), picture(32)
        wanted = opened(small).run({"input.1": image})[0]

        def call(number):
            with lease(pool, number % 3, onnx_component(small, context)) as parts:
                return parts["network"].run({"input.1": image})[0]

        context = LoadContext()
        with lease(pool, 0, onnx_component(small, context)), ThreadPoolExecutor(8) as threads:
            results = list(threads.map(call, range(64)))
        assert all(np.array_equal(result, wanted) for result in results)
        assert pool.stats().counts.component_loads == 1

    @pytest.mark.process
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_forked_child_runs_it_and_ends(self, wide):
        pool, image = ModelPool(), picture(64)
        leased = lease(pool, "wide", onnx_component(wide, LoadContext()))
        wanted = leased.model["network"].run({"image": image})[0]

        def check():
            assert np.array_equal(leased.model["network"].run({"image": image})[0], wanted)
            leased.close()
            pool.clear()

        assert in_child(check)
        assert np.array_equal(leased.model["network"].run({"image": image})[0], wanted)

    def test_memory_that_runs_out_is_a_memory_error(self, tmp_path):
        shape = numpy_helper.from_array(np.array([10**13]), "shape")
        given, made = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [size]) for name, size in (("a", 1), ("b", "n"))
        )
        expand = helper.make_node("Expand", ["a", "shape"], ["b"])
        save(helper.make_graph([expand], "huge", [given], [made], [shape]), tmp_path / "huge.onnx")
        with pytest.raises(MemoryError, match="Expand"):
            opened(tmp_path / "huge.onnx").run({"a": np.ones(1, np.float32)})


class TestIdentity:
    def test_equal_files_are_one_component_whatever_their_names_and_the_contexts_dtype(self, small, tmp_path):
        (tmp_path / "other.onnx").write_bytes(small.read_bytes())
        index = IdentityIndex()
        one = onnx_component(small, LoadContext(index=index))
        other = onnx_component(tmp_path / "other.onnx", LoadContext(index=index, dtype="float16"))
        assert one.key == other.key
        changed = save_network(tmp_path / "changed.onnx", 32, seed=1)
        assert one.key != onnx_component(changed, LoadContext(index=index)).key

    def test_execution_providers_are_part_of_it(self, small):
        from onnxruntime import get_available_providers

        components = [onnx_component(small, LoadContext(), provider=name) for name in get_available_providers()]
        assert len({component.key for component in components}) == len(components)
        assert onnx_component(small, LoadContext()).key == next(
            component.key for component in components if component.load_alone().provider == "CPUExecutionProvider"
        )

    def test_weights_in_other_files_are_refused(self, small, tmp_path):
        path = tmp_path / "split.onnx"
        onnx.save(onnx.load(small), path, save_as_external_data=True, location="weights", size_threshold=0)
        with pytest.raises(WeightsError, match=r"split\.onnx keeps weights in other files") as caught:
            opened(path)
        assert "onnx.save" in caught.value.remedy

    def test_metadata_of_the_same_name_are_not(self, small, tmp_path):
        model = onnx.load(small)
        helper.set_model_props(model, {"location": "Berlin"})
        onnx.save(model, tmp_path / "berlin.onnx")
        assert opened(tmp_path / "berlin.onnx").outputs == ("matte",)

    def test_they_are_found_wherever_they_stand(self, tmp_path):
        entry = onnx.StringStringEntryProto(key="location", value="weights" * 100)
        data = TensorProto(data_location=TensorProto.EXTERNAL, external_data=[entry]).SerializeToString()
        path = tmp_path / "split.onnx"
        for before in range(2**20 - 20, 2**20 + 2):
            path.write_bytes(b"\0" * before + data)
            with pytest.raises(WeightsError, match="in other files"):
                OnnxSession(path, "CPUExecutionProvider")

    def test_other_threads_run_while_they_are_looked_for(self, tmp_path):
        data = onnx.StringStringEntryProto(key="location", value="weights").SerializeToString()
        with (tmp_path / "split.onnx").open("wb") as file:
            file.seek(1 << 28)
            file.write(b"j" + bytes([len(data)]) + data)
        over, turns = Event(), []

        def take_turns():
            while not over.is_set():
                turns.append(None)
                time.sleep(0.001)

        with ThreadPoolExecutor(1) as threads:
            threads.submit(take_turns)
            before = len(turns)
            try:
                with pytest.raises(WeightsError, match="in other files"):
                    OnnxSession(tmp_path / "split.onnx", "CPUExecutionProvider")
            finally:
                found = len(turns) - before
                over.set()
        assert found > 10


class TestMemory:
    def test_a_run_is_measured_and_its_memory_goes_back(self, wide):
        session = opened(wide)
        before = session.nbytes
        session.run({"image": picture()})
        assert session.scratch >= LAYER
        assert session.nbytes - before < LAYER / 4

    def test_a_larger_run_is_measured_again_and_a_smaller_one_is_not(self, wide):
        session = opened(wide)
        session.run({"image": picture(256)})
        small = session.scratch
        session.run({"image": picture(512)})
        large = session.scratch
        session.run({"image": picture(256)})
        assert small < large == session.scratch

    def test_what_others_allocate_during_a_run_is_charged_until_quiet_runs_correct_it(self, wide):
        session, image, others = opened(wide), picture(256), []
        idle = session.nbytes
        session.run(Watched({"image": image}, lambda: others.append(np.ones(200_000_000, np.uint8))))
        assert session.scratch >= 200_000_000
        for _ in range(2):
            session.run({"image": image})
        assert LAYER / 4 <= session.scratch < LAYER
        assert session.nbytes - idle <= session.scratch / 4

    def test_what_others_free_during_a_run_is_no_reason_to_charge_less(self, wide):
        session, image, others = opened(wide), picture(256), [np.ones(200_000_000, np.uint8)]
        session.run(Watched({"image": image}, others.clear))
        for _ in range(2):
            session.run({"image": image})
        assert session.scratch >= LAYER / 4

    def test_what_others_allocate_while_it_is_opened_is_not_all_charged(self, small):
        session = OnnxSession(Loud(small), "CPUExecutionProvider")
        allocated.clear()
        assert session.nbytes < 20_000_000

    def test_nothing_waits_for_a_run_that_is_measured(self, small, wide):
        session, image, begun, over = opened(wide), picture(256), Event(), Event()
        with ThreadPoolExecutor(2) as threads:
            running = threads.submit(session.run, Watched({"image": image}, lambda: (begun.set(), over.wait(20))))
            try:
                assert begun.wait(20)
                other = threads.submit(opened, small).result(5)
                assert other.nbytes == 2 * small.stat().st_size, "the estimate"
                meanwhile = threads.submit(opened, wide).result(5)
                threads.submit(meanwhile.run, {"image": image}).result(5)
                assert meanwhile.scratch == 0
            finally:
                over.set()
            running.result(20)
        meanwhile.run({"image": image})
        assert meanwhile.scratch >= LAYER / 4

    def test_the_pool_charges_what_a_call_takes_and_afterwards_what_is_left(self, wide):
        pool = ModelPool({"cpu": 1_000_000_000})
        leased = lease(pool, "wide", onnx_component(wide, LoadContext()))
        session = leased.model["network"]
        with pool.calling(leased):
            session.run({"image": picture()})
        idle = pool.stats().devices["cpu"].used
        assert idle == session.nbytes
        with pool.calling(leased), pool.calling(leased):
            assert pool.stats().devices["cpu"].used == idle + 2 * session.scratch
        assert pool.stats().devices["cpu"].used == idle

    def test_what_is_idle_makes_room_for_a_call(self, wide):
        pool = ModelPool({"cpu": 2 * LAYER})
        leased = lease(pool, "wide", onnx_component(wide, LoadContext()))
        with pool.calling(leased):
            leased.model["network"].run({"image": picture()})
        lease(pool, "idle", Component("idle", bytearray, LAYER)).close()
        assert "idle" in pool
        with pool.calling(leased):
            assert "idle" not in pool
            assert pool.stats().devices["cpu"].used <= 2 * LAYER

    def test_a_managers_calls_are_charged(self, wide, plugins):
        used = []

        class Wide(ImageModel):
            def __init__(self, session):
                self.session = session

            def forward(self, image, parameters):
                used.append(manager.pool.stats().devices["cpu"].used)
                self.session.run({"image": picture()})
                return image

        @hookimpl
        def iopaint_load_model(context):
            return Wide(context.share({"network": onnx_component(wide, context)})["network"])

        plugin = make_plugin("wide", task=Task.RESTORE, iopaint_load_model=iopaint_load_model)
        plugins.register(plugin, "wide")
        with ModelManager(plugins) as manager:
            for _ in range(2):
                manager.process("wide", photograph())
            idle = manager.pool.stats().devices["cpu"].used
        assert used[1] >= idle + LAYER

    def test_its_weights_are_charged_and_given_back(self, tmp_path):
        path = save_heavy(tmp_path / "heavy.onnx")
        size = path.stat().st_size
        pool = ModelPool({"cpu": 10 * size})
        component = onnx_component(path, LoadContext())
        assert component.nbytes >= size, "known before anything is read"
        before = anonymous_bytes()
        leased = lease(pool, "heavy", component)
        assert pool.stats().devices["cpu"].used >= size
        assert anonymous_bytes() - before >= size / 2
        leased.close()
        pool.clear()
        assert pool.stats().devices["cpu"].used == 0
        assert anonymous_bytes() - before < size / 2

    def test_a_closed_session_says_so(self, small):
        session = opened(small)
        session.close()
        with pytest.raises(PoolError, match=r"small\.onnx is closed"):
            session.run({"input.1": picture(32)})


class TestErrors:
    @pytest.mark.parametrize(
        "content", [b"", b"<html>not found</html>" * 50, b"\x08\x08"], ids=["empty", "html", "cut"]
    )
    def test_a_broken_file(self, content, tmp_path):
        (tmp_path / "broken.onnx").write_bytes(content)
        with pytest.raises(WeightsError, match=r"broken\.onnx is no ONNX file that can be used"):
            opened(tmp_path / "broken.onnx")

    @pytest.mark.parametrize(
        ("operator", "opset", "version"), [("Identity", 999, 8), ("Identity", 13, 999), ("Nope", 13, 8)]
    )
    def test_a_network_that_is_too_new(self, operator, opset, version, tmp_path):
        given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("a", "b"))
        graph = helper.make_graph([helper.make_node(operator, ["a"], ["b"])], "new", [given], [made])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version)
        (tmp_path / "new.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(WeightsError, match=r"does not know all that .*new\.onnx asks for") as caught:
            opened(tmp_path / "new.onnx")
        assert "pip install -U onnxruntime" in caught.value.remedy

    def test_a_broken_file_whose_name_speaks_of_opsets(self, tmp_path):
        (tmp_path / "opset17.onnx").write_bytes(b"<html>")
        with pytest.raises(WeightsError, match=r"opset17\.onnx is no ONNX file") as caught:
            opened(tmp_path / "opset17.onnx")
        assert caught.value.remedy == "Get it again"

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(WeightsError, match=r"missing\.onnx"):
            opened(tmp_path / "missing.onnx")

    def test_other_inputs_than_expected(self, small, wide):
        opened(small).check_inputs((1, 3, 32, 32))
        opened(wide).check_inputs((1, 3, 640, 480))
        with pytest.raises(
            WeightsError, match=r"takes 1 x 3 x 64 x 64, found one that takes input\.1 1 x 3 x 32 x 32"
        ):
            opened(small).check_inputs((1, 3, 64, 64))
        with pytest.raises(
            WeightsError, match=r"takes 1 x 3 x 8 x 8 and 1 x 1 x 8 x 8, found one that takes image 1 x 3 x height"
        ):
            opened(wide).check_inputs((1, 3, 8, 8), (1, 1, 8, 8))

    @pytest.mark.parametrize(
        ("device", "provider", "words"),
        [
            (
                "cpu",
                "NoSuchExecutionProvider",
                "the execution provider NoSuchExecutionProvider; it has .*CPUExecutionProvider",
            ),
            ("npu", "", r"an execution provider for npu; it has .*CPUExecutionProvider"),
            (
                "dml:1",
                "",
                r"an execution provider for dml:1 \(DmlExecutionProvider\); it has .*CPUExecutionProvider",
            ),
        ],
    )
    def test_a_provider_that_is_not_installed(self, small, device, provider, words):
        with pytest.raises(ModelLoadError, match=words):
            onnx_component(small, LoadContext(device=device), provider=provider)
