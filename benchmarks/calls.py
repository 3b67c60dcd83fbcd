"""Measure what calls take around a model's own work: further clicks on a large image, and calls of a web service.

Writes `benchmarks/results/calls.json` and its part of `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import statistics
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import httpx
import numpy as np
from report import ROOT, Row, machine, save, table, versions

from iopaint_core import ImageModel, MaskModel, ModelInfo, ModelManager, PluginManager, Result, Task, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from iopaint_core import Model
    from iopaint_core.parameters import MaskParameters, Parameters

SIDES = (4000, 6000)
"""Height and width of the image that is clicked on, in pixels: 24 megapixels."""
CALLS, ANSWER = 8, 0.5
"""Calls at once of the service, and the seconds that each answer takes."""


class Segmenter(MaskModel):
    """Multiplies matrices as large as those of SAM ViT-B: 12 blocks of 768 channels on 64 x 64 tokens.

    Adds to `decoding` the seconds of each decoding.
    """

    def __init__(self, decoding: list[float]) -> None:
        random = np.random.default_rng(0)
        widths = [(768, 3 * 768), (768, 768), (768, 4 * 768), (4 * 768, 768)]
        self._weights = [random.normal(size=width).astype(np.float32) for width in widths]
        self._decoding = decoding

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return a picture of 256 channels of 64 x 64 values."""
        patches = cv2.resize(image, (1024, 1024)).reshape(64, 16, 64, 16, 3).transpose(0, 2, 1, 3, 4)
        tokens = patches.reshape(4096, 768).astype(np.float32)
        for _ in range(12):
            for weight in self._weights:
                product = tokens @ weight
                tokens = product if weight is not self._weights[0] else product[:, :768]
            tokens /= np.abs(tokens).max()
        return np.ascontiguousarray(tokens[:, :256].reshape(64, 64, 256))

    def decode(self, state: NDArray[np.float32], parameters: MaskParameters) -> Result:
        """Return three masks as large as the image: what is like the point clicked on."""
        started = time.perf_counter()
        (click,) = parameters.clicks
        height, width = SIDES
        likeness = state @ state[click.y * 64 // height, click.x * 64 // width]
        small = cv2.resize(likeness, (256, 256))
        masks = np.stack(
            [
                cv2.compare(cv2.resize(small - np.quantile(small, part), (width, height)), 0, cv2.CMP_GT)
                for part in (0.5, 0.7, 0.9)
            ]
        )
        result = Result(masks=masks, scores=(0.5, 0.7, 0.9))
        self._decoding.append(time.perf_counter() - started)
        return result


class Client(ImageModel):
    """Asks a web service."""

    concurrency = CALLS
    device_bound = False

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.Client()

    def forward(self, image: NDArray[np.uint8], _: Parameters) -> NDArray[np.uint8]:
        self._client.get(self._url).raise_for_status()
        return image


def plugin(url: str, decoding: list[float]) -> types.ModuleType:
    module = types.ModuleType("plugin")

    @hookimpl
    def iopaint_available_models() -> list[ModelInfo]:
        return [ModelInfo(name="segmenter", task=Task.SEGMENT), ModelInfo(name="client", task=Task.RESTORE)]

    @hookimpl
    def iopaint_load_model(info: ModelInfo) -> Model:
        return Segmenter(decoding) if info.name == "segmenter" else Client(url)

    module.iopaint_available_models = iopaint_available_models
    module.iopaint_load_model = iopaint_load_model
    return module


@contextlib.contextmanager
def slow_service() -> Iterator[str]:
    """Serve what takes a while to answer, and any number of callers at once; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            time.sleep(ANSWER)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def clicks(manager: ModelManager, decoding: list[float], photo: NDArray[np.uint8], turn: int) -> list[float]:
    """Seconds of the first click on an image that is new, of the second, and of the second without decoding."""
    image = np.roll(photo, turn, axis=0)
    with manager.session("segmenter", image) as session:
        taken = []
        for place in ((1000, 1000, 1), (3000, 2000, 1)):
            started = time.perf_counter()
            session.run({"clicks": [place]})
            taken.append(time.perf_counter() - started)
    return [*taken, taken[1] - decoding[-1]]


def at_once(call: object, threads: ThreadPoolExecutor) -> float:
    """Seconds until all calls of it have ended."""
    started = time.perf_counter()
    for done in [threads.submit(call) for _ in range(CALLS)]:
        done.result()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="images clicked on, and rounds of the service")
    repeats = parser.parse_args().repeats
    photo = cv2.resize(cv2.imread(str(ROOT / "examples" / "astronaut.jpg")), SIDES[::-1])
    tile = np.zeros((64, 64, 3), np.uint8)
    decoding: list[float] = []
    plugins = PluginManager()
    samples: list[list[float]] = []
    with slow_service() as url, ThreadPoolExecutor(CALLS) as threads, httpx.Client() as client:
        plugins.register(plugin(url, decoding), "calls")
        with ModelManager(plugins) as manager:
            for turn in range(repeats + 1):
                ours = at_once(lambda: manager.process("client", tile), threads)
                bare = at_once(lambda: client.get(url).raise_for_status(), threads)
                samples.append([*clicks(manager, decoding, photo, turn), ours, bare])
    first, second, around, ours, bare = map(list, zip(*samples[1:], strict=True))
    rows = [
        Row("second click on an image of 24 megapixels", "the first", "50 times faster",
            second, first, at_most=1 / 50),
        Row("the framework's part of the second click", "the first", "under 15 ms", around, first, below=15e-3),
        Row(f"{CALLS} calls at once of a service that answers in {ANSWER} s", f"{CALLS} requests of httpx",
            "within 1.1 times", ours, bare, at_most=1.1),
    ]  # fmt: skip
    about = machine()
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": about,
        "repeats": repeats,
        "versions": {"iopaint-core": versions(Path(sys.executable).parent)},
        "median_decoding": statistics.median(decoding),
        "rows": [row.record() for row in rows],
    }
    text = f"""{table(rows)}

{result["date"]}, {about["cpu"]}, {about["cores"]} cores, {about["memory_gib"]} GiB, Python {about["python"]}.
Seconds are medians with the range of {repeats} runs, in turns. Of a second click, decoding takes
{result["median_decoding"]:.3f} s."""
    save("calls", "calls", result, text)
    print(text)


if __name__ == "__main__":
    main()
