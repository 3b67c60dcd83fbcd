"""From a folder of diffusers to a pipeline: the weights shared, all else the model's own."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

from iopaint_core import WeightsError, module_component

from iopaint_plugins.diffusion.pipelines import PIPELINES, Row

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from iopaint_core import Component, LoadContext

_LIBRARIES = ("diffusers", "transformers")
_RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}
"""Classes that folders of years ago name otherwise."""


def load_folder(folder: Path, context: LoadContext) -> tuple[Any, Row]:
    """The pipeline of a folder with a `model_index.json`, and its row.

    All that can be wrong with the folder is found before anything is loaded. Raises `WeightsError`.
    """
    import diffusers
    import torch

    index = _read_index(folder)
    row = _row_of(index, folder)
    pipeline = getattr(diffusers, row.pipeline, None)
    if pipeline is None:
        raise WeightsError(
            f"diffusers {diffusers.__version__} has no {row.pipeline}, which {folder} needs",
            "Upgrade it: pip install --upgrade diffusers",
        )
    classes = {name: _class_of(name, *entry, folder) for name, entry in _entries(index).items()}
    dtype = context.dtype or ("float32" if context.device == "cpu" else row.dtype)
    shared: dict[str, Component[Any]] = {}
    own: dict[str, Any] = {}
    for name, cls in classes.items():
        if issubclass(cls, torch.nn.Module):
            variant = _variant(folder / name, dtype)
            shared[name] = module_component(cls, folder / name, context, dtype=dtype, variant=variant)
        else:
            own[name] = cls
    absent = {name for name, entry in index.items() if entry == [None, None]}
    settings = {name: value for name, value in index.items() if isinstance(value, (bool, int, float, str))}
    parts = {
        **dict.fromkeys(absent),
        **{name: cls.from_pretrained(folder / name, local_files_only=True) for name, cls in own.items()},
        **context.share(shared),
        **settings,
    }
    expected = set(pipeline.__init__.__annotations__) | set(_parameters(pipeline))
    lacking = _required(pipeline) - parts.keys()
    if lacking:
        raise WeightsError(
            f"{folder} has no {', '.join(sorted(lacking))}, which {row.pipeline} needs", "Get the model again"
        )
    made = pipeline(**{name: part for name, part in parts.items() if name in expected})
    made.set_progress_bar_config(disable=True)
    return made, row


def _read_index(folder: Path) -> Mapping[str, Any]:
    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_bytes())
        if not isinstance(index, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} can't be read: {error}", "Name a folder that diffusers has saved") from error
    return index


def _row_of(index: Mapping[str, Any], folder: Path) -> Row:
    name = index.get("_class_name")
    if name not in PIPELINES:
        version = index.get("_diffusers_version", "an unknown version")
        raise WeightsError(
            f"{folder} holds a {name}, saved by diffusers {version}, which is not known to inpaint",
            f"These are: {', '.join(PIPELINES)}",
        )
    return PIPELINES[name]


def _entries(index: Mapping[str, Any]) -> dict[str, list[str]]:
    """Components by name, each with its library and class."""
    return {
        name: entry
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)
    }


def _class_of(name: str, library: str, class_name: str, folder: Path) -> type:
    """A class of diffusers or transformers; nothing else is imported, whatever a folder says."""
    places = (
        (library,)
        if library in _LIBRARIES
        else (f"diffusers.pipelines.{library}", f"diffusers.pipelines.deprecated.{library}")
    )
    cls = None
    for place in places if library.isidentifier() else ():
        try:
            cls = getattr(importlib.import_module(place), _RENAMED.get(class_name, class_name))
            break
        except (ImportError, AttributeError):
            continue
    if not isinstance(cls, type):
        raise WeightsError(
            f"{folder} needs {class_name} of {library} as its {name}, which is not there",
            f"Upgrade it: pip install --upgrade {library if library in _LIBRARIES else 'diffusers'}",
        )
    if not (folder / name).is_dir():
        raise WeightsError(
            f"{folder} has no folder {name}, which its model_index.json names", "Get the model again"
        )
    return cls


def _variant(folder: Path, dtype: str) -> str | None:
    """Weights saved in half precision, where there are some and they are wanted."""
    halves = any(folder.glob("*.fp16*.safetensors*"))
    plain = any(path for path in folder.glob("*.safetensors") if ".fp16" not in path.name)
    return "fp16" if halves and (dtype == "float16" or not plain) else None


def _parameters(pipeline: type) -> Mapping[str, Any]:
    import inspect

    return inspect.signature(pipeline.__init__).parameters


def _required(pipeline: Any) -> set[str]:  # noqa: ANN401 - diffusers is not typed
    optional = set(getattr(pipeline, "_optional_components", ()))
    return {
        name
        for name, parameter in _parameters(pipeline).items()
        if name != "self" and parameter.default is parameter.empty and name not in optional
    }
