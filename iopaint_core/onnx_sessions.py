"""Networks in ONNX files, opened by onnxruntime and held once in the pool, with the memory that they really take.

Importing this imports no onnxruntime.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iopaint_core.components import ComponentKey, file_component
from iopaint_core.errors import ModelLoadError, PoolError, WeightsError
from iopaint_core.forking import renew_after_fork

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from onnxruntime import InferenceSession  # type: ignore[import-untyped] # it has no types

    from iopaint_core.entries import Component
    from iopaint_core.schema import LoadContext

_CPU = "CPUExecutionProvider"
_PROVIDERS = {
    "cpu": (_CPU,),
    "cuda": ("CUDAExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider"),
    "dml": ("DmlExecutionProvider",),
    "mps": ("CoreMLExecutionProvider",),
    "xpu": ("OpenVINOExecutionProvider",),
}
"""Execution providers for a device, the first that is installed; torch spells AMD's devices `cuda` too."""
_NUMBERED = {"CUDAExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider", "DmlExecutionProvider"}
"""Those that take a `device_id`."""
_GPU_ARENAS = {"CUDAExecutionProvider", "ROCMExecutionProvider"}
"""Those with an arena on the device, which is given back after each run."""
_SILENT = 4
"""Level of onnxruntime's log: its errors are raised, so they need not stand on standard error too."""
_OUT_OF_MEMORY = ("failed to allocate", "bad_alloc", "bad allocation", "out of memory", "available memory of")
_OPENED = 2
"""How many times its file an open session takes, where that can't be measured: 1.4 to 5 in what was."""
_OPENING = 2.5
"""How many times its file is taken while it is opened: 2.4 to 2.6 in what was measured, as weights are read, and
then copied into the layout in which the processor is quickest."""
_SAMPLED = 0.002
"""Seconds between two looks at the memory of the process during a measured run."""


class OnnxSession:
    """A network in an ONNX file, opened once for all who call it, from any number of threads.

    `nbytes` is what it takes while it is idle, and `scratch` what a run takes beside. On a CPU both are measured by
    the memory of the process that no file backs: while the file is opened, and in each run with larger inputs than
    any before, the first run among them. onnxruntime tells Python nothing of its memory, and the size of the file
    says little. One session is measured at a time. What the process allocates meanwhile for something else is
    counted too: the numbers may be too large. On other devices, and on other systems than Linux, `nbytes` is an
    estimate, twice the file, and `scratch` is 0.
    """

    def __init__(self, path: Path, provider: str, device: str = "cpu") -> None:
        """Open a file on a device with a provider of `onnxruntime.get_available_providers()`.

        Raises `WeightsError` for a file that can't be used, `ModelLoadError` for a provider that can't, and
        `MemoryError`.
        """
        _raise_if_split(path)
        self.provider = provider
        self._path = path
        self._device = device
        self._measured = 0
        """Bytes of the largest inputs so far."""
        self.nbytes, self.scratch = _OPENED * path.stat().st_size, 0
        with _gauge.growth() as growth:
            self._session: InferenceSession | None = _open(path, provider, device)
            growth.look()
        renew_after_fork(self)
        self._is_measured = provider == _CPU and growth.before is not None
        if self._is_measured:
            self.nbytes = max(path.stat().st_size, growth.now)
        self.inputs: Mapping[str, tuple[int | str | None, ...]] = {
            value.name: tuple(value.shape) for value in self._session.get_inputs()
        }
        """Shapes by name, in the file's order; a dimension that is free is a name, or None."""
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def check_inputs(self, *shapes: tuple[int, ...]) -> None:
        """Raise `WeightsError` unless it takes arrays of these shapes, in this order, and no others."""
        fits = len(shapes) == len(self.inputs) and all(
            len(shape) == len(found)
            and all(not isinstance(there, int) or there == here for here, there in zip(shape, found, strict=True))
            for shape, found in zip(shapes, self.inputs.values(), strict=False)
        )
        if not fits:
            found = ", ".join(f"{name} {_shown(shape)}" for name, shape in self.inputs.items()) or "nothing"
            raise WeightsError(
                f"{self._path} is another network: expected one that takes {' and '.join(map(_shown, shapes))}, "
                f"found one that takes {found}",
                "Give the file that the model was announced with",
            )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        """Run the network on arrays by the names of `inputs`; returns an array for each of `outputs`.

        What the run allocated goes back to the system after it. Raises `MemoryError`, `PoolError` once the session
        is closed, and what onnxruntime raises for arrays of another shape or dtype.
        """
        size = sum(array.nbytes for array in inputs.values())
        if not self._is_measured or size <= self._measured:
            return self._run(inputs)
        with _gauge.growth() as growth:
            results = self._run(inputs)
            growth.look()
            self.nbytes += max(0, growth.now - sum(result.nbytes for result in results))
            self.scratch = max(self.scratch, growth.peak)
            self._measured = max(self._measured, size)
        return results

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        from onnxruntime import RunOptions

        session = self._session
        if session is None:
            raise PoolError(f"The session of {self._path} is closed", "Use a model only inside its lease")
        options = RunOptions()
        options.log_severity_level = _SILENT
        if self.provider in _GPU_ARENAS:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", f"gpu:{_number(self._device)}")
        try:
            with _memory_errors():
                return tuple(session.run(None, dict(inputs), options))
        finally:
            _trim()

    def _renew(self) -> None:
        """In a forked child, keep the session for ever: to free it waits for threads that are not there."""
        if self._session is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))

    def close(self) -> None:
        """Give its memory back; in a forked child, with the process."""
        self._session = None
        _trim()


def onnx_component(path: Path, context: LoadContext, *, provider: str = "") -> Component[OnnxSession]:
    """A network in one ONNX file, as an `OnnxSession` on the context's device that all models share.

    `provider` is onnxruntime's name of an execution provider; by default, the one for the device. It is part of
    what makes two components the same. The file's dtypes stay: the context's is not read.

    Raises `WeightsError` for a file that is missing, and `ModelLoadError`, which names those that there are, for a
    provider that is not installed.
    """
    chosen = provider_for(context.device, provider)
    component = file_component(
        path,
        functools.partial(OnnxSession, provider=chosen, device=context.device),
        replace(context, dtype=None),
        kind="ONNX session",
        close=OnnxSession.close,
    )
    assert isinstance(component.key, ComponentKey), "file_component makes it"
    return replace(
        component,
        key=component.key._replace(config=chosen),
        nbytes=_OPENED * component.nbytes,
        load_nbytes=int(_OPENING * component.nbytes),
        measure=lambda session: session.nbytes,
        scratch=lambda session: session.scratch,
    )


def provider_for(device: str, name: str = "") -> str:
    """Return the execution provider of that name, or else the one for a device. Raises `ModelLoadError`."""
    from onnxruntime import get_available_providers

    installed = get_available_providers()
    wanted = (name,) if name else _PROVIDERS.get(device.partition(":")[0], ())
    for provider in wanted:
        if provider in installed:
            return provider
    asked = f"the execution provider {name}" if name else f"an execution provider for {device}"
    needed = "" if name or not wanted else f" ({' or '.join(wanted)})"
    raise ModelLoadError(
        f"onnxruntime as it is installed does not have {asked}{needed}; it has {', '.join(installed)}",
        "Choose the device cpu, or install the package of onnxruntime for yours: onnxruntime-gpu for CUDA, "
        "onnxruntime-directml, onnxruntime-rocm",
    )


def _open(path: Path, provider: str, device: str) -> InferenceSession:
    """Open a session that holds little while it is idle.

    Its threads sleep while they have no work. On a CPU it has no arena: with one, and with
    `memory.enable_memory_arena_shrinkage` after each run, the region stays in which a result lay. Of a network of
    ten layers that were 93 MB, without an arena 13, and runs took the processor as long, within 5 %.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    options.log_severity_level = _SILENT
    numbered = {"device_id": str(_number(device))} if provider in _NUMBERED else {}
    providers = [(provider, numbered), *([] if provider == _CPU else [(_CPU, {})])]
    try:
        with _memory_errors():
            session = InferenceSession(path, options, providers=providers)
    except MemoryError:
        raise
    except Exception as error:  # its exceptions have no base of their own
        said = " ".join(str(error).split())
        if provider == _CPU or type(error).__name__.startswith("Invalid"):
            raise WeightsError(f"{path} is no ONNX file that can be used: {said}", "Get it again") from error
        raise ModelLoadError(
            f"onnxruntime could not open {path} with {provider} on {device}: {said}", _drivers_of(provider)
        ) from error
    if provider not in session.get_providers():  # onnxruntime goes on without what it can't load
        raise ModelLoadError(
            f"onnxruntime opened {path} without {provider}, whose libraries it could not load",
            _drivers_of(provider),
        )
    return session


def _drivers_of(provider: str) -> str:
    return f"Install what {provider} needs, in the versions of its page, or choose the device cpu"


def _raise_if_split(path: Path) -> None:
    """Raise `WeightsError` for a file whose weights are in others: its content alone would not say what it is."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"\n\x08location\x12") < 0:  # the key of a `StringStringEntryProto`
                return
    raise WeightsError(
        f"{path} keeps weights in other files, expected all in one",
        "Join them: onnx.save(onnx.load('model.onnx'), 'joined.onnx')",
    )


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """What onnxruntime raises when memory runs out, as the `MemoryError` that the pool knows."""
    try:
        yield
    except Exception as error:
        if any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
            raise MemoryError(" ".join(str(error).split())) from error
        raise


def _trim() -> None:
    """Have glibc give back to the system what is free, which it keeps otherwise; others do so by themselves."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _number(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def _shown(shape: tuple[int | str | None, ...]) -> str:
    return " x ".join("any" if size is None else str(size) for size in shape)


@dataclass
class _Growth:
    """How much more memory the process has than before, in bytes."""

    before: int | None
    """None where the system does not tell."""
    now: int = 0
    peak: int = 0

    def look(self) -> None:
        """Note what it is now."""
        if self.before is not None:
            self.now = max(0, (_anonymous_bytes() or 0) - self.before)
            self.peak = max(self.peak, self.now)


class _Gauge:
    """Measures what one session at a time takes."""

    def __init__(self) -> None:
        self._renew()
        renew_after_fork(self)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def growth(self) -> Iterator[_Growth]:
        """Look at the memory of the process now and then, as long as the block runs."""
        with self._lock:
            growth, over = _Growth(_anonymous_bytes()), threading.Event()

            def watch() -> None:
                while not over.wait(_SAMPLED):
                    growth.look()

            watcher = threading.Thread(target=watch, name="iopaint memory", daemon=True)
            watcher.start()
            try:
                yield growth
            finally:
                over.set()
                watcher.join()


_gauge = _Gauge()


def _anonymous_bytes() -> int | None:
    """Return the bytes of memory that the process has and no file backs; None where the system does not tell."""
    try:
        resident, backed = Path("/proc/self/statm").read_text().split()[1:3]
    except OSError:
        return None
    return (int(resident) - int(backed)) * mmap.PAGESIZE
