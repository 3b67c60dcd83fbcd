"""Forty requests to four fine-tunes, answered by one contender; prints one JSON document.

What a switch is differs by contender; all else is the same. After each switch every page of what was loaded is
touched, since memory that is mapped but untouched is no load, and then the text encoder and the VAE compute.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import re
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from weights import DTYPE, NAMES, WEIGHTS, folder_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np
    from torch import nn

REQUESTS = 40
SEED = 1
PAGE = 4096
ALL = tuple(WEIGHTS)


class Contender(Protocol):
    def switch(self, name: str) -> tuple[Any, tuple[str, ...]]:
        """The pipeline of that model, and which of its parts had to be loaded."""


class FromPretrained:
    """What most scripts do: drop the one before, which counting of references frees, and load the next."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pipeline: Any = None

    def switch(self, name: str) -> tuple[Any, tuple[str, ...]]:
        self.pipeline = None
        self.pipeline = from_pretrained(folder_of(self.root, name))
        return self.pipeline, ALL


class Kept:
    """Each model as it was loaded, for ever."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pipelines: dict[str, Any] = {}

    def switch(self, name: str) -> tuple[Any, tuple[str, ...]]:
        if name in self.pipelines:
            return self.pipelines[name], ()
        self.pipelines[name] = from_pretrained(folder_of(self.root, name))
        return self.pipelines[name], ALL


class Components:
    """diffusers' `ComponentsManager`, told by hand that the VAE and the text encoder of the first serve all."""

    def __init__(self, root: Path) -> None:
        from diffusers import ComponentsManager

        self.root = root
        self.manager = ComponentsManager()
        self.pipelines: dict[str, Any] = {}

    def switch(self, name: str) -> tuple[Any, tuple[str, ...]]:
        import torch

        if name in self.pipelines:
            return self.pipelines[name], ()
        parts = ("unet",) if self.pipelines else ALL
        folder = folder_of(self.root, name)
        for part in parts:
            module = classes()[part].from_pretrained(
                folder / part, dtype=getattr(torch, DTYPE), local_files_only=True
            )
            self.manager.add(part, module, collection=name)
        shared = {part: self.manager.get_one(name=part) for part in ("vae", "text_encoder")}
        unet = self.manager.get_one(name="unet", collection=name)
        self.pipelines[name] = assemble(folder, {"unet": unet, **shared})
        return self.pipelines[name], parts


class Pool:
    """`ModelPool`, with a loader as a plugin would write it; with `unets`, room for so many of them."""

    def __init__(self, root: Path, unets: int | None = None, digests: Path | None = None) -> None:
        from iopaint_core import IdentityIndex, LoadContext, ModelPool

        self.root = root
        self.context = LoadContext(index=IdentityIndex(digests))
        sizes = {part: (folder_of(root, NAMES[0]) / part / file).stat().st_size for part, file in WEIGHTS.items()}
        budget = None if unets is None else sum(sizes.values()) + (unets - 1) * sizes["unet"]
        self.pool: ModelPool[Any] = ModelPool(None if budget is None else {"cpu": budget})
        self.pool.subscribe(self._note)
        self.leases: dict[str, Any] = {}
        self._loaded: list[str] = []

    def lease(self, name: str) -> Any:
        load = functools.partial(self._load, folder_of(self.root, name))
        return self.pool.lease(name, load, close=lambda pipeline: vars(pipeline).clear())

    def hold(self, name: str) -> tuple[Any, tuple[str, ...]]:
        """Lease one more model beside those that are leased already."""
        self._loaded.clear()
        self.leases[name] = self.lease(name)
        return self.leases[name].model, tuple(self._loaded)

    def switch(self, name: str) -> tuple[Any, tuple[str, ...]]:
        answer = self.hold(name)
        for other in self.leases.keys() - {name}:
            self.leases.pop(other).close()
        return answer

    def clear(self) -> None:
        for lease in self.leases.values():
            lease.close()
        self.leases.clear()
        self.pool.clear()

    def _load(self, folder: Path, share: Callable[[Mapping[str, Any]], Mapping[str, nn.Module]]) -> Any:
        from iopaint_core import module_component

        parts = {part: module_component(cls, folder / part, self.context) for part, cls in classes().items()}
        return assemble(folder, share(parts))

    def _note(self, event: Any) -> None:
        if event.kind == "loaded":
            kind = getattr(event.key, "kind", "").rpartition(".")[2]
            self._loaded += [part for part, cls in classes().items() if cls.__name__ == kind]


class IOPaint:
    """The switch of IOPaint 1.6.0, in an environment of its own; on a CPU it computes in float32."""

    def __init__(self, root: Path) -> None:  # noqa: ARG002 - it finds them by HF_HUB_CACHE
        import torch
        from iopaint.model_manager import ModelManager
        from loguru import logger

        logger.remove()
        self._make = functools.partial(
            ModelManager, device=torch.device("cpu"), disable_nsfw=True, local_files_only=True
        )
        self.manager: Any = None

    def switch(self, name: str) -> tuple[Any, tuple[str, ...]]:
        if self.manager is None:
            self.manager = self._make(f"benchmark/{name}")
        else:
            self.manager.switch(f"benchmark/{name}")
        return self.manager.model.model, ALL


CONTENDERS: dict[str, Callable[[Path], Contender]] = {
    "pool": Pool,
    "pool, room for 2 UNets": functools.partial(Pool, unets=2),
    "kept": Kept,
    "ComponentsManager": Components,
    "from_pretrained": FromPretrained,
    "IOPaint": IOPaint,
}


@functools.cache
def classes() -> dict[str, type[nn.Module]]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    return {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}


def from_pretrained(folder: Path) -> Any:
    import torch
    from diffusers import StableDiffusionInpaintPipeline

    return StableDiffusionInpaintPipeline.from_pretrained(
        folder, dtype=getattr(torch, DTYPE), local_files_only=True
    )


def assemble(folder: Path, parts: Mapping[str, nn.Module]) -> Any:
    """A pipeline of modules that are loaded, and of what is never shared."""
    from diffusers import PNDMScheduler, StableDiffusionInpaintPipeline
    from transformers import CLIPTokenizer

    return StableDiffusionInpaintPipeline(
        **parts,
        scheduler=PNDMScheduler.from_pretrained(folder / "scheduler"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def contents(modules: Iterable[nn.Module]) -> list[np.ndarray]:
    """The bytes of all weights, where they stand."""
    import torch

    tensors = (tensor for module in modules for tensor in module.parameters())
    return [tensor.detach().reshape(-1).view(torch.uint8).numpy() for tensor in tensors]


def touch(contents: Iterable[np.ndarray]) -> float:
    """Read a byte of every page; returns the seconds that it took."""
    started = time.perf_counter()
    for content in contents:
        content[::PAGE].sum()
    return time.perf_counter() - started


def compute(pipeline: Any) -> list[float]:
    """One pass of the text encoder and one of the VAE; returns what tells a right answer from a wrong one."""
    import torch

    with torch.inference_mode():
        text = pipeline.text_encoder(torch.arange(77)[None]).last_hidden_state
        pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
        latent = pipeline.vae.encode(pixels.to(pipeline.vae.dtype)).latent_dist.mean
        unet = pipeline.unet.conv_in.weight
        return [float(tensor.float().abs().mean()) for tensor in (text, latent, unet)]


def memory(process: int | str = "self") -> dict[str, int]:
    """Bytes that a process has to itself (USS), and with its share of what others have too (PSS).

    Without program code: that is shared with whoever else runs Python at the time.
    """
    sizes, counted = {"Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}, True
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        name, _, size = line.partition(":")
        if name in sizes:
            sizes[name] += (int(size.split()[0]) << 10) * counted
        elif "-" in name:
            counted = ".so" not in line
    return {"pss": sizes["Pss"], "uss": sizes["Private_Clean"] + sizes["Private_Dirty"]}


def reads() -> dict[str, int]:
    """Bytes read by system calls and from a disk, and pages that were mapped, by this process so far."""
    counts = dict(re.findall(r"(\w+): (\d+)", Path("/proc/self/io").read_text()))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "read_by_calls": int(counts["rchar"]),
        "read_from_disk": int(counts["read_bytes"]),
        "minor_faults": usage.ru_minflt,
        "major_faults": usage.ru_majflt,
    }


def trace() -> list[str]:
    """Requests as users make them: the first model most, the second half as often, and so on."""
    weights = [1 / rank for rank in range(1, len(NAMES) + 1)]
    return random.Random(SEED).choices(NAMES, weights, k=REQUESTS)


def answer(contender: Contender, name: str) -> dict[str, Any]:
    started = time.perf_counter()
    pipeline, fresh = contender.switch(name)
    switched = time.perf_counter() - started
    loaded = contents(getattr(pipeline, part) for part in fresh)
    touched = touch(loaded)
    started = time.perf_counter()
    proof = compute(pipeline)
    computed = time.perf_counter() - started
    return {
        "name": name,
        "fresh": fresh,
        "bytes": sum(content.size for content in loaded),
        "switch": switched,
        "ready": switched + touched,
        "computed": switched + touched + computed,
        "proof": proof,
    }


def quiet() -> None:
    """Import what all contenders use, so that no load is charged for it, and have it say nothing."""
    import diffusers
    import transformers

    classes()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    from diffusers import PNDMScheduler, StableDiffusionInpaintPipeline  # noqa: F401
    from transformers import CLIPTokenizer  # noqa: F401


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("root", type=Path)
    options = parser.parse_args()
    root = options.root.resolve()
    os.environ.update(HF_HUB_CACHE=str(root), HF_HUB_OFFLINE="1", XDG_CACHE_HOME=str(root))
    quiet()
    contender = CONTENDERS[options.contender](root)
    before, empty = reads(), memory()
    requests, current = [], None
    for name in trace():
        if name != current:
            requests.append({**answer(contender, name), **memory()})
        current = name
    after = reads()
    done = {"empty": empty, "requests": requests, "reads": {key: after[key] - before[key] for key in after}}
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main()
