"""Caches on their way to the Hub and back, as data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from hf_distill.cache.errors import CacheError


def push(folder: Path, names: Sequence[str], repo_id: str, private: bool | None, token: str | None) -> str:
    """Upload some files of a folder as a data set, and return its address."""
    api = HfApi(library_name="hf_distill", token=token)
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=folder,
        allow_patterns=list(names),
        commit_message="Teacher cache",
    )
    return f"{api.endpoint}/datasets/{repo_id}"


def local_folder(folder: str | Path) -> Path:
    """Return the folder, fetched from the Hub where it is the id of a data set there."""
    path = Path(folder)
    text = str(folder)
    if path.exists() or isinstance(folder, Path) or text.count("/") != 1 or text.startswith((".", "/")):
        return path
    try:
        return Path(snapshot_download(text, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CacheError(
            f"{folder}: expected a folder, or the id of a data set on the Hub, found neither: "
            f"{str(error).splitlines()[0]}"
        ) from error
