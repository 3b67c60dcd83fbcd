"""Run the wrappers of `iopaint_load_model` around a load, each isolated: one that fails costs nobody the model."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING

import pluggy

from iopaint_core.errors import ContractError
from iopaint_core.schema import describe
from iopaint_core.time_limits import within
from iopaint_core.values import is_a, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class WrapperError(ContractError):
    """A wrapper that failed; its cause is what it raised, if it raised something."""


class _Load:
    """A load within a wrapper: it runs once, and its outcome is kept whatever the wrapper makes of it."""

    def __init__(self, load: Callable[[], object]) -> None:
        self._load = load
        self.result: object = None
        self.error: BaseException | None = None
        self.ran = False

    def run(self) -> None:
        self.ran = True
        try:
            self.result = self._load()
        except BaseException as error:  # noqa: BLE001 - handed to the wrapper, and raised in the end
            self.error = error

    def outcome(self) -> object:
        """Return or raise what the load did."""
        if not self.ran:
            self.run()
        if self.error is not None:
            raise self.error
        return self.result


def run_wrapped(
    wrapper: pluggy.HookImpl,
    arguments: Mapping[str, object],
    load: Callable[[], object],
    kind: type,
    failed: Callable[[WrapperError], None],
    seconds: float | None,
) -> object:
    """Return the model of `load` as one wrapper, pluggy's of either style, returns it.

    A wrapper that raises something else than the load did, yields twice or never, takes more than `seconds` before
    or after its yield, or returns no `kind`, is told to `failed`; the load ends as it would without it.
    """
    inner = _Load(load)
    try:
        given = _drive(wrapper, arguments, inner, seconds)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a wrapper may raise anything
        own = inner.error is not None and (error is inner.error or error.__cause__ is inner.error)
        if not own:
            failed(_wrapper_error(error))
        return inner.outcome()
    if not is_a(given, kind) and (given is not inner.result or inner.error is not None):
        failed(
            WrapperError(
                f"its wrapper returned {shown(given)}, expected the model that it got, or one in its place",
                "Return it: model = yield; return model",
            )
        )
        return inner.outcome()
    return given


def _drive(
    wrapper: pluggy.HookImpl, arguments: Mapping[str, object], inner: _Load, seconds: float | None
) -> object:
    """Run a wrapper to its end, with the load where it yields; what it returns."""
    what = f"the wrapper of {wrapper.plugin_name}"
    values = [arguments[name] for name in wrapper.argnames]
    generator = within(seconds, what, lambda: wrapper.function(*values))
    if not isinstance(generator, types.GeneratorType):
        raise WrapperError(
            f"its wrapper is no generator: it returned {shown(generator)}", "Write: model = yield; return model"
        )
    if _ends(seconds, what, generator.__next__):
        raise WrapperError("its wrapper did not yield", "Write: model = yield; return model")
    inner.run()
    if wrapper.hookwrapper:
        outcome: pluggy.Result[object] = pluggy.Result(inner.result, inner.error)
        ended = _ends(seconds, what, lambda: generator.send(outcome))
        returned = outcome.get_result()
    else:
        error = inner.error
        ended = _ends(
            seconds, what, lambda: generator.send(inner.result) if error is None else generator.throw(error)
        )
        returned = ended[0] if ended else None
    if not ended:
        generator.close()
        raise WrapperError("its wrapper yields a second time", "Yield once: model = yield; return model")
    return returned


def _ends(seconds: float | None, what: str, advance: Callable[[], object]) -> list[object]:
    """Advance a generator: what it returns, alone in a list, if it ends; an empty list if it yields."""

    def step() -> list[object]:
        try:
            advance()
        except StopIteration as end:
            return [end.value]
        return []

    return within(seconds, what, step)


def _wrapper_error(error: BaseException) -> WrapperError:
    if isinstance(error, WrapperError):
        return error
    told = WrapperError(f"its wrapper failed: {describe(error)}")
    told.__cause__ = error
    return told
