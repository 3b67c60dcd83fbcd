"""Networks in ONNX files, opened by onnxruntime and held once in the pool, with the memory that they really take.

Importing this imports no onnxruntime.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import re
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
_OPENED_MOST, _OPENED_ANYWAY = 5, 16_000_000
"""An open session is charged at most so many times its file, and so many bytes of its own: the rest is others'."""
_KEPT = 4
"""What stays of runs is charged up to this part of what a run takes: 10 MB of more than 75 in what was measured."""
_RUNS = 3
"""How many runs with the largest inputs are measured, unless the first two agree."""
_AGREE = 8
"""Two runs agree whose peaks differ by at most this part of the larger."""
_TOO_NEW = ("opset", "ir version", "op registered", "registered function/op")
"""What onnxruntime says of a network that is newer than it, or has operators that it lacks."""
_CHUNK = 1 << 20
"""Bytes of a file that are looked through at once: other threads run while the next ones are read."""
_KEY = b"\n\x08location\x12"
"""The key of a `StringStringEntryProto`."""
_EXTERNAL = re.compile(b"j[\x80-\xff]{0,4}[\x00-\x7f]" + re.escape(_KEY))
"""The same in a `TensorProto`'s field 13, `external_data`, with the field's tag and length; metadata has others."""
_EXTERNAL_LENGTH = 6 + len(_KEY)
_SAMPLED = 0.002
"""Seconds between two looks at the memory of the process during a measured run."""


class OnnxSession:
    """A network in an ONNX file, opened once for all who call it, from any number of threads.

    `nbytes` is what it takes while it is idle, and `scratch` what a run takes beside. On a CPU both are measured by
    the memory of the process that no file backs, since onnxruntime tells Python nothing of its memory, and the size
    of the file says little. What the process allocates and frees meanwhile for something else is seen too. So:

    - Up to three runs with the largest inputs so far are measured, two if they agree. `scratch` is the middle one
      of their peaks, of two the smaller: one run that was disturbed is corrected by those after it.
    - `nbytes` is what the opening took, at most five times the file and 16 MB, and what stayed of those runs, at
      most a quarter of `scratch`.
    - One session is measured at a time. Nothing waits for it: what is opened or run meanwhile is not measured, a
      later run is.

    Where the opening was not measured, on other devices, and on other systems than Linux, twice the file is the
    estimate of it. Without a measured run `scratch` is 0.
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
        size = path.stat().st_size
        with _gauge.growth() if provider == _CPU else contextlib.nullcontext() as growth:
            self._session: InferenceSession | None = _open(path, provider, device)
            grown = None if growth is None else growth.look()
        renew_after_fork(self)
        self._opened = (
            _OPENED * size if grown is None else max(size, min(grown, _OPENED_MOST * size + _OPENED_ANYWAY))
        )
        self.nbytes, self.scratch = self._opened, 0
        self._kept = 0
        """Bytes that stayed of the measured runs."""
        self._largest = 0
        """Bytes of the largest inputs so far that were measured."""
        self._peaks: tuple[int, ...] = ()
        """Bytes that each measured run with them took."""
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
        if self.provider != _CPU or self._is_known(size):
            return self._run(inputs)
        with _gauge.growth() as growth:
            results = self._run(inputs)
            if growth is not None:
                grown = growth.look()
                kept = max(0, grown - sum(result.nbytes for result in results))
                self._note(size, max(grown, growth.peak), kept)
        return results

    def _is_known(self, size: int) -> bool:
        """Say whether there is nothing to learn from a run with so many bytes of inputs."""
        if size != self._largest:
            return size < self._largest
        peaks = self._peaks
        return len(peaks) >= _RUNS or (len(peaks) == 2 and max(peaks) - min(peaks) <= max(peaks) / _AGREE)

    def _note(self, size: int, peak: int, kept: int) -> None:
        """Learn from a measured run. Called by one thread at a time."""
        if self._is_known(size):  # by a run that ended after this one began
            return
        self._peaks = (*self._peaks, peak) if size == self._largest else (peak,)
        self._largest = size
        self._kept += kept
        self.scratch = sorted(self._peaks)[(len(self._peaks) - 1) // 2]
        self.nbytes = self._opened + min(self._kept, self.scratch // _KEPT)

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
    from onnxruntime import InferenceSession, SessionOptions, __version__

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
        if any(sign in said.replace(str(path), "").lower() for sign in _TOO_NEW):
            raise WeightsError(
                f"onnxruntime {__version__} does not know all that {path} asks for: {said}",
                "Install a newer one: pip install -U onnxruntime",
            ) from error
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
    with path.open("rb", buffering=0) as file:
        overlap = _EXTERNAL_LENGTH - 1
        buffer = bytearray(overlap + _CHUNK)
        while count := file.readinto(memoryview(buffer)[overlap:]):
            if buffer.find(_KEY, 0, overlap + count) >= 0 and _EXTERNAL.search(buffer, 0, overlap + count):
                break
            buffer[:overlap] = buffer[count : count + overlap]
        else:
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

    before: int
    peak: int = 0
    """The most that was seen."""

    def look(self) -> int:
        """Return what it is now."""
        return max(0, (_anonymous_bytes() or 0) - self.before)


class _Gauge:
    """Measures what one session at a time takes."""

    def __init__(self) -> None:
        self._renew()
        renew_after_fork(self)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def growth(self) -> Iterator[_Growth | None]:
        """Look at the memory of the process now and then, as long as the block runs.

        None where the system does not tell, and while something else is measured: nobody waits for the lock.
        """
        before, lock = _anonymous_bytes(), self._lock
        if before is None or not lock.acquire(blocking=False):
            yield None
            return
        try:
            growth, over = _Growth(before), threading.Event()

            def watch() -> None:
                while not over.wait(_SAMPLED):
                    growth.peak = max(growth.peak, growth.look())

            watcher = threading.Thread(target=watch, name="iopaint memory", daemon=True)
            watcher.start()
            try:
                yield growth
            finally:
                over.set()
                watcher.join()
        finally:
            lock.release()


_gauge = _Gauge()


def _anonymous_bytes() -> int | None:
    """Return the bytes of memory that the process has and no file backs; None where the system does not tell."""
    try:
        resident, backed = Path("/proc/self/statm").read_text().split()[1:3]
    except OSError:
        return None
    return (int(resident) - int(backed)) * mmap.PAGESIZE
