"""Components of torch with the libraries that plugins use: loaded right, forked apart, gone once dropped."""

import json
import math
import os
import shutil
import struct
import threading
import weakref

import psutil
import pytest
import torch
from accelerate import init_empty_weights
from conftest import Red, make_plugin
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, get_peft_model
from pools import WATCHDOG, Gate, component, in_child, in_thread
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, T5Config, T5EncoderModel
from weights import VAE_FILE, digest, encoded, loader, make_text_encoder, make_vae, read, rewrite, save_model

import iopaint_core.forks
import iopaint_core.modules
from iopaint_core import (
    IdentityIndex,
    InputError,
    LoadContext,
    ModelLoadError,
    ModelManager,
    ModelPool,
    PoolFullError,
    TensorFiles,
    WeightsError,
    file_component,
    footprint,
    fork,
    hookimpl,
    module_component,
    on_device,
)
from iopaint_core.forks import Canonical

pytestmark = pytest.mark.torch

CONTEXT = LoadContext()


@pytest.fixture
def model(tmp_path):
    return save_model(tmp_path / "one")


@pytest.fixture
def pool():
    return ModelPool()


def load_vae(folder, **options):
    return module_component(AutoencoderKL, folder, CONTEXT, **options).load_alone()


def used(pool):
    return sum(ledger.used for ledger in pool.stats().devices.values())


class TestLoading:
    def test_the_result_is_that_of_the_library(self, model, pool):
        with pool.lease("a", loader(model)) as parts:
            assert torch.equal(encoded(parts["vae"]), encoded(make_vae()))
            assert torch.equal(read(parts["text_encoder"]), read(make_text_encoder()))
            for part in parts.values():
                assert not part.training
                assert not any(parameter.requires_grad for parameter in part.parameters())
                assert not any(tensor.is_meta for tensor in part.state_dict().values())

    def test_bytes_are_known_from_the_header_to_the_last(self, model, pool):
        with pool.lease("a", loader(model)) as parts:
            held = {each.nbytes for each in pool.stats().components}
            assert held == {footprint([part]) for part in parts.values()}
        vae = module_component(AutoencoderKL, model / "vae", LoadContext(dtype="float16"))
        assert vae.nbytes == footprint([make_vae()]) // 2 == footprint([vae.load_alone()])

    def test_weights_are_cast_but_for_those_that_bear_no_half_precision(self, tmp_path):
        torch.manual_seed(0)
        config = T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
        encoder = T5EncoderModel(config).eval()
        encoder.save_pretrained(tmp_path)
        loaded = module_component(T5EncoderModel, tmp_path, LoadContext(dtype="float16")).load_alone()
        dtypes = {name: tensor.dtype for name, tensor in loaded.state_dict().items()}
        assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {
            name for name in dtypes if ".wo." in name
        }
        alike = module_component(T5EncoderModel, tmp_path, CONTEXT).load_alone()
        ids = torch.arange(5)[None]
        with torch.no_grad():
            assert torch.equal(alike(ids).last_hidden_state, encoder(ids).last_hidden_state)
        assert alike.shared.weight is alike.encoder.embed_tokens.weight, "what is tied stays tied"

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_what_a_class_of_diffusers_names_stays_in_full_precision(self, tmp_path, dtype):
        class Careful(torch.nn.Linear):
            _keep_in_fp32_modules = ("weight",)

        save_file(Careful(8, 8).state_dict(), tmp_path / "a.safetensors")
        config = {"in_features": 8, "out_features": 8}
        component = module_component(Careful, tmp_path / "a.safetensors", LoadContext(dtype=dtype), config=config)
        loaded = component.load_alone()
        assert (loaded.weight.dtype, loaded.bias.dtype) == (torch.float32, getattr(torch, dtype))
        assert component.nbytes == footprint([loaded])

    def test_names_of_before_are_understood(self, model):
        """VAEs published before diffusers 0.17 name their attention otherwise."""
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

        def rename(tensors):
            for new, name in old.items():
                tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
            return tensors

        rewrite(model / "vae" / VAE_FILE, rename)
        assert any(".proj_attn." in name for name in load_file(model / "vae" / VAE_FILE))
        assert torch.equal(encoded(load_vae(model / "vae")), encoded(make_vae()))

    def test_a_variant_is_loaded_where_there_is_one(self, model):
        make_vae(seed=1).to(torch.float16).save_pretrained(model / "vae", variant="fp16")
        assert load_vae(model / "vae").dtype == torch.float32
        half = load_vae(model / "vae", variant="fp16")
        assert half.dtype == torch.float16
        assert digest(half) == digest(make_vae(seed=1).to(torch.float16))
        with pytest.raises(WeightsError, match=r"has no model\.bf16\.safetensors and no single \*_model\.bf16"):
            load_vae(model / "vae", variant="bf16")

    def test_shards_are_read_as_one(self, tmp_path):
        make_vae().save_pretrained(tmp_path, max_shard_size="300KB")
        assert digest(load_vae(tmp_path)) == digest(make_vae())

    def test_any_module_of_torch_will_do(self, tmp_path):
        linear = torch.nn.Linear(3, 4)
        save_file(linear.state_dict(), tmp_path / "linear.safetensors")
        config = {"in_features": 3, "out_features": 4}
        part = module_component(torch.nn.Linear, tmp_path / "linear.safetensors", CONTEXT, config=config)
        assert torch.equal(part.load_alone().weight, linear.weight)


def test_a_config_stays_as_it_is_whatever_its_class_does_to_it(tmp_path):
    class Greedy(torch.nn.Linear):
        @classmethod
        def from_config(cls, config):
            return cls(config["size"].pop(), config["size"].pop())

    save_file(torch.nn.Linear(2, 2).state_dict(), tmp_path / "a.safetensors")
    component = module_component(Greedy, tmp_path / "a.safetensors", CONTEXT, config={"size": [2, 2]})
    assert torch.equal(component.load_alone().weight, component.load_alone().weight)


class Buffered(torch.nn.Module):
    """With buffers that are not saved, of which one is made by `torch.empty`."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.register_buffer("scale", torch.empty(2).fill_(3.0), persistent=False)
        self.register_buffer("mean", torch.tensor([0.25, 0.5]), persistent=False)

    def forward(self, x):
        return self.layer((x - self.mean) * self.scale)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("saved", ["float32", "its own"])
def test_buffers_that_are_not_saved_are_as_the_class_makes_them(tmp_path, dtype, saved):
    torch.manual_seed(0)
    whole = Buffered()
    wanted = Buffered().to(getattr(torch, dtype))
    wanted.load_state_dict(whole.to(getattr(torch, dtype)).state_dict())
    kept = whole if saved == "its own" else whole.float()
    save_file(kept.state_dict(), tmp_path / "model.safetensors")
    loaded = module_component(
        Buffered, tmp_path / "model.safetensors", CONTEXT, config={}, dtype=None if saved == "its own" else dtype
    ).load_alone()
    x = torch.ones(2, dtype=getattr(torch, dtype))
    assert torch.equal(loaded(x), wanted(x))


def test_buffers_that_are_not_saved_keep_their_precision_where_weights_have_eight_bits(tmp_path):
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in Buffered().state_dict().items()}
    save_file(small, tmp_path / "model.safetensors")
    loaded = module_component(Buffered, tmp_path / "model.safetensors", CONTEXT, config={}).load_alone()
    assert loaded.layer.weight.dtype is torch.float8_e4m3fn
    assert torch.equal(loaded.mean, Buffered().mean)
    assert loaded.mean.dtype is torch.float32


def test_what_is_tied_is_found_under_either_name(tmp_path):
    config = T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    encoder = T5EncoderModel(config).eval()
    encoder.save_pretrained(tmp_path)
    rewrite(
        tmp_path / "model.safetensors",
        lambda tensors: tensors.update({"encoder.embed_tokens.weight": tensors.pop("shared.weight")}),
    )
    loaded = module_component(T5EncoderModel, tmp_path, CONTEXT).load_alone()
    assert loaded.shared.weight is loaded.encoder.embed_tokens.weight
    assert torch.equal(loaded.shared.weight, encoder.shared.weight)


@pytest.mark.parametrize(
    ("weight", "scale"),
    [
        (torch.ones(2, 2, dtype=torch.int8), {"SCB": torch.ones(2)}),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), {"scale_weight": torch.tensor(100.0)}),
    ],
    ids=["int8", "scaled float8"],
)
def test_quantised_weights_are_refused(tmp_path, weight, scale):
    save_file({"weight": weight, "bias": torch.zeros(2), **scale}, tmp_path / "model.safetensors")
    config = {"in_features": 2, "out_features": 2}
    part = module_component(torch.nn.Linear, tmp_path / "model.safetensors", CONTEXT, config=config)
    with pytest.raises(WeightsError, match=r"is quantised: weight has 8 bits, and .* its scale"):
        part.load_alone()


def test_float8_without_scales_is_cast_and_measured(tmp_path):
    save_file(
        {"weight": torch.eye(2).to(torch.float8_e5m2), "bias": torch.zeros(2)}, tmp_path / "model.safetensors"
    )
    config = {"in_features": 2, "out_features": 2}
    part = module_component(
        torch.nn.Linear, tmp_path / "model.safetensors", CONTEXT, config=config, dtype="float16"
    )
    assert part.nbytes == footprint([part.load_alone()]) == 12
    assert torch.equal(part.load_alone().weight, torch.eye(2).half())


def test_a_dtype_that_is_none_is_refused(model):
    with pytest.raises(InputError, match="'half' is no dtype"):
        load_vae(model / "vae", dtype="half")


def halve(vae):
    vae.to(torch.float16)


def train(vae):
    vae.train().requires_grad_(True)


def hook(vae):
    vae.decoder.register_forward_hook(lambda module, args, result: result * 0)
    vae.encoder.register_forward_pre_hook(lambda module, args: (args[0] * 0,))


def use_other_processors(vae):
    vae.set_attn_processor(AttnProcessor())


def fuse(vae):
    vae.fuse_qkv_projections()


def assign(vae):
    vae.load_state_dict({name: value * 0 for name, value in vae.state_dict().items()}, assign=True)


def tear_apart(vae):
    vae.encoder.conv_in = torch.nn.Identity()
    del vae.decoder
    vae.config.scaling_factor = 3


def replace_data(vae):
    for parameter in vae.parameters():
        parameter.data = torch.zeros_like(parameter)


def slice_and_tile(vae):
    vae.enable_slicing()
    vae.enable_tiling()


def adapt(vae):
    """What `load_lora_weights` does: layers beside the weights, unfused."""
    get_peft_model(vae, LoraConfig(target_modules=["to_q", "to_k"], init_lora_weights=False))


def merge_safely(vae):
    adapted = get_peft_model(vae, LoraConfig(target_modules=["to_q", "to_k"], init_lora_weights=False))
    adapted.merge_and_unload(safe_merge=True)


CHANGES = (
    halve,
    train,
    hook,
    use_other_processors,
    fuse,
    assign,
    tear_apart,
    replace_data,
    slice_and_tile,
    adapt,
    merge_safely,
)


def canonical(pool, name):
    """The module that a pool's forks are made from."""
    entries = pool._table.components.values()
    return next(entry.value.module for entry in entries if name in entry.key.kind)


def holding(what):
    module = torch.nn.Linear(2, 2)
    module.held = what
    return module


class TestForks:
    @pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
    def test_what_one_model_does_to_its_own_reaches_no_other(self, model, pool, change):
        one, other = (pool.lease(name, loader(model)) for name in ("one", "other"))
        before = digest(canonical(pool, "AutoencoderKL"))
        expected = encoded(other.model["vae"])
        change(one.model["vae"])
        assert torch.equal(encoded(other.model["vae"]), expected)
        assert digest(canonical(pool, "AutoencoderKL")) == before
        with pool.lease("late", loader(model)) as parts:
            assert torch.equal(encoded(parts["vae"]), expected)
        assert pool.stats().counts.spoiled == 0
        assert pool.stats().counts.component_loads == 2

    @pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter"])
    def test_a_lora_is_fused_into_a_private_copy(self, model, pool, merge):
        def fused(share):
            return share({"vae": module_component(AutoencoderKL, model / "vae", CONTEXT).private()})

        with pool.lease("plain", loader(model)) as plain, pool.lease("fused", fused) as parts:
            before, expected = digest(canonical(pool, "AutoencoderKL")), encoded(plain["vae"])
            lora = LoraConfig(target_modules=["to_q", "to_k"], init_lora_weights=False)
            getattr(get_peft_model(parts["vae"].module, lora), merge)()
            assert not torch.equal(encoded(parts["vae"].module), expected)
            assert torch.equal(encoded(plain["vae"]), expected)
            assert digest(canonical(pool, "AutoencoderKL")) == before
        assert pool.stats().counts.spoiled == 0

    def test_weights_that_are_merged_into_in_place_reach_no_other_lease(self, model, pool, caplog):
        """PEFT adds to the weights where they stand; what shares them is loaded anew for the next lease."""
        pool.lease("good", loader(model)).close()
        before = digest(canonical(pool, "AutoencoderKL"))
        with pool.lease("bad", loader(model)) as parts:
            lora = LoraConfig(target_modules=["to_q", "to_k"], init_lora_weights=False)
            get_peft_model(parts["vae"], lora).merge_adapter()
            assert digest(canonical(pool, "AutoencoderKL")) != before
        with pool.lease("good", loader(model)) as parts:
            assert torch.equal(encoded(parts["vae"]), encoded(make_vae()))
            assert digest(canonical(pool, "AutoencoderKL")) == before
        assert "were written into, while in use by bad" in caplog.text
        assert pool.stats().counts.spoiled == 1

    def test_a_fork_takes_no_memory_for_parameters(self, model):
        vae = load_vae(model / "vae")
        forks = [fork(vae) for _ in range(20)]
        assert footprint([vae, *forks]) == footprint([vae])
        for tensor, alike in zip(vae.parameters(), forks[3].parameters(), strict=True):
            assert tensor.data_ptr() == alike.data_ptr()
            assert tensor is not alike

    def test_what_is_tied_is_tied_in_the_fork(self):
        tied = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        tied[1].weight = tied[0].weight
        forked = fork(tied)
        assert forked[1].weight is forked[0].weight is not tied[0].weight

    def test_buffers_are_each_forks_own(self):
        norm = torch.nn.BatchNorm1d(3)
        forked = fork(norm)
        forked.train()(torch.randn(8, 3))
        assert forked.num_batches_tracked == 1
        assert norm.num_batches_tracked == 0

    def test_parameters_that_the_parent_lists_too_are_shared(self):
        class Listing(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(3, 3)
                self.listed = [self.layer.weight]

        module = Listing()
        forked = fork(module)
        assert forked.layer.weight.data_ptr() == module.layer.weight.data_ptr()
        assert forked.listed[0] is forked.layer.weight

    def test_old_weight_norm_is_forked_with_its_tensors(self):
        with pytest.warns(FutureWarning):
            module = torch.nn.utils.weight_norm(torch.nn.Linear(3, 3))
        forked = fork(module.eval().requires_grad_(False))
        assert torch.equal(forked(torch.ones(3)), module(torch.ones(3)))

    def test_a_forward_that_the_module_chose_among_its_own_is_the_forks_own(self):
        class Choosing(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(2, 2)
                self.forward = self.fast

            def fast(self, x):
                return self.layer(x)

        forked = fork(Choosing())
        forked.layer = torch.nn.Identity()
        assert torch.equal(forked(torch.ones(2)), torch.ones(2))

    @pytest.mark.parametrize(
        ("module", "words"),
        [
            (lambda: holding(threading.Lock()), "its held can't be copied"),
            (lambda: torch.nn.LazyLinear(3), "A lazy module"),
        ],
        ids=["a lock", "lazy"],
    )
    @pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
    def test_what_can_not_be_forked_says_why(self, module, words):
        with pytest.raises(WeightsError, match=words):
            fork(module())

    def test_a_layer_that_outlives_its_model_keeps_the_bytes_charged(self, model, pool):
        with pool.lease("a", loader(model)) as parts:
            decoder = parts["vae"].decoder
        pool.trim()
        kept = footprint([make_vae()])
        assert used(pool) == kept
        del decoder, parts
        assert used(pool) == 0

    def test_a_parameter_that_stores_less_than_its_shape_says_is_read_within_its_bounds(self):
        layer = torch.nn.Linear(2, 2, bias=False)
        layer.weight = torch.nn.Parameter(torch.ones(1).expand(1 << 14, 1 << 14))
        assert Canonical(layer).intact()

    def test_what_was_hooked_on_the_instance_is_refused(self):
        linear = torch.nn.Linear(3, 3)
        linear.forward = lambda x: x
        with pytest.raises(WeightsError, match=r"Linear can't be forked: its forward was replaced.*Fork before"):
            fork(linear)

    def test_a_fork_of_a_unet_computes_the_same(self):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            block_out_channels=(32,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=32,
            attention_head_dim=8,
        ).eval()
        inputs = torch.randn(1, 4, 8, 8), 10, torch.randn(1, 5, 32)
        with torch.no_grad():
            assert torch.equal(fork(unet)(*inputs).sample, unet(*inputs).sample)


def test_a_write_into_the_middle_of_weights_is_noticed():
    canonical = Canonical(torch.nn.Linear(64, 64))
    assert canonical.intact()
    canonical.fork().weight.view(-1)[64 * 32] += 1
    assert not canonical.intact()


@pytest.mark.parametrize("end", ["cut off", "written over"])
def test_a_file_that_is_rewritten_while_it_is_mapped_is_not_touched_any_more(model, pool, caplog, end):
    path = model / "vae" / VAE_FILE
    content = path.read_bytes()
    part = module_component(AutoencoderKL, model / "vae", CONTEXT)
    with pool.lease("a", lambda share: share({"vae": part})):
        with path.open("wb") as file:
            file.write(content[:100] if end == "cut off" else content)
        os.utime(path, ns=(0, 0))
        with pytest.raises(WeightsError, match=r"can't be read as safetensors|was replaced just before"):
            pool.lease("b", lambda share: share({"vae": part}))
    assert "was written to while its weights were in use" in caplog.text
    path.write_bytes(content)
    with pool.lease("b", loader(model)) as parts:
        assert torch.equal(encoded(parts["vae"]), encoded(make_vae()))


class TestDevices:
    """The host's copy, and a copy on a device with a budget of its own; the second device is a name here."""

    def copies(self, folder):
        def load(share):
            host = module_component(AutoencoderKL, folder / "vae", CONTEXT)
            return share({"vae": on_device(host, "fake:0", place="cpu")})

        return load

    def test_models_share_the_copy_on_the_device_too(self, model, pool):
        with pool.lease("a", self.copies(model)) as one, pool.lease("b", self.copies(model)) as two:
            assert footprint([one["vae"], two["vae"]]) == footprint([one["vae"]])
            assert torch.equal(encoded(one["vae"]), encoded(make_vae()))
        devices = pool.stats().devices
        assert devices["fake:0"].resident == devices["cpu"].resident == footprint([make_vae()])

    def test_the_copy_on_the_device_goes_and_the_hosts_stays(self, model, tmp_path, no_collector):
        size = footprint([make_vae()])
        other = save_model(tmp_path / "other", seed=1)
        pool = ModelPool({"fake:0": size})
        pool.lease("a", self.copies(model)).close()
        host = canonical(pool, "AutoencoderKL")
        before = digest(host)
        for _ in range(3):
            pool.lease("b", self.copies(other)).close()
            with pool.lease("a", self.copies(model)) as parts:
                assert torch.equal(encoded(parts["vae"]), encoded(make_vae()))
        stats = pool.stats()
        assert digest(host) == before
        assert (stats.devices["cpu"].resident, stats.devices["fake:0"].resident) == (2 * size, size)
        assert stats.counts.component_loads == 2 + 7, "hosts once, copies each time"

    def test_what_moves_its_fork_off_the_device_moves_nobody_elses(self, model, pool):
        with pool.lease("a", self.copies(model)) as one, pool.lease("b", self.copies(model)) as two:
            one["vae"].to("meta")
            assert torch.equal(encoded(two["vae"]), encoded(make_vae()))

    def test_out_of_memory_while_it_is_copied_makes_room_and_tries_again(self, model, tmp_path, monkeypatch):
        pool = ModelPool()
        pool.lease("idle", self.copies(save_model(tmp_path / "other", seed=1))).close()
        full, move = [True], torch.Tensor.to

        def to(tensor, *args, **options):
            if options.get("copy") and full.pop() if full else False:
                raise torch.OutOfMemoryError("device out of memory")
            return move(tensor, *args, **options)

        monkeypatch.setattr(torch.Tensor, "to", to)
        with pool.lease("a", self.copies(model)) as parts:
            assert torch.equal(encoded(parts["vae"]), encoded(make_vae()))
        assert pool.stats().counts.evictions == 1, "the idle copy"
        assert pool.stats().devices["fake:0"].resident == footprint([make_vae()])


class TestFiles:
    """What can't be forked: shared as it is."""

    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "session.onnx"
        path.write_bytes(b"weights" * 100)
        return path

    def test_it_is_loaded_once_and_closed_when_it_goes(self, path, pool):
        closed = []
        part = file_component(path, lambda path: [path.stat().st_size], CONTEXT, kind="s", close=closed.append)
        load = lambda share: share({"session": part})  # noqa: E731 - leased twice
        with pool.lease("a", load) as one, pool.lease("b", load) as two:
            assert one["session"] is two["session"]
            assert used(pool) == 700
        pool.trim()
        assert closed == [[700]]

    @pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
    def test_torchscript_is_shared_as_it_is(self, tmp_path, pool):
        with torch.no_grad():
            torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 3), torch.ones(3)), tmp_path / "traced.pt")

        def load(share):
            return share(
                {"it": file_component(tmp_path / "traced.pt", torch.jit.load, CONTEXT, kind="TorchScript")}
            )

        with pool.lease("a", load) as one, pool.lease("b", load) as two:
            assert one["it"] is two["it"]
            assert one["it"](torch.ones(3)).shape == (3,)

    def test_what_keeps_state_takes_one_caller_at_a_time(self, path, pool):
        parts = {
            name: file_component(path, lambda path: [], CONTEXT, kind=name, exclusive=name == "stateful")
            for name in ("stateful", "free")
        }
        one, two = (pool.lease(name, lambda share: share(parts)) for name in ("one", "two"))
        assert len(set(one.locks) & set(two.locks)) == 1
        one.close()
        two.close()

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(WeightsError, match=r"gone\.onnx can't be read: No such file.*still there"):
            file_component(tmp_path / "gone.onnx", lambda path: [], CONTEXT, kind="s")

    def test_it_takes_as_much_as_is_said_or_else_as_its_file(self, path):
        said = [file_component(path, lambda path: [], CONTEXT, kind="s", nbytes=nbytes) for nbytes in (None, 7)]
        assert [component.nbytes for component in said] == [path.stat().st_size, 7]

    def test_another_device_dtype_or_kind_is_another_component(self, path):
        keys = {
            file_component(path, lambda path: [], LoadContext(device=device, dtype=dtype), kind=kind).key
            for device in ("cpu", "cuda:0", "cuda:1")
            for dtype in (None, "float16")
            for kind in ("s", "t")
        }
        assert len(keys) == 12


def without_first(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "encoder.conv_in.weight"}


def header(entries, body=b""):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + body


def lie_about(**change):
    """The header of a sound file of four floats, with a lie in it."""
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **change}
    return header({"weight": entry}, bytes(16))


class TestBadFiles:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\0" * 7,
            b"<html>404 Not Found</html>",
            struct.pack("<Q", 10_000_000_000) + b"{}",
            struct.pack("<Q", 5) + b"{oops",
            header([]),
            header({"weight": {"dtype": "F32"}}),
            lie_about(data_offsets=[0, 1 << 40]),
            lie_about(data_offsets=[8, 24]),
            lie_about(data_offsets=[16, 0]),
            lie_about(data_offsets=[0, 12]),
            lie_about(shape=[-4]),
            lie_about(shape=[1 << 62, 4]),
            lie_about(dtype="F31"),
        ],
        ids=[
            "empty",
            "short",
            "a web page",
            "a header of 10 GB",
            "no JSON",
            "a list",
            "half an entry",
            "beyond the end",
            "a gap",
            "backwards",
            "too few bytes",
            "a negative shape",
            "an overflowing shape",
            "an unknown dtype",
        ],
    )
    def test_what_is_no_safetensors_file_is_said_to_be_none(self, tmp_path, pool, content):
        path = tmp_path / "bad.safetensors"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"bad\.safetensors can't be read as safetensors.*get it again"):
            module_component(torch.nn.Linear, path, CONTEXT, config={"in_features": 2, "out_features": 2})

    @pytest.mark.parametrize("part", [0.0005, 0.5, 0.9999])
    def test_a_file_that_is_cut_off(self, model, part):
        path = model / "vae" / VAE_FILE
        path.write_bytes(path.read_bytes()[: math.ceil(path.stat().st_size * part)])
        with pytest.raises(WeightsError, match="It may be cut off or damaged: get it again"):
            load_vae(model / "vae")

    @pytest.mark.parametrize("where", ["folder", "disguised"])
    def test_a_pickle_is_refused_with_the_way_to_convert_it(self, model, where):
        path = model / "vae" / VAE_FILE
        state = load_file(path)
        if where == "folder":
            path.unlink()
            torch.save(state, model / "vae" / "diffusion_pytorch_model.bin")
        else:
            path.unlink()
            torch.save(state, path)
        with pytest.raises(WeightsError, match=r"is a pickle.*safetensors\.torch\.save_file\(torch\.load\("):
            load_vae(model / "vae", config={})

    def test_weights_that_lack_tensors_name_them(self, model):
        rewrite(model / "vae" / VAE_FILE, without_first)
        with pytest.raises(WeightsError, match=r"lacks 1 of the \d+ tensors of AutoencoderKL: encoder\.conv_in"):
            load_vae(model / "vae")

    def test_weights_of_another_size_say_so(self, model, tmp_path):
        make_vae(latent_channels=8).save_pretrained(tmp_path / "other")
        shutil.copy(tmp_path / "other" / VAE_FILE, model / "vae" / VAE_FILE)
        with pytest.raises(WeightsError, match=r"does not fit AutoencoderKL.*belong to different models"):
            load_vae(model / "vae")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (None, r"config\.json can't be read: .*No such file"),
            ("{", r"config\.json can't be read"),
            ("[]", "it is no object"),
            ('{"block_out_channels": [32], "norm_num_groups": 7}', "The config does not make a AutoencoderKL"),
        ],
    )
    def test_a_config_that_makes_no_module(self, model, text, words):
        path = model / "vae" / "config.json"
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(WeightsError, match=words):
            load_vae(model / "vae")

    @pytest.mark.parametrize(
        ("index", "words"),
        [
            ("{", "is no index of shards"),
            ("{}", "is no index of shards"),
            ('{"weight_map": {"a": "gone.safetensors"}}', "names 'gone.safetensors', which is not beside it"),
            ('{"weight_map": {"a": "../one.safetensors"}}', "names '../one.safetensors', which is not beside it"),
        ],
    )
    def test_an_index_of_shards_that_is_wrong(self, tmp_path, index, words):
        (tmp_path / "model.safetensors.index.json").write_text(index)
        with pytest.raises(WeightsError, match=words):
            TensorFiles.find(tmp_path)

    def test_a_folder_that_is_not_there_or_has_no_weights(self, tmp_path):
        with pytest.raises(WeightsError, match="does not exist"):
            TensorFiles.find(tmp_path / "gone")
        with pytest.raises(WeightsError, match=r"has no model\.safetensors and no .*: none"):
            TensorFiles.find(tmp_path)

    def test_a_damaged_file_is_not_read_again_until_it_is_replaced(self, model, pool):
        sound = (model / "vae" / VAE_FILE).read_bytes()
        rewrite(model / "vae" / VAE_FILE, without_first)
        for _ in range(3):
            with pytest.raises(WeightsError, match="lacks 1 of"):
                pool.lease("a", loader(model))
        assert pool.stats().counts.component_loads == 2, "both once"
        assert used(pool) == 0
        (model / "vae" / VAE_FILE).write_bytes(sound)
        with pool.lease("a", loader(model)) as parts:
            assert torch.equal(encoded(parts["vae"]), encoded(make_vae()))

    def test_what_is_larger_than_the_whole_budget_is_refused_before_it_is_read(self, model, monkeypatch):
        monkeypatch.setattr(TensorFiles, "open", lambda self: pytest.fail("content was read"))
        pool = ModelPool({"cpu": 1000})
        with pytest.raises(PoolFullError, match=r"a needs .* on cpu, and the whole budget is 1\.0 kB"):
            pool.lease("a", loader(model))
        assert used(pool) == 0


class TestDefaults:
    def test_what_somebody_else_replaced_before_is_left_to_them(self, plugins):
        """A host that loads a model of its own in one thread, while a plugin loads one in another."""
        inside, leave = Gate(), Gate()

        def host():
            with init_empty_weights():
                torch.set_default_dtype(torch.float16)
                inside.open()
                leave.wait()
            torch.set_default_dtype(torch.float32)

        def load():
            leave.open()
            hosting()
            return Red()

        before = torch.nn.Module.register_parameter
        hosting = in_thread(host)
        inside.wait()
        plugins.register(make_plugin("a", load=load), "p")
        ModelManager(plugins).load("a").close()
        assert torch.nn.Module.register_parameter is before
        assert torch.get_default_dtype() == torch.float32

    """Whatever becomes of a load, torch is for the rest of the process as it was."""

    @pytest.fixture(autouse=True)
    def _unchanged(self):
        def defaults():
            init = {name: value for name, value in vars(torch.nn.init).items() if callable(value)}
            return torch.get_default_dtype(), torch.nn.Module.register_parameter, init

        before = defaults()
        yield
        assert defaults() == before

    @pytest.mark.parametrize("at", ["build", "first tensor", "last tensor", "after"])
    @pytest.mark.parametrize("end", ["fails", "cancelled"])
    def test_a_load_that_ends_early_at_any_point(self, model, pool, monkeypatch, at, end):
        reached, go_on = Gate(), Gate()
        check = iopaint_core.components.raise_if_cancelled

        def stop():
            reached.open()
            if end == "fails":
                raise RuntimeError("the disk died")
            go_on.wait()
            until_cancelled(check)

        class Stops(CLIPTextModel):
            def __init__(self, *args, **options):
                super().__init__(*args, **options)
                if at == "build":
                    stop()

        tensors = len(load_file(model / "text_encoder" / "model.safetensors"))
        calls = iter(range(1, 1000))

        def counted():
            if next(calls) == {"first tensor": 1, "last tensor": tensors}.get(at):
                stop()
            check()

        monkeypatch.setattr(iopaint_core.modules, "raise_if_cancelled", counted)
        if at == "after":
            monkeypatch.setattr(iopaint_core.forks.Canonical, "nbytes", lambda self: stop())
        part = module_component(Stops, model / "text_encoder", CONTEXT)

        def fail():
            reached.wait()
            go_on.open()
            raise RuntimeError("the disk died")

        def load(share):
            return share({"text": part, "other": component("other", 10, load=fail)})

        with pytest.raises(RuntimeError, match="the disk died"):
            pool.lease("a", load)
        assert used(pool) == 0
        assert pool.stats().components == ()
        monkeypatch.undo()
        with pool.lease("a", loader(model)) as parts:
            assert torch.equal(read(parts["text_encoder"]), read(make_text_encoder()))

    def test_loads_side_by_side(self, tmp_path, pool, quick_switches):
        """transformers replaces functions of `torch.nn.init` while it builds."""
        for seed in range(6):
            save_model(tmp_path / str(seed), seed)
        components = {
            f"{cls.__name__} {seed}": module_component(cls, tmp_path / str(seed) / name, CONTEXT)
            for seed in range(6)
            for cls, name in ((AutoencoderKL, "vae"), (CLIPTextModel, "text_encoder"))
        }
        with pool.lease("all", lambda share: share(components)) as parts:
            for seed in range(6):
                assert torch.equal(encoded(parts[f"AutoencoderKL {seed}"]), encoded(make_vae(seed)))
                assert torch.equal(read(parts[f"CLIPTextModel {seed}"]), read(make_text_encoder(seed)))

    def test_a_plugin_that_uses_from_pretrained_as_it_is(self, model, plugins):
        """It sets torch's default dtype, and leaves it so when the config is bad."""
        path = model / "vae" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "norm_num_groups": 7}))

        def load():
            AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float16)

        plugins.register(make_plugin("bad", load=load), "bad")
        with pytest.raises(ModelLoadError, match="must be divisible by num_groups"):
            ModelManager(plugins).load("bad")

    def test_plugins_whose_loads_overlap(self, plugins):
        """accelerate's `init_empty_weights` replaces `register_parameter`, and restores what it found there."""
        from accelerate import init_empty_weights

        inside, first_left = threading.Barrier(2), Gate()

        @hookimpl
        def iopaint_load_model(info, context):
            if info.name == "second":
                inside.wait(WATCHDOG)
            with init_empty_weights():
                if info.name == "first":
                    inside.wait(WATCHDOG)
                inside.wait(WATCHDOG)
                if info.name == "second":
                    first_left.wait()
            if info.name == "first":
                first_left.open()
            return Red()

        names = ("first", "second")
        plugins.register(make_plugin(*names, iopaint_load_model=iopaint_load_model), "meeting")
        manager = ModelManager(plugins)
        threads = [threading.Thread(target=manager.preload, args=(name,), daemon=True) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WATCHDOG)
            assert not thread.is_alive()


def until_cancelled(check):
    deadline = threading.Event()
    timer = threading.Timer(WATCHDOG, deadline.set)
    timer.start()
    try:
        while not deadline.is_set():
            check()
    finally:
        timer.cancel()
    raise AssertionError("it was never cancelled")


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_forked_child_loads_though_a_thread_of_its_parent_was_putting_a_module_together(tmp_path):
    gate, size = Gate(), {"in_features": 2, "out_features": 2}

    class Slow(torch.nn.Linear):
        def __init__(self, **size):
            gate.wait()
            super().__init__(**size)

    save_file(torch.nn.Linear(**size).state_dict(), tmp_path / "a.safetensors")
    slow, quick = (
        module_component(cls, tmp_path / "a.safetensors", CONTEXT, config=size) for cls in (Slow, torch.nn.Linear)
    )
    loading = in_thread(slow.load_alone)
    gate.wait_until_reached()
    assert in_child(quick.load_alone)
    gate.open()
    loading()


class TestLeaks:
    def test_the_last_lease_and_a_trim_free_modules_and_tensors(self, model, pool, no_collector):
        leases = [pool.lease(name, loader(model)) for name in ("a", "b")]
        watched = []
        for lease in leases:
            for part in lease.model.values():
                encoded(part) if isinstance(part, AutoencoderKL) else read(part)
                watched += [weakref.ref(module) for module in part.modules()]
                watched += [weakref.ref(tensor) for tensor in part.parameters()]
                watched += [weakref.ref(tensor.untyped_storage()) for tensor in part.buffers()]
        del part
        entries = pool._table.components.values()
        watched += [weakref.ref(tensor) for entry in entries for tensor in entry.value.module.parameters()]
        for lease in leases:
            lease.close()
        del lease, leases, entries
        assert pool.trim()
        assert [ref() for ref in watched if ref() is not None] == []
        assert used(pool) == 0

    def test_a_model_kept_in_a_variable_keeps_no_weights(self, model, pool, no_collector):
        with pool.lease("a", loader(model)) as parts:
            weight = weakref.ref(parts["vae"].encoder.conv_in.weight)
        pool.trim()
        assert weight() is None
        assert dict(parts) == {}

    @pytest.mark.parametrize("switches", [60, pytest.param(1000, marks=pytest.mark.slow)])
    def test_switches_do_not_grow_memory(self, model, tmp_path, no_collector, switches):
        """With room for one of two models that share a VAE: each switch drops a matrix and reads the other."""
        shape = {"in_features": 512, "out_features": 512}
        for name in (0, 1):
            save_file(torch.nn.Linear(**shape).state_dict(), tmp_path / f"{name}.safetensors")
        size = footprint([torch.nn.Linear(**shape)])
        pool = ModelPool({"cpu": size + footprint([make_vae()])})
        context = LoadContext(index=IdentityIndex())
        unique = lambda: psutil.Process().memory_full_info().uss  # noqa: E731 - asked twice

        def switch(times):
            for i in range(times):
                path = tmp_path / f"{i % 2}.safetensors"
                parts = {
                    "vae": module_component(AutoencoderKL, model / "vae", context),
                    "matrix": module_component(torch.nn.Linear, path, context, config=shape),
                }
                with pool.lease(i % 2, lambda share, parts=parts: share(parts)) as loaded:
                    loaded["matrix"](torch.ones(512))

        switch(50)
        before = unique()
        switch(switches)
        grown = unique() - before
        counts = pool.stats().counts
        assert (counts.component_loads, counts.evictions) == (51 + switches, 49 + switches)
        assert grown < 20 * size, f"{grown} bytes in {switches} switches of {size}"  # the heap frays by some


def test_an_index_knows_equal_weights_for_all_loads_of_a_manager(model, plugins, tmp_path):
    """Two plugins, two folders, one set of weights; what is remembered lies in the cache folder."""
    shutil.copytree(model, tmp_path / "two")
    made = []

    def announce(name, folder):
        @hookimpl
        def iopaint_load_model(info, context):
            made.append(loader(folder, context)(context.share))
            return Red()

        plugins.register(make_plugin(name, iopaint_load_model=iopaint_load_model), name)

    announce("one", model)
    announce("two", tmp_path / "two")
    manager = ModelManager(plugins, context=LoadContext(cache=tmp_path / "cache"))
    with manager.load("one"), manager.load("two"):
        assert len(manager.pool.stats().components) == 2
        assert manager.pool.stats().saved == footprint(made[0].values())
    rows = [(need.component, need.shared_with) for need in manager.forecast("one", "two").needs]
    assert rows == [("vae", ("two",)), ("text_encoder", ("two",)), ("vae", ("one",)), ("text_encoder", ("one",))]
