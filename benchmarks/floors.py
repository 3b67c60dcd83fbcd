"""What the pool takes, beside the least that it could take; prints one JSON document.

`lease` a model that is loaded, beside a dict lookup under a lock. `room`: a switch when 2 of 4 UNets fit, beside
reading the missing one. `cold`: the first load, beside reading its files and building its modules on `meta`.
`first`: the same beside others. `four` models in memory, and `none`, which is what the process takes without.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
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

TURNS = 4
LEASES = 20_000


def read(*paths: Path) -> float:
    """Seconds to map files and to read a byte of every page."""
    import numpy as np

    started = time.perf_counter()
    mapped = [np.memmap(path, np.uint8, "r") for path in paths]
    touch(mapped)
    return time.perf_counter() - started


def forget(*paths: Path) -> None:
    """Have the system drop files from its page cache; what lies below this machine may still have them."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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


def room(root: Path, before: Callable[..., object] = lambda *_: gc.collect()) -> dict[str, list[float]]:
    """Both sides read each UNet, and neither right after the other."""
    pool = Pool(root, unets=2)
    for name in NAMES:
        ready(pool, name)
    samples: dict[str, list[float]] = {"floor": [], "pool": []}
    for turn in range(TURNS):
        name, other = (NAMES[(turn + ahead) % len(NAMES)] for ahead in (0, 1))
        unet, another = (folder_of(root, each) / "unet" / WEIGHTS["unet"] for each in (name, other))
        before(another)
        samples["floor"].append(read(another))
        before(unet)
        loads = pool.pool.stats().counts.component_loads
        samples["pool"].append(ready(pool, name))
        assert pool.pool.stats().counts.component_loads == loads + 1, "one UNet is missing each time"
    return samples


def cold(root: Path, before: Callable[..., object] = lambda *_: gc.collect()) -> dict[str, list[float]]:
    """The first model, by the pool and by the least that it takes; after one turn that is not counted."""
    folder, scale = folder_of(root, NAMES[0]), scale_of(root)
    files = [folder / part / file for part, file in WEIGHTS.items()]
    samples: dict[str, list[float]] = {"floor": [], "pool": []}
    for _ in range(TURNS + 1):
        before(*files)
        started = time.perf_counter()
        built = modules(scale)
        samples["floor"].append(time.perf_counter() - started + read(*files))
        del built
        before(*files)
        pool = Pool(root)
        samples["pool"].append(ready(pool, NAMES[0]))
        pool.clear()
    return {side: taken[1:] for side, taken in samples.items()}


def first(root: Path) -> dict[str, list[float]]:
    """The first model again: with digests of its files, that are taken meanwhile, and without a pool."""
    samples: dict[str, list[float]] = {"pool": [], "pool with digests": [], "digests": [], "from_pretrained": []}
    for _ in range(TURNS + 1):
        gc.collect()
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
        pipeline = from_pretrained(folder_of(root, NAMES[0]))
        taken = time.perf_counter() - started
        samples["from_pretrained"].append(taken + touch(contents(getattr(pipeline, part) for part in ALL)))
        del pipeline
    return {side: taken[1:] for side, taken in samples.items()}


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


WORKLOADS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "lease": lease,
    "room": room,
    "room, from disk": functools.partial(room, before=forget),
    "cold": cold,
    "cold, from disk": functools.partial(cold, before=forget),
    "first": first,
    "four": four,
    "none": none,
}


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
