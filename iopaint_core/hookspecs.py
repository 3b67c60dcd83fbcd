"""The contract between plugins and the core: two hooks.

A plugin is a module or a `BasePlugin` that an entry point of the group `iopaint` names. It implements both
hooks with `@hookimpl`. An implementation may take any subset of a hook's arguments, by their names and
without defaults. `docs/hooks.md` says how the hooks may change between versions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import pluggy

from iopaint_core.schema import Task

if TYPE_CHECKING:
    from collections.abc import Iterable

    from iopaint_core.models import Model
    from iopaint_core.schema import LoadContext, ModelInfo

ANNOUNCE = "iopaint_available_models"
HOOKS = (ANNOUNCE, "iopaint_load_model")

hookspec = pluggy.HookspecMarker("iopaint")
hookimpl = pluggy.HookimplMarker("iopaint")


@hookspec
def iopaint_available_models() -> Iterable[ModelInfo]:  # type: ignore[empty-body] # a specification has no body
    """Announce the models that this plugin can load.

    Called at every scan, so it is cheap: no heavy import, no network, no weights read. Names are unique
    within the plugin and hold no colon. `plugin_name` and `distribution` may be left out: the core fills them
    in from the plugin's registration. Wrappers of this hook are refused: a plugin speaks for itself only.

        @hookimpl
        def iopaint_available_models():
            return [ModelInfo(name="blur", type=ModelType.PLUGIN)]
    """


@hookspec(firstresult=True)
def iopaint_load_model(info: ModelInfo, context: LoadContext) -> Model:  # type: ignore[empty-body] # a specification has no body
    """Load a model that this plugin announced.

    `info` is one of this plugin's own models: no other plugin's implementation runs. `context` says under
    what conditions to load, device and dtype among them. Returns an `InpaintModel`, an `ImageModel` or a
    `MaskModel`, as `info.task` says; whatever this raises reaches the host as the cause of a `ModelLoadError`.

    Wrappers (`@hookimpl(wrapper=True)`) of every plugin run around each load, to compile, quantise, time or
    log it; they receive and return the model.

        @hookimpl
        def iopaint_load_model(info, context):
            return Blur()
    """


class BasePlugin(ABC):
    """A plugin as a class: the same two hooks, as a property and a method.

    An entry point may name the class, which is then made without arguments, or an instance.
    """

    name: str
    """Name under which a host registers it; an entry point brings its own."""
    task: Task = Task.INPAINT
    """Task of those of its models that name none."""

    @property
    def available_models(self) -> Iterable[ModelInfo]:
        """The models that this plugin can load; cheap to ask. By default, there are none."""
        return []

    @abstractmethod
    def load_model(self, info: ModelInfo, context: LoadContext) -> Model:
        """Load one of `available_models`."""

    @hookimpl
    def iopaint_available_models(self) -> Iterable[ModelInfo]:
        """Answer the hook with `available_models`."""
        return self.available_models

    @hookimpl
    def iopaint_load_model(self, info: ModelInfo, context: LoadContext) -> Model:
        """Answer the hook with `load_model`."""
        return self.load_model(info, context)
