"""What goes to the Hub, and what never does: the student, its results and a card, without a token."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from huggingface_hub import CommitInfo
from transformers.trainer_utils import HubStrategy, SaveStrategy, TrainOutput
from transformers.utils import PushInProgress

from hf_distill.reporting.model_card import create_card
from hf_distill.uploads import PushError, PushLedger, Upload, copy_student, open_repository

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

__all__ = ["PublishingMixin", "PushError", "check_push"]


def check_push(args: Any) -> None:
    """Make sure that a run may push, before it trains anything; its trainer, which asks too, may be built late.

    Process 0 asks, and every process hears the answer: one left behind would wait for it in vain.

    Args:
        args: training arguments with ``push_to_hub`` and ``hub_model_id``.

    Raises:
        PushError: no token, one that may not write to the repository, or no Hub to ask.

    Example:
        >>> from transformers import TrainingArguments
        >>> check_push(TrainingArguments("out", use_cpu=True))  # does not push: nothing to ask
    """
    if not args.push_to_hub:
        return
    failure: list[str | None] = [None]
    if args.process_index == 0:
        try:
            open_repository(PushLedger().api, args.hub_model_id, args.hub_token, args.hub_private_repo)
        except (OSError, PushError) as error:  # OSError: PermissionError, and what the Hub's client raises
            failure = [str(error)]
    if args.world_size > 1:
        broadcast_object_list(failure)
    if failure[0] is not None:
        raise PushError(failure[0])


class PublishingMixin(_Base):
    """The Hub side of plain ``Trainer``, but that nothing secret is pushed and no failure is silent."""

    hub_pushes: PushLedger | None = None  # process zero only, from init_hf_repo on
    hub_model_id: str | None  # type: ignore[assignment] # Trainer's stub knows only the first value, None
    push_in_progress: Any = None  # a PushInProgress, whose own types are wrong

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository if it is not there, and make sure that it can be written to.

        Args:
            token: a token with write permission; ``args.hub_token`` by default.
            private: whether a new repository is private; ``args.hub_private_repo`` by default.

        Raises:
            PermissionError: no token, or one that may not write to the repository.
        """
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or self._output_dir.absolute().name
        token = token if token is not None else self.args.hub_token
        private = private if private is not None else self.args.hub_private_repo
        pushes = PushLedger()
        self.hub_model_id = open_repository(pushes.api, name, token, private)
        self.hub_pushes = pushes
        self.push_in_progress = None

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as ``Trainer.train`` does, and end in an error if a push of this run is missing on the Hub.

        Args:
            *args: as for ``Trainer.train``.
            **kwargs: as for ``Trainer.train``.

        Raises:
            PushError: a push in the background failed and no later one made up for it. Training is over
                by then and the student saved in ``args.output_dir``.
        """
        output = super().train(*args, **kwargs)
        # A trial's pushes wait for the end of the search: one that failed must not stop the other trials.
        if self.args.push_to_hub and self.hp_search_backend is None:
            failure = [None if self.hub_pushes is None else self.hub_pushes.take_failures()]
            if self.args.world_size > 1:
                broadcast_object_list(failure)  # so that every process stops, and none waits for process zero
            if failure[0] is not None:
                self.save_model(_internal_call=True)
                raise PushError(failure[0])
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student as ``Trainer.save_model`` does, with no token in ``training_args.bin``.

        Args:
            output_dir: the folder; ``args.output_dir`` by default.
        """
        with _tokens_taken_out(self.args):
            super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the student's card, ``README.md``, into ``args.output_dir``.

        Args:
            language: the language of the data, an ISO code.
            license: the licence of the student.
            tags: tags beside our own.
            model_name: the name of the student; the repository's by default.
            finetuned_from: the model that the student's weights started from, if any.
            tasks: the pipeline tag; read from the student's class by default.
            dataset_tags: Hub ids of the data sets.
            dataset: names of the data sets, for a reader.
            dataset_args: their configurations.
        """
        if self.is_world_process_zero():
            create_card(
                self,
                language=language,
                license=license,
                tags=tags,
                model_name=model_name,
                started_from=finetuned_from,
                tasks=tasks,
                dataset_tags=dataset_tags,
                dataset_names=dataset,
                dataset_configurations=dataset_args,
            ).save(self._output_dir / "README.md")

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Save the student, write its card, and push both with whatever else lies in ``args.output_dir``.

        ``training_args.bin`` is not pushed, nor are checkpoints and folders that hold another model.

        Args:
            commit_message: the first line of the commit.
            blocking: wait for the push to arrive.
            token: a token with write permission; ``args.hub_token`` by default.
            revision: the branch; ``args.hub_revision`` by default.
            private: whether a new repository is private; ``args.hub_private_repo`` by default.
            **kwargs: passed to ``create_model_card``.

        Returns:
            The commit, or a future of it if not ``blocking``; None on all processes but zero.

        Raises:
            PushError: this push failed, or one before it that it does not make up for.
            PermissionError: no token, or one that may not write to the repository.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        # Before anything is written: a push in the background must not read files that are being replaced.
        self._finish_current_push()
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**{**kwargs, "tags": self._all_tags(kwargs.get("tags"))})
        upload = self._upload(self._output_dir, commit_message or "End of training", token, revision)
        assert self.hub_pushes is not None
        if not blocking:
            future = self.hub_pushes.start(upload)
            self.push_in_progress = PushInProgress([future])  # type: ignore[arg-type] # it takes a list
            return future
        commit: CommitInfo | None = None
        cause: PushError | None = None
        try:
            commit = self.hub_pushes.upload(upload)
        except PushError as error:
            cause = error
        missing = self.hub_pushes.take_failures()
        if missing is not None:
            raise PushError(missing) from cause
        return commit

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the student out of a checkpoint in the background, and the checkpoint if the strategy says so."""
        strategy = HubStrategy(self.args.hub_strategy)
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        current = self.push_in_progress
        busy = current is not None and not current.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # Copied rather than saved again: saving would gather the weights of all processes a second time.
        copy_student(Path(checkpoint_folder), self._output_dir)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(str(self._output_dir))
        self.create_model_card(tags=self._all_tags(None))
        message = (
            f"Training in progress, step {self.state.global_step}"
            if self.args.save_strategy == SaveStrategy.STEPS
            else f"Training in progress, epoch {int(self.state.epoch or 0)}"
        )
        uploads = [self._upload(self._output_dir, message)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = strategy == HubStrategy.CHECKPOINT
            path = "last-checkpoint" if last else Path(checkpoint_folder).name
            uploads.append(self._upload(Path(checkpoint_folder), f"{message}, checkpoint", path_in_repo=path))
        assert self.hub_pushes is not None
        jobs = [self.hub_pushes.start(upload) for upload in uploads]
        if busy:
            current.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type] # it takes a list

    @property
    def _output_dir(self) -> Path:
        return Path(str(self.args.output_dir))

    def _upload(
        self,
        folder: Path,
        commit_message: str,
        token: str | None = None,
        revision: str | None = None,
        path_in_repo: str = "",
    ) -> Upload:
        return Upload(
            repo_id=str(self.hub_model_id),
            folder=folder,
            commit_message=commit_message,
            path_in_repo=path_in_repo,
            token=token if token is not None else self.args.hub_token,
            revision=revision if revision is not None else self.args.hub_revision,
        )

    def _all_tags(self, tags: str | list[str] | None) -> list[str]:
        given = [tags] if isinstance(tags, str) else list(tags or [])
        return list(dict.fromkeys([*given, *(getattr(self.model, "model_tags", None) or [])]))


@contextmanager
def _tokens_taken_out(args: Any) -> Iterator[None]:
    """Empty the fields that hold a token, by the name that ``TrainingArguments.to_dict`` masks them by."""
    names = [f.name for f in fields(args) if f.name.endswith("_token")]
    tokens = {name: getattr(args, name) for name in names}
    try:
        for name in names:
            setattr(args, name, None)
        yield
    finally:
        for name, token in tokens.items():
            setattr(args, name, token)
