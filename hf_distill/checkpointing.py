"""Checkpoints that are whole or not there, over any Trainer: sealed when all is written, checked before a resume.

A checkpoint is opened with a manifest that says "not whole". Once every process has written its part and every file
is on the disk, that manifest is replaced, in one step, by the list of files and their sizes: the seal. Only then does
the Trainer push the checkpoint and delete older ones, so a run killed at any moment keeps its last whole one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import gather_object
from transformers import EarlyStoppingCallback
from transformers.training_args import ParallelMode

from hf_distill.whole_checkpoints import (
    ASIDE_PREFIX,
    MANIFEST_NAME,
    checkpoints,
    is_ours,
    last_whole_checkpoint,
    missing_parts,
    open_manifest,
    seal_manifest,
    settings_of,
    warn_of_skipped,
    written_by,
)

if TYPE_CHECKING:
    from transformers import Trainer as _Base
    from transformers.trainer_utils import TrainOutput
else:
    _Base = object

__all__ = ["CheckpointingMixin", "last_whole_checkpoint", "missing_parts"]

logger = logging.getLogger(__name__)


class CheckpointingMixin(_Base):
    """Over ``transformers.Trainer``: checkpoints are whole or not there, and only whole ones are resumed from.

    What a subclass adds to a checkpoint it writes in ``save_model``, ``_save_optimizer_and_scheduler`` or another
    method that ``_save_checkpoint`` calls before it writes the trainer's state: that is when the seal is set.
    """

    _unsealed_checkpoint: Path | None = None
    _had_stopped_early = False

    def before_checkpoint(self) -> None:
        """Do what must come before any checkpoint, on every process; an error raised here leaves none behind."""

    def checkpoint_settings(self) -> dict[str, Any]:
        """Return plain values that a resumed run should share with the one that wrote its checkpoint."""
        return {}

    # ---- resuming ----------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train as ``Trainer.train`` does, resuming from whole checkpoints only.

        Args:
            resume_from_checkpoint: True for the last whole one in ``output_dir``, or the path of one.
            trial: the trial of a hyper-parameter search.
            ignore_keys_for_eval: keys of the model's output that evaluation leaves out.

        Raises:
            ValueError: the checkpoint asked for is incomplete, or none in ``output_dir`` is whole.
        """
        self._had_stopped_early = False
        if resume_from_checkpoint and trial is None:  # a search's checkpoints are its own and hold less
            if resume_from_checkpoint is True:
                whole = self._last_whole_checkpoint()
            else:
                whole = self._checked_checkpoint(Path(resume_from_checkpoint))
            resume_from_checkpoint = str(self._put_back(whole))
            self._warn_of_world_size(whole.name, written_by(resume_from_checkpoint))
            self._warn_of_settings(whole.name, settings_of(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _last_whole_checkpoint(self) -> Path:
        """The checkpoint that ``resume_from_checkpoint=True`` stands for."""
        folder = Path(str(self.args.output_dir))
        reports = self._agreed_reports(checkpoints(folder))
        if not reports:
            raise ValueError(f"No valid checkpoint found in output directory ({folder})")
        whole = next((name for name, missing in reports.items() if not missing), None)
        if whole is None:
            found = "; ".join(f"{name} is incomplete: {', '.join(parts)}" for name, parts in reports.items())
            raise ValueError(
                f"No checkpoint in {folder} is whole. {found}. Put back what is missing, or train from the start, "
                f"without resume_from_checkpoint.{_advice(found)}"
            )
        if self.is_world_process_zero():
            warn_of_skipped(reports, whole)
        return folder / whole

    def _checked_checkpoint(self, asked: Path) -> Path:
        """The checkpoint that was asked for by its path, if it is whole."""
        folder = Path(os.path.abspath(asked)).parent
        reports = self._agreed_reports([asked, *checkpoints(folder)])
        missing = reports.pop(asked.name)
        if missing:
            found = ", ".join(missing)
            whole = next((name for name, parts in reports.items() if not parts), None)
            beside = (
                f"the last whole one beside it is {folder / whole}" if whole else "none beside it is whole"
            )
            raise ValueError(f"{asked} is incomplete: {found}; {beside}.{_advice(found)}")
        return asked

    def _agreed_reports(self, paths: list[Path]) -> dict[str, list[str]]:
        """What each checkpoint lacks, for all processes together: on several nodes each sees its own disk."""
        settings = {"save_only_model": self.args.save_only_model, "world_size": self.args.world_size}
        own = {path.name: missing_parts(path, **settings) for path in paths}
        if self.args.parallel_mode != ParallelMode.DISTRIBUTED:
            return own
        seen = gather_object([own])
        agreed = {}
        for name in dict.fromkeys(name for reports in seen for name in reports):
            parts = [
                part
                for rank, reports in enumerate(seen)
                for part in reports.get(name, [f"process {rank} does not see it"])
            ]
            agreed[name] = list(dict.fromkeys(parts))
        return agreed

    def _put_back(self, path: Path) -> Path:
        """Give a checkpoint that was set aside its place again, if what was to replace it never became whole."""
        place = path.with_name(path.name.removeprefix(ASIDE_PREFIX))
        if place == path or not missing_parts(place, save_only_model=self.args.save_only_model):
            return path
        self.accelerator.wait_for_everyone()  # until all have looked
        if self.args.should_save:
            if place.exists():
                shutil.rmtree(place)
            path.rename(place)
        self.accelerator.wait_for_everyone()
        return place

    def _warn_of_world_size(self, name: str, written: int) -> None:
        """Say that a run on another number of processes goes on, but not as it would have."""
        now = self.args.world_size
        if written != now and self.is_world_process_zero():
            logger.warning(
                "%s was written by %d process(es) and this run has %d: its batches and its dropout will not be those "
                "of a run that was never stopped",
                *(name, written, now),
            )

    def _warn_of_settings(self, name: str, written: dict[str, Any]) -> None:
        """Say that a run goes on under other settings than those that its checkpoint was trained with."""
        now = json.loads(json.dumps(self.checkpoint_settings(), default=str))
        changed = [key for key, value in now.items() if key in written and written[key] != value]
        for key in changed if self.is_world_process_zero() else ():
            logger.warning(
                "%s was trained with another %s: %s, and this run goes on with %s",
                *(name, key, written[key], now[key]),
            )

    def _load_callback_state(self) -> None:
        """Restore early stopping as well, whose patience ``Trainer`` by default starts anew at every resume."""
        super()._load_callback_state()
        # Declared as the list that it starts as.
        stored = cast("dict[str, Any]", self.state.stateful_callbacks)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                saved = stored.get(type(callback).__name__)
                saved = saved[0] if isinstance(saved, list) else saved
                if saved is not None:
                    used_up = saved["attributes"]["early_stopping_patience_counter"]
                    callback.early_stopping_patience_counter = used_up
                if callback.early_stopping_patience_counter >= callback.early_stopping_patience:
                    self._had_stopped_early = True

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run no further step where early stopping had ended the run before its last checkpoint was resumed from."""
        if self._had_stopped_early:
            logger.warning(
                "early stopping had ended this run at step %d: not trained further", self.state.global_step
            )
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    # ---- writing -----------------------------------------------------------------------

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint and seal it, before it is pushed and before older ones are deleted."""
        self.before_checkpoint()
        folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        self._open_checkpoint(folder)
        self._unsealed_checkpoint = folder
        try:
            with self._seal_once_the_state_is_written():
                super()._save_checkpoint(model, trial)
            self._seal_checkpoint()  # on the processes that don't write the state
        finally:
            self._unsealed_checkpoint = None

    def _open_checkpoint(self, folder: Path) -> None:
        """Clear the place: remove what a crash left there, and set aside what is whole until the new one is."""
        self.accelerator.wait_for_everyone()  # transformers' SIGTERM callback may still put its mark there
        if self.args.should_save:
            if folder.is_dir():
                aside = folder.with_name(ASIDE_PREFIX + folder.name)
                if not missing_parts(folder, save_only_model=self.args.save_only_model):
                    if aside.exists():
                        shutil.rmtree(aside)
                    folder.rename(aside)
                else:
                    shutil.rmtree(folder)
            folder.mkdir(parents=True)
            open_manifest(folder, self.args.world_size)
        self.accelerator.wait_for_everyone()  # none writes before the place is clear

    @contextlib.contextmanager
    def _seal_once_the_state_is_written(self) -> Iterator[None]:
        """Seal right after ``trainer_state.json``, the last file written.

        ``Trainer`` has no hook between the last file and the deletion of older checkpoints, and the seal must come
        between them.
        """
        write_state = self.state.save_to_json

        def write_state_and_seal(json_path: str) -> None:
            write_state(json_path)
            self._seal_checkpoint()

        self.state.save_to_json = write_state_and_seal  # type: ignore[method-assign] # on this object, for this save
        try:
            yield
        finally:
            del self.state.save_to_json

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a sealed checkpoint, on the processes that don't write the state as well."""
        self._seal_checkpoint()
        super()._push_from_checkpoint(checkpoint_folder)

    def _seal_checkpoint(self) -> None:
        """Seal the checkpoint being written, once on each process, when all have written their part."""
        folder, self._unsealed_checkpoint = self._unsealed_checkpoint, None
        if folder is None:
            return
        self.accelerator.wait_for_everyone()
        if not self.args.should_save:
            return
        seal_manifest(
            folder,
            world_size=self.args.world_size,
            save_only_model=self.args.save_only_model,
            settings=self.checkpoint_settings(),
        )
        for other in checkpoints(folder.parent):
            if other.name.startswith(ASIDE_PREFIX):
                shutil.rmtree(other)
            # What a crash of ours left must not stand in save_total_limit's count for a whole one. What another
            # Trainer left is its own business: it may be somebody's model in a form not known here.
            elif (
                self.args.save_total_limit
                and is_ours(other)
                and (missing := missing_parts(other, save_only_model=True))
            ):
                logger.warning("%s is removed: it is incomplete (%s)", other, ", ".join(missing))
                shutil.rmtree(other)


def _advice(found: str) -> str:
    """What to do about files whose size is not the one in the manifest."""
    if "bytes instead of" not in found:
        return ""
    return f" If you changed files in it on purpose, delete its {MANIFEST_NAME}, and it is judged without it."
