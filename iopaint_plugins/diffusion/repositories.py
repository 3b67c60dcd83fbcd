"""Folders of the Hugging Face hub, from its cache, or fetched into it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from iopaint_core import DownloadError, MissingWeightsError

if TYPE_CHECKING:
    from iopaint_core import LoadContext

_CONFIGS = ["*.json", "*.txt", "*.model"]


def repository(name: str, context: LoadContext, *, weights: bool) -> Path:
    """The folder of a repository; without `weights`, its configs and tokenizers suffice.

    Raises `MissingWeightsError` offline, `DownloadError`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = [*_CONFIGS, "*.safetensors"] if weights else _CONFIGS
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
    except LocalEntryNotFoundError as error:
        if context.offline:
            raise MissingWeightsError(
                f"{name} is needed, and is not in the cache of the Hugging Face hub",
                f"Go online once, or fetch it elsewhere and copy it: hf download {name}",
            ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # its HTTP library's errors are no part of its interface
        raise DownloadError(
            f"{name} can't be fetched: {' '.join(str(error).split())}", "Look at the connection and try again"
        ) from error
