"""A plugin framework for models that repair pictures.

Plugin authors implement the two hooks of `iopaint_core.hookspecs`; hosts hold a `ModelManager`. Every name
here is public. Importing it brings no numpy, OpenCV, Pillow, pydantic or torch: whoever needs one imports it
where it is used. What only hosts need is imported when it is asked for, so that plugins are listed quickly.
"""

from typing import TYPE_CHECKING

from iopaint_core.catalog import ScanReport, find_model, scan, scan_models, scan_plugin_models
from iopaint_core.errors import (
    AmbiguousModelError,
    ContractError,
    DownloadError,
    InputError,
    IOPaintError,
    LoadCancelledError,
    LoadTimeoutError,
    MissingWeightsError,
    ModelError,
    ModelLoadError,
    ModelNameError,
    ModelOutputError,
    OptionsError,
    PictureError,
    PictureReadError,
    PictureTooLargeError,
    PictureWriteError,
    PluginError,
    PoolError,
    PoolFullError,
    RequestError,
    UnavailableModelError,
    UnknownModelError,
    UntrustedWeightsError,
    WeightsError,
)
from iopaint_core.hookspecs import BasePlugin, hookimpl
from iopaint_core.models import (
    ImageModel,
    InpaintModel,
    MaskModel,
    Model,
    Models,
    Preview,
    report_preview,
    wants_preview,
)
from iopaint_core.options import LoadOptions, Secret
from iopaint_core.parameters import (
    Box,
    Click,
    HDStrategy,
    Hint,
    ImageParameters,
    InpaintParameters,
    InpaintRequest,
    MaskParameters,
    Parameters,
    ParametersLike,
    iopaint_flags,
)
from iopaint_core.plugins import PluginManager, missing_packages
from iopaint_core.progress import Progress, progress_part, report_progress
from iopaint_core.schema import (
    LoadContext,
    ModelInfo,
    ModelType,
    PluginInfo,
    PluginStatus,
    Problem,
    Result,
    Stage,
    Task,
    WeightFile,
)
from iopaint_core.version import __version__

if TYPE_CHECKING:
    from iopaint_core.accounts import Counts, EventKind, Held, Ledger, PoolEvent, PoolStats
    from iopaint_core.async_manager import AsyncModelManager, AsyncSession
    from iopaint_core.chain import Step, read_chain
    from iopaint_core.components import (
        ComponentKey,
        file_component,
        module_component,
        on_device,
    )
    from iopaint_core.entries import Component, SharedComponents, raise_if_cancelled
    from iopaint_core.eviction import GDSF, LRU, EvictionPolicy, Usage
    from iopaint_core.forecast import Forecast, Need
    from iopaint_core.forks import footprint, fork
    from iopaint_core.hub import hub_cache, hub_file, hub_folder
    from iopaint_core.identity import IdentityIndex
    from iopaint_core.imaging import Image, Mask
    from iopaint_core.legacy import LegacyPlugin
    from iopaint_core.manager import ModelManager
    from iopaint_core.onnx_sessions import OnnxSession, onnx_component
    from iopaint_core.pictures import Picture, read_mask, read_picture, write_picture
    from iopaint_core.pool import Lease, ModelPool
    from iopaint_core.session import Session
    from iopaint_core.settings import default_context, model_folders
    from iopaint_core.tensorfiles import TensorFiles, tensor_shapes
    from iopaint_core.torch_process import is_out_of_memory
    from iopaint_core.weights import State, Verified, WeightStore

_MODULES = {  # the imports above, for when the program runs
    "AsyncModelManager": "async_manager",
    "AsyncSession": "async_manager",
    "ComponentKey": "components",
    "default_context": "settings",
    "hub_cache": "hub",
    "hub_file": "hub",
    "hub_folder": "hub",
    "IdentityIndex": "identity",
    "Image": "imaging",
    "Mask": "imaging",
    "TensorFiles": "tensorfiles",
    "file_component": "components",
    "footprint": "forks",
    "fork": "forks",
    "module_component": "components",
    "on_device": "components",
    "onnx_component": "onnx_sessions",
    "Component": "entries",
    "Counts": "accounts",
    "EventKind": "accounts",
    "EvictionPolicy": "eviction",
    "Forecast": "forecast",
    "GDSF": "eviction",
    "Held": "accounts",
    "LRU": "eviction",
    "Lease": "pool",
    "LegacyPlugin": "legacy",
    "Ledger": "accounts",
    "ModelManager": "manager",
    "ModelPool": "pool",
    "Need": "forecast",
    "OnnxSession": "onnx_sessions",
    "Picture": "pictures",
    "PoolEvent": "accounts",
    "PoolStats": "accounts",
    "SharedComponents": "entries",
    "Session": "session",
    "State": "weights",
    "Step": "chain",
    "Usage": "eviction",
    "Verified": "weights",
    "WeightStore": "weights",
    "is_out_of_memory": "torch_process",
    "model_folders": "settings",
    "raise_if_cancelled": "entries",
    "read_chain": "chain",
    "read_mask": "pictures",
    "read_picture": "pictures",
    "tensor_shapes": "tensorfiles",
    "write_picture": "pictures",
}

__all__ = [
    "GDSF",
    "LRU",
    "AmbiguousModelError",
    "AsyncModelManager",
    "AsyncSession",
    "BasePlugin",
    "Box",
    "Click",
    "Component",
    "ComponentKey",
    "ContractError",
    "Counts",
    "DownloadError",
    "EventKind",
    "EvictionPolicy",
    "Forecast",
    "HDStrategy",
    "Held",
    "Hint",
    "IOPaintError",
    "IdentityIndex",
    "Image",
    "ImageModel",
    "ImageParameters",
    "InpaintModel",
    "InpaintParameters",
    "InpaintRequest",
    "InputError",
    "Lease",
    "Ledger",
    "LegacyPlugin",
    "LoadCancelledError",
    "LoadContext",
    "LoadOptions",
    "LoadTimeoutError",
    "Mask",
    "MaskModel",
    "MaskParameters",
    "MissingWeightsError",
    "Model",
    "ModelError",
    "ModelInfo",
    "ModelLoadError",
    "ModelManager",
    "ModelNameError",
    "ModelOutputError",
    "ModelPool",
    "ModelType",
    "Models",
    "Need",
    "OnnxSession",
    "OptionsError",
    "Parameters",
    "ParametersLike",
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
    "PoolEvent",
    "PoolFullError",
    "PoolStats",
    "Preview",
    "Problem",
    "Progress",
    "RequestError",
    "Result",
    "ScanReport",
    "Secret",
    "Session",
    "SharedComponents",
    "Stage",
    "State",
    "Step",
    "Task",
    "TensorFiles",
    "UnavailableModelError",
    "UnknownModelError",
    "UntrustedWeightsError",
    "Usage",
    "Verified",
    "WeightFile",
    "WeightStore",
    "WeightsError",
    "__version__",
    "default_context",
    "file_component",
    "find_model",
    "footprint",
    "fork",
    "hookimpl",
    "hub_cache",
    "hub_file",
    "hub_folder",
    "iopaint_flags",
    "is_out_of_memory",
    "missing_packages",
    "model_folders",
    "module_component",
    "on_device",
    "onnx_component",
    "progress_part",
    "raise_if_cancelled",
    "read_chain",
    "read_mask",
    "read_picture",
    "report_preview",
    "report_progress",
    "scan",
    "scan_models",
    "scan_plugin_models",
    "tensor_shapes",
    "wants_preview",
    "write_picture",
]


if not TYPE_CHECKING:  # to a type checker it would promise every name, misspelt ones too

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
