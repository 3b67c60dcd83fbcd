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
from iopaint_core.fetched import FetchedFile, FetchedFiles, plugin_folder
from iopaint_core.hub import cached_blob, cached_file, fetch_file
from iopaint_core.schema import HOST, format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from iopaint_core.schema import ModelInfo, PluginInfo, WeightFile

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


class Orphan(NamedTuple):
    """A file of weights whose plugin is gone."""

    path: Path
    plugin: str
    """`distribution:plugin`; empty if nobody knows."""
    nbytes: int
    is_fetched: bool
    """The store has fetched it, and may delete it; anything else may be the user's own."""


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
        self._folder = root / "weights"
        self._fetched = FetchedFiles(self._folder)
        self.offline = offline
        self.trust = trust
        self._https_only = https_only
        self._progress = progress
        self._stall = stall
        self._pause = pause

    def place(self, info: ModelInfo, file: WeightFile) -> Path:
        """Where a file of a model is to be put by hand, or comes when it is fetched from a URL.

        Those of repositories have names such as `model.safetensors`: each repository has a folder of its own.
        """
        return self._folder / plugin_folder(info.distribution, info.plugin_name) / file.repo / file.filename

    def data_dir(self, info: ModelInfo) -> Path:
        """Return the folder of a model's plugin for what it wants to keep; it may not exist yet."""
        return self.root / "plugins" / plugin_folder(info.distribution, info.plugin_name)

    def find(self, info: ModelInfo, file: WeightFile) -> Path | None:
        """A file that has the name and, if it is declared, the size; its content is not looked at."""
        return next(self._candidates(info, declared(file)), None)

    def missing(self, info: ModelInfo) -> tuple[WeightFile, ...]:
        """Files that are to be fetched before a model can be loaded."""
        return tuple(
            file
            for file in info.weights
            if self.find(info, file) is None and next(self._equals(declared(file)), None) is None
        )

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
            else self._checked(info, declared(file)) or self._linked(info, declared(file))
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
        used = {
            place
            for other in others
            if other != info
            for file in other.weights
            for place in self._own_places(other, file)
        }
        removed = []
        for place in {place for file in info.weights for place in self._own_places(info, file)} - used:
            for path in (place, _part_of(place)):
                if path.is_file():
                    path.unlink()
                    removed.append(path)
            if removed:
                self._fetched.forget(place)
        return sorted(removed)

    def orphans(self, plugins: Iterable[PluginInfo]) -> list[Orphan]:
        """Return the files of plugins that are gone; `plugins` are all that are installed, failed and disabled too.

        A single-file plugin whose file is there is not gone, nor is one that a host brings along.
        """
        return sorted(self._orphans(plugins))

    def remove_orphans(self, plugins: Iterable[PluginInfo]) -> list[Orphan]:
        """Delete the files of plugins that are gone, as far as the store has fetched them; returns these.

        Their `nbytes` is what was freed: nothing if another plugin has the same content.
        """
        removed = []
        for orphan in self.orphans(plugins):
            if orphan.is_fetched:
                with contextlib.suppress(FileNotFoundError):
                    links = orphan.path.stat().st_nlink
                    orphan.path.unlink()
                    removed.append(orphan._replace(nbytes=orphan.nbytes if links == 1 else 0))
        for file in self._gone(plugins):
            if not os.path.lexists(file.path):
                self._fetched.forget(file.path)
                for other in (f"{_part_of(file.path)}.etag", f"{file.path}.lock"):
                    Path(other).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # until one is not empty
                for folder in file.path.parents:
                    if folder == self._folder:
                        break
                    folder.rmdir()
        return removed

    def _orphans(self, plugins: Iterable[PluginInfo]) -> Iterator[Orphan]:
        plugins = list(plugins)
        gone = list(self._gone(plugins))
        seen = set()
        for file in gone:
            for path in (file.path, _part_of(file.path)):
                if path.is_file():
                    seen.add(path)
                    is_fetched = path != file.path or file.is_unmodified
                    yield Orphan(path, f"{file.distribution}:{file.plugin}", path.lstat().st_size, is_fetched)
        owned = {self._folder / plugin_folder(plugin.distribution, plugin.name) for plugin in plugins}
        owned |= {self._former_folder(plugin.name) for plugin in plugins}
        owned |= {
            self._folder / plugin_folder(file.distribution, file.plugin) for file in set(self._fetched) - set(gone)
        }
        for path in _files_below(self._folder):
            is_own = path.suffix in {".lock", ".sqlite", ".etag"}
            if not is_own and path not in seen and not owned & set(path.parents):
                yield Orphan(path, "", path.lstat().st_size, is_fetched=False)

    def _gone(self, plugins: Iterable[PluginInfo]) -> Iterator[FetchedFile]:
        """Give the record of the files whose plugins are gone."""
        installed = {plugin_folder(plugin.distribution, plugin.name) for plugin in plugins}
        for file in self._fetched:
            is_host = file.distribution == HOST
            is_file = Path(file.distribution, f"{file.plugin}.py").is_file()
            if not is_host and not is_file and plugin_folder(file.distribution, file.plugin) not in installed:
                yield file

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
        if self._folder.is_dir():
            yield from (path for path in self._own_places(info, file) if self._is_inside(path))
        if file.repo and file.digest is None:  # `model.safetensors` elsewhere may be anything
            return
        name = Path(file.filename).name
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        for hub in (os.environ.get("TORCH_HOME"), cache / "torch"):
            if hub:
                yield Path(hub) / "hub" / "checkpoints" / name
        yield Path(os.environ.get("U2NET_HOME") or Path.home() / ".u2net") / name

    def _own_places(self, info: ModelInfo, file: WeightFile) -> tuple[Path, Path, Path]:
        former = self._former_folder(info.plugin_name) / file.filename
        return self.place(info, file), self._second_place(info, file), former

    def _second_place(self, info: ModelInfo, file: WeightFile) -> Path:
        """Return where a file comes to if another one of the same plugin and name has its place."""
        import hashlib

        digest = hashlib.sha256(file.source.encode(errors="surrogatepass")).hexdigest()[:16]
        return self._folder / plugin_folder(info.distribution, info.plugin_name) / f"url~{digest}" / file.filename

    def _free_place(self, info: ModelInfo, file: WeightFile) -> Path:
        """Return where a file that is nowhere is to come to."""
        place = self.place(info, file)
        record = self._fetched.get(place)
        if place.exists() or (record and record.source != file.source and _part_of(place).exists()):
            return self._second_place(info, file)
        return place

    def _is_of_another(self, path: Path, info: ModelInfo, file: WeightFile) -> bool:
        """Whether a file in the store that is not known to be the declared one is another that was fetched."""
        if not path.is_relative_to(self._folder):
            return False
        if path == self._own_places(info, file)[-1]:
            return file.digest is not None
        record = self._fetched.get(path)
        return record is not None and record.is_unmodified and record.source != file.source

    def _former_folder(self, plugin: str) -> Path:
        """Return where files of a plugin came to when only its name was looked at, not its distribution's.

        They are used where they lie, by whichever plugin of that name they are right for, and never set aside.
        """
        return self._folder / re.sub(r"[^\w.-]", "_", plugin or "_")

    def _is_inside(self, place: Path) -> bool:
        """Whether no link below the folder of weights leads a place out of it."""
        path = str(self._folder)
        for part in place.parts[len(self._folder.parts) : -1]:
            path = os.path.join(path, part)  # noqa: PTH118 - a list of models asks hundreds of times
            if os.name == "nt" or os.path.islink(path):  # noqa: PTH114 - as above; junctions of Windows are no links
                return place.parent.resolve().is_relative_to(self._folder.resolve())
        return True

    def _check_inside(self, place: Path) -> None:
        """Raise `WeightsError` if a link leads a place out of the store."""
        if not self._is_inside(place):
            raise WeightsError(f"{place} leads out of {self._folder.resolve()} by a link", "Remove the link")

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
            matches = self._matches(path, file)
            if matches is not True and self._is_of_another(path, info, file):
                continue
            if matches is False:
                if path.is_relative_to(self._folder):
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
        algorithm, expected = file.digest
        found = None if anew else self._remembered(path, algorithm)
        if found is None:
            found = _hash(path, algorithm)
            self._remember(path, algorithm, found)
        return found == expected

    def _remembered(self, path: Path, algorithm: str) -> str | None:
        """Return the hash that was taken of a file in its state of now."""
        from iopaint_core.identity import DigestMemory
        from iopaint_core.tensorfiles import file_stamp

        return DigestMemory(self.root / "digests.sqlite").get(((file_stamp(path),), algorithm))

    def _remember(self, path: Path, algorithm: str, digest: str) -> None:
        from iopaint_core.identity import DigestMemory
        from iopaint_core.tensorfiles import file_stamp

        DigestMemory(self.root / "digests.sqlite").put(((file_stamp(path),), algorithm), digest)

    def _equals(self, file: WeightFile) -> Iterator[Path]:
        """Give files of the declared sha256: those in the store that were checked once, one in the hub's cache."""
        if not file.sha256:
            return
        for path in _files_below(self._folder):
            with contextlib.suppress(OSError, WeightsError):
                if file.size in {None, path.stat().st_size} and self._remembered(path, "sha256") == file.sha256:
                    yield path
        if blob := cached_blob(file.sha256):
            yield blob

    def _linked(self, info: ModelInfo, file: WeightFile) -> Path | None:
        """Return a file made from one of equal content, wherever there is one."""
        if next(self._equals(file), None) is None:
            return None
        with self._locked(info, file):
            return self._checked(info, file) or self._link(info, file)

    @contextlib.contextmanager
    def _locked(self, info: ModelInfo, file: WeightFile) -> Iterator[None]:
        """Keep other threads and processes from bringing the same file, or the same content, at this time."""
        from filelock import FileLock

        place, locks = self.place(info, file), self._folder / ".locks"
        self._check_inside(place)
        for folder in (place.parent, locks):
            folder.mkdir(parents=True, exist_ok=True)
        content = FileLock(locks / f"{file.sha256}.lock") if file.sha256 else contextlib.nullcontext()
        with content, FileLock(f"{place}.lock"):
            yield

    def _link(self, info: ModelInfo, file: WeightFile) -> Path | None:
        import uuid

        for path in self._equals(file):
            place = self._free_place(info, file)
            place.parent.mkdir(parents=True, exist_ok=True)
            new = place.with_name(f"{place.name}.{uuid.uuid4().hex}.part")
            is_known = self._remembered(path, "sha256") == file.sha256
            try:
                is_link = _link_or_copy(path.resolve(), new)
                if (is_link and is_known) or self._matches(new, file):
                    self._bring(new, place, info, file)
                    how = "a hard link to" if is_link else "a copy of"
                    _logger.info("%s is %s %s, whose content is equal", place, how, path)
                    return place
            except OSError as error:
                _logger.info("%s can't be taken for %s: %s", path, place, error)
            finally:
                new.unlink(missing_ok=True)  # of two links to one file, neither is moved over the other
        return None

    def _bring(self, new: Path, place: Path, info: ModelInfo, file: WeightFile) -> None:
        """Give a checked file its name, and remember whose it is; its hash too: a rename changes its state."""
        new.replace(place)
        if file.digest is not None:
            self._remember(place, *file.digest)
        self._fetched.put(place, info, file)

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
        from iopaint_core.download import Download
        from iopaint_core.entries import raise_if_cancelled

        def report(done: int, total: int | None) -> None:
            raise_if_cancelled()
            if self._progress is not None:
                self._progress(file, done, total)

        with self._locked(info, file):
            found = self._checked(info, file) or self._link(info, file)  # others may have fetched it
            if found is not None:
                return found
            place = self._free_place(info, file)
            place.parent.mkdir(parents=True, exist_ok=True)
            part = _part_of(place)
            self._fetched.begin(place, info, file)
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
            self._bring(part, place, info, file)
        return place

    def _whole(self, path: Path, file: WeightFile) -> bool:
        size = path.stat().st_size
        return file.size in {None, size} and self._matches(path, file) is not False

    def _verified(self, info: ModelInfo, file: WeightFile) -> Verified:
        place = self.place(info, file)
        for path in self._candidates(info, file):
            matches = self._matches(path, file, anew=True)
            if matches is not True and self._is_of_another(path, info, file):
                continue
            state = State.UNCHECKED if matches is None else State.WHOLE if matches else State.WRONG
            return Verified(info, file, path, state)
        return Verified(info, file, place, State.PARTIAL if _part_of(place).exists() else State.MISSING)

    def _describe(self, info: ModelInfo, file: WeightFile) -> str:
        size = "" if file.size is None else f", {format_bytes(file.size)}"
        return f"{file.filename} ({file.source}{size}) to be put at {self._free_place(info, file)}"


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


def _files_below(folder: Path) -> Iterator[Path]:
    """Give all files of a folder at any depth; links to folders are not followed, hidden folders left out."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in sorted(names))


def _link_or_copy(path: Path, new: Path) -> bool:
    """Make a hard link, or a copy where there can be none; returns whether it is a link."""
    try:
        new.hardlink_to(path)
    except OSError:  # another file system, or one without links
        import shutil

        shutil.copyfile(path, new)
        return False
    return True


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
