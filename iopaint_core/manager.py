"""The one object that a host holds: it names models, leases them from the pool, and runs them."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from iopaint_core.catalog import ScanReport, find_model, scan
from iopaint_core.errors import ModelLoadError, ModelNameError
from iopaint_core.models import SHAPES, ImageModel, InpaintModel, MaskModel, Model
from iopaint_core.plugins import PluginManager
from iopaint_core.pool import Lease, ModelPool
from iopaint_core.schema import LoadContext, ModelInfo

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from iopaint_core.imaging import Image, Mask
    from iopaint_core.models import Progress
    from iopaint_core.schema import ImageRequest, InpaintRequest, MaskRequest

Shape = TypeVar("Shape", bound=Model)


class ModelKey(NamedTuple):
    """What the pool tells loaded models apart by."""

    info: ModelInfo
    device: str
    dtype: str | None


class ModelManager:
    """Lists, loads and runs the models of all plugins; many threads may call it.

    Without `plugins`, the installed ones are discovered at the first call that needs them. Calls of one model
    come one after the other; `concurrency` bounds how many models run at once on the device (by default, one
    on an accelerator and one for each core on a CPU).
    """

    def __init__(
        self,
        plugins: PluginManager | None = None,
        *,
        pool: ModelPool[Model] | None = None,
        context: LoadContext | None = None,
        concurrency: int | None = None,
    ) -> None:
        self.plugins = PluginManager() if plugins is None else plugins
        self.pool: ModelPool[Model] = ModelPool() if pool is None else pool
        self.context = default_context() if context is None else context
        self._discovers = plugins is None
        self._models: tuple[ModelInfo, ...] = ()
        self._found: dict[str, ModelInfo] = {}
        self._running: dict[Hashable, threading.Lock] = {}
        slots = concurrency or ((os.cpu_count() or 1) if self.context.device == "cpu" else 1)
        self._slots = threading.BoundedSemaphore(slots)

    def scan(self) -> ScanReport:
        """Ask every plugin for its models, and remember the answer for the calls below."""
        if self._discovers:
            self.plugins.discover()
        report = scan(self.plugins)
        self._models, self._found = report.models, {}
        return report

    def find(self, name: str) -> ModelInfo:
        """The model of that name, from the last scan or a new one. Raises `ModelNameError`."""
        found = self._found
        if name not in found:
            try:
                found[name] = find_model(name, self._models)
            except ModelNameError:  # it may have come since
                return find_model(name, self.scan().models)
        return found[name]

    def load(self, name: str) -> Lease[Model]:
        """Lease a model, loading it unless the pool holds it. Raises `ModelNameError`, `ModelLoadError`.

        Calls of a leased model come in whatever order its holders make them; `inpaint` and the others queue.
        """
        key = self._key(name)
        return self.pool.lease(key, lambda: self._load(key.info))

    def unload(self, name: str) -> bool:
        """Drop a loaded model; False if it is not loaded, or in use."""
        return self.pool.release(self._key(name))

    def inpaint(
        self,
        name: str,
        image: Image,
        mask: Mask,
        request: InpaintRequest | None = None,
        *,
        progress: Progress | None = None,
    ) -> Image:
        """Repaint what a mask covers; see `InpaintModel`."""
        with self._run(name, InpaintModel) as model:
            return model(image, mask, request, progress=progress)

    def process(
        self,
        name: str,
        image: Image,
        request: ImageRequest | None = None,
        *,
        progress: Progress | None = None,
    ) -> Image:
        """Make a picture from a picture; see `ImageModel`."""
        with self._run(name, ImageModel) as model:
            return model(image, request, progress=progress)

    def segment(
        self, name: str, image: Image, request: MaskRequest | None = None, *, progress: Progress | None = None
    ) -> Mask:
        """Find a mask in a picture; see `MaskModel`."""
        with self._run(name, MaskModel) as model:
            return model(image, request, progress=progress)

    @contextmanager
    def _run(self, name: str, shape: type[Shape]) -> Iterator[Shape]:
        if SHAPES[self.find(name).task] is not shape:
            raise ModelNameError(
                f"{name} is no {shape.__name__}",
                "Call an InpaintModel by inpaint, an ImageModel by process, a MaskModel by segment",
            )
        lease = self.load(name)
        with lease as model:
            assert isinstance(model, shape), "_load sees to it"
            # The model's own lock comes first, so that who waits for a model takes no slot from another.
            with self._running.setdefault(lease.key, threading.Lock()), self._slots:
                yield model

    def _key(self, name: str) -> ModelKey:
        return ModelKey(self.find(name), self.context.device, self.context.dtype)

    def _load(self, info: ModelInfo) -> Model:
        model = self.plugins.load_model(info, self.context)
        shape = SHAPES[info.task]
        if not isinstance(model, shape):
            raise ModelLoadError(
                f"{info.qualified_name} could not be loaded: its plugin returned {type(model).__name__}, no "
                f"{shape.__name__} as its task ({info.task.value}) says",
                f"Report it to the author of {info.distribution}",
            )
        return model


def default_context() -> LoadContext:
    """Load on the CPU; offline if IOPAINT_OFFLINE or HF_HUB_OFFLINE asks for it; cache in IOPAINT_HOME."""
    import platformdirs

    offline = any(
        os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}
        for name in ("IOPAINT_OFFLINE", "HF_HUB_OFFLINE")
    )
    home = os.environ.get("IOPAINT_HOME")
    return LoadContext(offline=offline, cache=Path(home) if home else platformdirs.user_cache_path("iopaint"))
