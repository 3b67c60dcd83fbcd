"""What the environment says of how to load models."""

from __future__ import annotations

import os
from pathlib import Path

from iopaint_core.schema import LoadContext


def default_context() -> LoadContext:
    """Load on the CPU; offline if IOPAINT_OFFLINE or HF_HUB_OFFLINE asks for it; cache in IOPAINT_HOME."""
    import platformdirs

    offline = any(
        os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}
        for name in ("IOPAINT_OFFLINE", "HF_HUB_OFFLINE")
    )
    home = os.environ.get("IOPAINT_HOME")
    return LoadContext(offline=offline, cache=Path(home) if home else platformdirs.user_cache_path("iopaint"))
