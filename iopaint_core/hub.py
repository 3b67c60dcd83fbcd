"""Files and folders of the Hugging Face hub, in the cache that all programs share."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from iopaint_core.errors import DownloadError, MissingWeightsError
from iopaint_core.schema import WeightFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iopaint_core.schema import LoadContext

_CONFIGS = ["*.json", "*.txt", "*.model"]
_WEIGHTS = ["*/*.safetensors"]
"""Of components; beside their folders lies the whole as a single file, in some repositories."""


def hub_cache() -> Path:
    """Where the Hugging Face hub caches, by the environment of now: the library reads it only when imported."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def cached_file(file: WeightFile) -> Path | None:
    """A file of the hub, if it is in the cache."""
    path = _snapshot(file.repo, file.revision) / file.filename
    return path if path.is_file() else None


def cached_blob(sha256: str) -> Path | None:
    """Return a large file of any repository in the cache, which is named by its sha256."""
    return next(hub_cache().glob(f"models--*/blobs/{sha256}"), None)


def fetch_file(file: WeightFile) -> Path:
    """Fetch a file of the hub into the cache. Raises `DownloadError`."""
    from huggingface_hub import hf_hub_download

    with _explained(file.repo, file.revision, file.filename):
        return Path(
            hf_hub_download(
                file.repo,
                file.filename,
                revision=file.revision,
                cache_dir=hub_cache(),
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
        )


def hub_file(repo: str, filename: str, context: LoadContext) -> Path:
    """A file of a repository, from the cache of the hub, or fetched into it.

    Raises `MissingWeightsError` offline, and `DownloadError`.
    """
    file = WeightFile(repo=repo, filename=filename)
    found = cached_file(file)
    if found is not None:
        return found
    if context.offline:
        raise _missing(f"{repo}/{filename}", f"{repo} {filename}")
    return fetch_file(file)


def hub_folder(repo: str, context: LoadContext, *, weights: bool = True) -> Path:
    """The folder of a repository of components, from the cache of the hub, or fetched into it.

    Without `weights`, configs and tokenizers suffice; with them, those in safetensors files come. What was fetched
    once is used without a connection.

    Raises `MissingWeightsError` offline, and `DownloadError`.
    """
    from huggingface_hub import snapshot_download

    folder = _snapshot(repo, "main")
    if _is_whole(folder, weights=weights):
        return folder
    if context.offline:
        raise _missing(repo, repo)
    with _explained(repo, "main", "model_index.json"):
        return Path(
            snapshot_download(
                repo,
                cache_dir=hub_cache(),
                endpoint=os.environ.get("HF_ENDPOINT"),
                allow_patterns=[*_CONFIGS, *(_WEIGHTS if weights else [])],
            )
        )


def _missing(what: str, arguments: str) -> MissingWeightsError:
    return MissingWeightsError(
        f"{what} is needed, and is not in {hub_cache()}",
        f"Go online once, or fetch it elsewhere and copy that folder: hf download {arguments}",
    )


def _snapshot(repo: str, revision: str) -> Path:
    """Where the cache has a revision, if it does."""
    repository = hub_cache() / f"models--{repo.replace('/', '--')}"
    with contextlib.suppress(OSError):
        revision = (repository / "refs" / revision).read_text().strip()
    return repository / "snapshots" / revision


def _is_whole(folder: Path, *, weights: bool) -> bool:
    """Whether each component is there that the index names, and its weights if it is a module."""
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
        parts = [folder / name for name, entry in index.items() if isinstance(entry, list) and all(entry)]
    except (OSError, ValueError, AttributeError):
        return False
    return all(
        part.is_dir() and not (weights and (part / "config.json").is_file() and not any(part.glob("*.safetensors")))
        for part in parts
    )


@contextlib.contextmanager
def _explained(repo: str, revision: str, filename: str) -> Iterator[None]:
    """What the hub's library raises, as `DownloadError`."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repo} is gated: its owner wants to know who uses it",
            f"Ask for access at https://huggingface.co/{repo}, then log in: hf auth login, or set HF_TOKEN",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"The hub has no repository {repo}, or it is private",
            "Look at the name; if it is private, log in: hf auth login, or set HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{repo} has no revision {revision}", "Look at its page") from error
    except errors.RemoteEntryNotFoundError as error:
        raise DownloadError(f"{repo} has no file {filename}", "Look at its page") from error
    except Exception as error:  # its HTTP library's errors are no part of its interface
        raise DownloadError(
            f"{repo}/{filename} can't be fetched: {' '.join(str(error).split())}",
            "Look at the connection and try again: what has come is kept",
        ) from error
