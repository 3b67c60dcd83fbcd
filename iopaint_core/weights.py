"""Files of weights: found where they are, fetched where they are not, believed only when checked.

What only checking and fetching need is imported there: `list` looks for files, and is to be quick.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from iopaint_core.errors import DownloadError, MissingWeightsError, UntrustedWeightsError, WeightsError
from iopaint_core.hub import cached_file, fetch_file
from iopaint_core.schema import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from iopaint_core.schema import ModelInfo, WeightFile

    Progress = Callable[[WeightFile, int, int | None], None]

_logger = logging.getLogger(__name__)


class State(str, Enum):
    """What `verify` found of a file."""

    WHOLE = "whole"
    """Its hash is the declared one."""
    UNCHECKED = "unchecked"
    """It is there, and no hash is declared."""
    WRONG = "wrong"
    """Its hash is not the declared one."""
    PARTIAL = "partial"
    """Part of it has come; the next download goes on from there."""
    MISSING = "missing"


class Verified(NamedTuple):
    """What became of one file of a model."""

    model: ModelInfo
    file: WeightFile
    path: Path
    """Where it is, or will be."""
    state: State


class WeightStore:
    """The files of weights on this machine.

    They are looked for, and used where they lie, under `root`, in the checkpoints of torch's hub, where IOPaint
    keeps its own, in the cache of the Hugging Face hub, and in `U2NET_HOME`. What is fetched comes to `root`, or to
    the hub's cache. `trust` lets files run code whose hash nobody declared; `https_only` refuses other URLs.
    `progress(file, done, total)` is called as bytes come, and ends the download by raising; `stall` seconds without
    a byte are a cut.
    """

    def __init__(
        self,
        root: Path,
        *,
        offline: bool = False,
        trust: bool = False,
        https_only: bool = False,
        progress: Progress | None = None,
        stall: float = 30.0,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.root = root
        self.offline = offline
        self.trust = trust
        self._https_only = https_only
        self._progress = progress
        self._stall = stall
        self._pause = pause

    def place(self, info: ModelInfo, file: WeightFile) -> Path:
        """Where a file of a model is to be put by hand, or comes when it is fetched from a URL."""
        return self.root / "weights" / re.sub(r"[^\w.-]", "_", info.plugin_name or "_") / file.filename

    def data_dir(self, info: ModelInfo) -> Path:
        """Return the folder of a model's plugin for what it wants to keep; it may not exist yet."""
        distribution, plugin = (re.sub(r"[^\w-]", "_", name) for name in (info.distribution, info.plugin_name))
        return self.root / "plugins" / distribution / plugin

    def find(self, info: ModelInfo, file: WeightFile) -> Path | None:
        """A file that has the name and, if it is declared, the size; its content is not looked at."""
        return next(self._candidates(info, declared(file)), None)

    def missing(self, info: ModelInfo) -> tuple[WeightFile, ...]:
        """Files that are to be fetched before a model can be loaded."""
        return tuple(file for file in info.weights if self.find(info, file) is None)

    def get(
        self, info: ModelInfo, given: Mapping[str, Path] | None = None, *, fetch: bool = True
    ) -> dict[str, Path]:
        """All files of a model by name, checked. `given` takes the place of files; with `fetch`, others come.

        Raises `MissingWeightsError`, `DownloadError`, `UntrustedWeightsError`, `WeightsError`.
        """
        given = {} if given is None else given
        unknown = given.keys() - {file.filename for file in info.weights}
        if unknown:
            names = ", ".join(file.filename for file in info.weights) or "none"
            raise WeightsError(
                f"{info.name} has no weights called {', '.join(sorted(unknown))}", f"Its files are: {names}"
            )
        found: dict[str, Path | None] = {
            file.filename: self._given(file, given[file.filename])
            if file.filename in given
            else self._checked(info, declared(file))
            for file in info.weights
        }
        missing = [file for file in info.weights if found[file.filename] is None]
        if missing and (self.offline or not fetch):
            raise MissingWeightsError(
                f"{info.name} needs what is not on this machine: "
                + "; ".join(self._describe(info, declared(file)) for file in missing),
                f"Put it there, or fetch it online: iopaint-core download {info.name}",
            )
        for file in missing:
            found[file.filename] = self._fetch(info, declared(file))
        return {name: path for name, path in found.items() if path is not None}

    def verify(self, models: Iterable[ModelInfo]) -> list[Verified]:
        """Hash every file of some models anew."""
        return [self._verified(info, declared(file)) for info in models for file in info.weights]

    def remove(self, info: ModelInfo, others: Iterable[ModelInfo]) -> list[Path]:
        """Delete the files of a model under `root` that none of `others` uses; returns what was deleted.

        Files in other programs' folders, and in the cache of the hub, stay: they are not this store's.
        """
        used = {self.place(other, file) for other in others if other != info for file in other.weights}
        removed = []
        for place in {self.place(info, file) for file in info.weights} - used:
            for path in (place, _part_of(place)):
                if path.is_file():
                    path.unlink()
                    removed.append(path)
        return sorted(removed)

    def _candidates(self, info: ModelInfo, file: WeightFile) -> Iterator[Path]:
        for path in self._places(info, file):
            with contextlib.suppress(OSError):
                if path.is_file() and file.size in {None, path.stat().st_size}:
                    yield path

    def _places(self, info: ModelInfo, file: WeightFile) -> Iterator[Path]:
        if file.repo:
            cached = cached_file(file)
            if cached is not None:
                yield cached
        place = self.place(info, file)
        self._check_inside(place)
        yield place
        name = Path(file.filename).name
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        for hub in (os.environ.get("TORCH_HOME"), cache / "torch"):
            if hub:
                yield Path(hub) / "hub" / "checkpoints" / name
        yield Path(os.environ.get("U2NET_HOME") or Path.home() / ".u2net") / name

    def _check_inside(self, place: Path) -> None:
        """Raise `WeightsError` if a link leads a place out of the store."""
        root = (self.root / "weights").resolve()
        if not place.parent.resolve().is_relative_to(root):
            raise WeightsError(f"{place} leads out of {root} by a link", "Remove the link")

    def _given(self, file: WeightFile, path: Path) -> Path:
        """A file that the user gives in place of one."""
        from iopaint_core.tensorfiles import file_stamp

        file_stamp(path)  # raises if it can't be read
        if file.runs_code and not self.trust and self._matches(path, declared(file)) is not True:
            raise UntrustedWeightsError(
                f"{path} can run code when it is loaded, and its hash is not the one declared for {file.filename}",
                "If you made it, or trust who did, allow it: --trust, or WeightStore(trust=True)",
            )
        return path

    def _checked(self, info: ModelInfo, file: WeightFile) -> Path | None:
        """The first file of that name that is what was declared."""
        if file.runs_code and file.digest is None and not self.trust:
            raise UntrustedWeightsError(
                f"{file.source} can run code when it is loaded, and no hash is declared for it",
                "If you trust its source, allow it: --trust, or WeightStore(trust=True)",
            )
        for path in self._candidates(info, file):
            if self._matches(path, file) is False:
                if path == self.place(info, file):
                    self._set_aside(path)
                else:
                    _logger.warning("%s is not what %s is to be, and is not used", path, file.filename)
            else:
                return path
        return None

    def _matches(self, path: Path, file: WeightFile, *, anew: bool = False) -> bool | None:
        """Whether a file has the declared hash, None if none is declared; what was hashed once is remembered."""
        if file.digest is None:
            return None
        from iopaint_core.identity import DigestMemory
        from iopaint_core.tensorfiles import file_stamp

        memory = DigestMemory(self.root / "digests.sqlite")
        algorithm, expected = file.digest
        stamp = ((file_stamp(path),), algorithm)
        found = None if anew else memory.get(stamp)
        if found is None:
            found = _hash(path, algorithm)
            memory.put(stamp, found)
        return found == expected

    def _set_aside(self, path: Path) -> None:
        aside = path.with_name(f"{path.name}.wrong-{_hash(path, 'md5')[:8]}")
        path.replace(aside)
        _logger.warning(
            "%s is damaged or another file: its hash is not the declared one; it is now %s", path, aside
        )

    def _fetch(self, info: ModelInfo, file: WeightFile) -> Path:
        if file.url.startswith("http://") and file.digest is None:
            raise DownloadError(
                f"{file.url} is not encrypted, and no hash is declared for it", "Declare its sha256, or use https"
            )
        if file.repo:
            path = fetch_file(file)
            if self._matches(path, file) is False:
                raise DownloadError(
                    f"{file.source} is not the file that was declared: its hash differs",
                    f"Report it to the author of {info.distribution}; the file is {path}",
                )
            return path
        return self._fetch_url(info, file)

    def _fetch_url(self, info: ModelInfo, file: WeightFile) -> Path:
        from filelock import FileLock

        from iopaint_core.download import Download
        from iopaint_core.entries import raise_if_cancelled

        place = self.place(info, file)
        self._check_inside(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = _part_of(place)

        def report(done: int, total: int | None) -> None:
            raise_if_cancelled()
            if self._progress is not None:
                self._progress(file, done, total)

        with FileLock(f"{place}.lock"):
            found = self._checked(info, file)  # another process may have fetched it
            if found is not None:
                return found
            resumed = part.exists()
            download = Download(
                file.url,
                part,
                size=file.size,
                https_only=self._https_only,
                progress=report,
                stall=self._stall,
                pause=self._pause,
            )
            download.run()
            if resumed and not self._whole(part, file):
                _logger.warning("%s, which was fetched in parts, does not fit together; fetching it anew", file.url)
                part.unlink()
                download.run()
            if not self._whole(part, file):
                aside = place.with_name(f"{place.name}.wrong-{_hash(part, 'md5')[:8]}")
                part.replace(aside)
                raise DownloadError(
                    f"{file.url} is not the file that was declared: its hash or size differs; it is now {aside}",
                    f"Try again later, or report it to the author of {info.distribution}",
                )
            part.replace(place)
        return place

    def _whole(self, path: Path, file: WeightFile) -> bool:
        size = path.stat().st_size
        return file.size in {None, size} and self._matches(path, file) is not False

    def _verified(self, info: ModelInfo, file: WeightFile) -> Verified:
        place = self.place(info, file)
        for path in self._candidates(info, file):
            matches = self._matches(path, file, anew=True)
            state = State.UNCHECKED if matches is None else State.WHOLE if matches else State.WRONG
            return Verified(info, file, path, state)
        return Verified(info, file, place, State.PARTIAL if _part_of(place).exists() else State.MISSING)

    def _describe(self, info: ModelInfo, file: WeightFile) -> str:
        size = "" if file.size is None else f", {format_bytes(file.size)}"
        return f"{file.filename} ({file.source}{size}) to be put at {self.place(info, file)}"


def declared(file: WeightFile) -> WeightFile:
    """A file as its plugin declares it, or as the environment replaces that."""
    if not file.env:
        return file
    values = {name: os.environ.get(f"{file.env}_{name.upper()}", "") for name in ("url", "sha256", "md5")}
    changes: dict[str, str] = {name: value for name, value in values.items() if value}
    if "url" in changes:
        changes.update(repo="", filename=file.filename)
    if "md5" in changes and "sha256" not in changes:
        changes["sha256"] = ""
    return replace(file, **changes) if changes else file  # type: ignore[arg-type] # they are its strings


def _part_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.part")


def _hash(path: Path, algorithm: str) -> str:
    import hashlib

    from iopaint_core.entries import raise_if_cancelled

    total = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            raise_if_cancelled()
            total.update(chunk)
    return total.hexdigest()
