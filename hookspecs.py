"""The contract between plugins and the core: two hooks, and the class that has them as methods.

It is defined, with its documentation, in `iopaint_core/hookspecs.py`; plugins import it from `iopaint_core`.
"""

from iopaint_core.hookspecs import (
    BasePlugin,
    hookimpl,
    hookspec,
    iopaint_available_models,
    iopaint_load_model,
)

__all__ = ["BasePlugin", "hookimpl", "hookspec", "iopaint_available_models", "iopaint_load_model"]
