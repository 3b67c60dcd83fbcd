"""Diffusion models of this machine: folders of diffusers, the Hugging Face cache, each component shared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iopaint_core import hookimpl

if TYPE_CHECKING:
    from iopaint_core import InpaintModel, LoadContext, ModelInfo


@hookimpl
def iopaint_load_model(info: ModelInfo, context: LoadContext) -> InpaintModel:
    """Put a pipeline together from components that the pool shares."""
    from iopaint_plugins.diffusion.loading import load_folder
    from iopaint_plugins.diffusion.model import DiffusionModel

    return DiffusionModel(*load_folder(info.path, context))
