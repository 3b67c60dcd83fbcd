"""What the pool holds: components, how to load them, and the state of each while it is held."""

from __future__ import annotations

import contextvars
import itertools
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from iopaint_core.accounts import Held
from iopaint_core.errors import LoadCancelledError, LoadTimeoutError
from iopaint_core.eviction import Usage
from iopaint_core.turns import CallLock

if TYPE_CHECKING:
    import weakref

T = TypeVar("T")

loading: contextvars.ContextVar[tuple[Entry, ...]] = contextvars.ContextVar("iopaint_loading", default=())
"""The loads that this context runs in, the outermost first."""

_serials = itertools.count()
_SLICE = 0.5


@dataclass(frozen=True, eq=False)
class Component(Generic[T]):
    """A piece with weights, and how to load it. Equal keys are held once."""

    key: Hashable
    """Identity by content: what has this key can stand for whatever else has it."""
    load: Callable[..., T]
    """Called with `parts`, loaded and forked; runs in a thread of its own, side by side with others."""
    nbytes: int
    """Bytes that it will take on its device, known before anything is read."""
    device: str = "cpu"
    parts: tuple[Component[Any], ...] = ()
    """What it is made from and keeps; a device copy is made from its host copy."""
    fork: Callable[[T], object] | None = None
    """Makes what a model gets: a view of its own on the shared weights. None: the component itself."""
    load_nbytes: int = 0
    """Bytes that its load takes at most, where that is more than `nbytes`; they are reserved until it has ended."""
    measure: Callable[[T], int] | None = None
    """Bytes that it takes once loaded, if `nbytes` may be off."""
    scratch: Callable[[T], int] | None = None
    """Bytes that each call takes beside, and gives back; after the call, `measure` is asked again."""
    check: Callable[[T], bool] | None = None
    """False once somebody has written into the shared weights."""
    close: Callable[[T], None] | None = None
    """Frees what the garbage collector does not."""
    stamp: Callable[[], Hashable] | None = None
    """The state of its files: a `WeightsError` is raised again, without a load, until this changes."""
    exclusive: bool = False
    """It keeps state during a call, and can't be forked: one caller at a time."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", device_name(self.device))

    @property
    def reserved(self) -> int:
        """Bytes that have to be free before it is loaded."""
        return max(self.nbytes, self.load_nbytes)

    def load_alone(self) -> object:
        """Load it, and fork it, without a pool."""
        value = self.load(*(part.load_alone() for part in self.parts))
        return value if self.fork is None else self.fork(value)

    def private(self) -> Component[T]:
        """The same weights in a copy that nobody else gets, for work that writes into them."""
        return replace(self, key=(self.key, "private", object()), fork=None, check=None)


class SharedComponents(Mapping[str, Any]):
    """The components of a loaded model, by name; read-only, and empty once the pool has dropped the model."""

    def __init__(self) -> None:
        self._components: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - plugins know the types of their components
        return self._components[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    def __len__(self) -> int:
        return len(self._components)

    def __repr__(self) -> str:
        return f"SharedComponents({', '.join(self._components)})"


Share = Callable[[Mapping[str, Component[Any]]], Mapping[str, Any]]
"""Given to a model's loader: takes all components of the model at once, all or nothing."""


def raise_if_cancelled() -> None:
    """Called now and then in a load: raises `LoadCancelledError` if nobody waits for it any more."""
    chain = loading.get()
    if chain and chain[-1].cancelled:
        raise LoadCancelledError(f"Loading {chain[-1].key} was cancelled: nobody waits for it", "Ask for it again")


def file_state(component: Component[Any]) -> Hashable:
    """The state of its files; None if it has none, or they can't be looked at."""
    try:
        return None if component.stamp is None else component.stamp()
    except Exception:  # noqa: BLE001 - whatever is wrong with them, a load will say it
        return None


def device_name(device: str) -> str:
    """The name under which a device is accounted: `cuda` is `cuda:0`."""
    return f"{device}:0" if device in {"cuda", "xpu"} else device


class Entry:
    """A model or a component in the pool, from the begin of its load until it is gone from memory."""

    def __init__(self, component: Component[Any], home: dict[Hashable, Entry], patience: float) -> None:
        self.serial = next(_serials)
        self.component = component
        self.key = component.key
        self.device = component.device
        self.nbytes = component.reserved
        """Reserved while it loads, resident once it is ready, unloading when it is dropped."""
        self.home = home
        """The pool's table that it is in, unless it is retired or failed."""
        self.patience = patience
        self.pins = 1
        """Leases, entries in use that are made from this, and its own load."""
        self.parts: list[Entry] = []
        self.users: dict[Entry, None] = {}
        """What is made from this; in order of making."""
        self.begun: list[Entry] = []
        """Components whose load its own has begun."""
        self.waits_for: list[Entry] = []
        """Components that its load has pinned and waits for."""
        self.siblings: tuple[list[Entry], list[Entry]] | None = None
        """Of the plan that began it: all that it began, and all that it has pinned."""
        self.started = self.ready = self.failed = self.retired = self.cancelled = False
        self.done = threading.Event()
        self.drops_parts = False
        """When it goes, its parts go with it that nothing else is made from."""
        self.error: BaseException | None = None
        self.value: Any = None
        self.watch: weakref.ref[object] | None = None
        self.shared = SharedComponents()
        self.checked: tuple[Entry, ...] = ()
        """Parts that can tell whether somebody wrote into them."""
        self.used_by: dict[int, Hashable] = {}
        """Those who may have written into it since the last check: serial number and key."""
        self.calls = 0
        """Calls that use it now, if it tells what they take."""
        self.usage = Usage(component.nbytes)
        self.priority = 0.0
        self.lock = CallLock()

    @property
    def idle(self) -> bool:
        """Loaded, and in nobody's use."""
        return self.ready and not self.pins

    @property
    def loading(self) -> bool:
        """Not loaded yet, and not failed."""
        return not (self.ready or self.failed)

    def wait(self, deadline: float) -> None:
        """Wait until it is loaded; raises what its load raised, or `LoadTimeoutError`."""
        # In slices: a Ctrl-C that comes just before a lock blocks is noticed only when it wakes.
        while not self.done.wait(max(0.0, min(deadline - time.monotonic(), _SLICE))):
            if time.monotonic() >= deadline:
                raise LoadTimeoutError(
                    f"Loading {self.key} takes longer than this pool waits for",
                    "It goes on, and who asks again waits on; if it never ends, look at the plugin",
                )
        if self.error is not None:
            raise self.error

    def with_users(self) -> Iterator[Entry]:
        """It, and all that is made from it."""
        yield self
        for user in self.users:
            yield from user.with_users()

    def forked(self) -> object:
        """A view of its own on the value, for one user."""
        fork = self.component.fork
        return self.value if fork is None else fork(self.value)

    def used_only_by(self, user: Entry) -> bool:
        """Whether nobody else used it since the last check."""
        return len(self.used_by) == 1 and user.serial in self.used_by

    def note_user(self, user: Entry) -> None:
        """Remember who may write into it from now on: `user`, and who is using it."""
        others = {other.serial: other.key for other in self.users if other.pins} if self.used_by else {}
        self.used_by = {**others, user.serial: user.key}

    def held(self) -> Held:
        """A snapshot of it."""
        loads = self.loading
        users = tuple(user.key for user in self.users)
        return Held(self.key, self.device, self.nbytes, self.ready, self.pins - loads, users)


@dataclass(eq=False)
class Plan:
    """Components to be had together, for the load of which `chain` is the way from the outermost."""

    asked: tuple[Component[Any], ...]
    patience: float
    chain: tuple[Entry, ...]
    what: str
    need: dict[str, int] = field(default_factory=dict)
    """Bytes that are missing on devices with a budget."""
    bell: SimpleQueue[None] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        self.wanted = dict.fromkeys(component.key for component in self.asked)
        self.components: dict[Hashable, Component[Any]] = {}
        """All that is needed, parts first."""
        for component in self.asked:
            self._add(component)

    def _add(self, component: Component[Any]) -> None:
        for part in component.parts:
            self._add(part)
        self.components.setdefault(component.key, component)

    def held(self) -> set[Entry]:
        """What its own load holds already: no use waiting for that."""
        held: set[Entry] = set()
        more = list(self.chain)
        while more:
            entry = more.pop()
            held.add(entry)
            more += entry.parts
        return held

    def rung(self, seconds: float) -> bool:
        """Wait for something to change; False if nothing did in time."""
        try:
            self.bell.get(timeout=max(0.0, min(seconds, threading.TIMEOUT_MAX)))
        except Empty:
            return False
        return True
