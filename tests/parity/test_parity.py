"""The same random network, photograph and mask through IOPaint 1.6.0 and through this project: `make parity`."""

import hashlib
import os
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT
from weights import save_network

PEER = ROOT / ".venv-peer" / "bin" / "iopaint"


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_lama_repairs_as_iopaint_does(tmp_path, capsys):
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    save_network(checkpoints / "big-lama.pt")
    photo, mask, ours, theirs = (tmp_path / name for name in ("photo.png", "mask.png", "ours.png", "theirs"))
    PIL.Image.open(ROOT / "examples" / "astronaut.jpg").convert("RGB").save(photo)
    shutil.copy(ROOT / "examples" / "astronaut-mask.png", mask)
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path),
        "IOPAINT_HOME": str(tmp_path / "home"),
        "LAMA_MODEL_MD5": hashlib.md5((checkpoints / "big-lama.pt").read_bytes()).hexdigest(),
    }
    common = ["run", "--model", "lama", "--image", photo, "--mask", mask, "--output"]
    theirs.mkdir()
    subprocess.run([PEER, *common, theirs, "--device", "cpu", "--model-dir", tmp_path], env=environment, check=True)
    subprocess.run([sys.executable, "-m", "iopaint_core", *common, ours], env=environment, check=True)
    one, other = (
        np.asarray(PIL.Image.open(path).convert("RGB")).astype(int) for path in (ours, theirs / "photo.png")
    )
    covered = np.asarray(PIL.Image.open(mask).convert("L")) > 0
    assert not np.array_equal(one[covered], np.asarray(PIL.Image.open(photo))[covered]), "something was repainted"
    off = np.abs(one - other).max(axis=2)
    alike = (off <= 1).mean()
    with capsys.disabled():
        sys.stdout.write(f"At most 1 of 255 off in {alike:.4%} of pixels, at most {off.max()} anywhere.\n")
    assert alike >= 0.999
