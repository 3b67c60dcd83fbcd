"""Faces from published files to a picture: found, aligned, restored, and put back so that nothing else changes."""

import math
import sys
import warnings
from types import SimpleNamespace

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import ROOT, photograph
from detectors import POINTS, face_points, mark, save_yunet
from spandrel.architectures.GFPGAN import GFPGAN
from spandrel.architectures.RestoreFormer import RestoreFormer
from upscalers import make_compact, published

from iopaint_core import (
    InputError,
    LoadContext,
    ModelError,
    ModelLoadError,
    ModelManager,
    ModelType,
    PluginManager,
    PoolError,
    RequestError,
    Task,
    UnknownModelError,
    footprint,
    read_picture,
    scan_models,
    write_picture,
)
from iopaint_plugins import codeformer, gfpgan, person, realesrgan, restoreformer
from iopaint_plugins._faces import FaceParameters, FaceRestorer

with warnings.catch_warnings(action="ignore", category=FutureWarning):  # it uses torch.jit.script
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormer

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")]

YUNET = "face_detection_yunet_2023mar.onnx"
MODULES = {"GFPGANv1.4": gfpgan, "RestoreFormer": restoreformer, "CodeFormer": codeformer}
FILES = {"GFPGANv1.4": "GFPGANv1.4.pth", "RestoreFormer": "RestoreFormer.pth", "CodeFormer": "codeformer.pth"}
NETWORKS = {"GFPGANv1.4": GFPGAN, "RestoreFormer": RestoreFormer, "CodeFormer": CodeFormer}
UPSCALER = "realesr-general-x4v3"


def small_restoreformer():
    """As the published one, with 32 channels everywhere; in half the depth of each level."""
    torch.manual_seed(0)
    sizes = {"ch": 32, "ch_mult": (1, 1, 1, 1, 1, 1), "num_res_blocks": 1}
    return RestoreFormer(**sizes, n_embed=16, embed_dim=32, z_channels=32).eval()


def full_size_state(cls):
    """The names and shapes of a published file; all rows of a tensor are the same memory, so that it is small."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in cls().state_dict().items()}
    noise = torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02
    rows = {name: shape[2:] if shape[:1] == (1,) else shape[1:] for name, shape in shapes.items()}
    return {
        name: noise[: rows[name].numel()].view(rows[name]).expand(shape)
        if shape.numel() > 1
        else noise[:1].view(shape)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files, each with the wrapper that it is published with."""
    folder = tmp_path_factory.mktemp("faces")
    torch.save({"params_ema": full_size_state(GFPGAN)}, folder / FILES["GFPGANv1.4"])
    torch.save(small_restoreformer().state_dict(), folder / FILES["RestoreFormer"])
    torch.save({"params_ema": full_size_state(CodeFormer)}, folder / FILES["CodeFormer"])
    torch.save({"params": published(make_compact())}, folder / f"{UPSCALER}.pth")
    save_yunet(folder / YUNET)
    return folder


@pytest.fixture(scope="module")
def host(folder):
    """One for all tests: each network is loaded once."""
    plugins = PluginManager()
    for module in (*MODULES.values(), realesrgan, person):
        plugins.register(module, module.__name__.rpartition(".")[2])
    with ModelManager(plugins, weights={path.name: path for path in folder.iterdir()}) as manager:
        yield manager


@pytest.fixture
def restorer(tmp_path):
    """Gives a function that makes a model of a function of a face in -1 ... 1, and of where the faces are."""

    def make(restore, side=96, angle=0.0):
        path = save_yunet(tmp_path / "yunet.onnx", side, angle)
        detector = cv2.FaceDetectorYN.create(str(path), "", (640, 640), 0.7, 0.3)
        network = SimpleNamespace(
            descriptor=SimpleNamespace(dtype=torch.float32, model=lambda pixels: (restore(pixels), []))
        )
        model = FaceRestorer(network, detector, LoadContext())
        model.parameters_class = FaceParameters  # as a manager does
        return model

    return make


def brighter(pixels):
    return pixels + 0.5


def difference(one, other):
    return np.abs(one.astype(int) - other).max()


def grey(height=200, width=240):
    return np.full((height, width, 3), 100, np.uint8)


def place(point, side, angle=0.0, middle=(0, 0)):
    """Where a point of an aligned face is in the image."""
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return (np.asarray(point) - 255.5) @ turn * side / 512 + middle


class TestRoundTrip:
    """Where the network changes nothing, nothing changes."""

    @pytest.mark.parametrize(("side", "angle"), [(40, 0.4), (96, -2.5), (700, 0), (700, 0.2)])
    def test_it_comes_back(self, restorer, side, angle):
        image = photograph(180, 240)
        places = ((0, 0), (80, 64), (200, 120))[: 1 if side == 700 else 3]  # the first is half outside
        for x, y in places:
            mark(image, x, y)
        result = restorer(lambda face: face, side, angle).run(image)
        assert result.info == {"faces": len(places)}
        assert difference(result.image, image) <= 2

    def test_at_another_scale_it_is_the_resized_image(self, restorer):
        image = photograph(180, 240)
        mark(image, 80, 64)
        model = restorer(lambda face: face)
        for scale, how in ((2, cv2.INTER_LANCZOS4), (1.3, cv2.INTER_LANCZOS4), (0.5, cv2.INTER_AREA)):
            size = round(240 * scale), round(180 * scale)
            wanted = cv2.resize(image, size, interpolation=how)
            assert difference(model(image, {"scale": scale}), wanted) <= 2

    def test_a_photograph(self, restorer):
        image = np.asarray(PIL.Image.open(ROOT / "examples" / "astronaut.jpg").convert("RGB")).copy()
        mark(image, 216, 104)
        result = restorer(lambda face: face, 180).run(image)
        assert result.info == {"faces": 1}
        assert difference(result.image, image) <= 2


class TestAlignment:
    @pytest.mark.parametrize(("side", "angle"), [(96, 0), (96, 0.5), (600, 0.2)])
    def test_the_network_sees_the_face_upright_in_rgb(self, restorer, side, angle):
        """Red tells the column of a pixel, green its row."""
        height, width = (250, 250) if side < 300 else (800, 800)
        image = np.zeros((height, width, 3), np.float32)
        image[..., 0], image[..., 1] = np.meshgrid(np.linspace(0, 250, width), np.linspace(0, 250, height))
        image = np.rint(image).astype(np.uint8)
        middle = mark(image, 120, 128) if side < 300 else mark(image, 384, 416, cells=4)
        seen = []
        # the larger face is found in the view of 200 pixels, a fourth
        model = restorer(lambda face: seen.append(face) or face, side if side < 300 else side / 4, angle)
        assert model.run(image).info["faces"] >= 1
        (face,) = [part[0].permute(1, 2, 0).numpy() for part in seen[:1]]
        assert face.shape == (512, 512, 3)
        assert -1 <= face.min() < face.max() <= 1
        slack = 1.5
        for point in POINTS[[0, 1, 3, 4]]:
            column, row = place(point, side, angle, middle)
            x, y = np.rint(point).astype(int)
            values = (face[y, x] + 1) * 127.5
            assert values[0] == pytest.approx(column * 250 / (width - 1), abs=slack)
            assert values[1] == pytest.approx(row * 250 / (height - 1), abs=slack)

    @pytest.mark.parametrize("scale", [1, 2.5])
    @pytest.mark.parametrize(("side", "angle"), [(96, 0), (150, 0.5)])
    def test_what_it_draws_on_the_nose_is_on_the_nose(self, restorer, side, angle, scale):
        x, y = np.rint(POINTS[2]).astype(int)

        def draw(face):
            face = face.clone()
            face[:, :, y - 15 : y + 16, x - 15 : x + 16] += 0.8
            return face

        image = grey()
        middle = mark(image, 120, 96)
        result = restorer(draw, side, angle)(image, {"scale": scale})
        before = cv2.resize(image, result.shape[1::-1], interpolation=cv2.INTER_LANCZOS4)
        rows, columns = np.nonzero(np.abs(result.astype(int) - before).sum(axis=2) > 30)
        found = (np.array([columns.mean(), rows.mean()]) + 0.5) / scale - 0.5
        assert found == pytest.approx(place(POINTS[2], side, angle, middle), abs=0.5)


class TestBlending:
    def test_no_edge_is_seen(self, restorer):
        image = grey()
        mark(image, 120, 96)
        change = restorer(brighter, 150, 0.5)(image).astype(int) - image
        assert change[95:105, 110:118].min() == change[..., 0].max() == 64, "all of it in the middle"
        outside = np.hypot(*np.indices((200, 240)) - np.array([100, 124])[:, None, None]) > 150 / 2**0.5
        assert not change[outside].any()
        for axis in (0, 1):
            assert np.abs(np.diff(change[..., 0], axis=axis)).max() <= 10

    def test_one_that_reaches_beyond_the_image_is_restored_up_to_its_edge(self, restorer):
        image = grey()
        mark(image, 0, 96)
        change = restorer(brighter, 150)(image).astype(int) - image
        assert change[90:110, 0, 0].min() == 64

    def test_a_face_larger_than_the_network_sees_keeps_its_grain(self, restorer):
        """Of a face of 900 pixels, the network sees every other one; what it does not see stays."""
        image = np.random.default_rng(0).integers(90, 110, (800, 800, 3), dtype=np.uint8)
        mark(image, 384, 384, cells=4)
        change = restorer(brighter, 225)(image).astype(int) - image
        middle = change[460:500, 300:500]
        assert middle.min() >= 63
        assert middle.max() <= 65

    def test_faces_that_overlap_are_both_restored(self, restorer):
        image = grey()
        mark(image, 64, 96)
        mark(image, 144, 96)
        result = restorer(brighter, 110).run(image)
        assert result.info == {"faces": 2}
        change = result.image.astype(int) - image
        assert change[100, 60, 0] == change[100, 155, 0] == 64
        assert change.max() <= 64


class TestFinding:
    def test_a_small_face_in_a_large_picture(self, restorer):
        """It is found in the size of 2048 pixels, in a tile that is not the first."""
        image = grey(300, 3900)
        mark(image, 3000, 120, cells=4)
        model = restorer(brighter, 60)
        result = model.run(image)
        assert result.info == {"faces": 1}
        rows, columns = np.nonzero((result.image != image).any(axis=2))
        assert abs(columns.mean() - 3016) < 20
        assert abs(rows.mean() - 136) < 20

    def test_one_that_is_seen_in_two_tiles_and_sizes_is_one(self, restorer):
        image = grey(900, 1000)
        mark(image, 384, 488, cells=5)
        assert restorer(brighter, 300).run(image).info == {"faces": 1}

    def test_one_whose_eyes_are_not_told_apart_is_none(self, restorer):
        image = grey()
        mark(image, 120, 96)
        assert np.hypot(*(face_points(18)[1] - face_points(18)[0])) < 5
        assert restorer(brighter, 18).run(image).info == {"faces": 0, "unchanged": True}

    @pytest.mark.parametrize("image", [photograph(90, 70), np.zeros((1, 1, 3), np.uint8), grey(2, 900)])
    def test_where_there_is_none_the_image_stays_and_it_is_said(self, restorer, image):
        result = restorer(brighter).run(image)
        assert np.array_equal(result.image, image)
        assert result.info == {"faces": 0, "unchanged": True}

    def test_where_there_is_none_a_scale_is_still_brought_about(self, restorer):
        result = restorer(brighter).run(photograph(20, 30), parameters={"scale": 2})
        assert result.image.shape == (40, 60, 3)
        assert result.info == {"faces": 0}


class TestBackground:
    def test_it_is_made_by_a_pooled_upscaler(self, host, monkeypatch):
        """A RealESRGAN is one component, used by its own plugin and as the background of faces."""
        monkeypatch.setattr(RestoreFormer, "forward", lambda self, face: (face, []))
        image = photograph(160, 200)
        mark(image, 96, 64)
        with host.load(UPSCALER):
            result = host.run("RestoreFormer", image, parameters={"background": UPSCALER})
            size = footprint([make_compact()])
            assert [part.nbytes for part in host.pool.stats().components].count(size) == 1
        assert result.info == {"faces": 1}
        behind = host.process(UPSCALER, image, {"scale": 1})
        outside = np.ones((160, 200), bool)
        outside[15:125, 40:160] = False
        assert np.array_equal(result.image[outside], behind[outside])
        assert difference(result.image[60:70, 90:110], image[60:70, 90:110]) <= 2

    def test_its_scale_is_that_of_the_result(self, host):
        image = photograph(20, 30)
        for scale in (2, 4):
            how = {"background": UPSCALER, "scale": scale}
            result = host.run("RestoreFormer", image, parameters=how)
            assert result.info == {"faces": 0}
            assert np.array_equal(result.image, host.process(UPSCALER, image, {"scale": scale}))

    def test_the_detector_is_one_for_all(self, host):
        with host.load("RestoreFormer"), host.load("GFPGANv1.4"), host.load("CodeFormer"):
            held = host.pool.stats().components
        (detector,) = [part for part in held if part.key.kind == "OpenCV face detector"]
        assert len(detector.users) == 3

    def test_a_model_that_makes_none_is_an_error(self, host):
        image = np.asarray(PIL.Image.open(ROOT / "examples" / "astronaut.jpg").convert("RGB"))
        with pytest.raises(InputError, match=r"made by person.*expected RGB, found RGBA"):
            host.run("RestoreFormer", image, parameters={"background": "person"})
        with pytest.raises(UnknownModelError, match=r"realesr-general-x4v4.*realesr-general-x4v3"):
            host.run("RestoreFormer", image, parameters={"background": "realesr-general-x4v4"})

    def test_another_restorer_of_faces_is_an_error_that_says_why(self, host):
        for other in ("RestoreFormer", "CodeFormer"):
            with pytest.raises(PoolError, match="share an exclusive component"):
                host.run("RestoreFormer", photograph(), parameters={"background": other})


class TestNetworks:
    def test_they_are_listed_with_all_that_a_user_asks(self, plugins):
        for name, module in MODULES.items():
            plugins.register(module, name.lower())
        models = {info.name: info for info in scan_models(plugins)}
        assert set(models) == set(MODULES)
        for name, info in models.items():
            assert (info.type, info.task, info.unavailable) == (ModelType.PLUGIN, Task.RESTORE, "")
            network, detector = info.weights
            assert (network.filename, detector.filename) == (FILES[name], YUNET)
            assert not network.runs_code
            assert detector.sha256
            assert info.license
            assert info.commercial == (name != "CodeFormer")

    @pytest.mark.parametrize(
        ("name", "parameters", "given"),
        [
            ("GFPGANv1.4", {}, {"randomize_noise": False}),
            ("CodeFormer", {}, {"weight": 0.5}),
            ("CodeFormer", {"weight": 0}, {"weight": 0}),
            ("RestoreFormer", {}, {}),
        ],
    )
    def test_each_is_called_as_its_authors_call_it(self, host, monkeypatch, name, parameters, given):
        calls = []

        def forward(self, face, **how):
            calls.append((tuple(face.shape), float(face.min()), how))
            return face + 0.5, []

        monkeypatch.setattr(NETWORKS[name], "forward", forward)
        image = photograph(160, 200)
        mark(image, 96, 64)
        result = host.process(name, image, parameters)
        assert result[66:70, 98:102, 0] == pytest.approx(64, abs=1), "of the blue mark"
        ((shape, least, how),) = calls
        assert (shape, how) == ((1, 3, 512, 512), given)
        assert least == -1

    @pytest.mark.slow
    @pytest.mark.parametrize("name", MODULES)
    def test_each_runs(self, host, name):
        image = photograph(160, 200)
        mark(image, 96, 64)
        result = host.run(name, image)
        assert result.info == {"faces": 1}
        change = np.abs(result.image.astype(int) - image).max(axis=2)
        assert change[50:80, 80:120].mean() > 20
        assert not change[:15].any()
        assert np.array_equal(host.process(name, image), result.image), "no random number is drawn"

    def test_a_file_of_another_network_is_an_error(self, plugins, folder):
        plugins.register(gfpgan, "gfpgan")
        weights = {FILES["GFPGANv1.4"]: folder / FILES["RestoreFormer"], YUNET: folder / YUNET}
        with (
            ModelManager(plugins, weights=weights) as manager,
            pytest.raises(ModelLoadError, match=r"network of RestoreFormer: expected GFPGAN"),
        ):
            manager.process("GFPGANv1.4", photograph())

    def test_numbers_that_are_none_make_no_face(self, restorer):
        image = grey()
        mark(image, 120, 96)
        with pytest.raises(ModelError, match="no numbers"):
            restorer(lambda face: face / 0)(image)

    @pytest.mark.parametrize("weight", [-0.1, 1.1, "much"])
    def test_a_wrong_weight_is_refused_before_anything_is_loaded(self, host, weight):
        before = host.pool.stats().counts
        with pytest.raises(RequestError, match="weight"):
            host.process("CodeFormer", photograph(), {"weight": weight})
        assert host.pool.stats().counts == before

    @pytest.mark.parametrize("package", ["spandrel", "spandrel_extra_arches"])
    def test_without_the_extra_it_says_what_to_install(self, monkeypatch, plugins, package):
        monkeypatch.setitem(sys.modules, package, None)
        for name, module in MODULES.items():
            plugins.register(module, name.lower())
        missing = f"{package} is not installed: pip install 'iopaint-core[restore]'"
        for info in scan_models(plugins):
            needs = info.name == "CodeFormer" or package == "spandrel"
            assert info.unavailable == (missing if needs else "")


class StoppedError(Exception):
    pass


def test_each_face_is_a_step_and_a_call_is_cancelled_between_two(restorer):
    image = grey(200, 400)
    for x in (64, 184, 304):
        mark(image, x, 96)
    restored, steps = [], []

    def progress(*step):
        steps.append(step)
        if len(restored) == 2:
            raise StoppedError

    model = restorer(lambda face: restored.append(1) or face)
    with pytest.raises(StoppedError):
        model.run(image, progress=progress)
    assert len(restored) == 2
    assert steps[-1] == (2, 3)
    assert [*dict.fromkeys(steps)] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16"])
def test_grey_and_transparent_pictures(restorer, tmp_path, mode):
    """A grey one has no blue: it is without a face for this detector, and enlarged."""
    samples = np.linspace(0, 255, 20 * 30).reshape(20, 30).astype("uint8")
    layers = {"L": samples, "I;16": samples.astype("uint16") * 257}
    PIL.Image.fromarray(layers.get(mode, np.dstack([samples] * len(mode)))).save(tmp_path / "in.png")
    picture = read_picture(tmp_path / "in.png")
    result = restorer(brighter)(picture.rgb, {"scale": 2})
    write_picture(picture.repaired(result), tmp_path / "out.png")
    with PIL.Image.open(tmp_path / "out.png") as out:
        assert out.size == (60, 40)
        assert ("A" in out.getbands()) == ("A" in mode)


def test_their_parameters_are_in_the_table():
    table = (
        (ROOT / "docs" / "parameters.md").read_text().partition("## Restorers of faces")[2].partition("\n## ")[0]
    )
    assert FaceParameters().background == ""
    assert '| `background` | `""` |' in table
    assert f"| `weight` | `{codeformer.CodeFormerParameters().weight}` |" in table
