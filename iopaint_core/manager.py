"""The one object that a host holds: it names models, leases them from the pool, and runs them."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex, TypeVar, cast

from iopaint_core.catalog import ScanReport, find_model, scan, with_required
from iopaint_core.chain import run_chain
from iopaint_core.entries import Component, device_name
from iopaint_core.errors import (
    AskedError,
    InputError,
    ModelError,
    ModelLoadError,
    ModelNameError,
    PluginError,
    PoolError,
    PoolFullError,
    RequestError,
    UnavailableModelError,
    WeightsError,
)
from iopaint_core.fingerprints import Fingerprints, file_fingerprints, fingerprints
from iopaint_core.forecast import Forecast, forecast
from iopaint_core.forking import renew_after_fork
from iopaint_core.host_models import HostModels
from iopaint_core.identity import IdentityIndex
from iopaint_core.models import ImageModel, InpaintModel, MaskModel, Model, model_class, model_errors, model_name
from iopaint_core.options import NO_OPTIONS, LoadOptions
from iopaint_core.parameters import Parameters
from iopaint_core.plugins import PluginManager
from iopaint_core.pool import Lease, ModelPool
from iopaint_core.progress import call_progress
from iopaint_core.schema import Task, describe, format_bytes
from iopaint_core.session import Session
from iopaint_core.settings import OPTIONS_FILE, OptionSources, default_context
from iopaint_core.torch_process import is_out_of_memory, process_defaults, reclaim
from iopaint_core.turns import DeviceSlots, Turn
from iopaint_core.values import shown
from iopaint_core.weights import WeightStore

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from types import TracebackType

    from iopaint_core.chain import Step
    from iopaint_core.entries import Share, SharedComponents
    from iopaint_core.imaging import Image, Mask
    from iopaint_core.models import Preview
    from iopaint_core.parameters import ParametersLike
    from iopaint_core.plugins import PluginCode
    from iopaint_core.progress import Progress
    from iopaint_core.schema import LoadContext, ModelInfo, Result

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
    code: PluginCode | None = None
    """What loads it."""
    files: Fingerprints = ()
    """Its files on disk, as they were before it was loaded."""

    def __str__(self) -> str:
        return self.info.name

    @property
    def weights_place(self) -> Hashable:
        """What the files of weights are for, whoever announces it now."""
        return self.info.distribution, self.info.qualified_name, self.weights

    def is_before(self, other: ModelKey) -> bool:
        """Whether it is the same model, of the same plugin, in another form."""
        return self.weights_place == other.weights_place and other.variant == self.variant


class _WeightFiles(NamedTuple):
    info: ModelInfo
    paths: tuple[Path, ...]
    files: Fingerprints


_indexes: weakref.WeakKeyDictionary[ModelPool[Model], dict[Path, IdentityIndex]] = weakref.WeakKeyDictionary()


def _index_of(pool: ModelPool[Model], cache: Path) -> IdentityIndex:
    """Return what names the weights in a pool: one for all managers that share it, so that equal ones are one."""
    path = None if cache == Path() else cache / "digests.sqlite"
    return _indexes.setdefault(pool, {}).setdefault(cache, IdentityIndex(path))


class ModelManager:
    """Lists, loads and runs the models of all plugins; many threads may call it.

    Without `plugins`, the installed ones are discovered at the first call that needs them. Calls of one model
    come one after the other; `concurrency` bounds how many models run at once on the device (by default, one
    on an accelerator and one for each core on a CPU), not counting those that a running model calls. `weights`
    gives files, by name, in place of those that models declare; the others come from the `store`. `options` gives
    load options by plugin and name, over the environment's and those of `options.toml` in the home folder.

    A model whose plugin was reloaded, or whose files were replaced on disk, is loaded anew by the next call; what
    is leased then goes on as it is. `close`, or the end of a `with`, closes all models that were loaded here.
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
        self._owns_pool = pool is None
        self._closed = False
        self._models: tuple[ModelInfo, ...] = ()
        self._found: dict[str, ModelInfo] = {}
        self._usable: set[str] = set()
        """Full names of models that can be used, and those that they require, too."""
        self._fitting: set[ModelKey] = set()
        """Models of which it is known that they fit the budget of their device."""
        self._scanned: dict[Path, Fingerprints] = {}
        """What the last scan found at the paths of models."""
        self._changes = self.plugins.changes
        """Those of the plugins that the last scan knew of."""
        self._weight_files: dict[Hashable, _WeightFiles] = {}
        """Where the store had the weights of a model, and what they were."""
        self._loaded: set[ModelKey] = set()
        """What was loaded here, and may be in the pool still."""
        self._index = _index_of(self.pool, self.context.cache)
        self._kept: tuple[ModelKey, Lease[Model]] | None = None
        self._concurrency = concurrency or ((os.cpu_count() or 1) if self.context.device == "cpu" else 1)
        self._renew()
        renew_after_fork(self)

    def _renew(self) -> None:
        self._switching = threading.Lock()
        self._loads = threading.Lock()
        self._slots = DeviceSlots(self._concurrency)

    def __enter__(self) -> ModelManager:
        self._raise_if_closed()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop all models that were loaded here; each one's `close` is called, of one in use when its lease ends.

        What else is in a pool that the host passed stays. Calls afterwards raise `PoolError`; to close again does
        nothing.
        """
        self._closed = True  # a load that begins from now on sees it, and those before are in the pool
        self._end_switch()
        if self._owns_pool:
            self.pool.clear()
        else:
            with self._loads:
                loaded = self._loaded.copy()
            self.pool.invalidate(loaded)

    def scan(self) -> ScanReport:
        """Ask every plugin for its models, and remember the answer for the calls below."""
        self._raise_if_closed()
        if self._discovers:
            self.plugins.discover()
        changes = self.plugins.changes
        report = scan(self.plugins)
        self._scanned = {info.path: fingerprints(info.path) for info in report.models if info.path is not None}
        self._models, self._found, self._changes = report.models, {}, changes
        self._usable, self._fitting = set(), set()
        self._drop_outdated()
        unused = self._options.unused(report.plugins)
        for problem in unused:
            _logger.warning("%s", problem)
        return replace(report, problems=(*report.problems, *unused))

    def find(self, name: str) -> ModelInfo:
        """The model of that name, from the last scan or a new one. Raises `ModelNameError`."""
        self._raise_if_closed()
        if self._changes != self.plugins.changes:
            self.scan()
        try:
            info = self._find(name)
        except ModelNameError:  # it may have come since
            return find_model(name, self.scan().models)
        if info.path is not None:
            files = fingerprints(info.path)
            if files and files != self._scanned.get(info.path):  # what was deleted goes on as it was loaded
                self.scan()  # what the file is may have changed too
                with contextlib.suppress(ModelNameError):  # else its loader says what is wrong with it now
                    return self._find(name)
        return info

    def _find(self, name: str) -> ModelInfo:
        found = self._found
        if name not in found:
            found[name] = find_model(name, self._models)
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
        while True:
            try:
                return self._lease(self._key(name, weights, variant))
            except _ReloadedError:  # just now: the key is of the code of before
                continue

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
            if isinstance(other, ModelKey) and other._replace(variant=None, files=key.files) == key
        ]
        dropped = [self.pool.release(other) for other in loaded]
        return bool(dropped) and all(dropped)

    def get_shared_components(self, name: str) -> SharedComponents | None:
        """The components of a loaded model, or None if it is not loaded; see `ModelPool.get_shared_components`."""
        key = self._key(name)
        return self.pool.get_shared_components(key._replace(files=self._known_files(key)))

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
        try:
            with self._switching:
                self._switch(key)
        finally:
            if self._closed:  # by another thread, which did not wait for this
                self._end_switch()

    def _switch(self, key: ModelKey) -> None:
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

    def _switch_again(self, key: ModelKey) -> None:
        """Keep the model that was switched to in its new form, if this is that."""
        if self._kept is None or not self._kept[1].closed or not self._switching.acquire(blocking=False):
            return
        try:
            if self._kept is not None and self._kept[1].closed and self._kept[0].is_before(key):
                self._kept = key, self._lease(key)
        finally:
            self._switching.release()
            if self._closed:
                self._end_switch()

    def _end_switch(self) -> None:
        if self._switching.acquire(blocking=False):  # who holds it looks whether this is closed, afterwards
            try:
                kept, self._kept = self._kept, None
            finally:
                self._switching.release()
            if kept is not None:
                kept[1].close()

    def forecast(self, *names: str) -> Forecast:
        """What models will need, component by component, and what they will share; the pool loads nothing.

        The loader of each runs until it asks for its components, of which headers are read. One that never asks
        loads its model, which is measured and dropped. Nothing is fetched.

        Raises `ModelNameError`, `OptionsError`, `ModelLoadError`, of which `MissingWeightsError`.
        """
        infos = {each.full_name: each for name in names for each in with_required(self.find(name), self.find)}
        given = {self.find(name).full_name: name for name in names}
        return forecast(
            {given.get(name, each.name): self._components_of(self._key(name)) for name, each in infos.items()}
        )

    def run(
        self,
        name: str,
        image: Image,
        *,
        mask: Mask | None = None,
        parameters: ParametersLike = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Result:
        """Run any model, whatever its task, and return all that it gives.

        `image` is RGB `uint8` `(H, W, 3)`. A `mask`, `uint8` `(H, W)`, is what an inpainting model repaints, and
        what a model that finds masks is to refine. `progress(step, total)` is told how far the work is, with one
        total and steps that never fall; `preview` is shown the image so far, by models that can. What they raise
        cancels.

        Raises `ModelNameError`, `RequestError` and `InputError` before anything is loaded wherever that can be
        known, then what `load` raises, `ModelError` for whatever the model raises, and what a callback raises as it
        is.
        """
        parsed = self.check(name, parameters, masked=mask is not None)
        return self._run(name, parsed, image, mask, progress, preview)

    def _run(
        self,
        name: str,
        parsed: Parameters,
        image: Image,
        mask: Mask | None = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Result:
        with (lease := self.load(name, variant=parsed.variant)):
            return self.call(
                lease,
                lambda model: model.run(image, mask=mask, parameters=parsed, preview=preview),
                progress=progress,
            )

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
        parsed = self.check(name, parameters, masked=mask is not None, kind=InpaintModel)
        return cast("Image", self._run(name, parsed, image, mask, progress, preview).image)

    def process(
        self,
        name: str,
        image: Image,
        parameters: ParametersLike = None,
        *,
        progress: Progress | None = None,
    ) -> Image:
        """Make an image from an image; see `ImageModel`."""
        parsed = self.check(name, parameters, masked=False, kind=ImageModel)
        return cast("Image", self._run(name, parsed, image, progress=progress).image)

    def segment(
        self, name: str, image: Image, parameters: ParametersLike = None, *, progress: Progress | None = None
    ) -> Mask:
        """Find a mask in an image: `Result.mask` of what a `MaskModel` gives."""
        parsed = self.check(name, parameters, masked=False, kind=MaskModel)
        return cast("Mask", self._run(name, parsed, image, progress=progress).mask)

    def chain(
        self,
        image: Image,
        steps: Sequence[Step],
        *,
        mask: Mask | None = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Result:
        """Run models one after the other: each gets the image that the one before gave, and the mask found last.

        Every step is checked before the first one is loaded: its name, parameters, what it takes and the room that
        it needs. A step that takes a mask where the steps before found nothing leaves the image as it is, which a
        warning and `info` say. The result holds the last image, the masks found last, all maps, and each step's
        `info` under `steps`. See `check_chain` for what it raises.
        """
        return run_chain(self, image, steps, mask=mask, progress=progress, preview=preview)

    def session(self, name: str, image: Image) -> Session:
        """Hold an image open for a model that finds masks: its calls compute once what all of them need.

        The image is not copied, and is not to be written to. Raises `ModelNameError` for a model of another kind,
        `InputError` for an image that is none; nothing is loaded before the first call.
        """
        info = self.find(name)
        _check_kind(name, info.task, MaskModel)
        self._check_usable(info)
        return Session(self, name, image)

    def parse(self, name: str, parameters: ParametersLike = None) -> Parameters:
        """Check what a model is to be called with; nothing is loaded.

        Raises `ModelNameError`, `RequestError`, `PluginError` for a class of parameters that is none.
        """
        return self.find(name).parameters.parse(parameters)

    def check(
        self,
        name: str,
        parameters: ParametersLike = None,
        *,
        masked: bool,
        kind: type[Model] | None = None,
    ) -> Parameters:
        """Check what a model is to be run with, whether it takes a mask, and is of a kind; nothing is loaded.

        Raises what `parse` raises, `ModelNameError` for another kind, and `InputError`.
        """
        info = self.find(name)
        task = info.task
        if kind is not None:
            _check_kind(name, task, kind)
        parsed = info.parameters.parse(parameters)
        if task.takes_mask and not masked and getattr(parsed, "mask_input", None) is None:
            raise InputError(f"{name} takes a mask, and none was given: its task is {task}", "Pass one")
        if masked and model_class(task) is ImageModel:
            raise InputError(f"{name} takes no mask, and one was given: its task is {task}", "Leave it out")
        return parsed

    def check_room(self, name: str, *, variant: Hashable | None = None) -> None:
        """Raise what would keep a model from being loaded, as far as that can be known; its weights are fetched.

        Raises `UnavailableModelError`, `WeightsError`, `PoolFullError` for a model that is larger than the budget
        of its device, `ModelLoadError`.
        """
        key = self._key(name, None, variant)
        if self.pool.get_shared_components(key._replace(files=self._known_files(key))) is not None:
            return
        if key.info.weights or key.weights:
            self.store.get(key.info, dict(key.weights))
        budget = self.pool.budget(key.device)
        if budget is not None and key not in self._fitting:
            needed = forecast({name: self._components_of(key)}).together.get(key.device, 0)
            if needed > budget:
                raise PoolFullError(
                    f"{name} needs {format_bytes(needed)} on {key.device}, and the whole budget is "
                    f"{format_bytes(budget)}",
                    f"Raise the budget of {key.device}, or load with a smaller dtype",
                )
            self._fitting.add(key)

    def call(self, lease: Lease[Model], run: Callable[[Model], T], *, progress: Progress | None = None) -> T:
        """Run something with a leased model, in its turn; once more without idle models where memory ran out."""
        model = lease.model
        with self._turn(lease, model) as turn, call_progress(progress, is_call=True):
            turn.context = contextvars.copy_context()
            with self.pool.calling(lease):
                try:
                    return run(model)
                except Exception as error:
                    if not is_out_of_memory(error.__cause__ if isinstance(error, ModelError) else error):
                        raise
                    _logger.warning("%s ran out of memory; trying again without what is idle", lease.key)
                self.pool.trim(self.context.device)
                return run(model)

    def _turn(self, lease: Lease[Model], model: Model) -> Turn:
        """Wait until a model may be called; within another's call, that one's slot serves both."""
        locks = lease.locks
        _raise_if_faulty(model)
        locks[0].limit = model.concurrency
        if model.host_models is not None:
            model.host_models.calls = locks[0]
        return Turn(lease.key, locks, self._slots if model.device_bound else None)

    def _check_usable(self, info: ModelInfo) -> None:
        """Raise `UnavailableModelError` for a model that can't be used, or that requires one that is not there."""
        if info.full_name in self._usable:
            return
        if info.unavailable:  # or one that it requires is, by the scan
            raise UnavailableModelError(f"{info.name} can't be used yet: {info.unavailable}")
        with_required(info, self.find)
        self._usable.add(info.full_name)

    def _key(
        self, name: str, weights: Mapping[str, Path] | None = None, variant: Hashable | None = None
    ) -> ModelKey:
        info = self.find(name)
        self._check_usable(info)
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
            self.plugins.code_of(info),
            () if info.path is None else self._scanned.get(info.path, ()),
        )

    def _lease(self, key: ModelKey, wait_for_room: float | None = None) -> Lease[Model]:
        whole = key
        if key.info.weights or key.weights:
            # Here, not in the load: the pool's patience with a load is no measure for a download.
            self._look_at_weights(key)
            whole = key._replace(files=self._known_files(key))

        def load(share: Share) -> Model:
            self._note_load(whole)
            return self._load(whole, share)

        lease = self.pool.lease(
            whole,
            load,
            measure=_measured,
            close=_empty,
            device=key.device,
            wait_for_room=wait_for_room,
        )
        self._switch_again(key)
        return lease

    def _look_at_weights(self, key: ModelKey) -> None:
        """Find the files of a model, and fetch what lacks, unless they lie where and as they did."""
        place = key.weights_place
        known = self._weight_files.get(place)
        if known is not None and known.info == key.info:
            now = file_fingerprints(known.paths)
            deleted = len(now) < len(known.paths) and key._replace(files=self._known_files(key)) in self.pool
            if now == known.files or deleted:  # what was deleted goes on as it was loaded
                return
        paths = tuple(self.store.get(key.info, dict(key.weights)).values())
        self._weight_files[place] = _WeightFiles(key.info, paths, file_fingerprints(paths))
        if known is not None:
            self._drop_outdated()

    def _known_files(self, key: ModelKey) -> Fingerprints:
        """Files of a model as they were when they were last looked at."""
        files = () if key.info.path is None else self._scanned.get(key.info.path, ())
        weights = self._weight_files.get(key.weights_place)
        return files if weights is None else files + weights.files

    def _note_load(self, key: ModelKey) -> None:
        with self._loads:
            self._loaded = {other for other in self._loaded if other in self.pool} | {key}
        self._raise_if_closed()
        if self.plugins.code_of(key.info) != key.code:
            raise _ReloadedError(f"The plugin of {key} was reloaded just before it was loaded", "Load it again")

    def _drop_outdated(self) -> None:
        """Drop what was loaded here and would be loaded otherwise now, or not at all."""
        with self._loads:
            loaded = self._loaded.copy()
        kept = self._kept
        if not loaded and kept is None:
            return
        models = {(info.distribution, info.qualified_name): info for info in self._models}

        def is_outdated(key: ModelKey) -> bool:
            info = models.get((key.info.distribution, key.info.qualified_name))
            code = self.plugins.code_of(key.info)
            return (info, code, self._known_files(key)) != (key.info, key.code, key.files)

        if kept is not None and isinstance(kept[1].key, ModelKey) and is_outdated(kept[1].key):
            kept[1].close()
        self.pool.invalidate([key for key in loaded if is_outdated(key)])

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise PoolError("The manager is closed", "Make a new one: with ModelManager() as manager")

    def _components_of(self, key: ModelKey) -> Mapping[str, Component[Any]]:
        self.store.get(key.info, dict(key.weights), fetch=False)

        def stop(components: Mapping[str, Component[Any]]) -> Mapping[str, Any]:
            raise AskedError(components)

        try:
            model = self._load(key, stop)
        except ModelLoadError as error:
            if isinstance(error.__cause__, AskedError):
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

        models = HostModels(self, info.qualified_name)
        context = replace(
            self.context,
            models=models,
            data_dir=self.store.data_dir(info),
            share=share,
            index=self._index,
            weights=path_of,
            variant=key.variant,
            options=key.options,
        )
        try:
            with process_defaults:
                model = self.plugins.load_model(info, context, model_class(info.task))
        except ModelLoadError as error:
            if is_out_of_memory(error.__cause__):
                raise MemoryError(str(error.__cause__)) from error
            raise
        expected = model_class(info.task)
        if not isinstance(model, expected):
            tasks = _tasks_of(type(model))
            contract = f"it is announced with {tasks}" if tasks else f"its loader returns an {expected.__name__}"
            raise ModelLoadError(
                f"{info.qualified_name} could not be loaded: its plugin returned {type(model).__name__}, no "
                f"{expected.__name__} as its task ({info.task}) says",
                f"Report it to the author of {info.distribution}: it works once {contract}",
            )
        if fault := _fault_of(model):
            raise ModelLoadError(
                f"{info.qualified_name} could not be loaded: {fault}",
                f"Report it to the author of {info.distribution}",
            )
        if _made.get(id(model)) is model:
            raise ModelLoadError(
                f"{info.qualified_name} could not be loaded: its plugin returned a model that it returned before",
                f"Report it to the author of {info.distribution}: each load makes a model, and the pool keeps it",
            )
        _made[id(model)] = model
        try:
            model.info, model.parameters_class, model.task = info, info.parameters, info.task
            model.host_models = models
        except Exception as error:
            raise ModelLoadError(
                f"{info.qualified_name} could not be loaded: {type(model).__name__} refuses what the manager sets: "
                f"{describe(error)}",
                f"Report it to the author of {info.distribution}: these names are the manager's",
            ) from error
        return model


def _fault_of(model: Model) -> str:
    """What is wrong with the numbers that a model gives, and may change; empty if nothing is."""
    for name, least, meaning in (
        ("concurrency", 1, "the number of calls that may run at once, 1 or more"),
        ("nbytes", 0, "the bytes that it takes, as an int of 0 or more"),
        ("device_bound", 0, "True or False"),
    ):
        try:
            value = getattr(model, name)
            right = isinstance(value, (int, SupportsIndex)) and int(value) >= least
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a property of a plugin may raise anything
            return f"its {name} raised {describe(error)}, expected {meaning}"
        if not right:
            return f"its {name} is {shown(value)}, expected {meaning}"
    return ""


def _raise_if_faulty(model: Model) -> None:
    if fault := _fault_of(model):
        raise ModelError(f"{model_name(model)}: {fault}", "Report it to the author of the plugin")


def _measured(model: Model) -> int:
    """Bytes that a model takes by now. Raises `ModelError` for what is no number of them."""
    _raise_if_faulty(model)
    return int(model.nbytes)


def _check_kind(name: str, task: Task, kind: type[Model]) -> None:
    """Raise `ModelNameError` unless a task is for models of that kind, and gives what is asked of them."""
    if model_class(task) is not kind:
        raise ModelNameError(
            f"{name} is no {kind.__name__}: its task is {task}",
            "Call `run`, which runs any model; or an InpaintModel by inpaint, an ImageModel by process, a "
            f"MaskModel by segment. A plugin announces {kind.__name__}s with {_tasks_of(kind)}",
        )
    gives = "masks" if kind is MaskModel else "image"
    if gives not in task.gives:
        raise ModelNameError(
            f"{name} gives {' and '.join(task.gives)}, no {gives}: its task is {task}",
            "Call `run`, which returns all that it gives",
        )


def _tasks_of(kind: type) -> str:
    """The tasks with which models of that class are announced, as a plugin writes them; empty if it is no model."""
    predefined = ("INPAINT", "RESTORE", "MATTING", "SEGMENT")
    return " or ".join(
        f"task=Task.{name}" for name in predefined if issubclass(kind, model_class(getattr(Task, name)))
    )


def _empty(model: Model) -> None:
    """Close a model that is dropped, and take its weights from who still names it in a variable."""
    try:
        with model_errors(model):
            model.close()
    finally:
        vars(model).clear()


class _ReloadedError(ModelLoadError):
    """A load would run other code than that of its key."""
