"""Which files the store has fetched, for which plugins: what may be deleted once a plugin is gone, and no more."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iopaint_core.schema import ModelInfo, WeightFile

    _Row = tuple[str, str, str, int | None, int | None, str]

_logger = logging.getLogger(__name__)

_COLUMNS = "path TEXT PRIMARY KEY, distribution TEXT, plugin TEXT, size INTEGER, mtime_ns INTEGER, source TEXT"
_LONGEST = 64
"""Characters of a folder's name; file systems take 255 bytes."""
_OF_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


@functools.cache
def plugin_folder(distribution: str, plugin: str) -> Path:
    """Return the relative folder of a plugin: `<distribution>/<plugin>`, which no other plugin has.

    It depends on these names alone, so that nothing moves when another plugin is installed. A distribution's name
    is normalised as pip does; what could be no folder's name on some system is shortened, with a digest after `~`.
    """
    canonical = re.sub(r"[-_.]+", "-", distribution).lower()
    is_distribution = re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", canonical)
    return Path(_folder_name(canonical if is_distribution else distribution), _folder_name(plugin))


def _folder_name(name: str) -> str:
    is_plain = re.fullmatch(r"[a-z0-9]([a-z0-9._-]*[a-z0-9_-])?", name) and not _OF_WINDOWS.fullmatch(name)
    if is_plain and len(name) <= _LONGEST:
        return name
    import hashlib

    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
    words = re.sub(r"[^A-Za-z0-9]+", "-", name)[-_LONGEST // 2 :].strip("-") or "unnamed"
    return f"{words}~{digest}"


class FetchedFile(NamedTuple):
    """A file as it was when the store had fetched it."""

    path: Path
    distribution: str
    plugin: str
    size: int | None
    """Bytes; None while it is being fetched."""
    mtime_ns: int | None
    source: str
    """Its URL."""

    @property
    def is_unmodified(self) -> bool:
        """Whether it is there as it was fetched, not replaced by a file of the user's."""
        try:
            found = self.path.lstat()
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)


class FetchedFiles:
    """The record of the files in a folder, in SQLite. A file whose record is lost counts as the user's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "fetched.sqlite"

    def begin(self, path: Path, info: ModelInfo, file: WeightFile) -> None:
        """Remember that a file is being fetched: parts of it may lie there."""
        self._put(FetchedFile(path, info.distribution, info.plugin_name, None, None, file.source))

    def put(self, path: Path, info: ModelInfo, file: WeightFile) -> None:
        """Remember a file that was fetched."""
        found = path.stat()
        fingerprint = found.st_size, found.st_mtime_ns
        self._put(FetchedFile(path, info.distribution, info.plugin_name, *fingerprint, file.source))

    def get(self, path: Path) -> FetchedFile | None:
        """Return what is remembered of a file."""
        if not self._path.exists():
            return None
        rows = self._execute("SELECT * FROM fetched WHERE path = ?", self._name(path))
        return FetchedFile(path, *rows[0][1:]) if rows else None

    def forget(self, path: Path) -> None:
        """Forget a file that was deleted."""
        self._execute("DELETE FROM fetched WHERE path = ?", self._name(path))

    def __iter__(self) -> Iterator[FetchedFile]:
        if not self._path.exists():
            return
        for row in self._execute("SELECT * FROM fetched ORDER BY path"):
            path = self._folder / row[0]
            if path.parent.resolve().is_relative_to(self._folder.resolve()):
                yield FetchedFile(path, *row[1:])

    def _put(self, file: FetchedFile) -> None:
        name, (_, *values) = self._name(file.path), file
        self._execute("INSERT OR REPLACE INTO fetched VALUES (?, ?, ?, ?, ?, ?)", name, *values)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _execute(self, statement: str, *values: str | int | None) -> list[_Row]:
        import sqlite3

        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=5)) as connection, connection:
                connection.execute(f"CREATE TABLE IF NOT EXISTS fetched ({_COLUMNS})")
                return connection.execute(statement, values).fetchall()
        except (
            sqlite3.OperationalError,
            UnicodeError,
        ) as error:  # locked, read-only; no text
            _logger.info("The record of files in %s can't be used now: %s", self._path, error)
        except sqlite3.DatabaseError as error:
            _logger.warning("%s is damaged, and begun anew: %s", self._path, error)
            with contextlib.suppress(OSError):
                self._path.unlink()
        return []
