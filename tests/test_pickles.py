"""Components from pickles of tensors: the same as from safetensors, and nothing in them is run."""

import io
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file
from weights import digest, held

from iopaint_core import (
    IdentityIndex,
    InputError,
    LoadContext,
    TensorFiles,
    WeightsError,
    footprint,
    module_component,
)

pytestmark = pytest.mark.torch


class Net(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.first = torch.nn.Linear(3, width)
        self.last = torch.nn.Linear(width, 3)
        self.register_buffer("mean", torch.tensor([0.25, 0.5, 0.75]))
        self.register_buffer("step", torch.tensor([0.5]), persistent=False)


def net_of(tensors):
    """What a library does that tells the architecture from the state dict."""
    net = Net(tensors["first.weight"].shape[0])
    net.load_state_dict(tensors)
    return net


def scaled_net_of(tensors):
    """The same for a layout with other values under one of the names."""
    return net_of({**tensors, "first.bias": tensors["first.bias"] * 2})


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return Net().state_dict()


@pytest.fixture
def context():
    return LoadContext(index=IdentityIndex())


def save(state, path, **options):
    torch.save(state, path, **options)
    return path


def load(path, context=None, **options):
    return module_component(Net, path, context or LoadContext(), config={}, **options)


def mapped_files():
    return {each.path for each in psutil.Process().memory_maps()}


def prefixed(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


LAYOUTS = {
    "bare": lambda state: state,
    "averaged": lambda state: {"params": {"a": torch.ones(1)}, "params_ema": state},
    "Lightning's": lambda state: {"epoch": 3, "state_dict": state, "lr_schedulers": [{"last": 0.5}]},
    "parallel": lambda state: {"model": prefixed(state)},
    "under a name of its own": lambda state: {"g_ema": state},
    "wrapped twice": lambda state: {"state_dict": {"net": state}},
    "parameters": lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()},
    "with more than tensors": lambda state: {**state, "version": "1.0"},
}


class TestIdentity:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_same_tensors_are_held_once_however_they_were_saved(self, state, context, tmp_path, layout, zipped):
        save_file(state, tmp_path / "a.safetensors")
        path = save(LAYOUTS[layout](state), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        parts = [load(path, context), load(tmp_path / "a.safetensors", context)]
        assert held(*parts) == 1
        assert digest(parts[0].load_alone()) == digest(parts[1].load_alone())

    def test_other_tensors_are_not(self, state, context, tmp_path):
        other = {**state, "mean": state["mean"] + 1}
        parts = [load(save(each, tmp_path / f"{i}.pth"), context) for i, each in enumerate((state, other))]
        assert held(*parts) == 2

    @pytest.mark.parametrize("suffix", ["pt", "ckpt", "bin", "PTH"])
    def test_other_suffixes(self, state, context, tmp_path, suffix):
        path = save(state, tmp_path / f"a.{suffix}")
        assert held(load(path, context), load(save(state, tmp_path / "b.pth"), context)) == 1

    def test_tensors_that_share_their_storage(self, context, tmp_path):
        """Views of one storage, contiguous or not, are what a copy of them is."""
        base = torch.arange(24.0).reshape(2, 3, 4)
        views = {
            "a": base[0],
            "b": base[1].T,
            "c": base[0, 0],
            "d": base[0, 0, 0].expand(1, 1),
            "e": base[0, 0, :0],
        }
        save(views, tmp_path / "a.pth")
        save_file({name: tensor.clone().contiguous() for name, tensor in views.items()}, tmp_path / "a.safetensors")
        files = [TensorFiles((tmp_path / name,)) for name in ("a.pth", "a.safetensors")]
        assert files[0].specs == files[1].specs
        assert len({context.index.name(each) for each in files}) == 1


class TestLoading:
    def test_forks_share_what_is_mapped_from_the_file(self, state, tmp_path):
        path = save(state, tmp_path / "a.pth")
        canonical = load(path).load()
        one, two = canonical.fork(), canonical.fork()
        assert one.first.weight.data_ptr() == two.first.weight.data_ptr()
        assert one.mean.data_ptr() != two.mean.data_ptr()
        assert str(path) in mapped_files()

    def test_a_file_that_was_compressed_is_read_as_well(self, state, tmp_path):
        source = save(state, tmp_path / "a.pth")
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        assert digest(load(tmp_path / "b.pth").load_alone()) == digest(load(source).load_alone())

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_weights_are_cast(self, state, tmp_path, dtype):
        part = load(save({"params": state}, tmp_path / "a.pth"), dtype=dtype)
        net = part.load_alone()
        assert torch.equal(net.first.weight, state["first.weight"].to(getattr(torch, dtype)))
        assert part.nbytes == footprint([net]) - net.step.nbytes

    def test_every_dtype_has_its_size_before_it_is_read(self, tmp_path):
        dtypes = "float64 float32 float16 bfloat16 complex64 int64 int32 int16 int8 uint8 bool uint16 float8_e5m2"
        tensors = {name: torch.zeros(2, 3).to(getattr(torch, name)) for name in dtypes.split()}
        specs = TensorFiles((save(tensors, tmp_path / "a.pth"),)).specs
        save_file(tensors, tmp_path / "a.safetensors")
        assert specs == TensorFiles((tmp_path / "a.safetensors",)).specs

    @pytest.mark.process
    def test_names_and_sizes_are_told_without_torch(self, state, tmp_path):
        for zipped in (True, False):
            path = save({"params": state}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
            code = (
                "import sys; from pathlib import Path; from iopaint_core import TensorFiles; "
                "print(*TensorFiles((Path(sys.argv[1]),)).specs); print({'torch', 'numpy'} & sys.modules.keys())"
            )
            done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
            assert done.stdout == f"{' '.join(state)}\nset()\n"


class Runs:
    """Pickled as a call that makes a folder."""

    def __init__(self, folder):
        self._folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self._folder),)


HOSTILE = {
    "nested key": b"}N" + b"\x85" * 200_000 + b"Ns.",
    "nested key in an OrderedDict": b"ccollections\nOrderedDict\n(]N" + b"\x85" * 200_000 + b"N\x86atR.",
    "nested key of a full dict": b"(N" + b"\x85" * 200_000 + b"Nd.",
    "nested in a set": b"\x8f(N" + b"\x85" * 200_000 + b"\x90.",
    "nested in a frozenset": b"(N" + b"\x85" * 200_000 + b"\x91.",
    "key of 2 to the 50th parts": b"}N" + b"2\x86" * 50 + b"Ns.",
    "far index of the memo": b"Nr" + (30_000_000).to_bytes(4, "little"),
    "long array": b"\x96" + (1 << 30).to_bytes(8, "little"),
}
"""Pickles by what their reader could fall for."""


def written(data, path, *, zipped):
    """Put a pickle where torch has that of the state dict."""
    data = b"\x80\x02" + data
    if not zipped:
        path.write_bytes(b"\x80\x02N." * 3 + data)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
    return path


class TestBadFiles:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
    def test_one_that_wants_to_run_code_is_refused_and_does_not(self, state, tmp_path, zipped):
        content = {**state, "note": Runs(tmp_path / "made")}
        path = save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        assert set(TensorFiles((path,)).specs) == set(state)
        with pytest.raises(WeightsError, match=r"a\.pth refers to \w+\.mkdir, and could run code.*safetensors"):
            load(path).load_alone()
        assert not (tmp_path / "made").exists()

    def test_a_whole_module_is_refused(self, tmp_path):
        with pytest.raises(WeightsError, match=r"a\.pth holds no tensors by name, but a Linear"):
            load(save(torch.nn.Linear(2, 2), tmp_path / "a.pth"))

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
    @pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.95])
    def test_one_that_is_cut_off(self, state, tmp_path, part, zipped):
        path = save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
        with pytest.raises(WeightsError, match=r"a\.pth can't be read as a pickle of tensors: .*get it again"):
            load(path).load_alone()

    @pytest.mark.parametrize("content", [b"no pickle", pickle.dumps([1, 2]), b"PK\x03\x04", b"<html>"])
    def test_one_that_is_something_else(self, tmp_path, content):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(WeightsError, match=r"a\.pth can't be read as a pickle of tensors"):
            load(tmp_path / "a.pth")

    @pytest.mark.parametrize(
        "content", [{}, [torch.ones(1)], torch.ones(1), {"state_dict": {}}, {1: torch.ones(1)}, {"epoch": 3}]
    )
    def test_one_without_a_state_dict(self, tmp_path, content):
        with pytest.raises(WeightsError, match=r"holds no tensors by name, but .*: .*params_ema"):
            load(save(content, tmp_path / "a.pth"))

    def test_one_that_holds_itself(self, tmp_path):
        content = OrderedDict()
        content["model"] = content
        with pytest.raises(WeightsError, match="holds no tensors by name, but model"):
            load(save(content, tmp_path / "a.pth"))

    @pytest.mark.parametrize("size", [-1, 2.5, "2", None])
    def test_one_whose_shapes_are_none(self, tmp_path, size):
        """Written by hand, as an attacker would: torch is not asked before its own reader is."""
        data = io.BytesIO()
        pickler = pickle.Pickler(data, protocol=2)
        pickler.dump({"a": Fake(size)})
        with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
            archive.writestr("a/data.pkl", data.getvalue())
        with pytest.raises(WeightsError, match="can't be read as a pickle of tensors"):
            load(tmp_path / "a.pth")

    def test_a_dtype_that_no_component_has(self, tmp_path):
        with pytest.raises(WeightsError, match=r"has a in ComplexDoubleStorage, expected one of float64"):
            load(save({"a": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "a.pth"))

    def test_what_is_no_file(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.pth")
        with pytest.raises(WeightsError, match=r"pipe\.pth is not a regular file"):
            TensorFiles((tmp_path / "pipe.pth",)).specs  # noqa: B018
        with pytest.raises(
            WeightsError, match=r"can't be read: No such file.*Check that it exists and is readable"
        ):
            TensorFiles((Path("gone.pth"),)).specs  # noqa: B018

    @pytest.mark.process
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
    def test_ones_that_would_end_the_process_or_take_its_memory_or_time(self, tmp_path, zipped):
        paths = [written(data, tmp_path / f"{i}.pth", zipped=zipped) for i, data in enumerate(HOSTILE.values())]
        code = (
            "import sys, resource, psutil; from pathlib import Path\n"
            "from iopaint_core import TensorFiles, WeightsError\n"
            "room = psutil.Process().memory_info().vms + 200_000_000\n"
            "resource.setrlimit(resource.RLIMIT_AS, (room, room))\n"
            "resource.setrlimit(resource.RLIMIT_CPU, (10, 10))\n"
            "for path in sys.argv[1:]:\n"
            "    try: TensorFiles((Path(path),)).specs\n"
            "    except WeightsError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        found = [
            line.partition(" can't be read as a pickle of tensors: ")[::2] for line in done.stdout.splitlines()
        ]
        assert [name for name, _ in found] == [*map(str, paths)]
        assert "MemoryError" not in done.stdout

    def test_one_whose_pickle_never_ends_is_not_read_as_a_whole(self, tmp_path):
        path = tmp_path / "a.pth"
        path.write_bytes(b"\x80\x02X\xff\xff\xff\x7f")
        os.truncate(path, 300_000_000)  # a hole
        tracemalloc.start()
        try:
            with pytest.raises(WeightsError, match=r"pickles end nowhere in its first 64000000 bytes"):
                TensorFiles((path,)).specs  # noqa: B018
            assert tracemalloc.get_traced_memory()[1] < 250_000_000
        finally:
            tracemalloc.stop()

    def test_many_tensors_of_before_torch_1_6(self, tmp_path):
        """The pickle is longer than what is read of it at first."""
        tensors = {f"{i}{'name' * 1000}": torch.ones(1) for i in range(300)}
        path = save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
        assert list(TensorFiles((path,)).specs) == list(tensors)

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_dicts_and_sets_of_all_protocols(self, state, tmp_path, protocol):
        note = {(1, "a"): {1, 2}, "b": frozenset("b"), "c": bytearray(b"c"), 4: 2.5}
        path = save({"state_dict": state, "note": note}, tmp_path / "a.pth", pickle_protocol=protocol)
        assert set(TensorFiles((path,)).specs) == set(state)

    def test_a_folder_with_a_pickle_alone_says_what_to_do(self, state, tmp_path):
        save(state, tmp_path / "model.PTH")
        with pytest.raises(WeightsError, match=r"model\.PTH is a pickle.*save_file"):
            TensorFiles.find(tmp_path)

    def test_an_error_without_a_message_ends_in_no_colon(self, tmp_path):
        path = tmp_path / "a.pth"
        with zipfile.ZipFile(path, "w") as archive:  # without a pickle
            archive.writestr("a/none", b"")
        with pytest.raises(WeightsError, match=r"pickle of tensors: StopIteration\. "):
            TensorFiles((path,)).specs  # noqa: B018

    def test_weights_of_another_module_say_so(self, state, tmp_path):
        with pytest.raises(WeightsError, match=r"does not fit Net.*belong to different models"):
            load(save(Net(8).state_dict(), tmp_path / "a.pth")).load_alone()


class Fake:
    def __init__(self, size):
        self._size = size

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (torch.FloatStorage, 0, (self._size,), (1,), False, OrderedDict())


class TestFactory:
    def test_the_module_is_made_from_its_tensors_and_they_stay_mapped(self, state, context, tmp_path):
        save_file(state, tmp_path / "a.safetensors")
        path = save({"params_ema": state}, tmp_path / "a.pth")
        part, other = (module_component(net_of, source, context) for source in (path, tmp_path / "a.safetensors"))
        canonical = part.load()
        assert str(path) in mapped_files()
        assert footprint([canonical.module]) == part.nbytes + canonical.module.step.nbytes
        assert digest(canonical.module) == digest(net_of(state))
        assert not canonical.module.training
        assert not any(each.requires_grad for each in canonical.module.parameters())
        assert held(part, other) == 1

    def test_two_functions_and_a_class_make_components_of_their_own(self, state, context, tmp_path):
        path = save(state, tmp_path / "a.pth")
        parts = [module_component(make, path, context) for make in (net_of, scaled_net_of)]
        assert held(*parts, load(path, context)) == 3

    def test_what_it_changed_stays_changed(self, state, tmp_path):
        net = module_component(scaled_net_of, save(state, tmp_path / "a.pth"), LoadContext()).load_alone()
        assert torch.equal(net.first.bias, state["first.bias"] * 2)
        assert torch.equal(net.first.weight, state["first.weight"])

    def test_weights_are_cast_with_buffers_and_all(self, state, tmp_path):
        path = save(state, tmp_path / "a.pth")
        net = module_component(net_of, path, LoadContext(dtype="float16")).load_alone()
        assert {tensor.dtype for tensor in (*net.parameters(), *net.buffers())} == {torch.float16}

    def test_random_numbers_of_the_process_go_on_as_they_were(self, state, tmp_path):
        part = module_component(net_of, save(state, tmp_path / "a.pth"), LoadContext())
        before = torch.get_rng_state()
        part.load_alone()
        assert torch.equal(torch.get_rng_state(), before)

    def test_tensors_that_make_no_module_say_so(self, tmp_path):
        part = module_component(net_of, save({"a": torch.ones(1)}, tmp_path / "a.pth"), LoadContext())
        with pytest.raises(WeightsError, match=r"net_of makes no module of .*a\.pth: KeyError: 'first\.weight'"):
            part.load_alone()

    def test_memory_that_runs_out_is_an_error_of_memory(self, state, tmp_path):
        part = module_component(too_large, save(state, tmp_path / "a.pth"), LoadContext())
        with pytest.raises(MemoryError):
            part.load_alone()

    def test_memory_that_runs_out_as_it_is_cast_is_an_error_of_memory(self, state, tmp_path):
        part = module_component(wide, save(state, tmp_path / "a.pth"), LoadContext(dtype="float16"))
        with pytest.raises(MemoryError):
            part.load_alone()

    @pytest.mark.parametrize(("dtype", "copies"), [(None, 2), ("float32", 2), ("float16", 2.5)])
    def test_room_is_kept_for_file_and_module_and_cast(self, state, tmp_path, dtype, copies):
        stored = sum(tensor.nbytes for tensor in state.values())
        part = module_component(net_of, save(state, tmp_path / "a.pth"), LoadContext(dtype=dtype))
        assert part.reserved == copies * stored

    @pytest.mark.parametrize("factory", [lambda tensors: Net(), Runs("x").__reduce__])
    def test_one_without_a_name_of_its_own_is_refused(self, state, tmp_path, factory):
        path = save(state, tmp_path / "a.pth")
        with pytest.raises(InputError, match="makes no component: expected a class, or a named function"):
            module_component(factory, path, LoadContext(), **({} if "lambda" in repr(factory) else {"config": {}}))


class Wide(torch.nn.Module):
    """Takes no memory until it is cast."""

    def __init__(self):
        super().__init__()
        self.register_buffer("wide", torch.ones(1).expand(1 << 50))


def wide(tensors):
    return Wide()


def too_large(tensors):
    return torch.empty(1 << 60)
