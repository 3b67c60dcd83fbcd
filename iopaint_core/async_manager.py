"""The manager for hosts with an event loop: the same calls, awaited, none of which blocks the loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from iopaint_core.manager import ModelManager
from iopaint_core.models import ImageModel, InpaintModel, MaskModel, Model

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from iopaint_core.imaging import Image, Mask
    from iopaint_core.models import Preview, Progress
    from iopaint_core.parameters import Parameters, ParametersLike
    from iopaint_core.pool import Lease

M = TypeVar("M", bound=Model)
T = TypeVar("T")

_LOADS = 1000
"""Threads that may wait for loads; each takes memory only once it is needed."""


class AsyncModelManager:
    """Runs the calls of a `ModelManager` in threads of its own, at most `threads` at once.

    Loads have others, since they wait: for room, for one another. Requests for one model queue without a thread.
    Cancelling what awaits a model's work cancels the work at its
    next step; cancelling what awaits a load gives up the wait, and closes the lease if it comes all the same.
    """

    def __init__(self, manager: ModelManager | None = None, *, threads: int = 32) -> None:
        self.manager = ModelManager() if manager is None else manager
        self._calls = ThreadPoolExecutor(threads, thread_name_prefix="iopaint call")
        self._loads = ThreadPoolExecutor(_LOADS, thread_name_prefix="iopaint load")
        self._queues: weakref.WeakValueDictionary[Hashable, asyncio.Lock] = weakref.WeakValueDictionary()

    async def load(self, name: str, *, variant: Hashable | None = None) -> Lease[Model]:
        """See `ModelManager.load`."""
        load = partial(self.manager.load, name, variant=variant)
        work = self._loads.submit(contextvars.copy_context().run, load)
        try:
            return await asyncio.shield(asyncio.wrap_future(work))
        except asyncio.CancelledError:
            if not work.cancel():
                work.add_done_callback(_close_lease)
            raise

    async def preload(self, *names: str) -> None:
        """See `ModelManager.preload`."""
        await self._submit(self.manager.preload, *names)

    async def unload(self, name: str) -> bool:
        """See `ModelManager.unload`."""
        return await self._submit(self.manager.unload, name)

    async def switch(self, name: str) -> None:
        """See `ModelManager.switch`."""
        await self._submit(self.manager.switch, name)

    async def inpaint(
        self,
        name: str,
        image: Image,
        mask: Mask,
        parameters: ParametersLike = None,
        *,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Image:
        """See `ModelManager.inpaint`; `progress` and `preview` are called in the thread that works."""
        return await self._run(
            name,
            InpaintModel,
            parameters,
            lambda model, parsed, report: model(image, mask, parsed, progress=report, preview=preview),
            progress,
        )

    async def process(
        self, name: str, image: Image, parameters: ParametersLike = None, *, progress: Progress | None = None
    ) -> Image:
        """See `ModelManager.process`."""
        return await self._run(
            name,
            ImageModel,
            parameters,
            lambda model, parsed, report: model(image, parsed, progress=report),
            progress,
        )

    async def segment(
        self, name: str, image: Image, parameters: ParametersLike = None, *, progress: Progress | None = None
    ) -> Mask:
        """See `ModelManager.segment`."""
        return await self._run(
            name,
            MaskModel,
            parameters,
            lambda model, parsed, report: model(image, parsed, progress=report),
            progress,
        )

    def close(self) -> None:
        """End the threads once their work is done."""
        self._loads.shutdown()
        self._calls.shutdown()

    async def _run(
        self,
        name: str,
        kind: type[M],
        parameters: ParametersLike,
        run: Callable[[M, Parameters, Progress], Image],
        progress: Progress | None,
    ) -> Image:
        cancelled = threading.Event()

        def report(step: int, total: int) -> None:
            if cancelled.is_set():
                raise asyncio.CancelledError
            if progress is not None:
                progress(step, total)

        def parse() -> tuple[Parameters, Hashable | None]:
            parsed = self.manager.parse(name, kind, parameters)
            return parsed, parsed.variant

        def work(lease: Lease[Model]) -> Image:
            with lease:
                return self.manager.call(lease, kind, lambda model: run(model, parsed, report))

        parsed, variant = await self._submit(parse)  # in a thread: it may import pydantic, and look at files
        queue = self._queues.setdefault((asyncio.get_running_loop(), name), asyncio.Lock())
        async with queue:
            # Leased before, so that who waits for room, or for a load, takes no thread from a model that is ready.
            lease = await self.load(name, variant=variant)
            working = self._calls.submit(contextvars.copy_context().run, work, lease)
            try:
                return await asyncio.wrap_future(working)
            except asyncio.CancelledError:
                cancelled.set()
                if working.cancel():
                    lease.close()
                raise

    def _submit(self, call: Callable[..., T], *names: str) -> asyncio.Future[T]:
        context = contextvars.copy_context()
        return asyncio.get_running_loop().run_in_executor(self._loads, context.run, call, *names)


def _close_lease(work: Future[Lease[Model]]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().close()
