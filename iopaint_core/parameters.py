"""What models take beside images and masks: frozen dataclasses that are checked, and described as JSON Schema.

A plugin subclasses `InpaintParameters`, `ImageParameters` or `MaskParameters`; its `ModelInfo` names the class:

    @dataclass(frozen=True)
    class BlurParameters(InpaintParameters):
        radius: Annotated[int, Ge(1), Le(100), Hint(widget="slider")] = 15
        '''Radius of the Gaussian, in pixels.'''

pydantic is imported by the first `parse` of values: its import costs more than listing all models.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import dataclasses
import inspect
import io
import json
import reprlib
import textwrap
import typing
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, TypeAlias

from annotated_types import Ge, Gt, Le

from iopaint_core.errors import ContractError, RequestError, did_you_mean
from iopaint_core.values import compares_by_identity, is_a, shown

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator
    from typing import Self

    from pydantic import GetCoreSchemaHandler, TypeAdapter
    from pydantic_core import CoreSchema

    from iopaint_core.imaging import Mask

    _MaskArray = Mask
else:  # pydantic looks at types at run time, and numpy is nothing to import for them
    _MaskArray = object

ParametersLike: TypeAlias = "Parameters | Mapping[str, object] | str | bytes | None"
"""What `Parameters.parse` takes."""

ParametersClass: TypeAlias = "type[Parameters]"

IOPAINT_FIELDS = frozenset(
    (  # noqa: SIM905 - a list would take a page
        "image mask ldm_steps ldm_sampler zits_wireframe hd_strategy hd_strategy_crop_trigger_size "
        "hd_strategy_crop_margin hd_strategy_resize_limit prompt negative_prompt use_croper croper_x croper_y "
        "croper_height croper_width use_extender extender_x extender_y extender_height extender_width sd_scale "
        "sd_mask_blur sd_strength sd_steps sd_guidance_scale sd_sampler sd_seed sd_match_histograms "
        "sd_outpainting_softness sd_outpainting_space sd_lcm_lora sd_keep_unmasked_area cv2_flag cv2_radius "
        "paint_by_example_example_image p2p_image_guidance_scale enable_controlnet controlnet_conditioning_scale "
        "controlnet_method enable_brushnet brushnet_method brushnet_conditioning_scale enable_powerpaint_v2 "
        "powerpaint_task fitting_degree"
    ).split()
)
"""The fields of IOPaint 1.6.0's request: models that do not declare one ignore it."""

_IOPAINT_FLAGS = {
    "need_prompt": "prompt",
    "support_strength": "sd_strength",
    "support_outpainting": "use_extender",
    "support_lcm_lora": "sd_lcm_lora",
    "support_controlnet": "enable_controlnet",
    "support_brushnet": "enable_brushnet",
    "support_powerpaint_v2": "enable_powerpaint_v2",
}
_MAX_ERRORS = 10
_MAX_KEY = 60
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


@dataclass(frozen=True)
class Hint:
    """How a form may show a field: each value that is given stands in the JSON Schema, as `x-widget`, `x-unit`."""

    widget: str = ""
    """`slider`, `textarea`, `file` ...; hosts know what they can show."""
    unit: str = ""
    """`px`, `s` ..."""

    def __get_pydantic_json_schema__(self, core_schema: object, handler: Any) -> dict[str, Any]:  # noqa: ANN401 - pydantic's protocol
        schema: dict[str, Any] = handler(core_schema)
        return schema | {f"x-{name}": value for name, value in vars(self).items() if value}


_PIXELS = Hint(unit="px")


@dataclass(frozen=True)
class Parameters:
    """What one call of a model takes beside images and masks; a subclass declares a model's own fields.

    It is a frozen dataclass whose fields have defaults, and types that JSON can hold.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {
        "extra": "forbid",
        "allow_inf_nan": False,
        "revalidate_instances": "always",
    }
    _adapter: ClassVar[Any] = None
    _subsets: ClassVar[dict[frozenset[str], type[Any]]] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls._adapter = None
        cls._subsets = {}

    @property
    def variant(self) -> Hashable | None:
        """What is to be loaded besides the model's own weights; override it to return something hashable.

        The model is loaded once for each: the pool tells them apart by it, and the loader finds it in
        `LoadContext.variant`. None is the model as it is.
        """
        return None

    @classmethod
    def parse(cls, data: ParametersLike = None) -> Self:
        """Check values and return them as an instance of this class.

        `data` is a mapping, JSON text, an instance of this or of another class, or None for the defaults. Keys that
        only IOPaint's request has are ignored. What was parsed before is returned as it is.

        Raises:
            RequestError: names each key and value that is wrong, and what was expected.
            PluginError: this class is no valid declaration.
        """
        if type(data) is cls and getattr(data, "_parsed", False):
            return data
        parsed = cls() if data is None else cls._validated(data)
        with contextlib.suppress(AttributeError):  # it has slots
            object.__setattr__(parsed, "_parsed", True)
        return parsed

    @classmethod
    def _validated(cls, data: object) -> Self:
        from pydantic import ValidationError

        adapter, names, given = cls._checked_adapter(), cls.names(), _read(data, cls)
        unknown = [key for key in given if key not in names and key not in IOPAINT_FIELDS]
        try:
            valid = adapter.validate_python({key: given[key] for key in names if key in given})
        except ValidationError as error:
            raise _request_error(cls, unknown, error.errors(include_url=False)) from error
        if unknown:
            raise _request_error(cls, unknown, [])
        return valid

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Describe the fields as JSON Schema; descriptions are the docstrings below the fields.

        Raises `PluginError` for an invalid declaration; warns of fields without a docstring.
        """
        from pydantic import PydanticUserError

        adapter = cls._checked_adapter()
        try:
            schema = adapter.json_schema()
        except PydanticUserError as error:
            raise _declaration_error(cls, error) from error
        declared = next(base for base in cls.__mro__ if "__dropped__" not in vars(base))
        schema["title"] = declared.__name__
        schema["description"] = inspect.cleandoc(cls.__doc__ or "")
        described, missing = _describe_fields(cls)
        for name, text in described.items():
            schema["properties"][name]["description"] = text
        if missing:
            warnings.warn(
                f"{declared.__qualname__} has fields without a docstring below them: {', '.join(missing)}",
                UserWarning,
                stacklevel=2,
            )
        return schema

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the fields: first the framework's, then the model's own."""
        return tuple(field.name for field in fields(cls) if field.init)

    @classmethod
    def framework_names(cls) -> tuple[str, ...]:
        """Return the names of the fields that the framework itself reads."""
        return cls._framework_class().names()

    @classmethod
    def only(cls, *names: str) -> type[Self]:
        """Return a subclass with the framework's fields and those named; the same one each time.

        The others are no attributes of its instances: `hasattr` says whether it has a field. Raises `PluginError`
        for a name that is no field.
        """
        known = cls.names()
        for name in names:
            if name not in known:
                raise _invalid(cls, f"no field {name!r}{did_you_mean(name, known)}", f"It has: {', '.join(known)}")
        dropped = frozenset(known) - {*names, *cls.framework_names()}
        if not dropped:
            return cls
        if dropped not in cls._subsets:
            cls._subsets.setdefault(dropped, cls._without(dropped))
        return cls._subsets[dropped]

    @classmethod
    def _without(cls, dropped: frozenset[str]) -> type[Self]:
        kept = [name for name in cls.names() if name not in {*dropped, *cls.framework_names()}]

        def reduce(self: Self) -> tuple[object, ...]:
            return _restore, (cls, kept, {name: getattr(self, name) for name in type(self).names()})

        subset = type(
            f"{cls.__name__}.only({', '.join(kept)})",
            (cls,),
            {
                "__module__": cls.__module__,
                "__doc__": cls.__doc__,
                "__dropped__": dropped,
                "__reduce__": reduce,
                "__annotations__": dict.fromkeys(dropped, ClassVar[object]),
                **{name: _Dropped(name) for name in dropped},
            },
        )
        return dataclass(frozen=True)(subset)

    @classmethod
    def _framework_class(cls) -> type[Parameters]:
        """Return the class of this module that it is derived from."""
        return next(base for base in cls.__mro__ if base.__module__ == __name__)

    @classmethod
    def _checked_adapter(cls) -> TypeAdapter[Self]:
        """Make the adapter at the first use, checking what `check_declaration` can't know without pydantic."""
        from pydantic import PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter, ValidationError

        if cls._adapter is None:
            check_declaration(cls)
            try:
                _check_types(cls)
                adapter: TypeAdapter[Self] = TypeAdapter(cls)
                adapter.validate_python({name: getattr(cls(), name) for name in cls.names()})
                adapter.json_schema()
            except ValidationError as error:
                first = _describe_error(error.errors(include_url=False)[0])
                raise _invalid(cls, f"the default of {first}", "Correct the default or its bounds") from error
            except (PydanticUserError, PydanticUndefinedAnnotation, NameError, TypeError) as error:
                raise _declaration_error(cls, error) from error
            cls._adapter = adapter
        checked: TypeAdapter[Self] = cls._adapter
        return checked


class HDStrategy(str, Enum):
    """How an image that is larger than a model likes is handed to it; the values are IOPaint's."""

    ORIGINAL = "Original"
    """As it is."""
    RESIZE = "Resize"
    """Made smaller, and the result enlarged; pixels outside the mask keep their full resolution."""
    CROP = "Crop"
    """Cut out around each part of the mask, with a margin."""


@dataclass(frozen=True)
class InpaintParameters(Parameters):
    """What the framework itself reads when an `InpaintModel` is called: IOPaint's names and defaults.

    IOPaint leaves most ranges open; here a value that can't mean anything, such as a negative margin, is refused.
    """

    hd_strategy: HDStrategy = HDStrategy.CROP
    """How a large image is handed to the model; models that declare `whole` do not read it."""
    hd_strategy_crop_trigger_size: Annotated[int, Ge(1), _PIXELS] = 800
    """`Crop` cuts out of an image whose longer side exceeds this."""
    hd_strategy_crop_margin: Annotated[int, Ge(0), _PIXELS] = 128
    """Surroundings that a crop keeps on each side of the mask."""
    hd_strategy_resize_limit: Annotated[int, Ge(1), _PIXELS] = 1280
    """`Resize` brings the longer side down to this."""
    sd_mask_blur: Annotated[int, Ge(0), _PIXELS] = 11
    """Width around the mask over which models that declare `mask_blur` blend into the image."""
    sd_match_histograms: bool = False
    """Give the result the colours that the image has outside the mask."""
    sd_keep_unmasked_area: bool = True
    """Take only what the mask covers from the model; false takes its whole result."""
    sd_scale: Annotated[float, Gt(0), Le(1)] = 1.0
    """Models that declare `whole` work on an image this much smaller; only what they repaint loses detail."""
    use_croper: bool = False
    """Work on a rectangle of the image alone; the part of it that lies outside the image is left out."""
    croper_x: Annotated[int, _PIXELS] = 0
    """Left edge of the cropper's rectangle."""
    croper_y: Annotated[int, _PIXELS] = 0
    """Top edge of the cropper's rectangle."""
    croper_width: Annotated[int, Ge(1), _PIXELS] = 512
    """Width of the cropper's rectangle."""
    croper_height: Annotated[int, Ge(1), _PIXELS] = 512
    """Height of the cropper's rectangle."""
    use_extender: bool = False
    """Paint beyond the edges what a rectangle has outside of the image; the result holds image and rectangle."""
    extender_x: Annotated[int, _PIXELS] = 0
    """Left edge of the extender's rectangle, negative to the left of the image."""
    extender_y: Annotated[int, _PIXELS] = 0
    """Top edge of the extender's rectangle, negative above the image."""
    extender_width: Annotated[int, Ge(1), Le(16_384), _PIXELS] = 640
    """Width of the extender's rectangle."""
    extender_height: Annotated[int, Ge(1), Le(16_384), _PIXELS] = 640
    """Height of the extender's rectangle."""

    def for_outpainting(self) -> Self:
        """Return the parameters for what lies beyond the edges of an image, of which nothing is to be kept.

        A model overrides it that keeps some of what the mask covers.
        """
        return self


@dataclass(frozen=True)
class ImageParameters(Parameters):
    """How to run an `ImageModel`."""

    scale: Annotated[float, Gt(0)] | None = None
    """How many times larger an upscaler makes the image; null for the model's own factor."""


class Click(NamedTuple):
    """A point that a user clicked on, in pixels from the top left corner; IOPaint's `[x, y, 0 or 1]` in JSON."""

    x: Annotated[int, Ge(0)]
    y: Annotated[int, Ge(0)]
    positive: bool = True
    """True to take what is there, False to leave it out."""


class Box(NamedTuple):
    """A rectangle in pixels from the top left corner; `right` and `bottom` are outside it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the rectangle in an array `(H, W, ...)`."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


class _MaskFile:
    """Has a field take an image file in base64, as JSON holds it, which becomes an array; arrays stay."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(_read_mask)

    def __get_pydantic_json_schema__(self, core_schema: object, handler: object) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "contentEncoding": "base64"}, {"type": "null"}]}


@dataclass(frozen=True)
class MaskParameters(Parameters):
    """How to run a `MaskModel`."""

    clicks: Annotated[tuple[Click, ...], Hint(widget="clicks")] = ()
    """Points on what is meant, and on what is not: `[[x, y, 1], [x, y, 0]]`."""
    boxes: Annotated[tuple[Box, ...], Hint(widget="boxes")] = ()
    """Rectangles around what is meant: `[[left, top, right, bottom]]`."""
    mask_input: Annotated[_MaskArray | None, _MaskFile(), Hint(widget="mask")] = dataclasses.field(
        default=None, compare=False
    )
    """Mask to refine, as large as the image: in JSON an image file in base64, in Python a read-only array."""


class InpaintRequest(dict[str, object]):
    """IOPaint's request: its flat fields by name, and those of the model that is meant. Any model takes it.

    It is checked when a model is called, by the model's `Parameters`.
    """


def _read_mask(value: object) -> Mask | None:
    """Return what is given as a mask as a read-only `uint8` array `(H, W)`, or None."""
    import numpy as np
    import PIL.Image

    if value is None:
        return None
    if isinstance(value, str):
        try:
            with PIL.Image.open(io.BytesIO(base64.b64decode(value, validate=True))) as image:
                value = np.asarray(image.convert("L"))
        except (ValueError, OSError, PIL.Image.DecompressionBombError) as error:
            raise ValueError(f"expected an image file in base64: {error}") from error
    if not isinstance(value, np.ndarray):
        raise ValueError(f"expected an array, or an image file in base64, got {type(value).__name__}")
    if value.dtype != np.uint8 or value.ndim != 2:
        raise ValueError(f"expected a uint8 array of shape (H, W), got {value.dtype} of shape {value.shape}")
    mask: Mask = value.view()
    mask.flags.writeable = False
    return mask


def iopaint_flags(parameters: type[Parameters]) -> dict[str, bool]:
    """Return what IOPaint's description of a model says of its parameters: `need_prompt`, `support_strength` ..."""
    names = parameters.names()
    return {flag: name in names for flag, name in _IOPAINT_FLAGS.items()}


def check_declaration(cls: object) -> None:
    """Check a class of parameters as far as that is possible without pydantic. Raises `PluginError`."""
    if not is_a(cls, type) or not isinstance(cls, type) or not issubclass(cls, Parameters):
        raise ContractError(
            f"invalid parameters: expected a subclass of Parameters, got {shown(cls)}",
            "Give the class itself, not an instance",
        )
    if not compares_by_identity(cls):
        raise _invalid(cls, "its metaclass compares classes in its own way", "Leave out __eq__ and __hash__ there")
    options: Any = vars(cls).get("__dataclass_params__")
    if options is None or not options.frozen:
        raise _invalid(cls, "it is not a frozen dataclass", "Decorate it with @dataclass(frozen=True)")
    for field in fields(cls):
        if field.default is MISSING and field.default_factory is MISSING:
            raise _invalid(cls, f"the field {field.name!r} has no default", "Give it one: a call may leave it out")


class _Dropped:
    """Stands where a subset of a class lacks a field."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> None:
        raise AttributeError(f"{owner.__name__} has no field {self._name!r}", name=self._name, obj=instance)


def _restore(cls: type[Parameters], names: list[str], values: Mapping[str, object]) -> Parameters:
    """Make an instance of a subset again, which pickle can't find by name."""
    return cls.only(*names)(**values)


def _read(data: object, cls: type[Parameters]) -> Mapping[str, object]:
    """Return what is given, as a mapping."""
    if isinstance(data, Parameters):
        own, names = data.names(), cls.names()
        plain = type(data)()
        values = {name: getattr(data, name) for name in own}
        return {
            name: value
            for name, value in values.items()
            if name in names or type(value) is not type(getattr(plain, name)) or value != getattr(plain, name)
        }
    if isinstance(data, (str, bytes, bytearray)):
        try:
            data = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"invalid parameters: expected JSON, got {_short.repr(data)}: {error}",
                "Give one JSON object",
            ) from error
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise RequestError(
            f"invalid parameters: expected a JSON object, a mapping of names, or {cls.__name__}, "
            f"got {_short.repr(data)}",
            f"The names are: {', '.join(cls.names())}",
        )
    return data


def _request_error(cls: type[Parameters], unknown: list[str], found: list[Any]) -> RequestError:
    names = cls.names()
    lines = []
    for key in unknown[:_MAX_ERRORS]:
        short = key[:_MAX_KEY]
        lines.append(f"unknown key {short!r}{did_you_mean(short, names)}")
    lines += [_describe_error(item) for item in found[:_MAX_ERRORS]]
    more = max(0, len(unknown) - _MAX_ERRORS) + max(0, len(found) - _MAX_ERRORS)
    if more:
        lines.append(f"and {more:,} more")
    return RequestError(f"invalid parameters: {'; '.join(lines)}", f"The keys are: {', '.join(names)}")


def _describe_error(item: Any) -> str:  # noqa: ANN401 - pydantic's description of an error
    """Return an error of pydantic's in one line, without a huge value."""
    key = ".".join(map(str, item["loc"]))[:_MAX_KEY]
    if item["type"] == "unexpected_keyword_argument":
        return f"{key!r} is an unknown key"
    message = item["msg"] if len(item["msg"]) <= 500 else f"{item['msg'][:500]}..."
    return f"{key!r} is {_short.repr(item['input'])}: {message}" if key else message


def _invalid(cls: type, what: str, remedy: str) -> ContractError:
    return ContractError(f"invalid parameters class {cls.__qualname__}: {what}", remedy)


def _declaration_error(cls: type[Parameters], error: BaseException) -> ContractError:
    """Return an error that names the first field whose type can't be found, checked, or held by JSON."""
    from pydantic import TypeAdapter

    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError as unknown:
        field = next((field.name for field in fields(cls) if str(unknown.name) in str(field.type)), "?")
        return _invalid(
            cls,
            f"the type of {field!r} names {unknown.name}, which its module does not have at run time",
            "Import it outside of `if TYPE_CHECKING`, or define it in the module",
        )
    for name, hint in hints.items():
        if name in cls.names():
            try:
                TypeAdapter(hint).json_schema()
            except Exception:  # noqa: BLE001 - which it is, pydantic's versions disagree on
                shown = inspect.formatannotation(hint)
                return _invalid(
                    cls,
                    f"JSON can't hold the type of {name!r}, {shown}",
                    "Take numbers, text, booleans, enumerations, tuples, frozen dataclasses of these",
                )
    return _invalid(cls, " ".join(str(error).split()), "Report it to the author of the plugin")


def _check_types(cls: type[Parameters]) -> None:
    """Check that what a class declares anew of the framework's fields keeps its type."""
    base = cls._framework_class()
    theirs, ours = ({field.name: field for field in fields(each)} for each in (base, cls))
    changed = [name for name, field in theirs.items() if ours[name] is not field]
    if not changed:
        return
    hints, own = typing.get_type_hints(base), typing.get_type_hints(cls)
    for name in changed:
        if own[name] != hints[name]:
            was, found = (inspect.formatannotation(each) for each in (hints[name], own[name]))
            raise _invalid(
                cls,
                f"the framework's field {name!r} is {was}, and it declares it as {found}",
                "Keep the type (default and bounds may differ), or take another name",
            )


def _describe_fields(cls: type[Parameters]) -> tuple[dict[str, str], list[str]]:
    """Return the fields' docstrings, and the fields that have none though the source is at hand.

    pydantic's `use_attribute_docstrings` reads those of the class alone, and not of its bases.
    """
    described: dict[str, str] = {}
    missing: list[str] = []
    names = cls.names()
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base) and "__dropped__" not in vars(base):
            for name, text in _docstrings(base):
                if name in names:
                    described |= {name: text} if text else {}
                    missing += [] if name in described else [name]
    return described, missing


def _docstrings(cls: type) -> Iterator[tuple[str, str]]:
    """Yield each field that a class itself declares, with the docstring below it; nothing without the source."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, ValueError, SyntaxError):
        return
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for statement, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match after:
                case ast.Expr(ast.Constant(str(text))):
                    yield statement.target.id, inspect.cleandoc(text)
                case _:
                    yield statement.target.id, ""
