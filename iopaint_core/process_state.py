"""What a process has once, kept as it was while a plugin's code is imported or asked for its models."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import locale
import logging
import os
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

from iopaint_core.torch_process import restore_torch_defaults, torch_defaults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGALRM", "SIGCHLD", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
_GENERATORS = {
    "random": ("getstate", "setstate", "seed"),
    "numpy.random": ("get_state", "set_state", "seed"),
    "torch.random": ("get_rng_state", "set_rng_state", ""),
}
"""What gets the state of a generator of the process, what sets it, and what seeds it anew if it was not there."""


@contextlib.contextmanager
def process_state_kept(*, seeds: bool = True) -> Iterator[None]:
    """Undo, at the end, what the code inside changes for everyone in this process, or what others change meanwhile.

    Kept are the working directory, the environment, `sys.path`, standard streams, exception hooks, warning
    filters, signal handlers (in the main thread), the configuration of the root logger, the locale, the limits of
    recursion and of sockets, garbage collection, the defaults of torch, and with `seeds` the generators of random
    numbers: others that draw from them meanwhile draw the same again.
    """
    undo = [*_attributes(), *_lists(), *_encodings(), _directory(), _environment(), _signals(), _locale()]
    undo += [_limits(), _torch(), *([_random()] if seeds else [])]
    try:
        yield
    finally:
        for restore in undo:
            with contextlib.suppress(Exception):  # a folder that is gone, for example; the others are restored
                restore()


def _attributes() -> Iterator[Callable[[], None]]:
    root = logging.getLogger()
    for owner, names in (
        (sys, ("stdin", "stdout", "stderr", "excepthook", "unraisablehook", "displayhook")),
        (sys, ("argv", "path", "meta_path", "path_hooks")),
        (os, ("environ",)),
        (threading, ("excepthook",)),
        (warnings, ("filters", "showwarning", "formatwarning")),
        (root, ("level", "disabled", "handlers", "filters")),
        (root.manager, ("disable",)),
        (logging, ("raiseExceptions",)),
    ):
        for name in names:
            yield _attribute(owner, name, getattr(owner, name))


def _attribute(owner: Any, name: str, value: object) -> Callable[[], None]:  # noqa: ANN401 - any
    def restore() -> None:
        if getattr(owner, name) is not value:
            setattr(owner, name, value)

    return restore


def _lists() -> Iterator[Callable[[], None]]:
    root = logging.getLogger()
    lists: list[list[Any]] = [sys.argv, sys.path, sys.meta_path, sys.path_hooks, root.handlers, root.filters]
    lists.append(warnings.filters)  # type: ignore[arg-type] # it is a list, and typed as a sequence
    for each in lists:
        yield _list(each)


def _list(values: list[Any]) -> Callable[[], None]:
    before = values.copy()

    def restore() -> None:
        if [*map(id, values)] != [*map(id, before)]:  # by identity: what a plugin put there may compare as it likes
            values[:] = before
            if values is warnings.filters:
                warnings._filters_mutated()  # type: ignore[attr-defined] # as `catch_warnings` does
            if values is sys.path:
                sys.path_importer_cache.clear()

    return restore


def _encodings() -> Iterator[Callable[[], None]]:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            yield functools.partial(_reconfigure, stream, stream.encoding, stream.errors)


def _reconfigure(stream: io.TextIOWrapper, encoding: str, errors: str | None) -> None:
    if (stream.encoding, stream.errors) != (encoding, errors):
        stream.reconfigure(encoding=encoding, errors=errors)


def _directory() -> Callable[[], None]:
    try:
        before = os.getcwd()  # noqa: PTH109 - as it is spelled
    except OSError:
        return lambda: None
    return lambda: os.chdir(before)


def _environment() -> Callable[[], None]:
    before = dict(os.environ)

    def restore() -> None:  # after `os.environ` is the same object again
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value

    return restore


def _signals() -> Callable[[], None]:
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    return restore


def _locale() -> Callable[[], None]:
    before = locale.setlocale(locale.LC_ALL)

    def restore() -> None:
        if locale.setlocale(locale.LC_ALL) != before:
            locale.setlocale(locale.LC_ALL, before)

    return restore


def _limits() -> Callable[[], None]:
    recursion, collects = sys.getrecursionlimit(), gc.isenabled()
    sockets = sys.modules.get("socket")
    timeout = None if sockets is None else sockets.getdefaulttimeout()

    def restore() -> None:
        sys.setrecursionlimit(recursion)
        (gc.enable if collects else gc.disable)()
        if "socket" in sys.modules:
            sys.modules["socket"].setdefaulttimeout(timeout)

    return restore


def _random() -> Callable[[], None]:
    before = {
        name: getattr(sys.modules[name], get)()
        for name, (get, _, _) in _GENERATORS.items()
        if hasattr(sys.modules.get(name), get)
    }

    def restore() -> None:
        for name, (_, put, seed) in _GENERATORS.items():
            module = sys.modules.get(name)
            if name in before:
                getattr(module, put)(before[name])
            elif hasattr(module, seed):
                getattr(module, seed)()

    return restore


def _torch() -> Callable[[], None]:
    before = torch_defaults()
    return lambda: restore_torch_defaults(before)
