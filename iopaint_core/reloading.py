"""Import a plugin's code anew in a running process."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def import_anew(module: str, others: Iterable[str], load: Callable[[], object]) -> object:
    """Return what `load` returns once the code of a plugin is out of `sys.modules`; if it raises, the old is back.

    `module` is the plugin's own, `others` are those of other plugins, which keep theirs. Out go the module and all
    below it; if it is one in a package, the modules of the package too.
    """
    others = set(others) - {module}
    root = _root(module)
    old = {name: sys.modules.pop(name) for name in _modules(module, root, others)}
    try:
        _drop_bytecode(root)
        return load()
    except BaseException:
        for name in _modules(module, root, others):
            del sys.modules[name]
        for name, before in old.items():
            sys.modules[name] = before
            package, _, leaf = name.rpartition(".")
            if package in sys.modules:  # `from package import leaf` reads the attribute
                setattr(sys.modules[package], leaf, before)
        raise


def _root(module: str) -> str:
    """The module, or the package that it is in: its helpers stand there."""
    package = module.rpartition(".")[0]
    known = sys.modules.get(module)
    in_package = getattr(sys.modules.get(package), "__file__", None) is not None  # a namespace is nobody's
    return package if in_package and not hasattr(known, "__path__") else module


def _modules(module: str, root: str, others: set[str]) -> list[str]:
    def is_of_plugin(name: str) -> bool:
        owners = [owner for owner in (module, *others) if _is_below(name, owner)]
        return not owners or max(owners, key=len) == module

    shared = root != module and any(_is_below(other, root) for other in others)
    return [
        name
        for name, found in list(sys.modules.items())
        if _is_below(name, root)
        and is_of_plugin(name)
        and not (shared and name == root)
        and not isinstance(getattr(found, "__loader__", None), ExtensionFileLoader)  # loads once in a process
    ]


def _is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _drop_bytecode(root: str) -> None:
    """Delete the compiled code of a module, or of all in a package.

    It is believed if its source has the second and the size that it had, and what was just mended may have both.
    """
    spec = None
    with contextlib.suppress(ValueError):  # a module that was made by hand, and stays, has none
        spec = importlib.util.find_spec(root)
    if spec is not None:
        folders = spec.submodule_search_locations or ()
        for source in (spec.origin, *(path for folder in folders for path in Path(folder).rglob("*.py"))):
            drop_bytecode_of(source)


def drop_bytecode_of(source: Path | str | None) -> None:
    """Delete the compiled code of one file, if there is some; see `_drop_bytecode`."""
    if source is not None:
        with contextlib.suppress(OSError, NotImplementedError):
            Path(importlib.util.cache_from_source(source)).unlink()
