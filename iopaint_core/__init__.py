"""A plugin framework for models that repair pictures.

Plugin authors implement the two hooks of `iopaint_core.hookspecs`; hosts hold a `ModelManager`. Every name
here is public. Importing it brings no numpy, OpenCV, Pillow, pydantic or torch: whoever needs one imports it
where it is used. What only hosts need is imported when it is asked for, so that plugins are listed quickly.
"""

from typing import TYPE_CHECKING

from iopaint_core.catalog import ScanReport, find_model, scan, scan_models, scan_plugin_models
from iopaint_core.errors import (
    AmbiguousModelError,
    InputError,
    IOPaintError,
    ModelError,
    ModelLoadError,
    ModelNameError,
    ModelOutputError,
    PictureError,
    PictureReadError,
    PictureTooLargeError,
    PictureWriteError,
    PluginError,
    PoolError,
    RequestError,
    UnknownModelError,
)
from iopaint_core.hookspecs import BasePlugin, hookimpl
from iopaint_core.models import ImageModel, InpaintModel, MaskModel, Model, report_progress
from iopaint_core.plugins import PluginManager
from iopaint_core.schema import (
    Click,
    CV2Flag,
    HDStrategy,
    ImageRequest,
    InpaintRequest,
    LoadContext,
    MaskRequest,
    ModelInfo,
    ModelType,
    PluginInfo,
    PluginStatus,
    Problem,
    Stage,
    Task,
)

if TYPE_CHECKING:
    from iopaint_core.manager import ModelManager
    from iopaint_core.pictures import Picture, read_mask, read_picture, write_picture
    from iopaint_core.pool import Lease, ModelPool, PoolStats

_MODULES = {
    "Lease": "pool",
    "ModelManager": "manager",
    "ModelPool": "pool",
    "Picture": "pictures",
    "PoolStats": "pool",
    "read_mask": "pictures",
    "read_picture": "pictures",
    "write_picture": "pictures",
}

__all__ = [
    "AmbiguousModelError",
    "BasePlugin",
    "CV2Flag",
    "Click",
    "HDStrategy",
    "IOPaintError",
    "ImageModel",
    "ImageRequest",
    "InpaintModel",
    "InpaintRequest",
    "InputError",
    "Lease",
    "LoadContext",
    "MaskModel",
    "MaskRequest",
    "Model",
    "ModelError",
    "ModelInfo",
    "ModelLoadError",
    "ModelManager",
    "ModelNameError",
    "ModelOutputError",
    "ModelPool",
    "ModelType",
    "Picture",
    "PictureError",
    "PictureReadError",
    "PictureTooLargeError",
    "PictureWriteError",
    "PluginError",
    "PluginInfo",
    "PluginManager",
    "PluginStatus",
    "PoolError",
    "PoolStats",
    "Problem",
    "RequestError",
    "ScanReport",
    "Stage",
    "Task",
    "UnknownModelError",
    "find_model",
    "hookimpl",
    "read_mask",
    "read_picture",
    "report_progress",
    "scan",
    "scan_models",
    "scan_plugin_models",
    "write_picture",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
