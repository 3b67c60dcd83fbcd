"""Time `scan_models` on 1,000 plugins with 10 models each against a bare loop over their functions.

Prints one JSON document: seconds of each repeat, the two alternating, after one round that is not counted.
"""

from __future__ import annotations

import json
import sys
import time
import types
from typing import TYPE_CHECKING

from iopaint_core import ModelInfo, ModelType, PluginManager, hookimpl, scan_models

if TYPE_CHECKING:
    from collections.abc import Callable

PLUGINS, MODELS, REPEATS = 1000, 10, 40


def plugin() -> types.ModuleType:
    module = types.ModuleType("plugin")

    @hookimpl
    def iopaint_available_models() -> list[ModelInfo]:
        return [ModelInfo(name=f"model-{number}", type=ModelType.PLUGIN) for number in range(MODELS)]

    @hookimpl
    def iopaint_load_model() -> None: ...

    module.iopaint_available_models = iopaint_available_models
    module.iopaint_load_model = iopaint_load_model
    return module


def seconds(call: Callable[[], list[ModelInfo]]) -> float:
    started = time.perf_counter()
    models = call()
    taken = time.perf_counter() - started
    assert len(models) == PLUGINS * MODELS
    return taken


def main() -> None:
    modules = [plugin() for _ in range(PLUGINS)]
    plugins = PluginManager()
    for number, module in enumerate(modules):
        plugins.register(module, f"plugin-{number:04}", distribution=f"distribution-{number:04}")
    functions = [module.iopaint_available_models for module in modules]

    def bare_loop() -> list[ModelInfo]:
        return [info for function in functions for info in function()]

    calls = {"ours": lambda: scan_models(plugins), "peer": bare_loop}
    samples: dict[str, list[float]] = {side: [] for side in calls}
    for turn in range(REPEATS + 1):
        for side, call in calls.items():
            taken = seconds(call)
            if turn:
                samples[side].append(taken)
    json.dump(samples, sys.stdout)


if __name__ == "__main__":
    main()
