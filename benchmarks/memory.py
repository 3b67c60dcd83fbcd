"""Measure the memory of a process that runs many requests over models that do not fit together.

Five models, three of ONNX and two of torch, share a budget that holds about three of them. Requests come in random
order, so that models are evicted and loaded all the time. Writes `benchmarks/results/memory.json` and its part of
`docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import gc
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from report import lines, machine, save, versions

from iopaint_core import ModelManager, ModelPool, PluginManager
from iopaint_plugins import realesrgan, removebg

if TYPE_CHECKING:
    from collections.abc import Iterator

BUDGET = 1 << 30
REQUESTS = 1000
SAMPLED = 0.002
ONNX = {"u2net": ("u2net.onnx", 320), "silueta": ("silueta.onnx", 320), "u2netp": ("u2netp.onnx", 320)}
TORCH = {"realesr-general-x4v3": ("realesr-general-x4v3.pth", 0), "RealESRGAN_x4plus": ("RealESRGAN_x4plus.pth", 1)}
WIDTH, LAYERS = 1024, 6
"""Of each ONNX network: convolutions of 3 x 3, each of 38 MB."""
FEATURES = 1024
"""Of each torch network, in six convolutions of 38 MB each."""


def save_onnx(path: Path, size: int, seed: int) -> None:
    """Write a network that halves a picture six times, works on that, and enlarges what it found: 277 MB."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    values = np.random.default_rng(seed)

    def tensor(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(values.normal(0, 0.02, shape).astype(np.float32), name)

    small = size // 64
    nodes = [
        helper.make_node("Conv", ["image", "into"], ["x0"], kernel_shape=[64, 64], strides=[64, 64]),
        *(
            helper.make_node("Conv", [f"x{layer}", f"w{layer}"], [f"x{layer + 1}"], pads=[1, 1, 1, 1])
            for layer in range(LAYERS)
        ),
        helper.make_node("Conv", [f"x{LAYERS}", "out"], ["low"]),
        helper.make_node("Resize", ["low", "", "scales"], ["matte"], mode="linear"),
    ]
    scales = numpy_helper.from_array(np.array([1, 1, size / small, size / small], np.float32), "scales")
    weights = [
        tensor("into", WIDTH, 3, 64, 64),
        *(tensor(f"w{layer}", WIDTH, WIDTH, 3, 3) for layer in range(LAYERS)),
        tensor("out", 1, WIDTH, 1, 1),
        scales,
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("matte", TensorProto.FLOAT, [1, 1, size, size])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def save_torch(path: Path, seed: int) -> None:
    """Write an upscaler of 227 MB as it is published."""
    import torch
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(seed)
    torch.save({"params": Compact(num_feat=FEATURES, num_conv=6, upscale=2).state_dict()}, path)


class Memory:
    """Bytes of memory that the process has more than when this was made; files that it has mapped count too."""

    def __init__(self) -> None:
        self._before = self._resident()
        self.peak = 0

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def now(self) -> int:
        grown = self._resident() - self._before
        self.peak = max(self.peak, grown)
        return grown

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look every few milliseconds."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(SAMPLED):
                self.now()

        thread = threading.Thread(target=look)
        thread.start()
        yield
        over.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    requests = parser.parse_args().requests
    values = np.random.default_rng(0)
    large, small = (values.integers(0, 256, (side, side, 3), np.uint8) for side in (400, 16))
    plugins = PluginManager()
    plugins.register(removebg, "removebg")
    plugins.register(realesrgan, "realesrgan")
    with tempfile.TemporaryDirectory() as folder:
        files = {filename: Path(folder, filename) for filename, _ in (*ONNX.values(), *TORCH.values())}
        for seed, (filename, size) in enumerate(ONNX.values()):
            save_onnx(files[filename], size, seed)
        for filename, seed in TORCH.values():
            save_torch(files[filename], seed)
        names = [*ONNX, *TORCH]
        with ModelManager(plugins, weights=files) as warm:  # imports are not what is measured
            for name in names:
                warm.process(name, large if name in ONNX else small)
        gc.collect()
        order = random.Random(0)
        taken: list[int] = []
        with ModelManager(plugins, weights=files, pool=ModelPool({"cpu": BUDGET})) as manager:
            memory = Memory()
            started = time.perf_counter()
            with memory.watched():
                for _ in range(requests):
                    name = order.choice(names)
                    manager.process(name, large if name in ONNX else small)
                    taken.append(memory.now())
            seconds = time.perf_counter() - started
            counts = manager.pool.stats().counts
    tenth, half = max(1, requests // 10), requests // 2
    growth = statistics.median(taken[-tenth:]) - statistics.median(taken[half : half + tenth])
    about = machine()
    found = {
        "requests": requests,
        "models": len(names),
        "budget": BUDGET,
        "peak": memory.peak,
        "growth_over_second_half": growth,
        "loads": counts.loads,
        "evictions": counts.evictions,
        "seconds": seconds,
    }
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": about,
        "versions": {"iopaint-core": versions(Path(sys.executable).parent)},
        **found,
        "after_each_request": taken,
    }
    text = f"""{
        lines(
            ["what", "measured", "goal", "met"],
            [
                [
                    "peak of the process over what it had before",
                    f"{memory.peak / BUDGET:.3f} of the budget",
                    "within 1.1",
                    "yes" if memory.peak <= 1.1 * BUDGET else "no",
                ],
                [
                    "growth over the second half",
                    f"{growth / 1e6:+.1f} MB",
                    "none (under 1 % of the budget)",
                    "yes" if growth < 0.01 * BUDGET else "no",
                ],
            ],
        )
    }

{result["date"]}, {about["cpu"]}, {about["cores"]} cores, {about["memory_gib"]} GiB, Python {about["python"]}.
{requests:,} requests in {seconds:.0f} s, {counts.loads} loads of models, {
        counts.evictions
    } evictions; the peak was looked
for every {SAMPLED * 1000:.0f} ms, growth is from the median of requests {half} to {
        half + tenth
    } to that of the last {tenth}."""
    save("memory", "memory", result, text)
    print(text)


if __name__ == "__main__":
    main()
