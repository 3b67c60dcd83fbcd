"""What a call of a diffusion model takes around the pipeline's own, for a picture of 512 x 512.

The pipeline is a small one; what is measured does not depend on its size. Writes
`benchmarks/results/diffusion.json` and its part of `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import ROOT, lines, machine, save, seconds, summary, versions, with_range
from run import OURS

CALLS = 100
GOAL = 2e-3
"""Seconds."""


def measure(folder: Path) -> None:
    """Print, for each call, the seconds of the whole and of the pipeline's part."""
    sys.path.insert(0, str(ROOT / "tests"))
    import cv2
    import numpy as np
    from pipelines import MAKERS

    from iopaint_core import InpaintRequest, ModelManager

    MAKERS["StableDiffusionInpaintPipeline"](folder / "stable_diffusion" / "model")
    manager = ModelManager()
    photo = cv2.resize(cv2.imread(str(ROOT / "examples" / "astronaut.jpg"))[..., ::-1], (512, 512))
    mask = np.zeros((512, 512), np.uint8)
    mask[100:300, 100:300] = 255
    request = InpaintRequest(prompt="a photo", sd_steps=1)
    with manager.load("model") as model:
        pipeline = type(model._pipeline)
        call, inside = pipeline.__call__, []

        @functools.wraps(call)
        def timed(*args: object, **options: object) -> object:
            started = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                inside.append(time.perf_counter() - started)

        pipeline.__call__ = timed
        whole = []
        for _ in range(CALLS + 3):
            started = time.perf_counter()
            manager.inpaint("model", np.ascontiguousarray(photo), mask, request)
            whole.append(time.perf_counter() - started)
    print(json.dumps({"whole": whole[3:], "inside": inside[3:]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, default=OURS / "python", help="of the environment of this project")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        measure(options.folder)
        return
    if not options.python.exists():
        sys.exit("There is no .venv-bench: make bench sets it up")
    with tempfile.TemporaryDirectory() as folder:
        empty = {"IOPAINT_HOME": folder, "HF_HOME": folder, "XDG_CACHE_HOME": folder}
        done = subprocess.run(
            [options.python, __file__, "--folder", folder],
            env={**os.environ, **empty}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    samples = json.loads(done.stdout.splitlines()[-1])
    around = [whole - inside for whole, inside in zip(samples["whole"], samples["inside"], strict=True)]
    met = "yes" if statistics.median(around) < GOAL else "no"
    body = [
        ["the whole call", seconds(samples["whole"]), "", ""],
        ["the pipeline's part of it", seconds(samples["inside"]), "", ""],
        ["what is around that", with_range(around, "ms", 1e3), f"under {GOAL * 1e3:.0f} ms", met],
    ]
    about = machine()
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": about,
        "calls": CALLS,
        "versions": {"iopaint-core": versions(options.python.parent)},
        "goal": GOAL,
        **{name: summary(taken) for name, taken in {**samples, "around": around}.items()},
    }
    text = f"""{lines(["what", "iopaint-core", "goal", "met"], body)}

{result["date"]}, {about["cpu"]}, {about["cores"]} cores, {about["memory_gib"]} GiB, Python {about["python"]}.
Seconds are medians with the range of {CALLS} calls, of one step each, with a mask of 200 x 200 pixels."""
    save("diffusion", "diffusion", result, text)
    print(text)


if __name__ == "__main__":
    main()
