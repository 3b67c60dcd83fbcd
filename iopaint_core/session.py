"""Sessions: an image that is held open, so that what a model computes of it once serves many calls."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from iopaint_core.errors import InputError
from iopaint_core.models import MaskModel, Model, check_image, model_errors
from iopaint_core.progress import call_progress, nested_part

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from iopaint_core.imaging import Image, Mask
    from iopaint_core.manager import ModelManager
    from iopaint_core.parameters import Parameters, ParametersLike
    from iopaint_core.pool import Lease
    from iopaint_core.progress import Progress
    from iopaint_core.schema import Result

_BLOCK = 8192
"""Bytes of an image that are added up together."""


class Session:
    """An image held open for one model: a context manager. `ModelManager.session` makes it.

    What the model computed of the image is an entry of the pool, shared by all sessions of an equal image: it is
    charged, may be evicted while no call uses it, and is computed again then. So an open session costs nothing but
    the image. Many threads may use it.
    """

    def __init__(self, manager: ModelManager, name: str, image: Image) -> None:
        check_image(image)
        self.name = name
        self._manager = manager
        self._image: Image | None = image
        self._fingerprint = _fingerprint(image)
        digest = hashlib.sha256(repr(image.shape).encode())
        digest.update(_contiguous(image).data)
        self._key = f"image {digest.hexdigest()}"
        self.within: Callable[[Callable[[], Result]], Result] = lambda call: call()
        """Has a call be one within that of the model that opened this; `HostModels` sets it."""

    def run(
        self, parameters: ParametersLike = None, *, mask: Mask | None = None, progress: Progress | None = None
    ) -> Result:
        """Run the model on the image: masks `(N, H, W)`, and scores and labels where it gives them.

        `mask` is one to refine, that of the call before for example. Raises `InputError` for a session that is
        closed, an image that was written to, a mask or clicks that do not fit it; and what `ModelManager.run`
        raises.
        """
        image = self._image
        if image is None:
            raise InputError(
                f"The session of {self.name} is closed", "Open a new one: manager.session(name, image)"
            )
        if _fingerprint(image) != self._fingerprint:
            raise InputError(
                f"The image of the session of {self.name} was written to after it was opened",
                "Open a session of the new image, and leave the array as it is",
            )
        parsed = self._manager.parse(self.name, parameters)
        return self.within(lambda: self._call(image, mask, parsed, progress))

    def close(self) -> None:
        """Let go of the image; what was computed stays in the pool, until it is evicted."""
        self._image = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, image: Image, mask: Mask | None, parsed: Parameters, progress: Progress | None) -> Result:
        with (lease := self._manager.load(self.name, variant=parsed.variant)):
            return self._manager.call(
                lease, lambda model: self._run(lease, model, image, mask, parsed), progress=progress
            )

    def _run(
        self, lease: Lease[Model], model: Model, image: Image, mask: Mask | None, parsed: Parameters
    ) -> Result:
        assert isinstance(model, MaskModel), "ModelManager.session sees to it"
        if not model.encodes:
            return model.run(image, mask=mask, parameters=parsed)
        checked = model.parse(image, mask, parsed)
        pool = self._manager.pool
        kept = pool.find(lease, self._key)
        try:
            with call_progress(None):
                if kept is not None:
                    state = kept.model
                else:
                    started = time.monotonic()
                    with nested_part(0, 2), model_errors(model):
                        state = model.encode(image.copy())
                    seconds = time.monotonic() - started
                    kept = pool.keep(lease, self._key, state, nbytes=nbytes_of(state), seconds=seconds)
                with model_errors(model):
                    given = model.decode(state, checked)
        finally:
            if kept is not None:
                kept.close()
        return model.checked(given, image)


def nbytes_of(state: object) -> int:
    """Return the bytes of what a model computed: its own `nbytes`, or those of the arrays and tensors in it."""
    seen: set[int] = set()
    more, total = [state], 0
    while more:
        value = more.pop()
        if id(value) in seen or isinstance(value, (str, int, float)):
            continue
        seen.add(id(value))
        own = getattr(value, "nbytes", None)
        if isinstance(own, int):
            total += max(own, 0)
        elif isinstance(value, Mapping):
            more += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            more += value
        elif isinstance(value, bytes):
            total += len(value)
        else:
            more += getattr(value, "__dict__", {}).values()
            more += (getattr(value, name, None) for name in getattr(type(value), "__slots__", ()))
    return total


def _contiguous(image: Image) -> Image:
    import numpy as np

    return np.ascontiguousarray(image)


def _fingerprint(image: Image) -> bytes:
    """Return what changes when an image is written to: sums of its blocks, at a tenth of a digest's cost."""
    import numpy as np

    pixels = _contiguous(image).reshape(-1)
    whole = pixels.size // _BLOCK * _BLOCK
    sums = pixels[:whole].view(np.uint64).reshape(-1, _BLOCK // 8).sum(axis=1)
    return hashlib.blake2b(sums.tobytes() + pixels[whole:].tobytes()).digest()
