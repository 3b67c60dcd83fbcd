"""Hosts for tests: managers of models that are written in a test."""

from __future__ import annotations

import inspect

from iopaint_core import ModelInfo, ModelManager, PluginManager, hookimpl


class OneModel:
    """A plugin of one model: its class, or a function of the context, and what else its `ModelInfo` says."""

    def __init__(self, name, make, **fields):
        self.info = ModelInfo(name=name, **fields)
        self.make = make

    @hookimpl
    def iopaint_available_models(self):
        return [self.info]

    @hookimpl
    def iopaint_load_model(self, info, context):
        return self.make(context) if inspect.signature(self.make).parameters else self.make()


def host(*models, **options):
    """A manager of `OneModel`s."""
    plugins = PluginManager(allow=[])
    for model in models:
        plugins.register(model, model.info.name)
    return ModelManager(plugins, **options)
