"""What a pool says of itself: bytes by device, counts, events."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping


@dataclass
class Ledger:
    """Bytes of one device; what is used never exceeds the budget."""

    budget: int | None = None
    """None: no limit."""
    reserved: int = 0
    """Promised to loads in progress."""
    resident: int = 0
    unloading: int = 0
    """Dropped, but not gone from memory yet."""

    @property
    def used(self) -> int:
        """All that counts against the budget."""
        return self.reserved + self.resident + self.unloading

    def over(self, nbytes: int) -> int:
        """By how much that many bytes more would exceed the budget."""
        return 0 if self.budget is None else self.used + nbytes - self.budget


@dataclass(frozen=True)
class Held:
    """A component, or what a model computed, as the pool holds it."""

    key: Hashable
    device: str
    nbytes: int
    loaded: bool
    """False while it is being loaded."""
    pins: int
    """Models in use, and components, that need it; 0 means idle."""
    users: tuple[Hashable, ...]
    """Models, and components, that are made from it."""


@dataclass
class Counts:
    """What a pool has done since it was made."""

    hits: int = 0
    """Leases of a model that was loaded already."""
    waits: int = 0
    """Leases that waited for a load that another caller had begun."""
    loads: int = 0
    """Loads of models that were begun."""
    failed_loads: int = 0
    releases: int = 0
    """Models dropped, for whatever reason."""
    component_hits: int = 0
    """Components that a load found in the pool."""
    component_loads: int = 0
    failed_component_loads: int = 0
    evictions: int = 0
    """Components and models dropped to make room."""
    spoiled: int = 0
    """Components dropped because somebody wrote into them."""
    seconds_loading: float = 0.0
    """Of all loads of components, added up."""
    seconds_waiting: float = 0.0
    """For room, of all callers, added up."""


@dataclass(frozen=True)
class PoolStats:
    """A snapshot of what a pool holds and has done."""

    leases: Mapping[Hashable, int]
    """Open leases of each model held; 0 means idle."""
    components: tuple[Held, ...]
    states: tuple[Held, ...]
    """What models computed and keep for a next call: encoded images of sessions."""
    devices: Mapping[str, Ledger]
    saved: int
    """Bytes that sharing saves now: those of each component, once for each user beyond the first."""
    counts: Counts


class EventKind(str, Enum):
    """What happened in the pool."""

    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"
    """A load raised, or was cancelled."""
    WAITING = "waiting"
    """Somebody waits for room on a device."""
    EVICTED = "evicted"
    """Dropped to make room."""
    RELEASED = "released"
    """Dropped because the host, or the time to live, said so."""
    SPOILED = "spoiled"
    """Dropped because somebody wrote into its weights."""
    FREED = "freed"
    """What was dropped is gone from memory."""


@dataclass(frozen=True)
class PoolEvent:
    """Something that happened to a model or a component."""

    kind: EventKind
    key: Hashable
    device: str
    nbytes: int
    seconds: float = 0.0
    """How long the load took."""
