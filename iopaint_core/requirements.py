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
_ABOUT_CORE = re.compile(r"iopaint[-_.]+core\s*[^\w\s.-]", re.IGNORECASE)
_AT_LEAST = re.compile(r"[\w.-]+\s*>=\s*(\d+(?:\.\d+)*)")


def check_requirements(distribution: str, version: str, requirements: Iterable[str]) -> None:
    """Raise `PluginError` if a distribution requires another version of the core; its `Requires-Dist` are given.

    Those that can't be read, or apply to an extra only, are passed over: pip is who sees to them.
    """
    for text in requirements:
        if _ABOUT_CORE.match(text) and not _at_least(text):
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


def _at_least(text: str) -> bool:
    """Tell whether a requirement is one like `iopaint-core>=1.2`, as most are, and met by this version.

    Any other is left to `packaging`, whose import takes a tenth of the time of `iopaint-core list`.
    """
    match = _AT_LEAST.fullmatch(text)
    is_release = __version__.replace(".", "").isdecimal()
    return match is not None and is_release and _numbers(__version__) >= _numbers(match[1])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


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
