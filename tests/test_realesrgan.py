"""Real-ESRGAN from published files to a picture: tiles without seams, memory that runs out, sharing, cancelling."""

import logging
import sys

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import photograph
from spandrel.architectures.Compact import Compact
from upscalers import make_compact, make_esrgan, published, upscaled

from iopaint_core import (
    LoadContext,
    ModelError,
    ModelManager,
    ModelType,
    RequestError,
    Task,
    footprint,
    read_picture,
    scan_models,
    write_picture,
)
from iopaint_plugins import realesrgan
from iopaint_plugins._tiles import upscale_in_tiles

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")]

COMPACT, ESRGAN, ANIME = "realesr-general-x4v3", "RealESRGAN_x4plus", "RealESRGAN_x4plus_anime_6B"
NETWORKS = {
    COMPACT: make_compact(),
    ESRGAN: make_esrgan(),
    ANIME: make_esrgan(seed=1, blocks=2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files, each with the wrapper that it is published with."""
    folder = tmp_path_factory.mktemp("realesrgan")
    for name, network in NETWORKS.items():
        torch.save({"params" if name == COMPACT else "params_ema": published(network)}, folder / f"{name}.pth")
    return folder


@pytest.fixture
def host(folder, plugins):
    plugins.register(realesrgan, "realesrgan")
    with ModelManager(plugins, weights={path.name: path for path in folder.iterdir()}) as manager:
        yield manager


def difference(one, other):
    return np.abs(one.astype(int) - other).max()


def smooth(height, width):
    """An image that a network changes slowly over, as photographs are."""
    return cv2.resize(photograph(9, 12), (width, height), interpolation=cv2.INTER_CUBIC)


def test_they_are_listed_with_all_that_a_user_asks(plugins):
    plugins.register(realesrgan, "realesrgan")
    models = {info.name: info for info in scan_models(plugins)}
    assert set(models) == {COMPACT, ESRGAN, ANIME, "RealESRGAN_4x"}
    for info in models.values():
        assert (info.type, info.task, info.license, info.unavailable) == (
            ModelType.PLUGIN,
            Task.RESTORE,
            "BSD-3-Clause",
            "",
        )
        (file,) = info.weights
        assert file.digest
        assert not file.runs_code
        assert {"tile", "scale"} <= set(info.parameters.names())
    assert models["RealESRGAN_4x"].weights == models[ESRGAN].weights


@pytest.mark.parametrize("name", NETWORKS)
def test_the_result_is_that_of_the_network(host, name):
    image = photograph(32, 48)
    result = host.process(name, image)
    assert result.shape == (128, 192, 3)
    assert len(np.unique(result)) > 20
    assert difference(result, upscaled(NETWORKS[name], image)) <= 1


@pytest.mark.parametrize(
    ("name", "size"),
    [(COMPACT, (150, 130)), (COMPACT, (64, 200)), (COMPACT, (201, 33)), (ESRGAN, (80, 66)), (ANIME, (20, 80))],
)
def test_tiles_are_not_seen(host, name, size):
    """Each pixel is within 1 of 255 of what the network makes of the whole image."""
    image = smooth(*size)
    steps = []
    result = host.run(name, image, parameters={"tile": 64}, progress=lambda *step: steps.append(step)).image
    assert difference(result, upscaled(NETWORKS[name], image)) <= 1
    assert len(steps) == steps[-1][1] + 1 > 3
    assert [step for step, _ in steps] == [*range(len(steps))]


def test_where_tiles_differ_they_fade_into_each_other():
    """A network that looks at all of its tile, as far as it can be from one that looks at a few pixels."""
    slope = np.add.outer(np.arange(200), np.arange(256)) * 255 // 455
    image = np.dstack([slope.astype(np.uint8)] * 3)

    def average(tile):
        return np.full((2 * tile.shape[0], 2 * tile.shape[1], 3), tile.mean(), np.uint8)

    result = upscale_in_tiles(image, 2, average, tile=64).astype(int)
    assert len(np.unique(result)) > 50
    for axis in (0, 1):
        assert np.abs(np.diff(result, axis=axis)).max() <= 4


class TestScale:
    @pytest.mark.parametrize(("scale", "how"), [(2, cv2.INTER_AREA), (1, cv2.INTER_AREA), (6, cv2.INTER_LANCZOS4)])
    def test_another_one_resizes_what_the_network_makes(self, host, scale, how):
        image = photograph(20, 31)
        native = host.process(COMPACT, image)
        result = host.process(COMPACT, image, {"scale": scale})
        assert np.array_equal(result, cv2.resize(native, (31 * scale, 20 * scale), interpolation=how))

    def test_its_own_is_the_default(self, host):
        image = photograph(20, 31)
        assert np.array_equal(host.process(COMPACT, image, {"scale": 4}), host.process(COMPACT, image))

    def test_a_fraction(self, host):
        assert host.process(COMPACT, photograph(5, 5), {"scale": 1.5}).shape == (8, 8, 3)
        assert host.process(COMPACT, photograph(5, 5), {"scale": 0.01}).shape == (1, 1, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (2, 3)])
def test_the_smallest_images(host, size):
    for name in NETWORKS:
        assert host.process(name, photograph(*size), {"tile": 64}).shape == (4 * size[0], 4 * size[1], 3)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16", "P"])
def test_grey_and_transparent_pictures(host, tmp_path, mode):
    grey = np.linspace(0, 255, 20 * 30).reshape(20, 30).astype("uint8")
    layers = {"L": grey, "I;16": grey.astype("uint16") * 257, "P": grey}
    samples = layers.get(mode, np.dstack([grey] * len(mode)))
    PIL.Image.fromarray(samples).convert("P" if mode == "P" else None).save(tmp_path / "in.png")
    picture = read_picture(tmp_path / "in.png")
    write_picture(picture.repaired(host.process(COMPACT, picture.rgb)), tmp_path / "out.png")
    with PIL.Image.open(tmp_path / "out.png") as out:
        assert out.size == (120, 80)
        assert ("A" in out.getbands()) == ("A" in mode)
        if "A" in mode:
            assert difference(np.asarray(out.getchannel("A"))[2::4, 2::4][1:-1, 1:-1], grey[1:-1, 1:-1]) < 10


def test_colours_are_rgb(host):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    assert difference(host.process(COMPACT, red), upscaled(NETWORKS[COMPACT], red)) <= 1


class TestSharing:
    def test_the_name_of_the_decision_record_is_the_same_component(self, host):
        with host.load(ESRGAN), host.load("RealESRGAN_4x"), host.load(ANIME):
            held = sorted(host.pool.stats().components, key=lambda part: len(part.users))
            assert [len(part.users) for part in held] == [1, 2]
            assert [part.nbytes for part in held] == [footprint([NETWORKS[name]]) for name in (ANIME, ESRGAN)]
        assert np.array_equal(host.process(ESRGAN, photograph()), host.process("RealESRGAN_4x", photograph()))

    def test_half_precision_is_another_component_of_half_the_size(self, host, folder, plugins):
        image = smooth(40, 60)
        context = LoadContext(dtype="bfloat16", cache=host.context.cache)
        with ModelManager(
            plugins, context=context, weights={path.name: path for path in folder.iterdir()}
        ) as other:
            assert difference(other.process(COMPACT, image), host.process(COMPACT, image)) < 8
            (held,) = other.pool.stats().components
            assert held.nbytes == footprint([NETWORKS[COMPACT]]) // 2


@pytest.fixture
def small_memory(monkeypatch):
    """Has the network run out of memory for more pixels than this; gives a function to set it, and what it saw."""
    sizes, forward = [], Compact.forward

    def set_limit(limit, error):
        def limited(self, pixels):
            sizes.append(max(pixels.shape[2:]))
            if max(pixels.shape[2:]) > limit:
                raise error
            return forward(self, pixels)

        monkeypatch.setattr(Compact, "forward", limited)
        return sizes

    return set_limit


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    MemoryError("no room"),
]


class TestMemory:
    @pytest.mark.parametrize("error", ERRORS, ids=["CUDA", "CPU", "Python"])
    def test_where_it_runs_out_tiles_are_halved_and_the_image_is_the_same(self, host, small_memory, caplog, error):
        image = smooth(160, 300)
        wanted = host.process(COMPACT, image, {"tile": 4096})
        sizes = small_memory(100, error)
        with caplog.at_level(logging.WARNING):
            result = host.process(COMPACT, image)
        assert difference(result, wanted) <= 1
        assert [size for size in sizes if size > 100] == [240, 104], "each is tried once"
        assert [record.getMessage() for record in caplog.records] == [
            "Memory ran out in a tile of 240 pixels; going on with 120",
            "Memory ran out in a tile of 104 pixels; going on with 64",
        ]

    def test_one_that_does_not_do_is_an_error_that_says_what_to_do(self, host, small_memory):
        sizes = small_memory(20, ERRORS[0])
        with pytest.raises(ModelError, match=r"out of memory.*Take a smaller image"):
            host.process(COMPACT, smooth(160, 300))
        assert min(sizes) == 48, "a corner of 64"
        assert set(host.pool.stats().leases.values()) <= {0}

    def test_any_other_error_is_not_tried_again(self, host, small_memory):
        sizes = small_memory(20, RuntimeError("a kernel is missing"))
        with pytest.raises(ModelError, match="a kernel is missing"):
            host.process(COMPACT, smooth(160, 300))
        assert len(sizes) == 1

    def test_numbers_that_are_none_make_no_picture(self, host, monkeypatch):
        monkeypatch.setattr(Compact, "forward", lambda self, pixels: pixels.repeat(1, 1, 4, 4) / 0 * 0)
        with pytest.raises(ModelError, match=r"no numbers, in torch\.float32.*full precision"):
            host.process(COMPACT, photograph())


class StoppedError(Exception):
    pass


def test_what_is_cancelled_between_two_tiles_is_released(host):
    image, seen = smooth(150, 130), []

    def stop(step, total):
        seen.append(step)
        if step == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        host.run(COMPACT, image, parameters={"tile": 64}, progress=stop)
    assert seen == [0, 1, 2, 3]
    assert set(host.pool.stats().leases.values()) == {0}
    host.pool.clear()
    assert host.pool.stats().components == ()
    assert difference(host.process(COMPACT, image), upscaled(NETWORKS[COMPACT], image)) <= 1


@pytest.mark.parametrize("tile", [63, 5000, "large", 100.5])
def test_a_tile_of_another_size_is_refused_before_anything_is_loaded(host, tile):
    with pytest.raises(RequestError, match="tile"):
        host.process(COMPACT, photograph(), {"tile": tile})
    assert host.pool.stats().components == ()


def test_without_its_extra_it_says_what_to_install(monkeypatch, plugins):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    plugins.register(realesrgan, "realesrgan")
    assert {info.unavailable for info in scan_models(plugins)} == {
        "spandrel is not installed: pip install 'iopaint-core[restore]'"
    }
