"""Measure the pool beside what else holds models, and beside the least that it could take.

`--setup` makes what is missing: `.venv-bench` with this project and all extras, `.venv-peer` with IOPaint 1.6.0.
Needs Linux, 9 GB of disk for the weights and 16 GiB of memory. Each contender runs in a process of its own, in
turn, for several rounds. Writes `benchmarks/results/pool.json` and its part of `docs/benchmarks.md`.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, memory
from floors import WORKLOADS
from report import NO_PEER, Row, gibibytes, lines, machine, save, seconds, table, versions
from run import OURS, PEER, ROOT, set_up
from weights import BLOCKS, NAMES, WEIGHTS, folder_of

HERE = Path(__file__).resolve().parent
SAMPLING = 0.25
"""Seconds between looks at the memory of a contender: each look stops it for some milliseconds."""


@dataclass
class Measured:
    """What the processes have printed, a document for each round."""

    traces: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    floors: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def requests(self, contender: str) -> list[dict[str, Any]]:
        return [request for run in self.traces.get(contender, []) for request in run["requests"]]

    def switches(self, contender: str, what: str) -> list[float]:
        """Seconds of each switch to a model that had been asked for before."""
        found = []
        for run in self.traces.get(contender, []):
            seen: set[str] = set()
            for request in run["requests"]:
                if request["name"] in seen:
                    found.append(request[what])
                seen.add(request["name"])
        return found

    def nth(self, contender: str, number: int, what: str) -> list[float]:
        """Of the request so far on, in each round."""
        return [run["requests"][number][what] for run in self.traces.get(contender, [])]

    def totals(self, contender: str, what: str) -> list[float]:
        return [sum(request[what] for request in run["requests"]) for run in self.traces.get(contender, [])]

    def peaks(self, contender: str) -> list[float]:
        return [run["peak"] for run in self.traces.get(contender, [])]

    def floor(self, workload: str, side: str) -> list[float]:
        samples = [run[side] for run in self.floors[workload]]
        return samples if isinstance(samples[0], int) else [second for run in samples for second in run]


def warm(root: Path) -> None:
    """Read all weights, so that each contender finds them in the page cache."""
    for name in NAMES:
        for part, file in WEIGHTS.items():
            with (folder_of(root, name) / part / file).open("rb") as stream:
                while stream.read(1 << 24):
                    pass


def run(python: Path, script: str, what: str, root: Path) -> dict[str, Any]:
    """Run a script to its end, looking at its memory now and then if it is a contender."""
    warm(root)
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([python, HERE / script, what, root], stdout=out, stderr=log)
        peak = 0
        while process.poll() is None:
            time.sleep(SAMPLING)
            if script == "contenders.py":
                try:
                    peak = max(peak, memory(process.pid)["pss"])
                except OSError:  # it has ended meanwhile
                    continue
        out.seek(0)
        log.seek(0)
        if process.returncode:
            sys.exit(f"{what} failed:\n{log.read()}")
        return {**json.load(out), "peak": peak}


def measure(python: Path, root: Path, rounds: int) -> Measured:
    measured = Measured()
    for number in range(rounds):
        print(f"Round {number + 1} of {rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        for workload in WORKLOADS:
            measured.floors.setdefault(workload, []).append(run(python, "floors.py", workload, root))
        for contender in CONTENDERS:
            own = PEER / "python" if contender == "IOPaint" else python
            if own.exists():
                measured.traces.setdefault(contender, []).append(run(own, "contenders.py", contender, root))
    check(measured)
    return measured


def check(measured: Measured) -> None:
    """All contenders have computed the same, of each model."""
    proofs: dict[str, list[float]] = {}
    for contender in measured.traces:
        for request in measured.requests(contender):
            proof = request.pop("proof")
            expected = proofs.setdefault(request["name"], proof)
            if any(abs(a / b - 1) > 0.01 for a, b in zip(proof, expected, strict=True)):
                sys.exit(f"{contender} computed {proof} by {request['name']}, others {expected}")


def rows(measured: Measured) -> list[Row]:
    held = [
        used - none for used, none in zip(measured.floor("four", "pss"), measured.floor("none", "pss"), strict=True)
    ]
    leases, lookup = "acquire and release a model that is loaded", "a dict lookup under a lock"
    switch, both = "switch between 4 fine-tunes that fit", "the same, then text encoder and VAE compute"
    room, cold = "the same, when 2 of 4 UNets fit", "cold load"
    reading, building = "reading the missing UNet", "reading the files, building on `meta`"
    cached, disk = ", in the page cache", ", from the disk"
    peer, plain = "IOPaint's switch", "`from_pretrained`"
    found = [
        Row(leases, lookup, "under 10 µs", measured.floor("lease", "lease 1"), measured.floor("lease", "lookup 1"),
            below=1e-5),
        Row(f"{leases}, 8 threads at once", lookup, "under 10 µs", measured.floor("lease", "lease 8"),
            measured.floor("lease", "lookup 8"), below=1e-5),
    ]  # fmt: skip
    for what, name, key, goal, at_most in (
        (switch, peer, "ready", "over 1,000 times faster", 1e-3),
        (switch, plain, "ready", "over 1,000 times faster", 1e-3),
        (both, peer, "computed", "", None),
        (both, plain, "computed", "", None),
    ):
        other = measured.switches("IOPaint" if name == peer else "from_pretrained", key)
        found.append(Row(what, name, goal, measured.switches("pool", key), other, at_most=at_most))
    for workload, what, name in (("room", room, reading), ("cold", cold, building)):
        for place, suffix in ((cached, ""), (disk, ", from disk")):
            samples = (measured.floor(workload + suffix, side) for side in ("pool", "floor"))
            found.append(Row(what + place, name, "within 1.2 times", *samples, at_most=1.2))
    found.append(
        Row("memory of 4 fine-tunes that share VAE and text encoder", "sum of unique bytes", "within 1.05 times",
            held, measured.floor("four", "floor"), at_most=1.05, show=gibibytes)
    )  # fmt: skip
    return found


def middle(samples: list[float], shown: str, factor: float = 1) -> str:
    return format(statistics.median(samples) * factor, shown)


def contenders(measured: Measured) -> str:
    head = ["contender", "switch, ms", "and compute, ms", "40 requests: loading, s", "modules loaded",
            "GiB loaded", "peak PSS, GiB"]  # fmt: skip
    body = []
    for name in CONTENDERS:
        if name not in measured.traces:
            body.append([name, NO_PEER, *[""] * 5])
            continue
        loads = [sum(len(request["fresh"]) for request in run["requests"]) for run in measured.traces[name]]
        body.append([
            name,
            middle(measured.switches(name, "ready"), ".3f", 1e3),
            middle(measured.switches(name, "computed"), ".0f", 1e3),
            middle(measured.totals(name, "ready"), ".2f"),
            middle(loads, ".0f"),
            middle(measured.totals(name, "bytes"), ".1f", 2**-30),
            middle(measured.peaks(name), ".2f", 2**-30),
        ])  # fmt: skip
    return lines(head, body)


def losses(measured: Measured) -> str:
    """Where the pool gains nothing, or loses."""
    kept, plain = "kept for ever", "`from_pretrained`"
    first = {side: measured.floor("first", side) for side in ("pool", "pool with digests", "from_pretrained")}
    body = [
        ["first model, nothing to share", seconds(first["pool"]), plain, seconds(first["from_pretrained"])],
        ["the same, digests taken meanwhile", seconds(first["pool with digests"]), plain,
         seconds(first["from_pretrained"])],
        ["second model, whose VAE and text encoder are compared with the first's",
         seconds(measured.nth("pool", 1, "ready")), plain, seconds(measured.nth("from_pretrained", 1, "ready"))],
        ["switch, when all models are held", seconds(measured.switches("pool", "ready")), kept,
         seconds(measured.switches("kept", "ready"))],
        ["memory with one model", gibibytes(measured.nth("pool", 0, "pss")), plain,
         gibibytes(measured.nth("from_pretrained", 0, "pss"))],
    ]  # fmt: skip
    return lines(["what", "pool", "other", ""], body)


def text(measured: Measured, found: list[Row], result: dict[str, Any]) -> str:
    about = result["machine"]
    empty = [run["empty"]["pss"] for run in measured.traces["pool"]]
    digests = measured.floor("first", "digests")
    return f"""{table(found)}

Forty requests to four fine-tunes, in an order as users make them:

{contenders(measured)}

What the pool does not gain, or loses:

{losses(measured)}

{result["date"]}, {about["cpu"]}, {about["cores"]} cores, {about["memory_gib"]} GiB, Python {about["python"]};
{result["rounds"]} rounds, begun at a load of {result["load"]}. A process that has imported the libraries and loaded
nothing has a PSS of {gibibytes(empty)}. All digests of a first model are taken {seconds(digests)} after its load
began."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setup", action="store_true", help="make the environments that are missing")
    parser.add_argument("--python", type=Path, default=OURS / "python", help="of the environment of this project")
    parser.add_argument("--weights", type=Path, default=ROOT / "build" / "benchmark-weights")
    parser.add_argument("--scale", choices=BLOCKS, default="full", help="tiny: only to see whether all works")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.setup:
        set_up()
    if not options.python.exists():
        sys.exit("There is no .venv-bench: run with --setup")
    load = os.getloadavg()[0]
    root = options.weights.resolve() / options.scale
    subprocess.run([options.python, HERE / "weights.py", root, "--scale", options.scale], check=True)
    measured = measure(options.python, root, options.rounds)
    found = rows(measured)
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": machine(),
        "rounds": options.rounds,
        "load": round(load, 1),
        "versions": {"iopaint-core": versions(options.python.parent), "peer": versions(PEER)},
        "rows": [row.record() for row in found],
        "traces": measured.traces,
        "first": measured.floors["first"],
        "memory": {workload: measured.floors[workload] for workload in ("four", "none")},
    }
    written = text(measured, found, result)
    print(written)
    if options.scale == "full":
        save("pool", "pool", result, written)


if __name__ == "__main__":
    main()
