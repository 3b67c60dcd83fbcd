"""Whether a plugin is made for this version of the core, read from its package's metadata before it is imported."""

from __future__ import annotations

import itertools
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
_RELEASE = re.compile(r"\d+(?:\.\d+)*")
_INSTALL = f"Install what it requires: pip install -U '{CORE}{{}}'"


def check_requirements(distribution: str, version: str, requirements: Iterable[str]) -> None:
    """Raise `PluginError` if a distribution requires another version of the core; its `Requires-Dist` are given.

    Those that can't be read, or apply to an extra only, are passed over: pip is who sees to them.
    """
    for text in requirements:
        if _ABOUT_CORE.match(text):
            unmet = _unmet(text, distribution)
            if unmet:
                specifier, remedy = unmet
                raise PluginError(
                    f"{distribution} {version} requires {CORE}{specifier}, and this is {CORE} {__version__}", remedy
                )


def _unmet(text: str, distribution: str) -> tuple[str, str] | None:
    """Return what a requirement asks for that this version is not, and what to do about it.

    One like `iopaint-core>=1.2`, as most are, is told at once: the import of `packaging` takes a tenth of the time
    of `iopaint-core list`.
    """
    simple = _AT_LEAST.fullmatch(text)
    if simple and _RELEASE.fullmatch(__version__):
        least = simple[1]
        parts = itertools.zip_longest(__version__.split("."), least.split("."), fillvalue="0")
        ours, theirs = zip(*((int(our), int(their)) for our, their in parts), strict=True)
        return None if ours >= theirs else (f">={least}", _INSTALL.format(f">={least}"))
    from packaging import requirements as read

    try:
        requirement = read.Requirement(text)
    except read.InvalidRequirement:
        return None
    marker = requirement.marker
    if marker is not None and not marker.evaluate({"extra": ""}):
        return None
    if requirement.specifier.contains(__version__, prereleases=True):
        return None
    return str(requirement.specifier), _remedy(distribution, requirement)


def _remedy(distribution: str, requirement: Requirement) -> str:
    too_old = any(
        each.operator in {">=", ">", "~=", "==", "==="} and not each.contains(__version__, prereleases=True)
        for each in requirement.specifier
    )
    newer = all(
        each.contains(__version__, prereleases=True) for each in requirement.specifier if "<" in each.operator
    )
    if too_old and newer:
        return _INSTALL.format(requirement.specifier)
    return f"Install a version of {distribution} for {CORE} {__version__}: pip install -U {distribution}"
