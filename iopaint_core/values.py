"""Values that come from plugins, checked and made plain: no code of theirs runs when they are compared or shown."""

from __future__ import annotations

from iopaint_core.errors import ContractError

_SHOWN = 80
"""Characters of a value in an error."""


def type_name(value: object) -> str:
    """Return the name of a value's class, or of a class itself, whatever its metaclass says."""
    cls = value if issubclass(type(value), type) else type(value)
    name: str = type.__dict__["__name__"].__get__(cls)
    return name


def is_a(value: object, cls: type) -> bool:
    """Return whether a value is of a class, whatever its `__class__` says."""
    return issubclass(type(value), cls)


def items(value: object) -> tuple[object, ...]:
    """Return what a tuple or list holds, and of anything else that alone."""
    if issubclass(type(value), tuple):
        return tuple(tuple.__iter__(value))  # type: ignore[arg-type] # which mypy can't see
    if issubclass(type(value), list):
        return tuple(list.__iter__(value))  # type: ignore[arg-type] # which mypy can't see
    return (value,)


def shown(value: object) -> str:
    """Return a value as an error shows it: one line, cut where it is long; by its type if it can't be shown."""
    try:
        text = " ".join(plain(repr(value)).split())
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a foreign `__repr__` may raise anything
        return f"<{type_name(value)}>"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def plain(text: str) -> str:
    """Return text as an exact `str` that can be written as UTF-8, lone surrogates escaped."""
    exact = text if type(text) is str else str.__str__(text)
    return exact if exact.isascii() else exact.encode("utf-8", "backslashreplace").decode()


def checked_text(what: str, value: object) -> str:
    """Return text that `plain` has made so. Raises `ContractError`, which begins with `what`, for anything else."""
    if not issubclass(type(value), str):
        raise ContractError(f"{what} expected str, got {shown(value)}", "Give it as text")
    return plain(value)  # type: ignore[arg-type] # it is text


def checked_bool(what: str, value: object) -> bool:
    """Return True or False. Raises `ContractError`, which begins with `what`, for anything else."""
    if value is not True and value is not False:
        raise ContractError(f"{what} expected a bool, got {shown(value)}", "Give True or False")
    return value


def compares_by_identity(cls: type) -> bool:
    """Return whether a class is compared and hashed as classes are, not as a metaclass of its own has it."""
    bases = type.__dict__["__mro__"].__get__(type(cls))
    return all({"__eq__", "__hash__"}.isdisjoint(vars(base)) for base in bases if issubclass(base, type))
