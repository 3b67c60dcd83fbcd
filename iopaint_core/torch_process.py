"""What torch keeps for the whole process: its defaults, its memory, its errors when that runs out.

Importing this imports no torch.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Any

from iopaint_core.forking import renew_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, on the host or on a device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch may not be imported
        return True
    signs = ("can't allocate memory", "out of memory")  # of torch's allocators on a CPU, and on MPS
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """What torch raises when memory runs out, as the `MemoryError` that the pool knows."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise


def reclaim(device: str) -> None:
    """Give back to a device what torch's allocator keeps for later."""
    torch = sys.modules.get("torch")
    backend = None if torch is None else getattr(torch, device.partition(":")[0], None)
    if backend is not None and hasattr(backend, "empty_cache"):
        backend.empty_cache()


_SETTINGS: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("get_default_dtype", "set_default_dtype", lambda torch: torch.float32),
    ("get_default_device", "set_default_device", lambda torch: torch.device("cpu")),
    ("is_grad_enabled", "set_grad_enabled", lambda _: True),
    ("are_deterministic_algorithms_enabled", "use_deterministic_algorithms", lambda _: False),
    ("get_float32_matmul_precision", "set_float32_matmul_precision", lambda _: "highest"),
)
"""The functions of torch that read and write a setting of the whole process, and what gives its own default."""


def torch_defaults() -> list[Any]:
    """Return torch's settings for the whole process; none if it is not imported."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_default_dtype"):  # its import may have only begun
        return []
    return [torch.get_num_threads(), *(getattr(torch, read)() for read, _, _ in _SETTINGS)]


def restore_torch_defaults(before: list[Any]) -> None:
    """Set what `torch_defaults` returned, or torch's own defaults where it was not imported then."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_default_dtype"):
        return
    threads, *settings = before or [torch.get_num_threads(), *(own(torch) for _, _, own in _SETTINGS)]
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    for (read, write, _), value in zip(_SETTINGS, settings, strict=True):
        if getattr(torch, read)() != value:
            getattr(torch, write)(value)


class _ProcessDefaults:
    """Keeps loaders from leaving torch's process-wide settings changed, however they end.

    A library's `from_pretrained` may set torch's default dtype, and leave it so if building the module fails;
    accelerate's `init_empty_weights` replaces `nn.Module.register_parameter`, for good if two uses overlap. Loads
    may overlap: what was so before the first is restored after the last. What somebody else had replaced by then
    is left to them, and so is the dtype if all loads succeed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loads = 0
        self._failed = False
        self._before: list[tuple[Any, str, Any]] = []
        self._dtype: Any = None
        renew_after_fork(self, self._lock)

    def __enter__(self) -> None:
        with self._lock:
            if not self._loads:
                self._note()
            self._loads += 1

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._lock:
            self._failed |= kind is not None
            self._loads -= 1
            if not self._loads:
                self._restore()

    def _note(self) -> None:
        self._before, self._dtype, self._failed = [], None, False
        torch = sys.modules.get("torch")
        if torch is None:
            return
        self._dtype = torch.get_default_dtype()
        functions = [(torch.nn.Module, "register_parameter", torch.nn.Module.register_parameter)]
        functions += [
            (torch.nn.init, name, value) for name, value in vars(torch.nn.init).items() if callable(value)
        ]
        self._before = [entry for entry in functions if str(entry[2].__module__).startswith("torch.nn")]

    def _restore(self) -> None:
        torch = sys.modules.get("torch")
        if torch is None:
            return
        if self._failed:
            torch.set_default_dtype(self._dtype or torch.float32)
        for owner, name, value in self._before:
            if getattr(owner, name) is not value:
                setattr(owner, name, value)

    def _renew(self) -> None:
        """In a forked child no load goes on but one of the thread that forked, which is not to be waited for."""
        if self._loads:
            self._loads, self._failed = 0, True
            self._restore()


process_defaults = _ProcessDefaults()
"""Of this process, so there is one; enter it around code that loads models."""
