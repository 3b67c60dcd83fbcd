"""The manager for hosts with an event loop: the same calls, awaited, none of which blocks the loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from iopaint_core.errors import PoolError
from iopaint_core.manager import ModelManager
from iopaint_core.models import ImageModel, InpaintModel, MaskModel

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from types import TracebackType

    from iopaint_core.chain import Step
    from iopaint_core.imaging import Image, Mask
    from iopaint_core.models import Model, Preview
    from iopaint_core.parameters import Parameters, ParametersLike
    from iopaint_core.pool import Lease
    from iopaint_core.progress import Progress
    from iopaint_core.schema import Result
    from iopaint_core.session import Session

T = TypeVar("T")

_LOADS = 1000
"""Threads that may wait for loads; each takes memory only once it is needed."""


class AsyncModelManager:
    """Runs the calls of a `ModelManager` in threads of its own, at most `threads` at once.

    Loads have others, since they wait: for room, for one another. Requests for one model queue without a thread.
    Cancelling what awaits a model's work cancels the work at its
    next step; cancelling what awaits a load gives up the wait, and closes the lease if it comes all the same.
    `async with` closes it, and the manager with it if that was made here.
    """

    def __init__(self, manager: ModelManager | None = None, *, threads: int = 32) -> None:
        self.manager = ModelManager() if manager is None else manager
        self._owns_manager = manager is None
        self._closed = False
        self._threads = threads
        self._calls = ThreadPoolExecutor(threads, thread_name_prefix="iopaint call")
        self._loads = ThreadPoolExecutor(_LOADS, thread_name_prefix="iopaint load")
        self._queues: weakref.WeakValueDictionary[Hashable, _Queue] = weakref.WeakValueDictionary()

    async def __aenter__(self) -> AsyncModelManager:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    async def load(self, name: str, *, variant: Hashable | None = None) -> Lease[Model]:
        """See `ModelManager.load`."""
        self._raise_if_closed()
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
        await self._submit(lambda: self.manager.preload(*names))

    async def unload(self, name: str) -> bool:
        """See `ModelManager.unload`."""
        return await self._submit(lambda: self.manager.unload(name))

    async def switch(self, name: str) -> None:
        """See `ModelManager.switch`."""
        await self._submit(lambda: self.manager.switch(name))

    async def run(
        self,
        name: str,
        image: Image,
        *,
        mask: Mask | None = None,
        parameters: ParametersLike = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Result:
        """See `ModelManager.run`; `progress` and `preview` are called in the thread that works."""
        return await self._run(name, None, parameters, image, mask, progress, preview)

    async def _run(
        self,
        name: str,
        kind: type[Model] | None,
        parameters: ParametersLike,
        image: Image,
        mask: Mask | None = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Result:
        def check() -> tuple[Parameters, Hashable | None]:
            parsed = self.manager.check(name, parameters, masked=mask is not None, kind=kind)
            return parsed, parsed.variant

        parsed, variant = await self._submit(check)  # in a thread: it may import pydantic, and look at files
        key = (asyncio.get_running_loop(), name)
        queue = self._queues.setdefault(key, _Queue())
        async with queue.places:
            # Leased before, so that who waits for room, or for a load, takes no thread from a model that is ready.
            lease = await self.load(name, variant=variant)
            if isinstance(count := lease.model.concurrency, int):  # what else it became, the call tells
                queue.grow(min(count, self._threads))

            def work(report: Progress) -> Result:
                with lease:
                    return self.manager.call(
                        lease,
                        lambda model: model.run(image, mask=mask, parameters=parsed, preview=preview),
                        progress=report,
                    )

            return await self._cancellable(work, progress, lease.close)

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
        result = await self._run(name, InpaintModel, parameters, image, mask, progress, preview)
        return cast("Image", result.image)

    async def process(
        self, name: str, image: Image, parameters: ParametersLike = None, *, progress: Progress | None = None
    ) -> Image:
        """See `ModelManager.process`."""
        return cast("Image", (await self._run(name, ImageModel, parameters, image, progress=progress)).image)

    async def segment(
        self, name: str, image: Image, parameters: ParametersLike = None, *, progress: Progress | None = None
    ) -> Mask:
        """See `ModelManager.segment`."""
        return cast("Mask", (await self._run(name, MaskModel, parameters, image, progress=progress)).mask)

    async def chain(
        self,
        image: Image,
        steps: Sequence[Step],
        *,
        mask: Mask | None = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Result:
        """See `ModelManager.chain`; it takes one thread throughout."""
        return await self._cancellable(
            lambda report: self.manager.chain(image, steps, mask=mask, progress=report, preview=preview), progress
        )

    async def session(self, name: str, image: Image) -> AsyncSession:
        """See `ModelManager.session`."""
        return AsyncSession(self, await self._submit(lambda: self.manager.session(name, image)))

    def close(self) -> None:
        """End the threads once their work is done, and close the manager unless it was passed.

        Calls afterwards raise `PoolError`; to close again does nothing.
        """
        self._closed = True
        if self._owns_manager:
            self.manager.close()
        self._loads.shutdown()
        self._calls.shutdown()

    async def _cancellable(
        self,
        work: Callable[[Progress], T],
        progress: Progress | None,
        never_begun: Callable[[], None] = lambda: None,
    ) -> T:
        """Await work in a thread; to cancel it ends it at its next report, or else calls `never_begun`."""
        cancelled = threading.Event()

        def report(step: int, total: int) -> None:
            if cancelled.is_set():
                raise asyncio.CancelledError
            if progress is not None:
                progress(step, total)

        if self._closed:
            never_begun()
            self._raise_if_closed()
        working = self._calls.submit(contextvars.copy_context().run, work, report)
        try:
            return await asyncio.wrap_future(working)
        except asyncio.CancelledError:
            cancelled.set()
            if working.cancel():
                never_begun()
            raise

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise PoolError("The manager is closed", "Make a new one: async with AsyncModelManager() as manager")

    def _submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        self._raise_if_closed()
        context = contextvars.copy_context()
        return asyncio.get_running_loop().run_in_executor(self._loads, context.run, call)


class AsyncSession:
    """A `Session` whose calls are awaited."""

    def __init__(self, manager: AsyncModelManager, session: Session) -> None:
        self._manager = manager
        self._session = session

    async def run(
        self, parameters: ParametersLike = None, *, mask: Mask | None = None, progress: Progress | None = None
    ) -> Result:
        """See `Session.run`."""
        return await self._manager._cancellable(
            lambda report: self._session.run(parameters, mask=mask, progress=report), progress
        )

    def close(self) -> None:
        """See `Session.close`."""
        self._session.close()

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Queue:
    """Places for the calls of one model; how many, it says itself once it is loaded."""

    def __init__(self) -> None:
        self.places = asyncio.Semaphore(1)
        self._count = 1

    def grow(self, count: int) -> None:
        """Have that many places, or more."""
        while self._count < count:
            self._count += 1
            self.places.release()


def _close_lease(work: Future[Lease[Model]]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().close()
