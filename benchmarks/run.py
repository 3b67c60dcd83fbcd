"""Measure start-up, first picture and scan, each beside its peer in the same run.

`--setup` makes what is missing: `.venv-bench` with this project and all extras, `.venv-peer` with IOPaint 1.6.0.
Without the peer its rows say so. Writes `benchmarks/results/startup.json` and the table of `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import ROOT, Row, machine, save, seconds, summary, table, versions

OURS, PEER = ROOT / ".venv-bench" / "bin", ROOT / ".venv-peer" / "bin"
PHOTO, MASK = ROOT / "examples" / "astronaut.jpg", ROOT / "examples" / "astronaut-mask.png"


def pip(environment: Path, *arguments: str) -> None:
    subprocess.run([environment / "python", "-m", "pip", "install", "--quiet", *arguments], check=True, cwd=ROOT)


def make(environment: Path, *installs: tuple[str, ...]) -> None:
    """Make an environment whole or not at all: half of one would be measured by the next run."""
    if (environment / "python").exists():
        return
    try:
        subprocess.run([sys.executable, "-m", "venv", environment.parent], check=True)
        for arguments in installs:
            pip(environment, *arguments)
    except BaseException:
        shutil.rmtree(environment.parent, ignore_errors=True)
        raise


def set_up() -> None:
    make(OURS, (".[all]",))
    pip(OURS, "--no-deps", "--force-reinstall", ".")
    try:
        make(PEER, ("iopaint==1.6.0",), ("--upgrade", "torch", "torchvision", "numpy<2"))
    except subprocess.CalledProcessError:
        print("IOPaint could not be installed: its rows will say so", file=sys.stderr)


def timed(command: list[str | Path], folder: Path) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    taken = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{Path(command[0]).name} {command[1]} failed:\n{done.stderr}")
    return taken


def alternate(*commands: list[str | Path], repeats: int, writes: bool = False) -> list[list[float]]:
    """The commands in turn, each in an empty folder, after one round that is not counted."""
    samples: list[list[float]] = [[] for _ in commands]
    for turn in range(repeats + 1):
        for side, command in zip(samples, commands, strict=True):
            if not Path(command[0]).exists():
                continue
            with tempfile.TemporaryDirectory() as folder:
                taken = timed(command, Path(folder))
                if writes and not any(Path(folder).iterdir()):
                    sys.exit(f"{Path(command[0]).name} {command[1]} wrote no picture")
            if turn:
                side.append(taken)
    return samples


def measure(repeats: int) -> tuple[list[Row], list[float]]:
    """The rows, and the seconds of an interpreter that does nothing, which no command can undercut."""
    *listed, floor = alternate(
        [OURS / "iopaint-core", "list"],
        [PEER / "iopaint", "list"],
        [OURS / "python", "-c", "pass"],
        repeats=repeats,
    )
    pictures: list[str | Path] = ["--model", "cv2", "--image", PHOTO, "--mask", MASK, "--output"]
    repaired = alternate(
        [OURS / "iopaint-core", "run", *pictures, "out.jpg"],
        [PEER / "iopaint", "run", "--device", "cpu", *pictures, "."],
        repeats=repeats,
        writes=True,
    )
    scanned = json.loads(
        subprocess.run(
            [OURS / "python", ROOT / "benchmarks" / "scan.py"], check=True, capture_output=True, text=True
        ).stdout
    )
    rows = [
        Row("list all models, whole process, all extras installed", "`iopaint list` 1.6.0",
            "30 times faster, under 0.2 s", *listed, at_most=1 / 30, below=0.2),
        Row("first repaired picture, whole process, `cv2`", "`iopaint run --model cv2`",
            "15 times faster", *repaired, at_most=1 / 15),
        Row("scan 1,000 plugins, 10,000 models", "a bare loop over their functions",
            "within 2 times", scanned["ours"], scanned["peer"], at_most=2),
    ]  # fmt: skip
    return rows, floor


def write(rows: list[Row], floor: list[float], repeats: int) -> None:
    about = machine()
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": about,
        "repeats": repeats,
        "versions": {"iopaint-core": versions(OURS), "peer": versions(PEER)},
        "floor": {"name": "python -c pass", **summary(floor)},
        "rows": [row.record() for row in rows],
    }
    text = f"""{table(rows)}

{result["date"]}, {about["cpu"]}, {about["cores"]} cores, {about["memory_gib"]} GiB, Python {about["python"]}.
Seconds are medians with the range of {repeats} runs ({len(rows[-1].ours)} for the scan), the two sides alternating.
An interpreter that does nothing takes {seconds(floor)}."""
    save("startup", "table", result, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setup", action="store_true", help="make the environments that are missing")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each process")
    options = parser.parse_args()
    if options.setup:
        set_up()
    if not (OURS / "iopaint-core").exists():
        sys.exit("There is no .venv-bench: run with --setup")
    rows, floor = measure(options.repeats)
    write(rows, floor, options.repeats)
    print(table(rows))
    print(f"\nFloor, `python -c pass`: {seconds(floor)}")


if __name__ == "__main__":
    main()
