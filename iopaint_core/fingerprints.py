"""What tells that files were replaced or written to, at a few microseconds for each file; nothing is read."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_BESIDE = (".yaml", ".json", "")
"""Endings of configs that lie beside a single file, under its stem; the last one is a folder of them."""


class FileFingerprint(NamedTuple):
    """What changes when a file is replaced or written to."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


Fingerprints = tuple[FileFingerprint, ...]


def fingerprints(path: Path | None) -> Fingerprints:
    """Those of a model's file and the configs beside it, or of all files in its folder; none if it is not there.

    Links are followed. Names that begin with a dot, and `__pycache__`, are left out: no model is in them.
    """
    if path is None:
        return ()
    name = os.fspath(path)
    found = _status(name)
    if found is None:
        return ()
    if stat.S_ISDIR(found.st_mode):
        return tuple(_below(name, set()))
    stem = os.path.splitext(name)[0]  # noqa: PTH122 - pathlib takes ten times as long
    beside = [stem + ending for ending in _BESIDE if os.access(stem + ending, os.F_OK)]  # in a third of stat's time
    configs = (each for other in beside if other != name for each in _below(other, set()))
    return (_fingerprint(name, found), *configs)


def file_fingerprints(paths: Iterable[Path]) -> Fingerprints:
    """Those of single files, without what lies beside them; none of one that is not there."""
    names = map(os.fspath, paths)
    return tuple(_fingerprint(name, found) for name in names if (found := _status(name)) is not None)


def _below(name: str, seen: set[tuple[int, int]]) -> Iterator[FileFingerprint]:
    """That of a file, or those of all files in a folder; `seen` are folders, lest links lead round in a circle."""
    found = _status(name)
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        yield _fingerprint(name, found)
        return
    place = found.st_dev, found.st_ino
    if place in seen:
        return
    seen.add(place)
    try:
        with os.scandir(name) as entries:
            names = sorted(entry.path for entry in entries if entry.name[0] != "." and entry.name != "__pycache__")
    except OSError:
        return
    for other in names:
        yield from _below(other, seen)


def _status(name: str) -> os.stat_result | None:
    try:
        return os.stat(name)  # noqa: PTH116 - pathlib takes twice the time
    except (OSError, ValueError):  # a name with a null byte
        return None


def _fingerprint(name: str, found: os.stat_result) -> FileFingerprint:
    return FileFingerprint(name, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
