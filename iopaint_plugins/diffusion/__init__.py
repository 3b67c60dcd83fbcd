"""Diffusion models of this machine: folders of diffusers, the Hugging Face cache, each component shared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from iopaint_core import WeightsError, hookimpl, missing_packages
from iopaint_plugins.diffusion.discovery import local_models

if TYPE_CHECKING:
    from iopaint_core import LoadContext, ModelInfo
    from iopaint_plugins.diffusion.model import DiffusionModel


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """What lies on this machine, in folders and files of this program, of IOPaint and of the Hugging Face hub."""
    found = local_models()
    if not (found.models or found.unusable):
        return []
    from iopaint_plugins.diffusion.options import DiffusionOptions
    from iopaint_plugins.diffusion.pipelines import parameters_of

    missing = missing_packages(
        "torch", "diffusers", "transformers", install="pip install 'iopaint-core[diffusion]'"
    )
    models = [
        *(
            replace(model.info, parameters=parameters_of(model.type, model.path), unavailable=missing)
            for model in found.models
        ),
        *found.unusable,
    ]
    return [replace(info, load_options=DiffusionOptions) for info in models]


@hookimpl
def iopaint_load_model(info: ModelInfo, context: LoadContext) -> DiffusionModel:
    """Put a pipeline together from components that the pool shares."""
    from iopaint_plugins.diffusion.loading import load_checkpoint
    from iopaint_plugins.diffusion.model import DiffusionModel
    from iopaint_plugins.diffusion.parameters import adapters_of

    if info.path is None:
        raise WeightsError(f"{info.name} was not found on this machine", "Scan again")
    return DiffusionModel(*load_checkpoint(info.path, context), adapters_of(context))
