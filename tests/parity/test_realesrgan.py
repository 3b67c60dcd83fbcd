"""The same random networks and photograph through IOPaint's RealESRGAN and through ours: `make parity`."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN
from upscalers import published

from iopaint_core import ModelManager, PluginManager
from iopaint_plugins import realesrgan

PEER = ROOT / ".venv-peer" / "bin" / "python"
PROGRAM = """
import sys
import numpy as np
import torch
from iopaint.plugins.realesrgan import RealESRGANUpscaler
from iopaint.schema import RealESRGANModel, RunPluginRequest

name, photo, result = sys.argv[1:]
upscaler = RealESRGANUpscaler(RealESRGANModel(name), torch.device("cpu"))
request = RunPluginRequest(name="RealESRGAN", image="", scale=4)
np.save(result, upscaler.gen_image(np.load(photo), request)[:, :, ::-1])
"""
EDGE = 4 * 24
"""Pixels of the result at the right and the bottom, where IOPaint has the network see a mirrored border."""


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "make", "wrapper"),
    [
        ("realesr-general-x4v3", lambda: Compact(num_feat=64, num_conv=32, upscale=4), "params"),
        ("RealESRGAN_x4plus_anime_6B", lambda: ESRGAN(num_filters=64, num_blocks=6), "params_ema"),
    ],
)
def test_it_upscales_as_iopaint_does(name, make, wrapper, tmp_path, capsys):
    torch.manual_seed(0)
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    state = published(make())
    if "conv_last.weight" in state:  # of random weights, too little would come out
        state["conv_last.weight"] *= 20
        state["conv_last.bias"] += 0.4
    torch.save({wrapper: state}, checkpoints / f"{name}.pth")
    photo = cv2.imread(str(ROOT / "examples" / "astronaut.jpg"))[100:180, 120:216, ::-1]
    np.save(tmp_path / "photo.npy", photo)
    environment = {**os.environ, "TORCH_HOME": str(tmp_path / "torch"), "XDG_CACHE_HOME": str(tmp_path)}
    arguments = [name, tmp_path / "photo.npy", tmp_path / "theirs.npy"]
    subprocess.run([PEER, "-c", PROGRAM, *arguments], env=environment, check=True, capture_output=True)
    theirs = np.load(tmp_path / "theirs.npy")
    plugins = PluginManager()
    plugins.register(realesrgan, "realesrgan")
    with ModelManager(plugins, weights={f"{name}.pth": checkpoints / f"{name}.pth"}) as manager:
        ours = manager.process(name, np.ascontiguousarray(photo))
    assert ours.shape == theirs.shape == (320, 384, 3)
    off = np.abs(ours.astype(int) - theirs)[:-EDGE, :-EDGE]
    with capsys.disabled():
        sys.stdout.write(f"{name}: at most {off.max()} of 255 off, {np.unique(ours).size} values.\n")
    assert np.unique(ours).size > 50
    assert off.max() <= 1
