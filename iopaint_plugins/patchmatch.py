"""PatchMatch: fills a hole with what it finds elsewhere in the picture; nothing to download.

C. Barnes, E. Shechtman, A. Finkelstein, D. B. Goldman, "PatchMatch: A Randomized Correspondence Algorithm for
Structural Image Editing", SIGGRAPH 2009; run by PyPatchMatch.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from iopaint_core import (
    Hint,
    InpaintModel,
    InpaintParameters,
    InputError,
    ModelInfo,
    ModelLoadError,
    ModelType,
    hookimpl,
    missing_packages,
    report_progress,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LIBRARIES = ("libpatchmatch.so", "libpatchmatch.dylib", "patchmatch.dll")
_REINSTALL = (
    "Where there is no wheel, install a C++ compiler, CMake and OpenCV's development files, then "
    "`pip install --force-reinstall --no-deps --no-cache-dir PyPatchMatch`"
)
_SEED = 1212  # the library's own

_lock = threading.Lock()
"""Held from setting the seed to the end of the call. The seed is the library's, one for the process, and read when
a call begins: calls of two models, or of two managers, would take each other's."""


def _renew_lock() -> None:
    """Make the lock anew in a forked child, which lacks the thread that held it."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_lock)


@dataclass(frozen=True)
class PatchMatchParameters(InpaintParameters):
    """How `patchmatch` fills a hole with patches from elsewhere in the picture."""

    hd_strategy_crop_trigger_size: Annotated[int, Ge(1), Hint(unit="px")] = 256
    """`Crop` cuts out of an image whose longer side exceeds this; by default, of each one larger than a crop is."""
    patch_size: Annotated[int, Ge(1), Le(15), Hint(widget="slider", unit="px")] = 5
    """Radius of the patches that are compared: larger ones follow larger structures and take far longer. Where too
    little of the image is known for them, smaller ones are taken."""
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = _SEED
    """Start of the random search: another one fills the hole in another way."""


class PatchMatch(InpaintModel[PatchMatchParameters]):
    """Fills a hole with patches from elsewhere in the picture; `PatchMatchParameters` say how."""

    min_size = 32  # the largest patch fits

    def forward(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], parameters: PatchMatchParameters
    ) -> NDArray[np.uint8]:
        """Raise `InputError` where the mask leaves too little to fill the hole with."""
        hole = mask > 0
        size = 0 if hole.all() else parameters.patch_size
        while size:
            painted = _paint(image, mask, size, parameters.seed)
            black = ~painted[hole].any(axis=1)
            # The library leaves black what it finds no patch for: in the negative, too, where other black is white.
            if (
                not black.any()
                or not (black & ~_paint(~image, mask, size, parameters.seed)[hole].any(axis=1)).any()
            ):
                return painted
            size //= 2
        raise InputError(
            "patchmatch fills a hole with what surrounds it, and this mask leaves too little around it",
            "Mask less of the picture, or raise hd_strategy_crop_margin",
        )


def _paint(image: NDArray[np.uint8], mask: NDArray[np.uint8], patch_size: int, seed: int) -> NDArray[np.uint8]:
    """Run the library, which can't be interrupted: a call that is cancelled ends before."""
    import patchmatch

    report_progress(0, 1)
    with _lock:
        patchmatch.set_random_seed(seed)
        return patchmatch.inpaint(image, mask, patch_size=patch_size)


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """Announce `patchmatch`."""
    return [
        ModelInfo(
            name="patchmatch",
            type=ModelType.PLUGIN,
            license="MIT",
            parameters=PatchMatchParameters,
            unavailable=_unavailable(),
            title="PatchMatch",
            description="Erases objects: goes on with the textures around them, with nothing to download.",
            homepage="https://github.com/mauwii/PyPatchMatch",
        )
    ]


def _unavailable() -> str:
    """Return why it can't be used, and the remedy, without an import of the library.

    Where it can't be compiled, pip installs the package without it.
    """
    spec = importlib.util.find_spec("patchmatch")
    folders = (spec and spec.submodule_search_locations) or ()
    if not folders or any(Path(folder, name).is_file() for folder in folders for name in _LIBRARIES):
        return missing_packages("patchmatch", install="pip install 'PyPatchMatch>=2.2'")
    return f"PyPatchMatch is installed without its native library. {_REINSTALL}"


@hookimpl
def iopaint_load_model() -> PatchMatch:
    """Make the one model there is. Raises `ModelLoadError` if the native library can't be loaded."""
    import patchmatch

    if not patchmatch.patchmatch_available:
        raise ModelLoadError("PyPatchMatch's native library can't be loaded, the log says why", _REINSTALL)
    return PatchMatch()
