"""Type 500 single-file checkpoints from their headers, beside IOPaint's way on one, which loads it.

Needs the environments of `run.py`, and a disk that can store holes: the files have the names and shapes of
published ones, and holes in place of weights, which both sides read faster than a disk. Writes
`benchmarks/results/checkpoints.json` and its part of `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import ROOT, Row, machine, save, table, versions
from run import OURS, PEER

COUNT = 500
CLIP = "openai/clip-vit-large-patch14"
"""Whose config and tokenizer IOPaint takes from the cache of the hub."""


def write_checkpoints(folder: Path) -> Path:
    """500 in a folder, of all families; returns one of Stable Diffusion 1 apart from them, for IOPaint."""
    sys.path.insert(0, str(ROOT / "tests"))
    import checkpointfiles as files

    families = [
        *(files.sd1(), files.sd1(9), files.sd2(), files.sd2(9), files.sdxl(), files.sdxl(9)),
        *(files.sd3(), files.flux(), files.flux(384)),
    ]
    for number in range(COUNT):
        path = files.write(folder / "many" / f"{number:03}.safetensors", families[number % len(families)])
        os.utime(path, (1e9, 1e9))
    return files.write(folder / "one" / "model.safetensors", families[0])


def write_cache(folder: Path) -> None:
    """What IOPaint looks for in the cache of the hub: a config, and a tokenizer with a small vocabulary."""
    snapshot = folder / f"models--{CLIP.replace('/', '--')}" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0")
    tokens = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    (snapshot / "vocab.json").write_text(json.dumps(tokens))
    (snapshot / "merges.txt").write_text("#version: 0.2\n")
    (snapshot / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    text = {
        "model_type": "clip_text_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
    }
    config = {"model_type": "clip", "text_config": {**text, "projection_dim": 768}, "projection_dim": 768}
    (snapshot / "config.json").write_text(json.dumps(config))


def ours(folder: Path) -> None:
    """Print the seconds of a search that remembers nothing, and of the next one."""
    from iopaint_plugins.diffusion.discovery import find_local_models

    found = {}
    for name in ("seen", "remembered"):
        started = time.perf_counter()
        models = find_local_models([folder / "many"], home=folder / "home", memory=folder / "types.json").models
        found[name] = time.perf_counter() - started
        assert len(models) == COUNT
    (folder / "types.json").unlink()
    print(json.dumps(found))


def peer(folder: Path) -> None:
    """Print the seconds that IOPaint takes for one, its imports left out."""
    import diffusers  # noqa: F401 - not counted
    from diffusers import StableDiffusionInpaintPipeline  # noqa: F401 - not counted
    from iopaint.download import get_sd_model_type

    started = time.perf_counter()
    found = get_sd_model_type(str(folder / "one" / "model.safetensors"))
    print(json.dumps({"one": time.perf_counter() - started}))
    assert found.value == "diffusers_sd", found


def run(python: Path, side: str, folder: Path) -> dict[str, float]:
    environment = {**os.environ, "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, __file__, "--side", side, "--folder", folder],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, default=OURS / "python", help="of the environment of this project")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        {"ours": ours, "peer": peer}[options.side](options.folder)
        return
    if not options.python.exists():
        sys.exit("There is no .venv-bench: make bench sets it up")
    samples: dict[str, list[float]] = {"seen": [], "remembered": [], "one": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoints(folder)
        write_cache(folder / "hub")
        for turn in range(options.repeats + 1):
            found = run(options.python, "ours", folder)
            if (PEER / "python").exists():
                found |= run(PEER / "python", "peer", folder)
            for what, taken in found.items():
                if turn:
                    samples[what].append(taken)
    one = "IOPaint 1.6.0 on one, which it loads"
    rows = [
        Row(f"type {COUNT} checkpoints from their headers", one, "under 1 s",
            samples["seen"], samples["one"], below=1),
        Row("list them again", one, "", samples["remembered"], samples["one"]),
    ]  # fmt: skip
    about = machine()
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": about,
        "repeats": options.repeats,
        "versions": {"iopaint-core": versions(options.python.parent), "peer": versions(PEER)},
        "rows": [row.record() for row in rows],
    }
    each = statistics.median(samples["seen"]) / COUNT * 1000
    text = f"""{table(rows)}

{result["date"]}, {about["cpu"]}, {about["cores"]} cores, {about["memory_gib"]} GiB, Python {about["python"]}.
Seconds are medians with the range of {options.repeats} runs, the two sides alternating. One of the {COUNT} takes
{each:.1f} ms."""
    save("checkpoints", "checkpoints", result, text)
    print(text)


if __name__ == "__main__":
    main()
