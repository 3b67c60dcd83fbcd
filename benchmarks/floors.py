"""What the pool takes, beside the least that it could take; prints one JSON document.

`lease` a model that is loaded, beside a dict lookup under a lock. `room`: a switch when 2 of 4 UNets fit, beside
reading the missing one. `cold`: the first load, beside reading its files and building its modules on `meta`.
`four` models in memory, beside the bytes of their weights; `none` is what the process takes without them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contenders import ALL, Pool, assemble, classes, compute, contents, from_pretrained, memory, quiet, touch
from weights import DTYPE, NAMES, WEIGHTS, folder_of, modules, scale_of, unique_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

TURNS = 8
LEASES = 20_000


def read(path: Path) -> float:
    """Seconds to map a file and to read a byte of every page."""
    import numpy as np

    started = time.perf_counter()
    touch([np.memmap(path, np.uint8, "r")])
    return time.perf_counter() - started


def ready(pool: Pool, name: str) -> float:
    """Seconds to switch to a model and to touch what was loaded for it."""
    started = time.perf_counter()
    pipeline, fresh = pool.switch(name)
    switched = time.perf_counter() - started
    return switched + touch(contents(getattr(pipeline, part) for part in fresh))


def lease(root: Path) -> dict[str, list[float]]:
    pool = Pool(root)
    ready(pool, NAMES[0])
    table, lock = {NAMES[0]: object()}, threading.Lock()

    def leased() -> None:
        with pool.pool.lease(NAMES[0], never):
            pass

    def looked_up() -> None:
        with lock:
            table[NAMES[0]]

    def never(share: object) -> None:
        raise AssertionError(f"It is loaded, and needs no {share}")

    samples = {}
    for threads in (1, 8):
        for name, call in (("lease", leased), ("lookup", looked_up)):
            samples[f"{name} {threads}"] = [contended(call, threads) for _ in range(TURNS)]
    return samples


def contended(call: Callable[[], None], threads: int) -> float:
    """Seconds of one call when so many threads call at once: those of all, divided by the calls of all."""
    barrier = threading.Barrier(threads + 1)

    def loop() -> None:
        barrier.wait()
        for _ in range(LEASES):
            call()

    callers = [threading.Thread(target=loop) for _ in range(threads)]
    for caller in callers:
        caller.start()
    started = time.perf_counter()
    barrier.wait()
    for caller in callers:
        caller.join()
    return (time.perf_counter() - started) / (LEASES * threads)


def room(root: Path) -> dict[str, list[float]]:
    pool = Pool(root, unets=2)
    for name in NAMES:
        ready(pool, name)
    samples: dict[str, list[float]] = {"floor": [], "pool": []}
    for name in NAMES * (TURNS // len(NAMES)):
        samples["floor"].append(read(folder_of(root, name) / "unet" / WEIGHTS["unet"]))
        before = pool.pool.stats().counts.component_loads
        samples["pool"].append(ready(pool, name))
        assert pool.pool.stats().counts.component_loads == before + 1, "one UNet is missing each time"
    return samples


def cold(root: Path) -> dict[str, list[float]]:
    """The first model, in turn by all, after one turn that is not counted; files are in the page cache."""
    folder = folder_of(root, NAMES[0])
    scale = scale_of(root)
    samples: dict[str, list[float]] = {key: [] for key in ("floor", "pool", "pool with digests", "from_pretrained")}
    samples["digests"] = []
    for _ in range(TURNS + 1):
        started = time.perf_counter()
        built = modules(scale)
        samples["floor"].append(time.perf_counter() - started + sum(read(folder / p / WEIGHTS[p]) for p in built))

        pool = Pool(root)
        samples["pool"].append(ready(pool, NAMES[0]))
        pool.clear()

        with tempfile.TemporaryDirectory() as cache:
            pool = Pool(root, digests=Path(cache) / "digests.sqlite")
            started = time.perf_counter()
            samples["pool with digests"].append(ready(pool, NAMES[0]))
            pool.context.index.wait()
            samples["digests"].append(time.perf_counter() - started)
            pool.clear()

        started = time.perf_counter()
        pipeline = from_pretrained(folder)
        taken = time.perf_counter() - started
        samples["from_pretrained"].append(taken + touch(contents(getattr(pipeline, part) for part in ALL)))
        del pipeline, pool, built
        gc.collect()
    return {key: taken[1:] for key, taken in samples.items()}


def settled() -> dict[str, int]:
    """Memory, once what was freed has been given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return memory()


def four(root: Path) -> dict[str, Any]:
    """All four leased at once, computed with, every page touched."""
    pool = Pool(root)
    for name in NAMES:
        pipeline, _ = pool.hold(name)
        compute(pipeline)
        touch(contents(getattr(pipeline, part) for part in ALL))
    return {"floor": unique_bytes(root), **settled(), "saved": pool.pool.stats().saved}


def none(root: Path) -> dict[str, Any]:
    """The same libraries, the same computing, and nothing held."""
    import torch

    folder, dtype = folder_of(root, NAMES[0]), getattr(torch, DTYPE)
    for _ in NAMES:
        loaded = {part: cls.from_pretrained(folder / part, dtype=dtype) for part, cls in classes().items()}
        pipeline = assemble(folder, loaded)
        compute(pipeline)
        del loaded, pipeline
        gc.collect()
    return settled()


WORKLOADS = {workload.__name__: workload for workload in (lease, room, cold, four, none)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("root", type=Path)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    quiet()
    json.dump(WORKLOADS[options.workload](options.root.resolve()), sys.stdout)


if __name__ == "__main__":
    main()
