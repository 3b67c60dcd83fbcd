"""Equal weights are held once, wherever they lie and whatever they are called; unequal ones never."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading

import checkpointfiles
import numpy as np
import pytest
import torch
import weights
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import in_thread, watched
from safetensors.torch import load_file, save, save_file
from transformers import CLIPTextModel
from weights import VAE_FILE, held, hub_cache, make_vae, rewrite, save_model

from iopaint_core import (
    IdentityIndex,
    InputError,
    LoadContext,
    ModelPool,
    TensorFiles,
    WeightsError,
    file_component,
    module_component,
)
from iopaint_core.identity import digest

pytestmark = pytest.mark.torch


@pytest.fixture
def context():
    return LoadContext(index=IdentityIndex())


@pytest.fixture
def model(tmp_path):
    return save_model(tmp_path / "one")


@pytest.fixture
def vae(context):
    """Makes a component of a VAE, of a folder, a file or some tensors."""
    return lambda source, **options: module_component(AutoencoderKL, source, context, **options)


def copied(model, name="two"):
    return shutil.copytree(model, model.parent / name)


class Typed(torch.nn.Module):
    def __init__(self, model_type="plain", activation=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(2, 2))
        self.factor = 2 if model_type == "double" else 1


class TestHeldOnce:
    def test_in_two_repositories(self, tmp_path, vae):
        one, two = save_model(tmp_path / "runwayml"), save_model(tmp_path / "someone")
        assert held(vae(one / "vae"), vae(two / "vae")) == 1

    def test_in_a_copied_folder(self, model, vae):
        assert held(vae(model / "vae"), vae(copied(model) / "vae")) == 1

    def test_behind_links(self, model, vae):
        (model.parent / "link").symlink_to(model)
        os.link(model / "vae" / VAE_FILE, model / "hard.safetensors")
        config = json.loads((model / "vae" / "config.json").read_text())
        hard = vae(model / "hard.safetensors", config=config)
        assert held(vae(model / "vae"), vae(model.parent / "link" / "vae"), hard) == 1

    def test_in_a_cache_of_hugging_face_and_a_folder(self, model, vae):
        snapshot = hub_cache(model.parent / "hub", model)
        other = hub_cache(model.parent / "hub", model, "c/d")
        assert held(vae(snapshot / "vae"), vae(model / "vae"), vae(other / "vae")) == 1

    def test_in_a_single_file_that_holds_other_components_too(self, model, vae):
        tensors = {f"vae.{name}": tensor for name, tensor in load_file(model / "vae" / VAE_FILE).items()}
        text = load_file(model / "text_encoder" / "model.safetensors")
        tensors.update({f"text.{name}": tensor for name, tensor in text.items()})
        save_file(tensors, model / "all.safetensors")
        config = json.loads((model / "vae" / "config.json").read_text())
        within = vae(TensorFiles((model / "all.safetensors",), prefix="vae."), config=config)
        assert held(within, vae(model / "vae")) == 1

    def test_in_shards(self, model, vae, tmp_path):
        make_vae().save_pretrained(tmp_path / "sharded", max_shard_size="300KB")
        assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
        assert held(vae(tmp_path / "sharded"), vae(model / "vae")) == 1

    def test_in_another_layout(self, model, vae):
        """As in checkpoints of before diffusers: other names, and projections as convolutions of 1 x 1."""

        def flat(name):
            return "to_" in name and name.endswith("weight")

        tensors = load_file(model / "vae" / VAE_FILE)
        original = {
            f"first_stage_model.{name.upper()}": tensor[..., None, None] if flat(name) else tensor
            for name, tensor in tensors.items()
        }
        save_file(original, model / "original.safetensors")

        def convert(found):
            names = {name: name.removeprefix("first_stage_model.").lower() for name in found}
            return {
                names[name]: tensor[..., 0, 0] if flat(names[name]) else tensor for name, tensor in found.items()
            }

        files = TensorFiles(
            (model / "original.safetensors",), prefix="first_stage_model.", convert=convert, layout="o"
        )
        config = json.loads((model / "vae" / "config.json").read_text())
        assert held(vae(files, config=config), vae(model / "vae")) == 1

    def test_with_and_without_the_prefix_that_all_names_share(self, model, context):
        """Published `CLIPTextModel`s have one that transformers 5 does not save, and a buffer of positions."""
        two = copied(model)

        def published(tensors):
            named = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in tensors.items()}
            return named | {"text_model.embeddings.position_ids": torch.arange(77)[None]}

        rewrite(two / "text_encoder" / "model.safetensors", published)
        components = [module_component(CLIPTextModel, one / "text_encoder", context) for one in (model, two)]
        assert held(*components) == 1
        values = [weights.read(component.load_alone()) for component in components]
        assert torch.equal(*values)

    def test_when_configs_differ_in_what_says_nothing_of_the_module(self, model, vae):
        two = copied(model)
        path = two / "vae" / "config.json"
        config = json.loads(path.read_text())
        config.update({"_diffusers_version": "0.1.0", "_name_or_path": "somewhere/else"})
        del config["layers_per_block"]  # its default is written out in the other
        path.write_text(json.dumps(config))
        assert held(vae(model / "vae"), vae(two / "vae")) == 1

    def test_when_the_digests_of_both_are_known(self, model, tmp_path):
        one, two = (TensorFiles.find(each / "vae") for each in (model, copied(model)))
        before = IdentityIndex(tmp_path / "digests.sqlite")
        before.digest_later(two)
        before.wait()
        index = IdentityIndex(tmp_path / "digests.sqlite")
        name = index.name(one)
        index.digest_later(one)
        index.wait()
        assert index.name(two) == name

    @pytest.mark.parametrize("dtype", [None, "float32"])
    def test_when_a_cast_would_change_nothing(self, model, vae, dtype):
        assert vae(model / "vae").key == vae(model / "vae", dtype=dtype).key

    def test_on_a_device_by_either_of_its_names(self, model):
        index = IdentityIndex()
        first, second = (
            module_component(AutoencoderKL, model / "vae", LoadContext(device=device, index=index)).key
            for device in ("cuda", "cuda:0")
        )
        assert first == second

    def test_as_one_file_of_any_kind(self, tmp_path, context):
        for name in ("a.onnx", "b.onnx", "c.onnx"):
            (tmp_path / name).write_bytes(b"session" * 1000)
        (tmp_path / "c.onnx").write_bytes(b"another" * 1000)
        parts = [
            file_component(path, lambda path: [path.read_bytes()], context, kind="ONNX")
            for path in sorted(tmp_path.iterdir())
        ]
        assert held(*parts[:2]) == 1
        assert held(*parts) == 2


class TestHeldTwice:
    def test_if_one_byte_differs(self, model, vae):
        two = copied(model)
        path = two / "vae" / VAE_FILE
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert held(vae(model / "vae"), vae(two / "vae")) == 2

    def test_if_files_in_folders_of_blobs_have_a_name_that_is_no_sha256(self, tmp_path, context):
        for folder, value in (("one", 1), ("two", 2)):
            (tmp_path / folder / "blobs").mkdir(parents=True)
            save_file({"a": torch.full((4,), value)}, tmp_path / folder / "blobs" / "cafe")
        names = [context.index.name(TensorFiles((tmp_path / one / "blobs" / "cafe",))) for one in ("one", "two")]
        assert names[0] != names[1]

    @settings(max_examples=25)
    @given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def test_wherever_the_byte_is(self, tmp_path_factory, where, bit):
        folder = tmp_path_factory.mktemp("bytes")
        values = torch.arange(20_000, dtype=torch.int32)
        save_file({"a": values, "b": values + 1}, folder / "one.safetensors")
        content = bytearray((folder / "one.safetensors").read_bytes())
        start = len(content) - 2 * values.numel() * 4
        content[start + int(where * (len(content) - start))] ^= 1 << bit
        (folder / "two.safetensors").write_bytes(content)
        one, two = (TensorFiles((folder / f"{name}.safetensors",)) for name in ("one", "two"))
        index = IdentityIndex()
        assert index.name(one) != index.name(two)
        assert digest(one) != digest(two)

    def test_if_a_byte_at_the_edge_of_what_is_read_at_once_differs(self, tmp_path, context):
        edges = [(1 << power) + off for power in range(12, 22) for off in (-1, 0)]
        for edge in (None, *edges):
            values = torch.zeros((1 << 21) + 1, dtype=torch.uint8)
            values[edge:][:1] = 0 if edge is None else 1
            save_file({"a": values}, tmp_path / f"{edge}.safetensors")
        files = [TensorFiles((tmp_path / f"{edge}.safetensors",)) for edge in (None, *edges)]
        assert len({context.index.name(each) for each in files}) == len(files)
        assert len({digest(each) for each in files}) == len(files)

    def test_if_the_dtype_differs(self, model, vae):
        two = copied(model)
        rewrite(
            two / "vae" / VAE_FILE,
            lambda tensors: {name: tensor.to(torch.float16) for name, tensor in tensors.items()},
        )
        assert held(vae(model / "vae"), vae(two / "vae")) == 2
        assert held(vae(model / "vae"), vae(model / "vae", dtype="float16")) == 2

    def test_if_one_value_of_the_config_differs(self, model, vae):
        two = copied(model)
        path = two / "vae" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "norm_num_groups": 4}))
        assert held(vae(model / "vae"), vae(two / "vae")) == 2

    def test_if_they_are_other_parts_of_one_layout(self, tmp_path):
        save_file({"0.w": torch.zeros(4), "1.w": torch.ones(4)}, tmp_path / "both.safetensors")
        index = IdentityIndex()

        def part(number):
            return TensorFiles(
                (tmp_path / "both.safetensors",),
                convert=lambda tensors: {"w": tensors[f"{number}.w"]},
                layout=f"number {number}",
            )

        assert index.name(part(0)) != index.name(part(1))
        assert index.name(part(0)) == index.name(part(0))
        with pytest.raises(InputError, match="a layout without a name"):
            TensorFiles((tmp_path / "both.safetensors",), convert=dict)

    def test_if_they_are_other_parts_of_one_blob_of_hugging_face(self, tmp_path, context):
        (tmp_path / "source").mkdir()
        save_file({"a.w": torch.zeros(4), "b.w": torch.ones(4)}, tmp_path / "source" / "both.safetensors")
        file = hub_cache(tmp_path / "hub", tmp_path / "source") / "both.safetensors"
        names = [context.index.name(TensorFiles((file,), prefix=prefix)) for prefix in ("a.", "b.", "a.")]
        assert names[0] == names[2] != names[1]

    def test_if_a_class_that_is_not_of_transformers_reads_what_that_writes(self, tmp_path, context):
        save_file({"weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
        one, two = (
            module_component(Typed, tmp_path / "model.safetensors", context, config={"model_type": model_type})
            for model_type in ("plain", "double")
        )
        assert held(one, two) == 2
        assert (one.load_alone().factor, two.load_alone().factor) == (1, 2)

    def test_if_functions_in_the_config_differ(self, tmp_path, context):
        save_file({"weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")

        def layer(activation):
            config = {"activation": activation}
            return module_component(Typed, tmp_path / "model.safetensors", context, config=config)

        assert layer(torch.relu).key == layer(torch.relu).key != layer(torch.sigmoid).key
        for activation in (np.zeros(3), lambda x: x):
            with pytest.raises(WeightsError, match="it can't be told whether another one is equal"):
                layer(activation)

    def test_if_the_class_differs(self, model, context):
        class Another(AutoencoderKL):
            pass

        one, two = (module_component(cls, model / "vae", context) for cls in (AutoencoderKL, Another))
        assert held(one, two) == 2

    def test_if_a_file_is_replaced_under_its_name(self, model, vae):
        before = vae(model / "vae")
        assert vae(model / "vae").key == before.key
        make_vae(seed=1).save_pretrained(model / "new")
        (model / "new" / VAE_FILE).replace(model / "vae" / VAE_FILE)
        after = vae(model / "vae")
        assert after.key != before.key
        with pytest.raises(WeightsError, match="was replaced just before it was loaded"):
            before.load_alone()
        assert torch.equal(weights.encoded(after.load_alone()), weights.encoded(make_vae(seed=1)))

    def test_a_file_with_what_it_held_before_is_loaded_at_the_next_attempt(self, model, vae):
        before, pool = vae(model / "vae"), ModelPool()
        path = model / "vae" / VAE_FILE
        path.with_name("copy").write_bytes(path.read_bytes())
        path.with_name("copy").replace(path)
        with pytest.raises(WeightsError, match="was replaced"):
            pool.lease("a", lambda share: share({"vae": before}))
        with pool.lease("a", lambda share: share({"vae": vae(model / "vae")})) as parts:
            assert torch.equal(weights.encoded(parts["vae"]), weights.encoded(make_vae()))

    def test_if_a_file_is_written_into_in_place(self, model, vae):
        before = vae(model / "vae").key
        with (model / "vae" / VAE_FILE).open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\0\0\0\0")
        assert vae(model / "vae").key != before


def test_a_sound_file_is_named_though_another_was_replaced_since(tmp_path):
    index = IdentityIndex()
    path = tmp_path / "one.safetensors"
    save_file({"a": torch.ones(4)}, path)
    index.name(TensorFiles((path,)))
    save_file({"b": torch.ones(9)}, tmp_path / "new")
    (tmp_path / "new").replace(path)
    index.name(TensorFiles((path,)))
    save_file({"a": torch.ones(4)}, tmp_path / "two.safetensors")
    assert index.name(TensorFiles((tmp_path / "two.safetensors",)))


def test_a_sound_file_is_named_though_another_goes_while_they_are_compared(tmp_path, context):
    class Going(TensorFiles):
        def content(self):
            self.paths[0].unlink()
            return super().content()

    for name in ("one", "two"):
        save_file({"a": torch.ones(4)}, tmp_path / f"{name}.safetensors")
    names = {
        context.index.name(files((tmp_path / f"{name}.safetensors",)))
        for name, files in (("one", Going), ("two", TensorFiles))
    }
    assert len(names) == 2


def test_a_file_that_is_rewritten_many_times_is_remembered_once(tmp_path):
    index = IdentityIndex()
    for i in range(50):
        save_file({"a": torch.full((4,), i)}, tmp_path / "new")
        (tmp_path / "new").replace(tmp_path / "one.safetensors")
        index.name(TensorFiles((tmp_path / "one.safetensors",)))
    assert sum(map(len, index._seen.values())) == 1


def test_headers_tell_without_reading_that_weights_differ(model, context, tmp_path, monkeypatch):
    make_vae(latent_channels=8).save_pretrained(tmp_path / "other")
    monkeypatch.setattr(TensorFiles, "open", lambda self: pytest.fail("content was read"))
    one, two = (module_component(AutoencoderKL, folder, context) for folder in (model / "vae", tmp_path / "other"))
    assert one.key != two.key
    assert one.nbytes == sum(tensor.nbytes for tensor in load_file(model / "vae" / VAE_FILE).values())


def test_a_blob_of_hugging_face_is_known_by_its_name_alone(model, context, monkeypatch):
    snapshots = [hub_cache(model.parent / "hub", model, name) for name in ("a/b", "c/d")]
    monkeypatch.setattr(TensorFiles, "open", lambda self: pytest.fail("content was read"))
    one, two = (module_component(AutoencoderKL, snapshot / "vae", context).key for snapshot in snapshots)
    assert one == two


class TestMemory:
    @pytest.fixture
    def files(self, model):
        return [TensorFiles.find(one / "vae") for one in (model, copied(model))]

    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "cache" / "digests.sqlite"

    def taken(self, path, *files):
        index = IdentityIndex(path)
        for each in files:
            index.name(each)
            index.digest_later(each)
        index.wait()

    def test_another_process_knows_without_reading(self, files, path, monkeypatch):
        self.taken(path, *files)
        expected = digest(files[0])
        monkeypatch.setattr(TensorFiles, "open", lambda self: pytest.fail("content was read"))
        index = IdentityIndex(path)
        assert index.name(files[0]) == index.name(files[1]) == expected

    def test_a_file_that_changed_is_read_again(self, files, path):
        self.taken(path, *files)
        rewrite(files[0].paths[0], lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()})
        index = IdentityIndex(path)
        assert index.name(TensorFiles(files[0].paths)) != index.name(files[1])

    def test_a_file_that_changes_often_takes_no_more_room(self, path, tmp_path):
        for i in range(3):
            rewritten = save({"a": torch.full((4,), i)})
            (tmp_path / "a.safetensors").write_bytes(rewritten)
            self.taken(path, TensorFiles((tmp_path / "a.safetensors",)))
        with contextlib.closing(sqlite3.connect(path)) as memory:
            assert memory.execute("SELECT COUNT(*) FROM digests").fetchone() == (1,)

    def test_weights_of_which_none_can_be_taken_cost_the_next_nothing(self, files, path, caplog):
        class Odd(TensorFiles):
            def content(self):
                raise RuntimeError("no content")

        index = IdentityIndex(path)
        index.digest_later(Odd(files[0].paths))
        index.digest_later(files[1])
        in_thread(index.wait)()
        assert IdentityIndex(path).name(files[1]).startswith("sha256:")
        assert "No digest was taken of" in caplog.text

    def test_it_may_be_deleted_at_any_time(self, files, path):
        index = IdentityIndex(path)
        self.taken(path, *files)
        path.unlink()
        assert index.name(files[0]) == index.name(files[1])
        self.taken(path, *files)
        assert path.stat().st_size

    @pytest.mark.parametrize("content", [b"", b"not a database" * 100])
    def test_a_damaged_one_is_begun_anew(self, files, path, content, caplog):
        path.parent.mkdir()
        path.write_bytes(content)
        index = IdentityIndex(path)
        assert index.name(files[0]) == index.name(files[1])
        self.taken(path, *files)
        assert IdentityIndex(path).name(files[0]).startswith("sha256:")

    def test_a_folder_that_can_t_be_written_to_costs_only_the_memory(self, files, tmp_path):
        (tmp_path / "file").write_text("in the way")
        index = IdentityIndex(tmp_path / "file" / "digests.sqlite")
        assert index.name(files[0]) == index.name(files[1])
        self.taken(tmp_path / "file" / "digests.sqlite", *files)

    @pytest.mark.process
    @pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
    def test_a_forked_child_takes_digests_too(self, files, path):
        index = IdentityIndex(path)
        index.digest_later(files[0])
        index.wait()
        child = os.fork()
        if not child:
            index.digest_later(files[1])
            index.wait()
            os._exit(not IdentityIndex(path).name(files[1]).startswith("sha256:"))
        assert os.waitpid(child, 0)[1] == 0

    @pytest.mark.process
    @pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
    def test_many_processes_write_to_it_at_once(self, tmp_path, path):
        for i in range(24):
            save_file({"a": torch.full((100,), i // 2)}, tmp_path / f"{i}.safetensors")
        paths = [tmp_path / f"{i}.safetensors" for i in range(24)]
        children = []
        for part in range(2):
            if not (child := os.fork()):
                with contextlib.suppress(BaseException):
                    self.taken(path, *(TensorFiles((one,)) for one in paths[part::2]))
                    os._exit(0)
                os._exit(1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        index = IdentityIndex(path)
        names = [index.name(TensorFiles((one,))) for one in paths]
        assert all(name.startswith("sha256:") for name in names)
        assert [names.index(name) for name in names] == [i // 2 * 2 for i in range(24)]


def test_many_threads_name_many_files_as_one_does(tmp_path):
    for i in range(30):
        save_file({"a": torch.full((5000,), i % 5)}, tmp_path / f"{i}.safetensors")
    index = IdentityIndex()
    names = [[None] * 30 for _ in range(4)]

    def work(row):
        for i in np.random.default_rng(row).permutation(30):
            names[row][i] = index.name(TensorFiles((tmp_path / f"{i}.safetensors",)))

    threads = [threading.Thread(target=work, args=(row,), daemon=True) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        watched(thread)
    assert names[1:] == names[:-1]
    assert [names[0].index(name) for name in names[0]] == [i % 5 for i in range(30)]


def test_a_replaced_file_is_loaded_anew_by_the_pool(tmp_path):
    """The key of the model stays; the host releases it, and the components of before are not taken for it."""
    folder, context = save_model(tmp_path / "one"), LoadContext(index=IdentityIndex())
    pool = ModelPool()
    pool.lease("a", weights.loader(folder, context)).close()
    make_vae(seed=1).save_pretrained(folder / "new")
    (folder / "new" / VAE_FILE).replace(folder / "vae" / VAE_FILE)
    with pool.lease("b", weights.loader(folder, context)) as model:
        assert torch.equal(weights.encoded(model["vae"]), weights.encoded(make_vae(seed=1)))
    assert len(pool.stats().components) == 3


ENDS = """
import gc
import os
import sys
import threading
from pathlib import Path

gc.disable()  # which makes the import of torch quicker
import torch

from iopaint_core import IdentityIndex, TensorFiles

gc.freeze()
children = []
for part in range(2):
    if not (child := os.fork()):
        break
    children.append(child)
else:
    sys.exit(any([os.waitpid(child, 0)[1] for child in children]))

folder, opened = Path(sys.argv[1]), threading.Event()


class Told(TensorFiles):
    def open(self):
        opened.set()
        return super().open()


IdentityIndex(folder / f"{part}.sqlite").digest_later(Told((folder / "large.safetensors",)))
assert opened.wait(60)
"""


@pytest.mark.process
def test_a_process_that_ends_while_a_digest_is_taken_ends_well(tmp_path):
    """A thread that is within torch then would have it end by SIGABRT."""
    checkpointfiles.write(tmp_path / "large.safetensors", {f"{i}.weight": [10_000, 10_000] for i in range(4)})
    command = [sys.executable, "-c", ENDS, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
