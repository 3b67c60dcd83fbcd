"""Diffusion models on this machine: files and folders, found where they are, told by what is in them.

Nothing is copied, and no weights are read: the headers of single files, and the small JSON files of folders in
diffusers' layout.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from iopaint_core import (
    ModelInfo,
    ModelType,
    TensorFiles,
    WeightsError,
    default_context,
    hub_cache,
    model_folders,
)
from iopaint_plugins.diffusion.checkpoints import RULES, checkpoint_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Kind = Literal["single file", "folder", "hub"]

_PLACES = ("stable_diffusion", "stable_diffusion_xl")
"""IOPaint's folders for models of the user's own; here, which of them a model lies in says nothing."""
_SD = {f"StableDiffusion{task}Pipeline" for task in ("", "Img2Img", "Inpaint")}
_SDXL = {f"StableDiffusionXL{task}Pipeline" for task in ("", "Img2Img", "Inpaint")}
_BY_CHANNELS = {
    4: (ModelType.DIFFUSERS_SD, ModelType.DIFFUSERS_SDXL),
    9: (ModelType.DIFFUSERS_SD_INPAINT, ModelType.DIFFUSERS_SDXL_INPAINT),
}
"""Types of Stable Diffusion and of XL by what the UNet takes: the pipelines for inpainting run base models too."""
_OTHERS = ("StableDiffusion", "Flux", "Kandinsky", "PaintByExample", "Qwen", "ZImage", "AnyText")
"""How the names of other pipelines begin that work on pictures."""
_MAX_JSON = 1_000_000
"""Bytes; real ones have a few thousand."""
_SETTLED = 2_000_000_000
"""Nanoseconds: what was written to more recently may change again within one tick of its file system's clock."""


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine."""

    name: str
    """As users of IOPaint know it: the file's name, the folder's name, or the repository on the hub; with parts of
    the path before it where two would be equal."""
    path: Path
    """The file or folder; for a model of the hub, its snapshot in the cache."""
    type: ModelType
    kind: Kind

    @property
    def info(self) -> ModelInfo:
        """The model as hosts list it."""
        return ModelInfo(name=self.name, type=self.type, path=self.path)


@dataclass(frozen=True)
class LocalModels:
    """What a search found."""

    models: tuple[LocalModel, ...]
    """In the order of the folders searched, and by path within each; their names differ."""
    problems: tuple[tuple[Path, WeightsError], ...]
    """Files and folders that are no model that can be used, and why."""
    unusable: tuple[ModelInfo, ...]
    """The same as hosts list them, under names that no model has."""


def local_models() -> LocalModels:
    """Find the diffusion models of this machine, in the folders that `docs/weights.md` lists."""
    home = default_context().cache
    return find_local_models(model_folders(), home=home, memory=home / "checkpoints.json")


def find_local_models(folders: Iterable[Path] = (), *, home: Path, memory: Path | None = None) -> LocalModels:
    """Find diffusion models in `home`, IOPaint's folders, `folders` and the cache of the Hugging Face hub.

    `home` and IOPaint's cache (`XDG_CACHE_HOME`) have folders `stable_diffusion` and `stable_diffusion_xl`. All
    folders are searched at any depth, through links, each once; what can't be entered is passed over. A folder with
    `model_index.json` is a model itself. With `memory`, types of single files are remembered there; the file is a
    cache, which processes may share and anyone may delete.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    search = _Search(_TypeMemory(memory))
    for folder in (*(root / place for root in (home, cache) for place in _PLACES), *folders):
        search.folder(folder.absolute())
    search.hub(hub_cache().absolute())
    search.memory.save()
    models = _told_apart(search.models)
    return LocalModels(
        models,
        tuple((path, error) for _, path, error in search.problems),
        tuple(_unusable(search.problems, {model.name for model in models})),
    )


class _Search:
    """Gathers models and problems; a folder that was searched is not searched again."""

    def __init__(self, memory: _TypeMemory) -> None:
        self.memory = memory
        self.models: list[LocalModel] = []
        self.problems: list[tuple[str, Path, WeightsError]] = []
        self._seen: set[tuple[int, int]] = set()

    def folder(self, root: Path) -> None:
        """Search a folder: the files of each first, then the folders in it."""
        waiting = [root]
        while waiting:
            folder = waiting.pop()
            entries = self._entries(folder)
            if folder.name.startswith("models--") and folder / "snapshots" in entries:
                self._repository(folder)
                continue
            for path in entries:
                if path.suffix.lower() in {".safetensors", ".ckpt"} and not stat.S_ISDIR(_mode(path)):
                    self._add(path, "single file", path.name)
            if folder / "model_index.json" in entries:
                self._add(folder, "folder", folder.name)
            else:
                waiting += reversed([path for path in entries if stat.S_ISDIR(_mode(path))])

    def hub(self, root: Path) -> None:
        """Search a cache of the hub."""
        for path in self._entries(root):
            if path.name.startswith("models--") and self._entries(path):
                self._repository(path)

    def _entries(self, folder: Path) -> list[Path]:
        """What is in a folder, in order; nothing if it was searched, is missing, or can't be entered."""
        try:
            state = folder.stat()
            if (state.st_dev, state.st_ino) in self._seen:
                return []
            self._seen.add((state.st_dev, state.st_ino))
            return sorted(folder.iterdir())
        except OSError:
            return []

    def _repository(self, folder: Path) -> None:
        """One that the hub cached as `huggingface_hub` does: the revision that is `main`, else the newest one."""
        parts = folder.name.split("--")[1:]
        if len(parts) > 2 or not all(re.fullmatch(r"\w[\w.-]*", part) for part in parts):
            return  # no name that the hub gives, and one that may lead elsewhere: `models--..--..`
        name = "/".join(parts)
        if any(model.kind == "hub" and model.name == name for model in self.models):
            return
        snapshots = {path.name: path for path in self._entries(folder / "snapshots")}
        newest = sorted(snapshots.values(), key=_changed, reverse=True)
        with contextlib.suppress(OSError, UnicodeDecodeError):
            main = (folder / "refs" / "main").read_text().strip()
            newest = [*(snapshots[main] for main in [main] if main in snapshots), *newest]
        for snapshot in newest:
            if stat.S_ISREG(_mode(snapshot / "model_index.json")):
                self._add(snapshot, "hub", name)
                return

    def _add(self, path: Path, kind: Kind, name: str) -> None:
        try:
            if ":" in name or not name.isprintable():
                raise WeightsError(
                    f"{str(path)!a} has a name that no model may have: with a colon, or what can't be shown",
                    "Rename it",
                )
            found = self.memory.type_of(path) if kind == "single file" else _type_of_folder(path)
        except WeightsError as error:
            self.problems.append((name, path, error))
        else:
            if found is not None:
                self.models.append(LocalModel(name, path, found, kind))


def _type_of_folder(folder: Path) -> ModelType | None:
    """The type of a folder in diffusers' layout; None for a pipeline that does not repair pictures.

    Raises `WeightsError`.
    """
    pipeline = _read_json(folder / "model_index.json").get("_class_name")
    if not isinstance(pipeline, str):
        raise WeightsError(f"{folder / 'model_index.json'} names no pipeline", "Get it again")
    known = pipeline in _SD | _SDXL
    if not known and not pipeline.startswith(_OTHERS):
        return None
    part = "unet" if known else "*"
    if not any(folder.glob(f"{part}/*.safetensors")):
        if not any(folder.glob(f"{part}/*.bin")):
            return None  # configs alone, as single files need them
        raise WeightsError(
            f"{folder} has its weights as pickles, which can run code when they are loaded", "Get it as safetensors"
        )
    if not known:
        return ModelType.DIFFUSERS_OTHER
    config = _read_json(folder / "unet" / "config.json")
    if config.get("cross_attention_dim") == 1280 and pipeline in _SDXL:
        raise WeightsError(
            f"{folder} is the refiner of Stable Diffusion XL, which only finishes pictures of another model",
            "Take the base model, or an inpainting one",
        )
    channels = config.get("in_channels", 4)  # diffusers' default
    types = _BY_CHANNELS.get(channels) if isinstance(channels, int) else None
    return ModelType.DIFFUSERS_OTHER if types is None else types[pipeline in _SDXL]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if not stat.S_ISREG(_mode(path)):
            raise WeightsError(f"{path} is missing, or can't be read", "Get the model again")
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} can't be read as JSON", "It may be cut off or damaged: get it again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no object", "It may be damaged: get it again")
    return content


def _mode(path: Path) -> int:
    """What kind of thing is there, through links; 0 if there is nothing that can be looked at."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _changed(path: Path) -> tuple[int, str]:
    try:
        return path.stat().st_mtime_ns, path.name
    except OSError:
        return 0, path.name


def _told_apart(models: list[LocalModel]) -> tuple[LocalModel, ...]:
    """The models, with as many folders before equal names as it takes; names of the hub stay."""
    depths = [1] * len(models)
    while True:
        names = [
            model.name if depth == 1 else "/".join(model.path.parts[-depth:])
            for model, depth in zip(models, depths, strict=True)
        ]
        counts = Counter(names)
        equal = [
            i
            for i, model in enumerate(models)
            if counts[names[i]] > 1 and model.kind != "hub" and depths[i] < len(model.path.parts)
        ]
        if not equal:
            return tuple(replace(model, name=name) for model, name in zip(models, names, strict=True))
        for i in equal:
            depths[i] += 1


def _unusable(problems: list[tuple[str, Path, WeightsError]], taken: set[str]) -> Iterator[ModelInfo]:
    """List what can't be used, each by its name, or with as many folders before it as it takes to be another."""
    for name, path, error in problems:
        names = (name, *("/".join(path.parts[-depth:]) for depth in range(2, len(path.parts) + 1)))
        shown = ("".join(c if c.isprintable() and c != ":" else "?" for c in name) for name in names)
        if free := next((name for name in shown if name not in taken), None):
            taken.add(free)
            yield ModelInfo(name=free, type=ModelType.DIFFUSERS_OTHER, path=path, unavailable=str(error))


class _TypeMemory:
    """What single files were found to be, in a JSON file; a file is known by path, inode, size and times.

    It is a cache: if it can't be read or written, files are looked at again.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._before: dict[str, Any] = {}
        self._now: dict[str, Any] = {}
        if path is not None:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
                content = json.loads(path.read_bytes())
                if content["rules"] == RULES:
                    self._before = dict(content["files"])

    def type_of(self, path: Path) -> ModelType:
        """The type of a single file. Raises `WeightsError`."""
        key, stamp = ascii(str(path)), list(TensorFiles((path,)).stamp()[0])
        match self._before.get(key):
            case [known, str(value), None] if known == stamp and value in set(ModelType):
                self._now[key] = [stamp, value, None]
                return ModelType(value)
            case [known, str(message), str(remedy)] if known == stamp:
                self._now[key] = [stamp, message, remedy]
                raise WeightsError(message, remedy)
        settled = time.time_ns() - path.stat().st_mtime_ns > _SETTLED
        try:
            found = checkpoint_type(path).model_type
        except WeightsError as error:
            if settled and not isinstance(error.__cause__, OSError):
                self._now[key] = [stamp, error.message, error.remedy]
            raise
        if settled:
            self._now[key] = [stamp, found.value, None]
        return found

    def save(self) -> None:
        """Keep what this search saw, for the next one."""
        if self._path is None or self._now == self._before:
            return
        aside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps({"rules": RULES, "files": self._now}))
            aside.replace(self._path)
