"""What all benchmarks write: rows of ours beside a peer, the machine, a table in `docs/benchmarks.md`."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
NO_PEER = "peer not installed"
PACKAGES = (
    "iopaint", "iopaint-core", "accelerate", "click", "diffusers", "numpy", "opencv-python",
    "opencv-python-headless", "pillow", "pluggy", "pydantic", "safetensors", "torch", "torchvision", "transformers",
)  # fmt: skip


def with_range(samples: list[float], unit: str, factor: float = 1) -> str:
    low, middle, high = (value * factor for value in (min(samples), statistics.median(samples), max(samples)))
    return f"{middle:.3f} {unit} ({low:.3f} to {high:.3f})"


def seconds(samples: list[float]) -> str:
    longest = max(samples)
    unit, factor = ("µs", 1e6) if longest < 1e-4 else ("ms", 1e3) if longest < 1e-2 else ("s", 1)
    return with_range(samples, unit, factor)


def gibibytes(samples: list[float]) -> str:
    return with_range(samples, "GiB", 2**-30)


@dataclass
class Row:
    what: str
    peer_name: str
    goal: str
    ours: list[float]
    peer: list[float]
    """One sample for each repeat; empty where the peer is not installed."""
    at_most: float | None = None
    """The goal as a bound of ours divided by the peer's."""
    below: float | None = None
    """The goal as a bound of ours alone."""
    show: Callable[[list[float]], str] = seconds

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ours) / statistics.median(self.peer) if self.peer else None

    @property
    def met(self) -> str:
        if self.below is not None and statistics.median(self.ours) >= self.below:
            return "no"
        if self.at_most is None:
            return "" if self.below is None else "yes"
        if self.ratio is None:
            return NO_PEER
        return "yes" if self.ratio <= self.at_most else "no"

    def cells(self) -> list[str]:
        if self.ratio is None:
            return [self.what, self.show(self.ours), NO_PEER, "", self.goal, self.met]
        compared = f"{1 / self.ratio:,.1f} times faster" if self.ratio < 1 else f"{self.ratio:.2f} times the peer"
        peer = f"{self.peer_name}: {self.show(self.peer)}"
        return [self.what, self.show(self.ours), peer, compared, self.goal, self.met]

    def record(self) -> dict[str, object]:
        return {
            "what": self.what,
            "ours": summary(self.ours),
            "peer": {"name": self.peer_name, **summary(self.peer)} if self.peer else NO_PEER,
            "ratio": NO_PEER if self.ratio is None else self.ratio,
            "goal": self.goal,
            "met": self.met,
        }


def summary(samples: list[float]) -> dict[str, object]:
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples), "samples": samples}


def versions(environment: Path) -> dict[str, str] | str:
    if not (environment / "python").exists():
        return NO_PEER
    listed = subprocess.run(
        [environment / "python", "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
    ).stdout
    found = {item["name"].lower(): item["version"] for item in json.loads(listed)}
    return {name: found[name] for name in PACKAGES if name in found}


def machine() -> dict[str, str | int]:
    cpuinfo, release = Path("/proc/cpuinfo"), Path("/etc/os-release")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(memory / 2**30),
        "system": platform.freedesktop_os_release()["PRETTY_NAME"] if release.exists() else platform.system(),
        "python": platform.python_version(),
    }


def table(rows: list[Row]) -> str:
    return lines(
        ["what", "iopaint-core", "peer or floor", "measured", "goal", "met"], [row.cells() for row in rows]
    )


def lines(head: list[str], body: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body])


def save(name: str, marker: str, result: dict[str, object], text: str) -> None:
    """Write the JSON of one benchmark, and its text between the markers in the page."""
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    document = ROOT / "docs" / "benchmarks.md"
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    page, found = re.subn(
        f"{begin}.*{end}", lambda _: f"{begin}\n{text}\n{end}", document.read_text(), flags=re.DOTALL
    )
    if not found:
        sys.exit(f"{document.name} has no {begin} to write into")
    document.write_text(page)
