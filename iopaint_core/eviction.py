"""Which of the idle goes first when room is needed: the one of least priority."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True)
class Usage:
    """What a policy may know of something that the pool holds."""

    nbytes: int
    seconds: float = 0.0
    """How long its load took."""
    uses: int = 0
    last_used: float = 0.0
    """By the pool's clock, in seconds."""


class EvictionPolicy(Protocol):
    """Called with the pool's lock held, so quick, and calling nothing of the pool."""

    def priority(self, usage: Usage) -> float:
        """Asked at each use; what has the least goes first, and of equals what was idle longest."""

    def evicted(self, priority: float) -> None:
        """Told the priority of each that went."""


class LRU:
    """What was used least recently goes first."""

    def priority(self, usage: Usage) -> float:
        """The time of its last use."""
        return usage.last_used

    def evicted(self, priority: float) -> None:
        """Nothing to remember."""


class GDSF:
    """What is cheapest to bring back, per byte and use, goes first; what is long unused ages.

    GreedyDual-Size with Frequency (L. Cherkasova, HP Laboratories report HPL-98-69R1, 1998), the cost being
    the measured seconds of the load.
    """

    def __init__(self) -> None:
        self._age = 0.0

    def priority(self, usage: Usage) -> float:
        """Seconds of reloading that it saves per byte, on top of the age at its last use."""
        return self._age + usage.uses * usage.seconds / max(usage.nbytes, 1)

    def evicted(self, priority: float) -> None:
        """Everything still held ages by as much."""
        self._age = max(self._age, priority)
