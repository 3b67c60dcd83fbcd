"""The host's models as a model calls them: `LoadContext.models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from iopaint_core.entries import loading
from iopaint_core.errors import PoolError
from iopaint_core.turns import is_within_call

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from iopaint_core.chain import Step
    from iopaint_core.imaging import Image, Mask
    from iopaint_core.manager import ModelManager
    from iopaint_core.models import Preview
    from iopaint_core.parameters import ParametersLike
    from iopaint_core.progress import Progress
    from iopaint_core.schema import Result
    from iopaint_core.session import Session
    from iopaint_core.turns import CallLock

T = TypeVar("T")


class HostModels:
    """What a manager lets the models that it loads do with its others; see `Models`."""

    def __init__(self, manager: ModelManager, caller: str) -> None:
        self._manager = manager
        self._caller = caller
        self.calls: CallLock | None = None
        """Held by the running calls of the model that has this; the manager sets it."""

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
        """See `ModelManager.run`."""
        return self._within_call(
            lambda: self._manager.run(
                name, image, mask=mask, parameters=parameters, progress=progress, preview=preview
            )
        )

    def inpaint(self, name: str, image: Image, mask: Mask, parameters: ParametersLike = None) -> Image:
        """See `ModelManager.inpaint`."""
        return self._within_call(lambda: self._manager.inpaint(name, image, mask, parameters))

    def process(self, name: str, image: Image, parameters: ParametersLike = None) -> Image:
        """See `ModelManager.process`."""
        return self._within_call(lambda: self._manager.process(name, image, parameters))

    def segment(self, name: str, image: Image, parameters: ParametersLike = None) -> Mask:
        """See `ModelManager.segment`."""
        return self._within_call(lambda: self._manager.segment(name, image, parameters))

    def chain(self, image: Image, steps: Sequence[Step], *, mask: Mask | None = None) -> Result:
        """See `ModelManager.chain`."""
        return self._within_call(lambda: self._manager.chain(image, steps, mask=mask))

    def session(self, name: str, image: Image) -> Session:
        """See `ModelManager.session`."""
        session = self._within_call(lambda: self._manager.session(name, image))
        session.within = self._within_call
        return session

    def _within_call(self, call: Callable[[], T]) -> T:
        """Call within the model's own call, also from a thread that the model started without its context."""
        if loading.get():
            raise PoolError(
                f"{self._caller} calls another model while it is being loaded",
                "Keep context.models, and call it in `forward`; what a model is made of comes by context.share",
            )
        running = [] if is_within_call() or self.calls is None else [*self.calls.holders]
        if len(running) > 1:
            raise PoolError(
                f"A thread of {self._caller} calls another model, and {len(running)} calls of {self._caller} run: "
                "it can't be told which of them it works for",
                "Start its work with contextvars.copy_context().run",
            )
        context = running[0].context if running else None
        return call() if context is None else context.copy().run(call)
