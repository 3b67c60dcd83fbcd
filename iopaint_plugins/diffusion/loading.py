"""From files to a pipeline: the weights shared, all else the model's own.

A checkpoint is a folder that diffusers has saved, or a single file in the layout of before diffusers, whose
configs and tokenizers are those of a folder.
"""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from iopaint_core import TensorFiles, WeightsError, hub_folder, module_component
from iopaint_plugins.diffusion.adapters import add_loras, controlnet_folder, lora_files
from iopaint_plugins.diffusion.configs import read_config, read_index
from iopaint_plugins.diffusion.options import DiffusionOptions
from iopaint_plugins.diffusion.parameters import Adapters, adapters_of
from iopaint_plugins.diffusion.pipelines import PIPELINES, Row
from iopaint_plugins.diffusion.singlefile import checkpoint_parts, configs_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from iopaint_core import Component, LoadContext

_LIBRARIES = ("diffusers", "transformers")
_RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}
"""Classes that folders of years ago name otherwise."""
_RENAMED_TENSORS = {
    "Qwen2_5_VLForConditionalGeneration": (
        (r"visual\.", "model.visual."),
        (r"model\.(?!language_model\.|visual\.)", "model.language_model."),
    )
}
"""How the names of a published class's tensors begin, and how those of transformers since 4.52 do."""


@dataclass(frozen=True)
class _Part:
    """A component of a pipeline, before it is loaded."""

    cls: Any
    folder: Path
    """With its config."""
    files: TensorFiles | None = None
    """Its weights, if they are not in the folder."""

    @property
    def has_weights(self) -> bool:
        from torch import nn

        return isinstance(self.cls, type) and issubclass(self.cls, nn.Module)

    def component(self, context: LoadContext, dtype: str) -> Component[Any]:
        """It, to be shared."""
        if self.files is not None:
            return module_component(self.cls, self.files, context, config=read_config(self.folder), dtype=dtype)
        files = TensorFiles.find(self.folder, variant=_variant(self.folder, dtype))
        if self.cls.__name__ in _RENAMED_TENSORS:
            rename = partial(_rename, rules=_RENAMED_TENSORS[self.cls.__name__])
            files = TensorFiles(files.paths, convert=rename, layout="transformers before 4.52")
        return module_component(self.cls, files, context, dtype=dtype)

    def own(self) -> Any:  # noqa: ANN401 - diffusers is not typed
        """It, for one pipeline alone: a scheduler, a tokenizer, a processor."""
        return self.cls.from_pretrained(self.folder, local_files_only=True)


def load_checkpoint(path: Path, context: LoadContext) -> tuple[Any, Row]:
    """The pipeline of a folder or a single file, and its row.

    What is wrong with a checkpoint is found before anything is loaded, wherever that can be known. Raises
    `WeightsError`.
    """
    folder = path if path.is_dir() else configs_of(path, context)
    index = read_index(folder)
    options = context.options
    assert isinstance(options, DiffusionOptions), "each model announces it"
    if not options.safety_checker and "safety_checker" in index:
        index = {**index, "safety_checker": [None, None], "requires_safety_checker": False}
    row, adapters = _row_of(index, folder), adapters_of(context)
    pipeline = _pipeline_of(row, index, folder, adapters)
    parts = _parts_of(path, folder, index, row, context)
    parameters = inspect.signature(pipeline).parameters
    optional = {name for name, parameter in parameters.items() if parameter.default is not parameter.empty}
    absent = {name for name, entry in index.items() if entry == [None, None]} | set(pipeline._optional_components)
    lacking = parameters.keys() - optional - absent - parts.keys() - {"controlnet"}
    if lacking:
        raise WeightsError(
            f"{path} has no {', '.join(sorted(lacking))}, which {pipeline.__name__} needs", "Get the model again"
        )
    unet = read_config(parts["unet"].folder) if "unet" in parts else {}
    loras = lora_files(adapters, context, unet)
    nets = _controlnets(adapters, context, unet)
    dtype = context.dtype or ("float32" if context.device == "cpu" else row.dtype)
    modules = context.share(
        {name: part.component(context, dtype) for name, part in (parts | nets).items() if part.has_weights}
    )
    arguments = {
        **_settings(index),
        **dict.fromkeys(absent - parts.keys()),
        **{name: part.own() for name, part in parts.items() if not part.has_weights and name in parameters},
        **modules,
        "controlnet": [modules[name] for name in nets],
    }
    made = pipeline(**{name: value for name, value in arguments.items() if name in parameters})
    add_loras(made, loras, adapters)
    if options.low_memory:
        _save_memory(made)
    made.set_progress_bar_config(disable=True)
    return made, row


def _save_memory(pipeline: Any) -> None:  # noqa: ANN401 - diffusers is not typed
    """Attend in slices, and decode in tiles, where the model can."""
    pipeline.enable_attention_slicing()
    vae: Any = getattr(pipeline, "vae", None)
    if hasattr(vae, "enable_tiling"):
        vae.enable_tiling()


def _parts_of(
    path: Path, folder: Path, index: Mapping[str, Any], row: Row, context: LoadContext
) -> dict[str, _Part]:
    """All components, by the pipeline's names for them."""
    parts = _parts(index, folder)
    if row.prior and not any(name.startswith("prior_") for name in parts):
        prior = hub_folder(row.prior, context)
        parts |= {f"prior_{name}": part for name, part in _parts(read_index(prior), prior).items()}
    if path.is_dir():
        return parts
    weights = checkpoint_parts(path, folder)
    return {
        name: _Part(part.cls, part.folder, weights[name]) if name in weights else part
        for name, part in parts.items()
        if name in weights or not part.has_weights
    }


def _controlnets(adapters: Adapters, context: LoadContext, unet: Mapping[str, Any]) -> dict[str, _Part]:
    import diffusers

    return {
        f"controlnet_{number}": _Part(diffusers.ControlNetModel, controlnet_folder(name, context, unet))
        for number, name in enumerate(adapters.controlnets)
    }


def _row_of(index: Mapping[str, Any], folder: Path) -> Row:
    name = str(index.get("_class_name"))
    if name not in PIPELINES:
        version = index.get("_diffusers_version", "an unknown version")
        raise WeightsError(
            f"{folder} holds a {name}, saved by diffusers {version}, which is not known to inpaint",
            f"These are: {', '.join(PIPELINES)}",
        )
    return PIPELINES[name]


def _pipeline_of(row: Row, index: Mapping[str, Any], folder: Path, adapters: Adapters) -> Any:  # noqa: ANN401 - diffusers is not typed
    import diffusers

    name = row.controlnet if adapters.controlnets else row.pipeline
    if not name:
        raise WeightsError(f"{row.pipeline} takes no ControlNets", "Leave them out, or take another model")
    pipeline = getattr(diffusers, name, None)
    if pipeline is None:
        raise WeightsError(
            f"{folder} needs {name}, which diffusers {diffusers.__version__} does not have",
            f"pip install --upgrade diffusers; {index.get('_diffusers_version', 'a later one')} saved the folder",
        )
    return pipeline


def _parts(index: Mapping[str, Any], folder: Path) -> dict[str, _Part]:
    return {
        name: _Part(_class_of(name, entry[0], entry[1], folder), folder / name)
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)
    }


def _class_of(name: str, library: str, class_name: str, folder: Path) -> Any:  # noqa: ANN401 - diffusers is not typed
    """A class of diffusers or transformers; nothing else is imported, whatever a folder says."""
    of_pipelines = (f"diffusers.pipelines.{library}", f"diffusers.pipelines.deprecated.{library}")
    found = None
    for place in (library,) if library in _LIBRARIES else of_pipelines if library.isidentifier() else ():
        try:
            found = getattr(importlib.import_module(place), _RENAMED.get(class_name, class_name))
            break
        except (ImportError, AttributeError):
            continue
    if found is None:
        raise WeightsError(
            f"{folder} needs {class_name} of {library} as its {name}, which is not there",
            f"pip install --upgrade {library if library in _LIBRARIES else 'diffusers'}",
        )
    if not (folder / name).is_dir():
        raise WeightsError(
            f"{folder} has no folder {name}, which its model_index.json names", "Get the model again"
        )
    return found


def _settings(index: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in index.items()
        if isinstance(value, (bool, int, float, str)) and not name.startswith("_")
    }


def _rename(tensors: dict[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """By the first rule that fits a name, if any does."""

    def new(name: str) -> str:
        for pattern, begins in rules:
            if match := re.match(pattern, name):
                return begins + name[match.end() :]
        return name

    return {new(name): tensor for name, tensor in tensors.items()}


def _variant(folder: Path, dtype: str) -> str | None:
    """Weights saved in half precision, where there are some and they are wanted."""
    halves = any(folder.glob("*.fp16*.safetensors*"))
    plain = any(".fp16" not in path.name for path in folder.glob("*.safetensors"))
    return "fp16" if halves and (dtype == "float16" or not plain) else None
