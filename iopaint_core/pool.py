"""Loaded models, each held once and leased out.

An entry is loaded by the first caller who asks for its key; others who ask meanwhile wait for the same
result. A lease pins its entry: what is pinned is never dropped. The one lock guards the table alone; no load,
callback or `close` runs while it is held.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from iopaint_core.errors import PoolError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping


class Pooled(Protocol):
    """What the pool asks of a model."""

    @property
    def components(self) -> Mapping[str, object]:
        """The model's pieces that hold weights, by name."""

    def close(self) -> None:
        """Called once, when the pool drops the model."""


M = TypeVar("M", bound=Pooled)


@dataclass(frozen=True)
class PoolStats:
    """What the pool holds and has done so far."""

    leases: Mapping[Hashable, int]
    """Open leases of each model held; 0 means idle."""
    hits: int
    """Leases of a model that was loaded already."""
    waits: int
    """Leases that waited for a load that another caller had begun."""
    loads: int
    failed_loads: int
    releases: int
    """Models dropped."""


class ModelPool(Generic[M]):
    """Holds each loaded model once, however many callers use it, until it is released."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[Hashable, _Entry[M]] = {}
        self._lost: deque[_Entry[M]] = deque()
        self._hits = self._waits = self._loads = self._failed_loads = self._releases = 0

    def lease(self, key: Hashable, load: Callable[[], M]) -> Lease[M]:
        """Pin the model of that key, loading it with `load` if the pool does not hold it.

        One caller loads and the others wait; what `load` raises, all of them raise, and the pool is as it was.
        """
        return Lease(self, key, self._pin(key, load))

    def get_shared_components(self, key: Hashable) -> Mapping[str, object] | None:
        """The components of a loaded model, or None if the pool does not hold it."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.loaded.done():
                return None
        return MappingProxyType(dict(entry.loaded.result().components))

    def release(self, key: Hashable) -> bool:
        """Drop a model that nobody leases; False if there is none, or it is in use."""
        with self._lock:
            self._collect()
            entry = self._entries.get(key)
            if entry is None or entry.leases:
                return False
            del self._entries[key]
            self._releases += 1
        entry.loaded.result().close()
        return True

    def stats(self) -> PoolStats:
        """A snapshot of what the pool holds and has done."""
        with self._lock:
            self._collect()
            leases = {key: entry.leases for key, entry in self._entries.items()}
            return PoolStats(leases, self._hits, self._waits, self._loads, self._failed_loads, self._releases)

    def _pin(self, key: Hashable, load: Callable[[], M]) -> _Entry[M]:
        while True:
            with self._lock:
                self._collect()
                entry = self._entries.get(key)
                if entry is None:
                    entry = self._entries[key] = _Entry(threading.get_ident(), leases=1)
                    self._loads += 1
                    break
                if entry.loaded.done():
                    entry.leases += 1
                    self._hits += 1
                    return entry
                if entry.loader == threading.get_ident():
                    raise PoolError(f"Loading {key} asks for {key} itself", "A loader leases other models only")
                entry.leases += 1
                self._waits += 1
            try:
                entry.loaded.result()
            except CancelledError:
                continue
            except BaseException:
                self._unpin(entry)
                raise
            return entry
        self._load(key, entry, load)
        return entry

    def _load(self, key: Hashable, entry: _Entry[M], load: Callable[[], M]) -> None:
        try:
            model = load()
        except BaseException as error:
            with self._lock:
                del self._entries[key]
                self._failed_loads += 1
            if isinstance(error, Exception):
                entry.loaded.set_exception(error)
            else:  # Ctrl-C is the first caller's affair: those who wait load for themselves
                entry.loaded.cancel()
            raise
        entry.loaded.set_result(model)

    def _unpin(self, entry: _Entry[M]) -> None:
        with self._lock:
            entry.leases -= 1

    def _collect(self) -> None:
        """Unpin what lost leases held; called with the lock held."""
        while self._lost:
            self._lost.popleft().leases -= 1


class Lease(Generic[M]):
    """A model pinned in the pool until this is closed; a context manager that gives the model.

    A lease that is lost without being closed is unpinned at the pool's next call.
    """

    def __init__(self, pool: ModelPool[M], key: Hashable, entry: _Entry[M]) -> None:
        self.key = key
        self._pool = pool
        self._entry = entry
        # A finalizer may run anywhere, also while this thread holds the pool's lock: it only enqueues.
        self._finalizer = weakref.finalize(self, pool._lost.append, entry)
        self._finalizer.atexit = False

    @property
    def model(self) -> M:
        """The model; raises `PoolError` once the lease is closed."""
        if not self._finalizer.alive:
            raise PoolError(
                f"The lease of {self.key} is closed", "Take a new one; use a model only inside its lease"
            )
        return self._entry.loaded.result()

    def close(self) -> None:
        """Give the model back; closing again does nothing."""
        if self._finalizer.detach():
            self._pool._unpin(self._entry)

    def __enter__(self) -> M:
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(eq=False)
class _Entry(Generic[M]):
    loader: int
    """Identifier of the thread that loads the model."""
    leases: int
    loaded: Future[M] = field(default_factory=Future)
