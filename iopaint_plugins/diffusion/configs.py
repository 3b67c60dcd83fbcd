"""The small JSON files of a folder in diffusers' layout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from iopaint_core import WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def read_index(folder: Path) -> Mapping[str, Any]:
    """Which pipeline a folder holds, of which components. Raises `WeightsError`."""
    return _read(folder / "model_index.json", "Name a folder that diffusers has saved")


def read_config(folder: Path) -> Mapping[str, Any]:
    """What a component is made with. Raises `WeightsError`."""
    return _read(folder / "config.json", "Get the model again")


def _read(path: Path, remedy: str) -> Mapping[str, Any]:
    try:
        content: Any = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} can't be read: {error}", remedy) from error
    return content
