"""The same networks and photograph through rembg and through this project: `make parity`."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from onnxfiles import save_network

from iopaint_core import ModelManager, PluginManager, read_picture
from iopaint_plugins import removebg

PEER = ROOT / ".venv-rembg" / "bin" / "python"
PHOTO = ROOT / "examples" / "astronaut.jpg"
PROGRAM = """
import sys
import numpy as np
from PIL import Image
from rembg import new_session

name, photo, mattes = sys.argv[1:]
np.save(mattes, np.stack(new_session(name).predict(Image.open(photo).convert("RGB"))))
"""


@pytest.mark.parametrize(
    ("name", "theirs", "filename", "size"),
    [
        ("u2net", "u2net", "u2net.onnx", 320),
        ("isnet-general-use", "isnet-general-use", "isnet-general-use.onnx", 1024),
        ("isnet-anime", "isnet-anime", "isnet-anime.onnx", 1024),
        ("birefnet-general", "birefnet-general", "BiRefNet-general-epoch_244.onnx", 1024),
        ("briaai/RMBG-2.0", "bria-rmbg", "onnx/model.onnx", 1024),
    ],
)
def test_mattes_are_those_of_rembg(name, theirs, filename, size, tmp_path, capsys):
    path = save_network(tmp_path / f"{theirs}.onnx", size, kernel=7, scale=0.1)
    ours, other = matte_of(name, filename, path), peer(theirs, tmp_path)[0]
    off = np.abs(ours.astype(int) - other)
    with capsys.disabled():
        sys.stdout.write(f"{name}: off in {(off > 0).mean():.4%} of pixels, at most {off.max()} of 255.\n")
    assert np.ptp(ours) > 100, "something was found"
    assert off.max() <= 1


def test_clothes_are_those_of_rembg(tmp_path, capsys):
    """They differ at edges: rembg resizes numbers of kinds, so that between two kinds a third one may appear."""
    path = save_network(tmp_path / "u2net_cloth_seg.onnx", 768, channels=4, kernel=7, scale=0.1)
    ours, other = (
        matte_of("u2net_cloth_seg", "u2net_cloth_seg.onnx", path, masks=3),
        peer("u2net_cloth_seg", tmp_path),
    )
    alike = ((ours > 127) == (other > 127)).mean()
    with capsys.disabled():
        sys.stdout.write(f"u2net_cloth_seg: alike in {alike:.4%} of pixels.\n")
    assert alike > 0.9


def matte_of(name, filename, path, masks=1):
    plugins = PluginManager()
    plugins.register(removebg, "removebg")
    with ModelManager(plugins, weights={filename: path}) as manager:
        found = manager.run(name, read_picture(PHOTO).rgb).masks
    assert len(found) == masks
    return found[0] if masks == 1 else found


def peer(name, folder):
    environment = {**os.environ, "U2NET_HOME": str(folder), "MODEL_CHECKSUM_DISABLED": "1"}
    mattes = folder / "mattes.npy"
    subprocess.run([PEER, "-c", PROGRAM, name, PHOTO, mattes], env=environment, check=True)
    return np.load(mattes)
