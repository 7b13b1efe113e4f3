"""Folders on their way to the Hub: the check before training, the upload, and the list of what is missing."""

from __future__ import annotations

import glob
import json
import logging
import shlex
import shutil
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

logger = logging.getLogger(__name__)

# `*` matches slashes too, so that no folder's copy is pushed, one left by a plain Trainer included.
TRAINING_ARGUMENTS_PATTERN = "*training_args.bin"


class PushError(RuntimeError):
    """A push to the Hub that did not arrive; it names the folder and the command to push it again."""


@dataclass(frozen=True)
class Upload:
    """One folder on its way to the Hub.

    Args:
        repo_id: the repository, ``user/name``.
        folder: the folder on disk.
        commit_message: the first line of the commit.
        path_in_repo: where it goes; empty for the root of the repository.
        token: the token to push with; the one logged in with if None.
        revision: the branch; the main one if None.
    """

    repo_id: str
    folder: Path
    commit_message: str
    path_in_repo: str = ""
    token: str | None = field(default=None, repr=False)
    revision: str | None = None

    def ignored(self) -> list[str]:
        """List the patterns of the files that stay on disk.

        At the root these are, beside the Trainer's own, the folders in it that hold another model:
        the teacher of a recipe, the student of a baseline, the checkpoints of a trial.
        """
        if self.path_in_repo:
            return [TRAINING_ARGUMENTS_PATTERN]
        patterns = ["_*", f"{PREFIX_CHECKPOINT_DIR}-*", TRAINING_ARGUMENTS_PATTERN]
        for config in sorted(self.folder.glob(f"*/**/{CONFIG_NAME}")):
            folder = config.parent.relative_to(self.folder).as_posix()
            if not folder.startswith(("_", f"{PREFIX_CHECKPOINT_DIR}-")):
                patterns.append(f"{glob.escape(folder)}/*")
        return patterns

    def command(self) -> str:
        """Give the command that does this upload by hand, without the token.

        Example:
            >>> Upload("me/student", Path("/runs/student"), "a push", "last-checkpoint").command()
            "hf upload me/student /runs/student last-checkpoint '--exclude=*training_args.bin'"
        """
        words = ["hf", "upload", self.repo_id, str(self.folder.absolute()), self.path_in_repo or "."]
        words += [f"--exclude={pattern}" for pattern in self.ignored()]
        if self.revision is not None:
            words.append(f"--revision={self.revision}")
        return shlex.join(words)


class PushLedger:
    """Does a run's uploads one after another, and knows which of them are missing on the Hub.

    A failure at a path counts until a later upload to the same path arrives.
    """

    def __init__(self) -> None:
        self.api = HfApi(library_name="hf_distill")
        self.failures: dict[str, PushError] = {}

    def upload(self, upload: Upload) -> CommitInfo:
        """Upload a folder, and log and record a failure.

        Args:
            upload: the folder and its destination.

        Raises:
            PushError: whatever went wrong, with what to do about it.
        """
        try:
            commit = self.api.upload_folder(
                repo_id=upload.repo_id,
                folder_path=upload.folder,
                path_in_repo=upload.path_in_repo,
                commit_message=upload.commit_message,
                token=upload.token,
                revision=upload.revision,
                ignore_patterns=upload.ignored(),
            )
        except Exception as error:  # every kind: one in a background thread is lost unless kept here
            destination = f"{upload.repo_id}/{upload.path_in_repo}".rstrip("/")
            if upload.folder.is_dir():
                where = f"The files are safe in {upload.folder.absolute()}"
                remedy = f"{where}; push them again with:\n  {upload.command()}"
            else:
                remedy = f"{upload.folder} was deleted before it was pushed: raise save_total_limit."
            failure = PushError(
                f"The push of '{upload.commit_message}' to {destination} failed: {_one_line(error)}\n{remedy}"
            )
            self.failures[upload.path_in_repo] = failure
            logger.error("%s", failure)
            raise failure from error
        self.failures.pop(upload.path_in_repo, None)
        return commit

    def take_failures(self) -> str | None:
        """Give what is missing on the Hub, each failure once, or None."""
        failures = [str(failure) for failure in self.failures.values()]
        self.failures.clear()
        return "\n".join(failures) or None

    def start(self, upload: Upload) -> Future[CommitInfo]:
        """Do the same in the background, after the uploads started before."""
        return self.api.run_as_future(self.upload, upload)


def open_repository(api: HfApi, name: str, token: str | None, private: bool | None) -> str:
    """Create the repository if it is not there, and make sure that the token may write to it.

    Args:
        api: the client.
        name: ``user/name``, or a name in the user's own namespace.
        token: the token to write with; the one logged in with if None.
        private: whether a new repository is private.

    Returns:
        The full id, ``user/name``.

    Raises:
        PermissionError: no token, or one that may not write to the repository.
        PushError: the Hub could not be reached.
    """
    if token is None and get_token() is None:
        raise PermissionError(
            f"push_to_hub needs a token that may write to '{name}', and none was found.\n"
            "Log in with `hf auth login`, set HF_TOKEN, pass --hub_token, or leave push_to_hub out."
        )
    # create_repo passes over a refusal where the repository exists, hence the write check after it.
    repo_id = name
    try:
        repo_id = api.create_repo(name, token=token, private=private, exist_ok=True).repo_id
        api.auth_check(repo_id, token=token, write=True)
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403) or isinstance(error, RepositoryNotFoundError):
            raise _permission_error(api, repo_id, token, error) from error
        if error.response.status_code == 404 and "auth-check" in str(error.response.url):
            logger.warning("This Hub has no write check; a missing permission for '%s' shows late.", name)
            return repo_id
        raise
    except Exception as error:  # of the HTTP library, which is httpx or httpx2, or offline mode
        raise PushError(
            f"The Hub could not be asked whether '{repo_id}' may be written to: {_one_line(error)}\n"
            "Nothing was trained. Check the network and HF_ENDPOINT, or leave push_to_hub out and push later."
        ) from error
    return repo_id


def copy_student(checkpoint_folder: Path, output_dir: Path) -> None:
    """Copy the student's weights and config, but not the state of its training, out of a checkpoint.

    Args:
        checkpoint_folder: a checkpoint written by the Trainer.
        output_dir: where the copies go.
    """
    names = [CONFIG_NAME, GENERATION_CONFIG_NAME, WEIGHTS_NAME, SAFE_WEIGHTS_NAME]
    names += [ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, ADAPTER_SAFE_WEIGHTS_NAME]
    for index in (WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_INDEX_NAME):
        if (checkpoint_folder / index).is_file():
            shards = json.loads((checkpoint_folder / index).read_text(encoding="utf-8"))["weight_map"]
            names += [index, *sorted(set(shards.values()))]
    for name in names:
        if (checkpoint_folder / name).is_file():
            shutil.copy(checkpoint_folder / name, output_dir / name)


def _permission_error(api: HfApi, name: str, token: str | None, error: HfHubHTTPError) -> PermissionError:
    try:
        user = f"the user '{api.whoami(token=token)['name']}'"
    except HfHubHTTPError:
        user = "this token's user (the Hub does not know the token)"
    return PermissionError(
        f"push_to_hub: {user} may not write to '{name}' ({_one_line(error)}).\n"
        "Use a token that may (`hf auth login`, HF_TOKEN or --hub_token), or another --hub_model_id."
    )


def _one_line(error: BaseException) -> str:
    causes: list[str] = []
    current: BaseException | None = error
    while current is not None and len(causes) < 3:  # huggingface_hub wraps what the network says
        causes.append(" ".join(f"{type(current).__name__}: {current}".split()))
        current = current.__cause__
    return "; caused by ".join(dict.fromkeys(causes))
