"""Background removal from files in the published shapes to cut-outs, with small networks of random weights."""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import PIL.Image
import pytest
from conftest import photograph
from onnxfiles import save_network

from iopaint_core import (
    DownloadError,
    ModelLoadError,
    ModelManager,
    ModelOutputError,
    PluginManager,
    PoolError,
    Task,
    batch,
)
from iopaint_plugins import removebg

PHOTO = photograph(50, 70) // 2
LANCZOS = PIL.Image.Resampling.LANCZOS
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BIREFNETS = ("general", "general-lite", "portrait", "dis", "hrsod", "cod", "massive")
MODELS = {  # the side of the square, the norm, and whether a sigmoid follows: as rembg has them
    **dict.fromkeys(("u2net", "u2netp", "u2net_human_seg", "silueta"), (320, IMAGENET, False)),
    "u2net_cloth_seg": (768, IMAGENET, False),
    "isnet-general-use": (1024, ((0.5,) * 3, (1.0,) * 3), False),
    "isnet-anime": (1024, (IMAGENET[0], (1.0,) * 3), False),
    **{f"birefnet-{name}": (1024, IMAGENET, True) for name in BIREFNETS},
    "briaai/RMBG-1.4": (1024, ((0.5,) * 3, (1.0,) * 3), False),
    "briaai/RMBG-2.0": (1024, IMAGENET, False),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network for each size of pictures."""
    folder = tmp_path_factory.mktemp("networks")
    return {
        size: save_network(folder / f"{size}.onnx", size, channels=4 if size == 768 else 1)
        for size in (320, 768, 1024)
    }


def manager_of(weights, **how):
    plugins = PluginManager()
    plugins.register(removebg, "removebg")
    return ModelManager(plugins, weights=weights, **how)


@pytest.fixture(scope="module")
def announced():
    return {info.name: info for info in manager_of({}).scan().models}


@pytest.fixture
def host(files, announced):
    """A manager that has a file for each model, and closes in the end."""
    given = {file.filename: files[MODELS[name][0]] for name, info in announced.items() for file in info.weights}
    with manager_of(given) as manager:
        yield manager


@functools.cache
def given(path, size, mean, deviation):
    """What a network gives for `PHOTO`, as rembg prepares it."""
    pixels = np.array(PIL.Image.fromarray(PHOTO).resize((size, size), LANCZOS))
    pixels = ((pixels / max(np.max(pixels), 1e-6) - mean) / deviation).transpose(2, 0, 1)[None]
    return onnxruntime.InferenceSession(path).run(None, {"input.1": pixels.astype(np.float32)})[0][0]


def resized(matte):
    return np.array(PIL.Image.fromarray(matte).resize((PHOTO.shape[1], PHOTO.shape[0]), LANCZOS))


def expected(values, sigmoid):
    """The matte that rembg makes of what a network gives."""
    values = 1 / (1 + np.exp(-values)) if sigmoid else values
    values = (values - values.min()) / (values.max() - values.min())
    return resized((values * 255).astype(np.uint8))


def test_every_model_is_announced_with_what_a_host_wants_to_know(announced):
    assert announced.keys() == MODELS.keys()
    for name, info in announced.items():
        (file,) = info.weights
        assert info.task == Task.MATTING
        assert file.digest
        assert file.size is None or file.size > 4_000_000
        assert info.license
        assert info.title
        assert info.description
        assert info.homepage.startswith("https://")
        assert info.commercial == (not name.startswith("briaai/"))
        assert not info.unavailable


def test_without_onnxruntime_they_are_listed_as_unavailable(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    reasons = {info.unavailable for info in removebg.iopaint_available_models()}
    assert reasons == {"onnxruntime is not installed: pip install 'iopaint-core[matting]'"}


@pytest.mark.parametrize("name", MODELS)
def test_each_is_run_as_rembg_runs_it(name):
    size, norm, gives_logits = MODELS[name]
    network = removebg._MODELS[name].network
    assert network == removebg.Network(size, norm, gives_logits, network.labels)
    assert bool(network.labels) == (name == "u2net_cloth_seg")


OF_EACH_KIND = {how: name for name, how in MODELS.items()}.values()
"""Those that run in the quick suite: one for each size, norm and output."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in OF_EACH_KIND else pytest.mark.slow)
        for name in MODELS
        if name != "u2net_cloth_seg"
    ],
)
def test_a_cut_out_and_its_matte_as_rembg_makes_them(name, host, files):
    size, (mean, deviation), sigmoid = MODELS[name]
    result = host.run(name, PHOTO)
    assert np.array_equal(result.image[..., :3], PHOTO)
    assert np.array_equal(result.image[..., 3], result.masks[0])
    off = np.abs(result.masks[0].astype(int) - expected(given(files[size], size, mean, deviation)[0], sigmoid))
    assert off.max() <= 1
    assert np.ptp(result.masks[0]) > 50


def test_clothes_are_told_apart(host, files):
    result = host.run("u2net_cloth_seg", PHOTO)
    assert result.labels == ("upper body", "lower body", "full body")
    largest = given(files[768], 768, *IMAGENET).argmax(axis=0)  # 0 is the background
    for number, mask in enumerate(result.masks, start=1):
        off = np.abs(mask.astype(int) - resized(np.where(largest == number, 255, 0).astype(np.uint8)))
        assert np.ptp(mask) > 50
        assert (off > 2).mean() < 0.01
    assert np.array_equal(result.image[..., 3], result.masks.max(axis=0))


def test_files_of_equal_bytes_are_one_session(host):
    with host.load("u2net"), host.load("silueta"):
        (held,) = host.pool.stats().components
        assert len(held.users) == 2
        assert host.pool.stats().counts.component_loads == 1


def test_eight_threads_get_equal_results_from_one_session(host):
    image = photograph()
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: host.run("u2netp", image).image, range(16)))
    assert all(np.array_equal(result, results[0]) for result in results)
    assert host.pool.stats().counts.component_loads == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (3, 2)])
def test_pictures_of_few_pixels(host, shape):
    image = photograph(*shape)
    assert host.run("u2net", image).image.shape == (*shape, 4)


def test_a_black_picture(host):
    assert host.run("u2net", np.zeros((20, 30, 3), np.uint8)).image.shape == (20, 30, 4)


def test_where_nothing_is_found_the_image_is_unchanged(tmp_path):
    path = save_network(tmp_path / "blind.onnx", 320, scale=0)
    image = photograph()
    with manager_of({"u2net.onnx": path}) as manager:
        result = manager.run("u2net", image)
    assert result.info["unchanged"] is True
    assert np.array_equal(result.image, image)
    assert not result.mask.any()


def test_values_that_are_no_numbers_are_an_error(tmp_path):
    path = save_network(tmp_path / "broken.onnx", 320, scale=np.nan)
    with manager_of({"u2net.onnx": path}) as manager, pytest.raises(ModelOutputError, match="expected finite"):
        manager.run("u2net", photograph())


def test_a_network_with_too_few_channels(tmp_path):
    path = save_network(tmp_path / "one.onnx", 768)
    with manager_of({"u2net_cloth_seg.onnx": path}) as manager, pytest.raises(ModelOutputError, match=r"\(1, 4, H"):
        manager.run("u2net_cloth_seg", photograph())


def test_a_file_with_other_inputs(files):
    with (
        manager_of({"isnet-general-use.onnx": files[320]}) as manager,
        pytest.raises(ModelLoadError, match=r"takes 1 x 3 x 1024 x 1024, found .* 1 x 3 x 320 x 320"),
    ):
        manager.run("isnet-general-use", photograph())


def test_a_damaged_file(tmp_path):
    (tmp_path / "damaged.onnx").write_bytes(b"<html>" * 50)
    with (
        manager_of({"u2net.onnx": tmp_path / "damaged.onnx"}) as manager,
        pytest.raises(ModelLoadError, match=r"damaged\.onnx is no ONNX file"),
    ):
        manager.run("u2net", photograph())


def test_a_provider_that_is_not_installed(files):
    options = {"removebg": {"provider": "NoSuchExecutionProvider"}}
    with (
        manager_of({"u2net.onnx": files[320]}, options=options) as manager,
        pytest.raises(ModelLoadError, match=r"does not have the execution provider NoSuch.*CPUExecutionProvider"),
    ):
        manager.run("u2net", photograph())


def test_a_gated_repository_says_how_to_log_in(server, hub):
    server.headers["/briaai/RMBG-2.0/resolve/main/onnx/model.onnx"] = {
        "X-Status": "403",
        "X-Error-Code": "GatedRepo",
        "X-Repo-Commit": "0" * 40,
    }
    with manager_of({}) as manager, pytest.raises(DownloadError, match=r"RMBG-2\.0 is gated") as caught:
        manager.run("briaai/RMBG-2.0", photograph())
    assert "hf auth login" in caught.value.remedy


def test_a_closed_manager(host):
    host.run("u2net", photograph())
    host.close()
    with pytest.raises(PoolError, match="closed"):
        host.run("u2net", photograph())


class TestFolders:
    @pytest.fixture
    def photos(self, tmp_path):
        folder = tmp_path / "photos"
        folder.mkdir()
        for name in ("a.jpg", "b.jpg", "b.png", "c.bmp"):
            PIL.Image.fromarray(photograph()).save(folder / name)
        PIL.Image.fromarray(photograph()[..., 0]).save(folder / "grey.png")
        PIL.Image.fromarray(np.dstack([photograph(), photograph()[..., 0]])).save(
            folder / "alpha.webp", lossless=True
        )
        return folder

    def outcomes(self, host, *paths):
        jobs = batch.plan(paths[0], None, paths[1])
        return list(batch.run(host, "u2net", jobs, batch.Options()))

    def test_pictures_whose_format_has_no_transparency_come_out_as_png(self, host, photos, tmp_path, caplog):
        outcomes = self.outcomes(host, photos, tmp_path / "out")
        assert {outcome.error for outcome in outcomes} == {None}
        assert [outcome.files[0].name for outcome in outcomes] == [
            *("a.png", "alpha.webp", "b.jpg.png", "b.png", "c.png", "grey.png"),
        ]
        for outcome in outcomes:
            with PIL.Image.open(outcome.files[0]) as image, PIL.Image.open(outcome.files[1]) as matte:
                assert image.mode == "RGBA"
                assert np.array_equal(np.asarray(image)[..., 3], np.asarray(matte))
        (told,) = [record.getMessage() for record in caplog.records if "transparency" in record.getMessage()]
        assert told.endswith("a.png, and 2 more so: its format holds no transparency")

    def test_what_is_done_is_not_done_again(self, host, photos, tmp_path):
        self.outcomes(host, photos, tmp_path / "out")
        assert {outcome.status.value for outcome in self.outcomes(host, photos, tmp_path / "out")} == {"skipped"}

    def test_one_picture_into_a_folder(self, host, photos, tmp_path):
        (outcome,) = self.outcomes(host, photos / "a.jpg", tmp_path / "out")
        assert outcome.files[0] == tmp_path / "out" / "a.png"

    def test_a_name_that_was_chosen_is_kept_and_what_it_would_lose_is_said(self, host, photos, tmp_path):
        (outcome,) = self.outcomes(host, photos / "a.jpg", tmp_path / "mine.jpg")
        assert "can't hold the transparency" in str(outcome.error)
        assert not (tmp_path / "mine.jpg").exists()
