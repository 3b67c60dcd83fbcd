"""The one object that a host holds: it names models, leases them from the pool, and runs them."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from iopaint_core.catalog import ScanReport, find_model, scan
from iopaint_core.entries import Component, device_name
from iopaint_core.errors import (
    ModelLoadError,
    ModelNameError,
    PluginError,
    PoolFullError,
    RequestError,
    UnavailableModelError,
    WeightsError,
)
from iopaint_core.forecast import Forecast, forecast
from iopaint_core.forking import renew_after_fork
from iopaint_core.identity import IdentityIndex
from iopaint_core.models import SHAPES, ImageModel, InpaintModel, MaskModel, Model
from iopaint_core.options import NO_OPTIONS, LoadOptions
from iopaint_core.parameters import Parameters
from iopaint_core.plugins import PluginManager
from iopaint_core.pool import Lease, ModelPool
from iopaint_core.settings import OPTIONS_FILE, OptionSources, default_context
from iopaint_core.torch_process import is_out_of_memory, process_defaults, reclaim
from iopaint_core.turns import DeviceSlots, Turn
from iopaint_core.weights import WeightStore

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from iopaint_core.entries import Share, SharedComponents
    from iopaint_core.imaging import Image, Mask
    from iopaint_core.models import Preview, Progress
    from iopaint_core.parameters import ParametersLike
    from iopaint_core.schema import LoadContext, ModelInfo

M = TypeVar("M", bound=Model)
T = TypeVar("T")

_logger = logging.getLogger(__name__)
_made: weakref.WeakValueDictionary[int, Model] = weakref.WeakValueDictionary()
"""Models that plugins returned, by identity."""


class ModelKey(NamedTuple):
    """What the pool tells loaded models apart by."""

    info: ModelInfo
    device: str
    dtype: str | None
    weights: tuple[tuple[str, Path], ...] = ()
    """The files that the host gives in place of declared ones."""
    variant: Hashable | None = None
    """What it is loaded with, as its parameters say."""
    options: LoadOptions = NO_OPTIONS

    def __str__(self) -> str:
        return self.info.name


class ModelManager:
    """Lists, loads and runs the models of all plugins; many threads may call it.

    Without `plugins`, the installed ones are discovered at the first call that needs them. Calls of one model
    come one after the other; `concurrency` bounds how many models run at once on the device (by default, one
    on an accelerator and one for each core on a CPU), not counting those that a running model calls. `weights`
    gives files, by name, in place of those that models declare; the others come from the `store`. `options` gives
    load options by plugin and name, over the environment's and those of `options.toml` in the home folder.
    """

    def __init__(
        self,
        plugins: PluginManager | None = None,
        *,
        pool: ModelPool[Model] | None = None,
        context: LoadContext | None = None,
        store: WeightStore | None = None,
        weights: Mapping[str, Path] | None = None,
        options: Mapping[str, Mapping[str, object]] | None = None,
        concurrency: int | None = None,
    ) -> None:
        self.plugins = PluginManager() if plugins is None else plugins
        self.pool: ModelPool[Model] = ModelPool(reclaim=reclaim) if pool is None else pool
        self.context = default_context() if context is None else context
        root = default_context().cache if self.context.cache == Path() else self.context.cache
        self.store = WeightStore(root, offline=self.context.offline) if store is None else store
        self._weights = {} if weights is None else dict(weights)
        self._options = OptionSources({} if options is None else dict(options), root / OPTIONS_FILE)
        self._discovers = plugins is None
        self._models: tuple[ModelInfo, ...] = ()
        self._found: dict[str, ModelInfo] = {}
        cached = self.context.cache != Path()
        self._index = IdentityIndex(self.context.cache / "digests.sqlite" if cached else None)
        self._kept: tuple[ModelKey, Lease[Model]] | None = None
        self._concurrency = concurrency or ((os.cpu_count() or 1) if self.context.device == "cpu" else 1)
        self._renew()
        renew_after_fork(self)

    def _renew(self) -> None:
        self._switching = threading.Lock()
        self._slots = DeviceSlots(self._concurrency)

    def scan(self) -> ScanReport:
        """Ask every plugin for its models, and remember the answer for the calls below."""
        if self._discovers:
            self.plugins.discover()
        report = scan(self.plugins)
        self._models, self._found = report.models, {}
        unused = self._options.unused(report.plugins)
        for problem in unused:
            _logger.warning("%s", problem)
        return replace(report, problems=(*report.problems, *unused))

    def find(self, name: str) -> ModelInfo:
        """The model of that name, from the last scan or a new one. Raises `ModelNameError`."""
        found = self._found
        if name not in found:
            try:
                found[name] = find_model(name, self._models)
            except ModelNameError:  # it may have come since
                return find_model(name, self.scan().models)
        return found[name]

    def load(
        self, name: str, *, weights: Mapping[str, Path] | None = None, variant: Hashable | None = None
    ) -> Lease[Model]:
        """Lease a model, loading it unless the pool holds it; files that it lacks are fetched first.

        `weights` gives files, by name, in place of declared ones; `variant` is that of the parameters to come.
        Calls of a leased model come in whatever order its holders make them; `inpaint` and the others queue.

        Raises `ModelNameError`, `RequestError` for a variant of a model that has none, `OptionsError`,
        `ModelLoadError`, `PoolFullError`, `LoadTimeoutError`.
        """
        return self._lease(self._key(name, weights, variant))

    def preload(self, *names: str) -> None:
        """Load models, one after the other, and keep them idle in the pool as long as there is room."""
        for name in names:
            self.load(name).close()

    def unload(self, name: str) -> bool:
        """Drop a loaded model, with all its variants; False if it is not loaded, or in use."""
        key = self._key(name)
        loaded = [
            other
            for other in self.pool.stats().leases
            if isinstance(other, ModelKey) and other._replace(variant=None) == key
        ]
        dropped = [self.pool.release(other) for other in loaded]
        return bool(dropped) and all(dropped)

    def get_shared_components(self, name: str) -> SharedComponents | None:
        """The components of a loaded model, or None if it is not loaded; see `ModelPool.get_shared_components`."""
        return self.pool.get_shared_components(self._key(name))

    @property
    def current(self) -> ModelInfo | None:
        """The model that was switched to last."""
        return None if self._kept is None else self._kept[0].info

    def switch(self, name: str) -> None:
        """Load a model, keep it loaded, and let go of the one that was switched to before.

        If there is no room for both, the one before goes first. If the load fails, the one before stays, or comes
        back, and what went wrong is raised.
        """
        key = self._key(name)
        with self._switching:
            if self._kept is None:
                self._kept = key, self._lease(key)
                return
            before, kept = self._kept
            try:
                lease = self._lease(key, wait_for_room=0.0)
            except PoolFullError:
                kept.close()
                self._kept = None
                try:
                    lease = self._lease(key)
                except BaseException:
                    self._kept = before, self._lease(before)
                    raise
            kept.close()
            self._kept = key, lease

    def forecast(self, *names: str) -> Forecast:
        """What models will need, component by component, and what they will share; the pool loads nothing.

        The loader of each runs until it asks for its components, of which headers are read. One that never asks
        loads its model, which is measured and dropped. Nothing is fetched.

        Raises `ModelNameError`, `OptionsError`, `ModelLoadError`, of which `MissingWeightsError`.
        """
        return forecast({name: self._components_of(self.find(name)) for name in names})

    def inpaint(
        self,
        name: str,
        image: Image,
        mask: Mask,
        parameters: ParametersLike = None,
        *,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Image:
        """Repaint what a mask covers; see `InpaintModel`."""
        return self._run(
            name,
            InpaintModel,
            parameters,
            lambda model, parsed: model(image, mask, parsed, progress=progress, preview=preview),
        )

    def process(
        self,
        name: str,
        image: Image,
        parameters: ParametersLike = None,
        *,
        progress: Progress | None = None,
    ) -> Image:
        """Make a picture from a picture; see `ImageModel`."""
        return self._run(
            name, ImageModel, parameters, lambda model, parsed: model(image, parsed, progress=progress)
        )

    def segment(
        self, name: str, image: Image, parameters: ParametersLike = None, *, progress: Progress | None = None
    ) -> Mask:
        """Find a mask in a picture; see `MaskModel`."""
        return self._run(name, MaskModel, parameters, lambda model, parsed: model(image, parsed, progress=progress))

    def parse(self, name: str, kind: type[Model], parameters: ParametersLike = None) -> Parameters:
        """Check what a model, of the kind that its task says, is to be called with; nothing is loaded.

        Raises `ModelNameError`, `RequestError`, `PluginError` for a class of parameters that is none.
        """
        info = self.find(name)
        if SHAPES[info.task] is not kind:
            raise ModelNameError(
                f"{name} is no {kind.__name__}: its task is {info.task.value}",
                "Call an InpaintModel by inpaint, an ImageModel by process, a MaskModel by segment; a plugin "
                f"announces {kind.__name__}s with {_tasks_of(kind)}",
            )
        return info.parameters.parse(parameters)

    def call(self, lease: Lease[Model], kind: type[M], run: Callable[[M], T]) -> T:
        """Run something with a leased model, in its turn; once more without idle models where memory ran out."""
        with self._turn(lease):
            model = lease.model
            assert isinstance(model, kind), "_load sees to it"
            try:
                return run(model)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                _logger.warning("%s ran out of memory; trying again without what is idle", lease.key)
            self.pool.trim(self.context.device)
            return run(model)

    def _run(
        self, name: str, kind: type[M], parameters: ParametersLike, run: Callable[[M, Parameters], Image]
    ) -> Image:
        parsed = self.parse(name, kind, parameters)
        lease = self.load(name, variant=parsed.variant)
        with lease:
            return self.call(lease, kind, lambda model: run(model, parsed))

    def _turn(self, lease: Lease[Model]) -> Turn:
        """Wait until a model may be called; within another's call, that one's slot serves both."""
        return Turn(lease.key, lease.locks, self._slots)

    def _key(
        self, name: str, weights: Mapping[str, Path] | None = None, variant: Hashable | None = None
    ) -> ModelKey:
        info = self.find(name)
        if info.unavailable:
            raise UnavailableModelError(f"{info.name} can't be used yet: {info.unavailable}")
        if variant is not None and info.parameters.variant is Parameters.variant:
            raise RequestError(f"{info.name} has no variants, and {variant!r} is asked for", "Leave it out")
        try:
            hash(variant)
        except TypeError as error:
            raise PluginError(
                f"{info.parameters.__name__}.variant of {info.name} is not hashable: {error}",
                f"Report it to the author of {info.distribution}",
            ) from error
        names = {file.filename for file in info.weights}
        given = {file: path for file, path in self._weights.items() if file in names} | dict(weights or {})
        device = device_name(self.context.device)
        return ModelKey(
            info,
            device,
            self.context.dtype,
            tuple(sorted(given.items())),
            variant,
            self._options.options_of(info, self._models),
        )

    def _lease(self, key: ModelKey, wait_for_room: float | None = None) -> Lease[Model]:
        if (key.info.weights or key.weights) and self.pool.get_shared_components(key) is None:
            # Here, not in the load: the pool's patience with a load is no measure for a download.
            self.store.get(key.info, dict(key.weights))
        return self.pool.lease(
            key,
            lambda share: self._load(key, share),
            measure=lambda model: model.nbytes,
            close=_empty,
            device=key.device,
            wait_for_room=wait_for_room,
        )

    def _components_of(self, info: ModelInfo) -> Mapping[str, Component[Any]]:
        key = self._key(info.qualified_name)
        self.store.get(info, dict(key.weights), fetch=False)

        def stop(components: Mapping[str, Component[Any]]) -> Mapping[str, Any]:
            raise _AskedError(components)

        try:
            model = self._load(key, stop)
        except ModelLoadError as error:
            if isinstance(error.__cause__, _AskedError):
                return error.__cause__.components
            raise
        whole = Component(key, lambda: model, model.nbytes, self.context.device)
        _empty(model)
        return {"model": whole}

    def _load(self, key: ModelKey, share: Share) -> Model:
        info = key.info

        def path_of(name: str) -> Path:
            files = self.store.get(info, dict(key.weights))
            if name not in files:
                raise WeightsError(
                    f"{info.name} has no weights called {name}: its plugin announced {', '.join(files) or 'none'}",
                    f"Report it to the author of {info.distribution}",
                )
            return files[name]

        context = replace(
            self.context,
            share=share,
            index=self._index,
            weights=path_of,
            variant=key.variant,
            options=key.options,
        )
        try:
            with process_defaults:
                model = self.plugins.load_model(info, context)
        except ModelLoadError as error:
            if is_out_of_memory(error.__cause__):
                raise MemoryError(str(error.__cause__)) from error
            raise
        shape = SHAPES[info.task]
        if not isinstance(model, shape):
            tasks = _tasks_of(type(model))
            contract = f"it is announced with {tasks}" if tasks else f"its loader returns an {shape.__name__}"
            raise ModelLoadError(
                f"{info.qualified_name} could not be loaded: its plugin returned {type(model).__name__}, no "
                f"{shape.__name__} as its task ({info.task.value}) says",
                f"Report it to the author of {info.distribution}: it works once {contract}",
            )
        if _made.get(id(model)) is model:
            raise ModelLoadError(
                f"{info.qualified_name} could not be loaded: its plugin returned a model that it returned before",
                f"Report it to the author of {info.distribution}: each load makes a model, and the pool keeps it",
            )
        _made[id(model)] = model
        model.parameters_class = info.parameters
        return model


def _tasks_of(kind: type) -> str:
    """The tasks with which models of that class are announced, as a plugin writes them; empty if it is no model."""
    return " or ".join(f"task=Task.{task.name}" for task, shape in SHAPES.items() if issubclass(kind, shape))


def _empty(model: Model) -> None:
    """Close a model that is dropped, and take its weights from who still names it in a variable."""
    model.close()
    vars(model).clear()


class _AskedError(BaseException):
    """Ends a loader once it has asked for its components; no plugin that catches `Exception` keeps it."""

    def __init__(self, components: Mapping[str, Component[Any]]) -> None:
        super().__init__("this load only asks what is needed")
        self.components = components
