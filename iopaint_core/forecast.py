"""What models will take together, told before any of them is loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping

    from iopaint_core.entries import Component


@dataclass(frozen=True)
class Need:
    """A component that a model needs, on one device; a copy on an accelerator needs one on the host too."""

    model: str
    component: str
    """Its name in the model; `model` for a model that is of one piece."""
    key: Hashable
    """Equal for what is held once."""
    device: str
    nbytes: int
    shared_with: tuple[str, ...]
    """The other models that need it."""


@dataclass(frozen=True)
class Forecast:
    """What some models need, in their order."""

    needs: tuple[Need, ...]

    @property
    def separately(self) -> Mapping[str, int]:
        """Bytes by device if every model had its own components."""
        return _by_device(self.needs)

    @property
    def together(self) -> Mapping[str, int]:
        """Bytes by device with each component held once."""
        return _by_device({need.key: need for need in self.needs}.values())


def forecast(models: Mapping[str, Mapping[str, Component[Any]]]) -> Forecast:
    """Tell what models need from the components that each is made of."""
    pieces = [
        (model, name, piece)
        for model, components in models.items()
        for name, component in components.items()
        for piece in _with_parts(component)
    ]
    users: dict[Hashable, dict[str, None]] = {}
    for model, _, piece in pieces:
        users.setdefault(piece.key, {})[model] = None
    return Forecast(
        tuple(
            Need(
                model,
                name,
                piece.key,
                piece.device,
                piece.nbytes,
                tuple(other for other in users[piece.key] if other != model),
            )
            for model, name, piece in pieces
        )
    )


def _with_parts(component: Component[Any]) -> Iterator[Component[Any]]:
    yield component
    for part in component.parts:
        yield from _with_parts(part)


def _by_device(needs: Iterable[Need]) -> Mapping[str, int]:
    total: Counter[str] = Counter()
    for need in needs:
        total[need.device] += need.nbytes
    return total
