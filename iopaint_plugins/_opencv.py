"""Networks that OpenCV runs, as components: on the CPU, one caller at a time, for they keep state in a call."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from iopaint_core import Component, LoadContext

T = TypeVar("T")


def opencv_component(
    path: Path, context: LoadContext, read: Callable[[NDArray[np.uint8]], T], *, kind: str = "OpenCV network"
) -> Component[T]:
    """Return a component that `read` makes of the bytes of a file.

    They are bytes, since OpenCV on Windows opens no file in a folder with letters outside its code page.
    """
    from iopaint_core import file_component

    def load(path: Path) -> T:
        import numpy as np

        return read(np.frombuffer(path.read_bytes(), np.uint8))

    return file_component(path, load, replace(context, device="cpu", dtype=None), kind=kind, exclusive=True)
