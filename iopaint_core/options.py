"""Load options: what a host decides about a plugin's models, out of a request's reach.

A plugin declares them as a frozen dataclass; `settings.py` knows where their values come from.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, NoReturn

from iopaint_core.errors import ContractError
from iopaint_core.values import compares_by_identity, is_a, type_name

if TYPE_CHECKING:
    from typing import Self

    from pydantic_core import CoreSchema


@dataclass(frozen=True)
class LoadOptions:
    """The options of a plugin's models: subclass it as a frozen dataclass, with a default for each field.

    The fields are hashable, and together part of what the pool tells loaded models apart by.
    """


NO_OPTIONS = LoadOptions()

OptionsClass = type[LoadOptions]
"""A name for `ModelInfo`, whose field `type` hides the built-in one."""


class Secret:
    """Text that is never shown, such as an API key; `get_secret_value` gives it.

    It prints, and pydantic serialises it, as asterisks. It is compared and hashed by its text. It can't be pickled:
    pickles go to files, caches and queues, and would hold the text.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        if not isinstance(text, str):
            raise TypeError(f"Secret expected str, got {type(text).__name__}")
        self._text = text

    def get_secret_value(self) -> str:
        """Return the text itself."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __str__(self) -> str:
        return "**********" if self._text else ""

    def __repr__(self) -> str:
        return f"Secret({str(self)!r})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle Secret: hand it to another process in its environment")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_wrap_validator_function(
            lambda value, check: value if isinstance(value, cls) else cls(check(value)),
            core_schema.str_schema(),
            serialization=core_schema.to_string_ser_schema(),
        )


def option_names(options: type[LoadOptions]) -> list[str]:
    """Return the names of the options that a class declares."""
    return [field.name for field in fields(options) if field.init]


def check_options_class(options: object) -> None:
    """Raise `PluginError` unless this is a frozen dataclass of options that all have a default."""
    if not is_a(options, type) or not isinstance(options, type) or not issubclass(options, LoadOptions):
        raise ContractError(
            f"load_options expected a subclass of LoadOptions, got {type_name(options)}", "Pass the class itself"
        )
    if not compares_by_identity(options):
        raise ContractError(
            f"load_options expected a plain class, and the metaclass of {options.__name__} compares in its own way",
            "Leave out __eq__ and __hash__ there",
        )
    parameters = vars(options).get("__dataclass_params__")
    if parameters is None or not parameters.eq:
        raise ContractError(
            f"load_options expected a frozen dataclass, and {options.__name__} is none, or has eq=False",
            "Decorate it with @dataclass(frozen=True)",
        )
    required = [
        field.name
        for field in fields(options)
        if field.init and field.default is MISSING and field.default_factory is MISSING
    ]
    if required:
        raise ContractError(
            f"load_options expected a default for each option, and {options.__name__} has none for "
            f"{', '.join(required)}",
            "Give one: a host may set none",
        )
