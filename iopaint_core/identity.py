"""Which weights are equal, told with as little reading as possible.

Weights are the same if their tensors are: names, dtypes, shapes, bytes. What is known already decides: the name of
a Hugging Face cache blob, which is the sha256 of its content; or a digest that was taken before. Else the
headers do, and only weights with equal headers are compared, byte by byte up to the first difference. Digests
are taken in the background, for the next process.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import re
import threading
from collections import defaultdict
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple, Protocol

from iopaint_core.errors import LoadCancelledError, WeightsError
from iopaint_core.forking import renew_after_fork

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from pathlib import Path

    from iopaint_core.tensorfiles import Bytes, Stamp

    State = tuple[Stamp, str]

_logger = logging.getLogger(__name__)
_SAMPLE = 4096
"""Bytes of each tensor that are compared before whole tensors are."""
_CHUNK = 1 << 20


class Weights(Protocol):
    """Something with content that can be told apart: `TensorFiles`, `OpaqueFile`."""

    paths: tuple[Path, ...]
    part: str
    """What of the files, in which layout; empty for all of them as they are."""

    def signature(self) -> Hashable:
        """Equal for all that may be equal; quick."""

    def content(self) -> Mapping[str, Bytes]:
        """The bytes, memory-mapped."""

    def stamp(self) -> Stamp:
        """Changes when a file is written to or replaced."""


class _Seen(NamedTuple):
    weights: Weights
    state: State
    name: str


class IdentityIndex:
    """Gives equal weights one name. With `path`, digests are remembered there, across processes.

    The file is a cache: several processes may share it, and it may be deleted at any time.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._memory = None if path is None else DigestMemory(path)
        self._names: dict[Hashable, str] = {}
        self._seen: defaultdict[Hashable, list[_Seen]] = defaultdict(list)
        """What was named, by signature."""
        self._lock = threading.Lock()
        self._renew()
        renew_after_fork(self, self._lock)

    def _renew(self) -> None:
        self._locks: defaultdict[Hashable, threading.Lock] = defaultdict(threading.Lock)
        self._hasher: _Hasher | None = None

    def name(self, weights: Weights) -> str:
        """A name that these weights have in common with all equal ones that were named here.

        Raises `WeightsError` for files that can't be read.
        """
        state = _state(weights)
        known = self._names.get(state)
        if known is not None:
            return known
        blob = _blob_name(weights)
        digest = self._digest(state)
        known = self._names.get(blob) or self._names.get(digest)
        if known is None:
            signature = weights.signature()
            with self._lock:
                lock = self._locks[signature]
            with lock:
                known = self._names.get(state) or self._equal(weights, signature, digest) or digest or blob
                if known is None:
                    known = "file:" + hashlib.sha256(repr(state).encode()).hexdigest()[:16]
                self._seen[signature].append(_Seen(weights, state, known))
                self._remember(known, state, blob, digest)
        self._remember(known, state, blob, digest)
        return known

    def digest_later(self, weights: Weights) -> None:
        """Have the digest of weights taken in the background, unless it is known."""
        if self._memory is None or self._digest(_state(weights)) is not None:
            return
        with self._lock:
            if self._hasher is None:
                self._hasher = _Hasher(self._memory)
        self._hasher.queue.put(weights)

    def wait(self) -> None:
        """Wait until all digests that were asked for are taken."""
        if self._hasher is not None:
            done = threading.Event()
            self._hasher.queue.put(done)
            done.wait()

    def _remember(self, name: str, *aliases: Hashable) -> None:
        for alias in (name, *aliases):
            if alias is not None:
                self._names[alias] = name

    def _digest(self, state: State) -> str | None:
        return None if self._memory is None else self._memory.get(state)

    def _equal(self, weights: Weights, signature: Hashable, digest: str | None) -> str | None:
        for other in self._seen[signature].copy():
            if not _unchanged(other):
                self._seen[signature].remove(other)
                self._names.pop(other.state, None)
                continue
            other_digest = self._digest(other.state)
            with contextlib.suppress(WeightsError):  # it may go while it is read
                if digest == other_digest if digest and other_digest else same_content(weights, other.weights):
                    return other.name
        return None


def _state(weights: Weights) -> State:
    return weights.stamp(), weights.part


def _unchanged(seen: _Seen) -> bool:
    try:
        return _state(seen.weights) == seen.state
    except WeightsError:
        return False


def same_content(one: Weights, other: Weights) -> bool:
    """Whether weights with equal signatures are equal; reads no more than it takes to see a difference."""
    first, second = one.content(), other.content()
    pairs = [(first[name], second[name]) for name in first]
    return all((a[:_SAMPLE] == b[:_SAMPLE]).all() for a, b in pairs) and all(
        (a[start : start + _CHUNK] == b[start : start + _CHUNK]).all()
        for a, b in pairs
        for start in range(0, a.size, _CHUNK)
    )


def digest(weights: Weights, ends: threading.Event | None = None) -> str:
    """`sha256:` of signature and content, whatever files and layout they came in.

    Raises `LoadCancelledError` soon after `ends` is set.
    """
    total = hashlib.sha256(repr(weights.signature()).encode())
    for content in weights.content().values():
        for start in range(0, content.size, _CHUNK):
            if ends is not None and ends.is_set():
                raise LoadCancelledError("The process ends", "Take the digest in the next one")
            total.update(content[start : start + _CHUNK].data)
    return f"sha256:{total.hexdigest()}"


def _blob_name(weights: Weights) -> str | None:
    """Of files in a Hugging Face cache with symlinks: their blobs are named by sha256 if they are large files.

    See `huggingface_hub.file_download`: a blob is named by its ETag, which is the sha256 for files in large-file
    storage, of 64 hexadecimal digits, and a git hash, of 40, for others.
    """
    blobs = [path.resolve() for path in weights.paths]
    if all(blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name) for blob in blobs):
        return f"blob:{'+'.join(blob.name for blob in blobs)}:{weights.part}"
    return None


class DigestMemory:
    """Digests by file and state of the file, in SQLite. What is lost is taken again, so no error leaves."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, state: State) -> str | None:
        """The digest that was taken of files in that state."""
        rows = self._execute("SELECT digest FROM digests WHERE state = ?", repr(state))
        return str(rows[0][0]) if rows else None

    def put(self, state: State, digest: str) -> None:
        """Remember it in place of what those files had before."""
        files, part = state
        place = repr(([file[:2] for file in files], part))  # a file that changed replaces what it was
        self._execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", place, repr(state), digest)

    def _execute(self, statement: str, *values: str) -> list[tuple[str, ...]]:
        import sqlite3

        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self._path, timeout=5)) as connection, connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS digests (place TEXT PRIMARY KEY, state TEXT, digest TEXT)"
                )
                return connection.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:  # locked, read-only, or no room
            _logger.info("The digests in %s can't be used now: %s", self._path, error)
        except sqlite3.DatabaseError as error:
            _logger.warning("%s is damaged, and begun anew: %s", self._path, error)
            with contextlib.suppress(OSError):
                self._path.unlink()
        except OSError as error:
            _logger.info("The digests in %s can't be used: %s", self._path, error)
        return []


class _Hasher:
    """A thread that takes digests one after the other, and ends before the process does.

    A thread that is within torch when the interpreter goes takes the process down with SIGABRT.
    """

    def __init__(self, memory: DigestMemory) -> None:
        self.queue: SimpleQueue[Weights | threading.Event] = SimpleQueue()
        self._memory = memory
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="iopaint digests", daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def _end(self) -> None:
        self._ends.set()
        self.queue.put(threading.Event())
        self._thread.join()

    def _run(self) -> None:
        while not self._ends.is_set():
            weights = self.queue.get()
            if isinstance(weights, threading.Event):
                weights.set()
                continue
            try:
                state = _state(weights)
                found = digest(weights, self._ends)
                if _state(weights) == state:
                    self._memory.put(state, found)
            except (WeightsError, LoadCancelledError) as error:
                _logger.info("No digest was taken: %s", error)
            except Exception:
                _logger.exception("No digest was taken of %s", weights.paths)
