"""The manager for hosts with an event loop: the same calls, awaited, none of which blocks the loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from iopaint_core.manager import ModelManager

if TYPE_CHECKING:
    from collections.abc import Callable

    from iopaint_core.imaging import Image, Mask
    from iopaint_core.models import Model, Progress
    from iopaint_core.pool import Lease
    from iopaint_core.schema import ImageRequest, InpaintRequest, MaskRequest

T = TypeVar("T")


class AsyncModelManager:
    """Runs the calls of a `ModelManager` in threads of its own, at most `threads` at once.

    Cancelling what awaits a model's work cancels the work at its next step; cancelling what awaits a load gives up
    the wait, and closes the lease if it comes all the same.
    """

    def __init__(self, manager: ModelManager | None = None, *, threads: int = 32) -> None:
        self.manager = ModelManager() if manager is None else manager
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="iopaint")

    async def load(self, name: str) -> Lease[Model]:
        """See `ModelManager.load`."""
        work = self._submit(partial(self.manager.load, name))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_close_lease)
            raise

    async def preload(self, *names: str) -> None:
        """See `ModelManager.preload`."""
        await self._submit(partial(self.manager.preload, *names))

    async def unload(self, name: str) -> bool:
        """See `ModelManager.unload`."""
        return await self._submit(partial(self.manager.unload, name))

    async def switch(self, name: str) -> None:
        """See `ModelManager.switch`."""
        await self._submit(partial(self.manager.switch, name))

    async def inpaint(
        self,
        name: str,
        image: Image,
        mask: Mask,
        request: InpaintRequest | None = None,
        *,
        progress: Progress | None = None,
    ) -> Image:
        """See `ModelManager.inpaint`; `progress` is called in the thread that works."""
        return await self._work(partial(self.manager.inpaint, name, image, mask, request), progress)

    async def process(
        self, name: str, image: Image, request: ImageRequest | None = None, *, progress: Progress | None = None
    ) -> Image:
        """See `ModelManager.process`."""
        return await self._work(partial(self.manager.process, name, image, request), progress)

    async def segment(
        self, name: str, image: Image, request: MaskRequest | None = None, *, progress: Progress | None = None
    ) -> Mask:
        """See `ModelManager.segment`."""
        return await self._work(partial(self.manager.segment, name, image, request), progress)

    def close(self) -> None:
        """End the threads once their work is done."""
        self._threads.shutdown()

    async def _work(self, call: Callable[..., Image], progress: Progress | None) -> Image:
        cancelled = threading.Event()

        def report(step: int, total: int) -> None:
            if cancelled.is_set():
                raise asyncio.CancelledError
            if progress is not None:
                progress(step, total)

        try:
            return await self._submit(partial(call, progress=report))
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def _submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        context = contextvars.copy_context()
        return asyncio.get_running_loop().run_in_executor(self._threads, context.run, call)


def _close_lease(work: asyncio.Future[Lease[Model]]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().close()
