"""LaMa from a file to a picture, with a random network in the published format."""

import hashlib

import numpy as np
import pytest
import torch
from conftest import ROOT, photograph
from weights import save_network

from iopaint_core import (
    HDStrategy,
    InpaintRequest,
    LoadContext,
    ModelManager,
    UntrustedWeightsError,
    read_mask,
    read_picture,
)

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"),
]
WHOLE = InpaintRequest(hd_strategy=HDStrategy.ORIGINAL)


@pytest.fixture
def published(tmp_path, server, monkeypatch):
    """The weights as a server has them; the environment says where, and what their hash is."""
    network = save_network(tmp_path / "published.pt")
    content = (tmp_path / "published.pt").read_bytes()
    server.files["/big-lama.pt"] = content
    monkeypatch.setenv("LAMA_MODEL_URL", f"{server.url}/big-lama.pt")
    monkeypatch.setenv("LAMA_MODEL_MD5", hashlib.md5(content).hexdigest())
    monkeypatch.setenv("IOPAINT_HOME", str(tmp_path / "home"))
    return network


def expected(network, image, mask):
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        painted = network(pixels, (torch.from_numpy(mask) > 0)[None, None].float())
    return (painted[0].permute(1, 2, 0) * 255).clamp(0, 255).to(torch.uint8).numpy()


def test_it_is_fetched_loaded_and_gives_what_its_network_gives(published, server):
    manager = ModelManager()
    image = photograph(64, 96)
    mask = np.zeros((64, 96), np.uint8)
    mask[20:40, 30:60] = 255
    repaired = manager.inpaint("lama", image, mask, WHOLE)
    wanted = expected(published, image, mask)
    assert np.abs(repaired[mask > 0].astype(int) - wanted[mask > 0]).max() <= 1
    assert len(np.unique(repaired[mask > 0])) > 10
    assert [path for path, _ in server.requests] == ["/big-lama.pt"]


def test_colours_are_rgb(published):
    """Red and blue of the picture come back where they were: nothing is fed or returned as BGR."""
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 255
    mask = np.full((64, 64), 255, np.uint8)
    repaired = ModelManager().inpaint("lama", red, mask, WHOLE)
    assert np.abs(repaired.astype(int) - expected(published, red, mask)).max() <= 1
    assert not np.array_equal(repaired, expected(published, np.ascontiguousarray(red[..., ::-1]), mask)[..., ::-1])


def test_a_real_photograph_of_any_size(published):
    image = read_picture(ROOT / "examples" / "astronaut.jpg").rgb[:509, :403]
    mask = read_mask(ROOT / "examples" / "astronaut-mask.png")[:509, :403]
    repaired = ModelManager().inpaint("lama", image, mask)
    assert np.array_equal(repaired[mask == 0], image[mask == 0])
    assert not np.array_equal(repaired[mask > 0], image[mask > 0])


def test_its_weights_are_held_once_under_two_names(published, tmp_path, monkeypatch):
    """`anime-lama` with the same file is the same network."""
    content = (tmp_path / "published.pt").read_bytes()
    folder = tmp_path / "home" / "weights" / "lama"
    folder.mkdir(parents=True)
    (folder / "anime-manga-big-lama.pt").write_bytes(content)
    monkeypatch.setenv("ANIME_LAMA_MODEL_MD5", hashlib.md5(content).hexdigest())
    manager = ModelManager()
    with manager.load("lama"), manager.load("anime-lama"):
        (held,) = manager.pool.stats().components
        assert held.nbytes == len(content)
        assert len(held.users) == 2


def test_a_network_that_the_user_trained(published, tmp_path):
    mine = save_network(tmp_path / "mine.pt", seed=1)
    image, mask = photograph(64, 64), np.full((64, 64), 255, np.uint8)
    given = {"big-lama.pt": tmp_path / "mine.pt"}
    manager = ModelManager(weights=given)
    with pytest.raises(UntrustedWeightsError, match=r"mine\.pt can run code"):
        manager.inpaint("lama", image, mask, WHOLE)
    manager.store.trust = True
    repaired = manager.inpaint("lama", image, mask, WHOLE)
    assert np.abs(repaired.astype(int) - expected(mine, image, mask)).max() <= 1


def test_on_apples_devices_it_runs_on_the_cpu(published):
    manager = ModelManager(context=LoadContext(device="mps", cache=ModelManager().context.cache))
    assert manager.inpaint("lama", photograph(), np.full((40, 60), 255, np.uint8)).shape == (40, 60, 3)
