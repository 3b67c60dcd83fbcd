"""DDColor from published files to a picture: its colours, with the lightness of the picture."""

import sys
import warnings

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import ROOT, photograph
from upscalers import make_compact, published

from iopaint_core import (
    LoadContext,
    ModelError,
    ModelLoadError,
    ModelManager,
    ModelType,
    PluginManager,
    Step,
    Task,
    read_picture,
    scan_models,
    write_picture,
)
from iopaint_core.batch import Options, Status, plan, run
from iopaint_core.results import repaired
from iopaint_plugins import colorize
from iopaint_plugins._spandrel import spandrel_component

with warnings.catch_warnings(action="ignore", category=FutureWarning):  # it uses torch.jit.script
    from spandrel_extra_arches.architectures.DDColor import DDColor

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")]

TINY = "piddnad/ddcolor_paper_tiny"


def make_ddcolor():
    """As ddcolor_paper_tiny, with 3 of its 9 layers and 8 of its 100 queries."""
    torch.manual_seed(0)
    sizes = {"num_queries": 8, "dec_layers": 3, "input_size": (32, 32)}
    with torch.no_grad():
        network = DDColor(encoder_name="convnext-t", last_norm="Spectral", num_output_channels=2, **sizes).eval()
        for module in network.modules():  # random weights by norms that are as random would be beyond all bounds
            for hook in module._forward_pre_hooks.values():
                hook.compute_weight(module, do_power_iteration=True)
    return network


@pytest.fixture(scope="module")
def network():
    return make_ddcolor()


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    file = tmp_path_factory.mktemp("colorize") / "pytorch_model.bin"
    torch.save(network.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def canonical(file):
    return spandrel_component(file, LoadContext()).load()


@pytest.fixture(scope="module")
def host(file):
    """One for all tests: the network is loaded once."""
    plugins = PluginManager()
    plugins.register(colorize, "colorize")
    with ModelManager(plugins, weights={file.name: file}) as manager:
        yield manager


@pytest.fixture
def colours(monkeypatch):
    """Has the network answer with a and b that a function gives for RGB in 0 ... 1; gives what it saw."""
    seen = []

    def answer(function):
        def forward(self, pixels):
            seen.append(pixels)
            return function(pixels)

        monkeypatch.setattr(DDColor, "forward", forward)
        return seen

    return answer


def waves(pixels):
    """Colours that change slowly over the picture."""
    down, across = torch.meshgrid(*[torch.linspace(0, 3, side) for side in pixels.shape[2:]], indexing="ij")
    return torch.stack([9 * torch.sin(down), 9 * torch.cos(across)])[None]


def difference(one, other):
    return np.abs(one.astype(int) - other).max()


def lightness(image):
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 0]


def greyscale(height, width, low=60, high=200):
    grey = cv2.resize(photograph(9, 12)[..., 0], (width, height), interpolation=cv2.INTER_CUBIC)
    return np.dstack([(low + grey * (high - low) / 255).astype(np.uint8)] * 3)


def test_they_are_listed_with_all_that_a_user_asks(plugins):
    plugins.register(colorize, "colorize")
    models = {info.name: info for info in scan_models(plugins)}
    assert set(models) == {f"piddnad/ddcolor_{name}" for name in ("modelscope", "artistic", "paper", "paper_tiny")}
    for name, info in models.items():
        assert (info.type, info.task, info.unavailable) == (ModelType.PLUGIN, Task.RESTORE, "")
        assert (info.license, info.commercial) == ("Apache-2.0", True)
        (file,) = info.weights
        assert (file.repo, file.filename) == (name, "pytorch_model.bin")
        assert not file.runs_code


@pytest.mark.slow
def test_a_picture_gets_the_networks_colours(host, network):
    """The network is run as published."""
    image = greyscale(512, 512)
    result = host.process(TINY, image)
    with torch.inference_mode():
        given = network(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0).numpy()
    lab = np.dstack([lightness(image), given])
    wanted = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1) * 255
    assert np.abs(result - wanted).max() <= 2


def test_each_model_has_a_network_of_its_own_on_the_shared_weights(canonical, network):
    """It keeps what it sees of a picture by hooks: a fork sees its own."""
    for pixels in torch.rand(2, 1, 3, 64, 64):
        fork = canonical.fork()
        with torch.inference_mode():
            assert torch.equal(fork.descriptor.model(pixels), network(pixels))
        weights = [module.network.encoder.arch.norm.weight for module in (fork, canonical.module)]
        assert weights[0].data_ptr() == weights[1].data_ptr()


def test_it_is_what_spandrel_makes_of_it(host, colours, canonical):
    """Where nothing is resized, the two agree: in another size, spandrel's resizes light, not values."""
    colours(waves)
    image = greyscale(512, 512, low=100)
    descriptor = canonical.fork().descriptor
    descriptor.model.input_size = (512, 512)
    theirs = descriptor(torch.from_numpy(image[..., 0])[None, None] / 255)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(host.process(TINY, image) - theirs).max() <= 2


@pytest.mark.parametrize("size", [(300, 700), (1100, 20), (64, 64)])
def test_the_lightness_of_the_picture_stays(host, colours, size):
    seen = colours(waves)
    image = photograph(*size) // 2 + 60
    result = host.process(TINY, image)
    assert result.shape == image.shape
    assert np.abs(lightness(result) - lightness(image)).max() < 1
    (pixels,) = seen
    assert tuple(pixels.shape) == (1, 3, 512, 512)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert (pixels - pixels.mean(dim=1, keepdim=True)).abs().max() < 1e-3, "it is grey"


def test_colours_that_it_has_are_not_looked_at(host, colours):
    colours(lambda pixels: torch.zeros(1, 2, 512, 512))
    result = host.process(TINY, photograph(50, 70))
    assert np.ptp(result.astype(int), axis=2).max() <= 1


def test_colours_lie_where_the_network_sees_them(host, colours):
    """Red from the middle of the picture on, whatever its size; strips of it are not seen."""

    def half(pixels):
        given = torch.zeros(1, 2, 512, 512)
        given[:, 0, :, 256:] = 40
        return given

    colours(half)
    result = host.process(TINY, np.full((600, 300, 3), 128, np.uint8)).astype(int)
    reddish = result[..., 0] - result[..., 1]
    assert reddish[:, :148].max() <= 1
    assert reddish[:, 152:].min() > 40
    assert (result == result[:1]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (3, 2)])
def test_the_smallest_images(host, colours, size):
    colours(waves)
    assert host.process(TINY, photograph(*size)).shape == (*size, 3)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16"])
@pytest.mark.parametrize("chained", [False, True])
def test_grey_and_transparent_pictures_are_coloured(host, colours, tmp_path, mode, chained):
    colours(lambda pixels: torch.full((1, 2, 512, 512), 30.0))
    samples = np.linspace(60, 200, 20 * 30).reshape(20, 30).astype("uint8")
    layers = {"L": samples, "I;16": samples.astype("uint16") * 257}
    PIL.Image.fromarray(layers.get(mode, np.dstack([samples] * len(mode)))).save(tmp_path / "in.png")
    picture = read_picture(tmp_path / "in.png")
    result = host.chain(picture.rgb, [Step(TINY)]) if chained else host.run(TINY, picture.rgb)
    write_picture(repaired(picture, result.image, result), tmp_path / "out.png")
    with PIL.Image.open(tmp_path / "out.png") as out:
        assert "".join(out.getbands()) == ("RGBA" if "A" in mode else "RGB")
        red, _, blue = np.moveaxis(np.asarray(out.convert("RGB")).astype(int), 2, 0)
        assert (red - blue).min() > 20
        if "A" in mode:
            assert np.array_equal(out.getchannel("A"), samples)


def test_the_command_line_makes_a_grey_file_one_in_colour(host, colours, tmp_path):
    colours(lambda pixels: torch.full((1, 2, 512, 512), 30.0))
    PIL.Image.fromarray(np.full((20, 30), 120, np.uint8)).save(tmp_path / "in.jpg")
    for concat in (False, True):
        jobs = plan(tmp_path / "in.jpg", None, tmp_path / f"{concat}.jpg")
        (outcome,) = run(host, TINY, jobs, Options(concat=concat))
        assert outcome.status is Status.REPAIRED
        with PIL.Image.open(tmp_path / f"{concat}.jpg") as out:
            assert out.mode == "RGB"
            red, _, blue = np.asarray(out)[10, -10].astype(int)
            assert red - blue > 20


def test_numbers_that_are_none_make_no_picture(host, colours):
    colours(lambda pixels: torch.full((1, 2, 512, 512), torch.nan))
    with pytest.raises(ModelError, match="no numbers"):
        host.process(TINY, photograph())


def test_a_file_of_another_network_is_an_error(plugins, tmp_path):
    torch.save(published(make_compact()), tmp_path / "pytorch_model.bin")
    plugins.register(colorize, "colorize")
    with (
        ModelManager(plugins, weights={"pytorch_model.bin": tmp_path / "pytorch_model.bin"}) as manager,
        pytest.raises(ModelLoadError, match=r"is a network of .*: expected DDColor"),
    ):
        manager.process(TINY, photograph())


def test_without_the_extra_it_says_what_to_install(monkeypatch, plugins):
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", None)
    plugins.register(colorize, "colorize")
    assert {info.unavailable for info in scan_models(plugins)} == {
        "spandrel_extra_arches is not installed: pip install 'iopaint-core[restore]'"
    }


def test_the_documents_name_them():
    text = (ROOT / "docs" / "models.md").read_text().partition("## `colorize`")[2].partition("\n## ")[0]
    assert all(name in text for name in colorize._MODELS)
