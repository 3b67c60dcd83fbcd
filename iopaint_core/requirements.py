"""Whether a plugin is made for this version of the core, read from its package's metadata before it is imported."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from iopaint_core.errors import PluginError
from iopaint_core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from packaging.requirements import Requirement

CORE = "iopaint-core"


def check_requirements(distribution: str, version: str, requirements: Iterable[str]) -> None:
    """Raise `PluginError` if a distribution requires another version of the core; its `Requires-Dist` are given.

    Those that can't be read, or apply to an extra only, are passed over: pip is who sees to them.
    """
    for text in requirements:
        if re.match(r"iopaint[-_.]+core\s*[^\w\s.-]", text, re.IGNORECASE):
            from packaging import requirements as read

            try:
                requirement = read.Requirement(text)
            except read.InvalidRequirement:
                continue
            marker = requirement.marker
            applies = marker is None or marker.evaluate({"extra": ""})
            if applies and not requirement.specifier.contains(__version__, prereleases=True):
                raise PluginError(
                    f"{distribution} {version} requires {CORE}{requirement.specifier}, "
                    f"and this is {CORE} {__version__}",
                    _remedy(distribution, requirement),
                )


def _remedy(distribution: str, requirement: Requirement) -> str:
    too_old = any(
        each.operator in {">=", ">", "~=", "==", "==="} and not each.contains(__version__, prereleases=True)
        for each in requirement.specifier
    )
    newer = all(
        each.contains(__version__, prereleases=True) for each in requirement.specifier if "<" in each.operator
    )
    if too_old and newer:
        return f"Install what it requires: pip install -U '{CORE}{requirement.specifier}'"
    return f"Install a version of {distribution} for {CORE} {__version__}: pip install -U {distribution}"
