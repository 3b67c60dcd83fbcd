from __future__ import annotations

import base64
import io
from typing import ClassVar

import numpy as np
import PIL.Image
import pytest
from conftest import photograph

from iopaint_core import (
    ContractError,
    InputError,
    LegacyPlugin,
    ModelError,
    ModelInfo,
    ModelLoadError,
    ModelManager,
    PluginManager,
    Task,
)


class Swap:
    """A plugin as IOPaint has them: RGB goes in, BGR and grey come out."""

    name = "Swap"
    support_gen_image = True
    support_gen_mask = True
    made: ClassVar[list[Swap]] = []

    def __init__(self, model_name, device, threshold=100):
        self.model_name, self.device, self.threshold = model_name, device, threshold
        self.weights = np.zeros((50, 40), np.uint8)
        self.requests = []
        self.made.append(self)

    def gen_image(self, rgb_np_img, req):
        self.requests.append(req)
        rgb_np_img[0] = 0  # as some do
        return np.repeat(np.repeat(rgb_np_img, int(req.scale), 0), int(req.scale), 1)[:, :, ::-1]

    def gen_mask(self, rgb_np_img, req):
        self.requests.append(req)
        mask = np.where(rgb_np_img[:, :, 0] > self.threshold, 255, 0).astype(np.uint8)
        return np.stack([mask] * 3, axis=2)


class Cutter:
    name = "Cutter"
    support_gen_image = True

    def gen_image(self, rgb_np_img, req):
        return np.dstack([rgb_np_img, rgb_np_img[:, :, 0]])


class Clicker:
    name = "Clicker"
    support_gen_mask = True
    support_gen_image = False

    def gen_mask(self, rgb_np_img, req):
        assert req.clicks == [[3, 2, 1], [5, 4, 0]]
        with PIL.Image.open(io.BytesIO(base64.b64decode(req.image))) as image:
            assert (np.asarray(image) == rgb_np_img).all()
        return rgb_np_img[:, :, 1]


@pytest.fixture
def manager():
    Swap.made.clear()

    def manager(cls, *arguments, **keywords):
        plugins = PluginManager()
        plugins.register(LegacyPlugin(cls, *arguments, **keywords))
        return ModelManager(plugins)

    return manager


def test_one_class_is_an_image_model_and_a_mask_model_that_share_one_instance(manager):
    image = photograph()
    host = manager(Swap, ["first", ModelInfo("second", license="MIT")], threshold=200)
    infos = {info.name: info for info in host.scan().models}
    assert {name: info.task for name, info in infos.items()} == {
        "first": Task.RESTORE,
        "first-mask": Task.SEGMENT,
        "second": Task.RESTORE,
        "second-mask": Task.SEGMENT,
    }
    assert infos["second-mask"].license == "MIT"
    expected = image.copy()
    expected[0] = 0
    assert (host.process("first", image, {"scale": 1}) == expected).all()
    assert (host.segment("first-mask", image) == np.where(image[:, :, 0] > 200, 255, 0)).all()
    assert [(one.model_name, one.device) for one in Swap.made] == [("first", "cpu")]
    host.process("second", image)
    assert [one.model_name for one in Swap.made] == ["first", "second"]
    assert host.pool.stats().devices["cpu"].resident == 2 * 50 * 40


def test_the_scale_is_iopaints_unless_one_is_asked_for(manager):
    host = manager(Swap)
    assert host.process("Swap", photograph(8, 9)).shape == (16, 18, 3)
    assert host.process("Swap", photograph(8, 9), {"scale": 3}).shape == (24, 27, 3)


def test_a_cut_out_comes_back_in_rgba(manager):
    image = photograph()
    given = manager(Cutter).process("Cutter", image)
    assert (given == np.dstack([image, image[:, :, 0]])).all()


def test_clicks_and_the_image_file_are_in_the_request(manager):
    image = photograph()
    host = manager(Clicker, ["clicker"])
    assert [info.name for info in host.scan().models] == ["clicker"]
    mask = host.segment("clicker", image, {"clicks": [[3, 2, 1], [5, 4, 0]]})
    assert (mask == image[:, :, 1]).all()
    with pytest.raises(InputError, match="clicker takes clicks alone"):
        host.segment("clicker", image, {"boxes": [[0, 0, 5, 5]]})


def test_an_instance_that_ends_the_process_is_a_model_that_cannot_be_loaded(manager):
    class Missing(Cutter):
        def __init__(self):
            raise SystemExit(-1)  # IOPaint's, for a package that is not installed

    with pytest.raises(ModelLoadError, match="Cutter"):
        manager(Missing).process("Cutter", photograph())


def test_what_it_raises_names_the_model(manager):
    class Broken(Cutter):
        def gen_image(self, rgb_np_img, req):
            raise ValueError("no such thing")

    with pytest.raises(ModelError, match=r"broken.*no such thing"):
        manager(Broken, ["broken"]).process("broken", photograph())


@pytest.mark.parametrize("flags", [{}, {"support_gen_image": False}, {"support_gen_mask": "yes"}])
def test_a_class_that_supports_nothing_is_told_at_once(flags):
    with pytest.raises(ContractError, match="expected a class with support_gen_image or support_gen_mask"):
        LegacyPlugin(type("Nothing", (), flags))
