"""Measure start-up, first picture and scan, each beside its peer in the same run.

`--setup` makes what is missing: `.venv-bench` with this project and all extras, `.venv-peer` with IOPaint 1.6.0.
Without the peer its rows say so. Writes `benchmarks/results/startup.json` and the table of `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS, PEER = ROOT / ".venv-bench" / "bin", ROOT / ".venv-peer" / "bin"
PHOTO, MASK = ROOT / "examples" / "astronaut.jpg", ROOT / "examples" / "astronaut-mask.png"
NO_PEER = "peer not installed"


@dataclass
class Row:
    what: str
    peer_name: str
    goal: str
    ours: list[float]
    peer: list[float]
    """Seconds of each repeat; empty where the peer is not installed."""
    at_most: float
    """The goal as a bound of ours divided by the peer's."""
    at_most_seconds: float | None = None

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ours) / statistics.median(self.peer) if self.peer else None

    @property
    def met(self) -> str:
        if self.ratio is None:
            return NO_PEER
        quick = self.at_most_seconds is None or statistics.median(self.ours) < self.at_most_seconds
        return "yes" if self.ratio <= self.at_most and quick else "no"

    def cells(self) -> list[str]:
        if self.ratio is None:
            return [self.what, seconds(self.ours), NO_PEER, "", self.goal, NO_PEER]
        compared = f"{1 / self.ratio:.1f} times faster" if self.ratio < 1 else f"{self.ratio:.2f} times the peer"
        return [
            self.what,
            seconds(self.ours),
            f"{self.peer_name}: {seconds(self.peer)}",
            compared,
            self.goal,
            self.met,
        ]


def seconds(samples: list[float]) -> str:
    low, middle, high = min(samples), statistics.median(samples), max(samples)
    return f"{middle:.3f} s ({low:.3f} to {high:.3f})"


def pip(environment: Path, *arguments: str) -> None:
    subprocess.run([environment / "python", "-m", "pip", "install", "--quiet", *arguments], check=True, cwd=ROOT)


def set_up() -> None:
    if not OURS.exists():
        subprocess.run([sys.executable, "-m", "venv", OURS.parent], check=True)
        pip(OURS, ".[all]")
    pip(OURS, "--no-deps", "--force-reinstall", ".")
    if not PEER.exists():
        subprocess.run([sys.executable, "-m", "venv", PEER.parent], check=True)
        pip(PEER, "iopaint==1.6.0")
        pip(PEER, "--upgrade", "torch", "torchvision", "numpy<2")


def timed(command: list[str | Path], folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return time.perf_counter() - started


def alternate(ours: list[str | Path], peer: list[str | Path], repeats: int) -> tuple[list[float], list[float]]:
    """Both commands in turn, each into an empty folder, after one round that is not counted."""
    samples: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for side, command in zip(samples, (ours, peer), strict=True):
            if not Path(command[0]).exists():
                continue
            with tempfile.TemporaryDirectory() as folder:
                taken = timed(command, Path(folder))
            if turn:
                side.append(taken)
    return samples


def measure(repeats: int) -> list[Row]:
    listed = alternate([OURS / "iopaint-core", "list"], [PEER / "iopaint", "list"], repeats)
    pictures: list[str | Path] = ["--model", "cv2", "--image", PHOTO, "--mask", MASK, "--output"]
    repaired = alternate(
        [OURS / "iopaint-core", "run", *pictures, "out.jpg"],
        [PEER / "iopaint", "run", "--device", "cpu", *pictures, "."],
        repeats,
    )
    scanned = json.loads(
        subprocess.run(
            [OURS / "python", ROOT / "benchmarks" / "scan.py"], check=True, capture_output=True, text=True
        ).stdout
    )
    return [
        Row("list all models, whole process, all extras installed", "`iopaint list` 1.6.0",
            "30 times faster, under 0.2 s", *listed, at_most=1 / 30, at_most_seconds=0.2),
        Row("first repaired picture, whole process, `cv2`", "`iopaint run --model cv2`",
            "15 times faster", *repaired, at_most=1 / 15),
        Row("scan 1,000 plugins, 10,000 models", "a bare loop over their functions",
            "within 2 times", scanned["ours"], scanned["peer"], at_most=2),
    ]  # fmt: skip


def versions(environment: Path, *names: str) -> dict[str, str]:
    if not environment.exists():
        return {}
    listed = subprocess.run(
        [environment / "python", "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
    ).stdout
    return {item["name"].lower(): item["version"] for item in json.loads(listed) if item["name"].lower() in names}


def machine() -> dict[str, str | int]:
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if os.name == "posix" else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(memory / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def table(rows: list[Row]) -> str:
    head = ["what", "iopaint-core", "peer or floor", "measured", "goal", "met"]
    lines = [head, ["---"] * len(head), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(rows: list[Row], repeats: int) -> None:
    about = machine()
    ours = versions(
        OURS, "iopaint-core", "numpy", "opencv-python-headless", "pillow", "pluggy", "torch", "diffusers"
    )
    peer = versions(PEER, "iopaint", "numpy", "opencv-python", "torch", "diffusers")
    result = {
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "machine": about,
        "repeats": repeats,
        "versions": {"iopaint-core": ours, "peer": peer},
        "rows": [asdict(row) | {"ratio": row.ratio, "met": row.met} for row in rows],
    }
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    (folder / "startup.json").write_text(json.dumps(result, indent=1) + "\n")
    document = ROOT / "docs" / "benchmarks.md"
    text = f"""<!-- table -->
{table(rows)}

{result["date"]}, {about["cpu"]}, {about["cores"]} cores, {about["memory_gib"]} GiB, Python {about["python"]}.
Seconds are medians with the range of {repeats} runs ({len(rows[-1].ours)} for the scan), the two sides alternating.
<!-- /table -->"""
    document.write_text(
        re.sub(r"<!-- table -->.*<!-- /table -->", lambda _: text, document.read_text(), flags=re.DOTALL)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setup", action="store_true", help="make the environments that are missing")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each process")
    options = parser.parse_args()
    if options.setup:
        set_up()
    if not OURS.exists():
        sys.exit("There is no .venv-bench: run with --setup")
    rows = measure(options.repeats)
    write(rows, options.repeats)
    print(table(rows))


if __name__ == "__main__":
    main()
