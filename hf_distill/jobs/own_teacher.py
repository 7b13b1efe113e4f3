"""A teacher trained on the same data as its students, once, and kept: the teacher where no name is given."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_distill.cache.manifest import tokenizer_hash, weights_hash
from hf_distill.jobs.command_line import fail, short_errors
from hf_distill.tasks.model_arguments import last_epoch
from hf_distill.tasks.task import Task
from hf_distill.whole_checkpoints import last_whole_checkpoint


def first_on_main(state: PartialState) -> AbstractContextManager[Any]:
    """Let process 0 build what it keeps on disk, and the others read it after."""
    return state.main_process_first()


def kept_teacher(
    task: Task,
    splits: DatasetDict,
    args: TrainingArguments,
    say: Callable[[str], None],
    every_epoch: bool = False,
) -> Path:
    """Return the folder of a teacher trained on these texts with these settings; train it if it is not there.

    The folder's name is a hash of the texts and the settings, so another task gets another teacher.
    It is filled beside and renamed when whole; a run that was killed goes on from its last checkpoint.
    With ``every_epoch`` the same training also leaves the teacher of each earlier ``teacher_stop_epoch``, in the folder
    where that setting looks for it.
    """
    last = last_epoch(task.models)
    folders = {
        epoch: _folder(task, splits, args, epoch) for epoch in range(1 if every_epoch else last, last + 1)
    }
    missing = {epoch: folder for epoch, folder in folders.items() if not folder.is_dir()}
    if not missing:
        say(f"Teacher: kept from an earlier run in {folders[last]}")
        return folders[last]
    end, whole = max(missing), math.ceil(task.models.teacher_epochs)
    base = task.models.teacher_pretrained_name_or_path
    sizes = f"{task.models.teacher_layers} layers of width {task.models.teacher_width}"
    say(
        f"Teacher: {'training ' + sizes if base is None else 'fine-tuning ' + base} into "
        f"{missing[end]} {'' if end == whole else f'to epoch {end} of {whole} '}..."
    )
    _train_teacher(task, splits, args, missing)
    return folders[last]


def _folder(task: Task, splits: DatasetDict, args: TrainingArguments, epoch: int) -> Path:
    """Return where the teacher that stops after an epoch belongs."""
    described = asdict(task.models)
    wanted = {
        name: value
        for name, value in described.items()
        if name != "teacher_stop_epoch" and not name.startswith("student_")
    }
    wanted["teacher_model_name_or_path"] = wanted["teachers_from_seeds"] = None  # they name no other training
    wanted.pop("ignore_mismatched_sizes")
    if wanted.pop("teacher_pretrained_name_or_path") is not None:
        wanted["start"] = _start(task, splits, args.seed)
    if epoch < math.ceil(task.models.teacher_epochs):
        wanted["teacher_stop_epoch"] = epoch
    wanted |= {"task": task.name, "encoding": task.encoding, "processes": args.world_size}
    wanted |= {name: getattr(args, name) for name in ("seed", "bf16", "fp16", "warmup_steps", "weight_decay")}
    wanted["labels"] = task.label_names(splits)
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True, default=str).encode())
    digest.update(content_hash(splits["train"]))
    return Path(str(args.output_dir)) / f"teacher-{digest.hexdigest()[:12]}"


def _start(task: Task, splits: DatasetDict, seed: int) -> list[str | None]:
    """Return hashes of what a pretrained teacher starts from, since a name says nothing of what is in a folder."""
    processor = task.teacher_processor(splits)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of a new head
        return [weights_hash(task.make_teacher(splits, processor)), tokenizer_hash(processor)]


def content_hash(rows: Dataset) -> bytes:
    """Return a hash of all that a data set holds, however it is divided into pieces.

    Example:
        >>> one, other = (Dataset.from_dict({"text": [text]}) for text in "ab")
        >>> content_hash(one) == content_hash(one), content_hash(one) == content_hash(other)
        (True, False)
    """
    digest = hashlib.sha256()
    for name in rows.column_names:
        digest.update(name.encode())
        for table in rows.select_columns(name).with_format("arrow").iter(1000):
            # Images and other files are bytes there, or names of files.
            values = [_with_bytes(value) for value in table.column(name).to_pylist()]
            digest.update(json.dumps(values, default=lambda data: data.hex()).encode())
    return digest.digest()


def _with_bytes(value: Any) -> Any:
    """Return an image or a sound with what is in its file: the name says nothing of it."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"} and value["bytes"] is None:
        path = Path(str(value["path"]))
        if path.is_file():
            return {**value, "bytes": hashlib.sha256(path.read_bytes()).digest()}
    return value


def kept_teachers(
    task: Task,
    splits: DatasetDict,
    args: TrainingArguments,
    say: Callable[[str], None],
    every_epoch: bool = False,
) -> list[str]:
    """Return the folders of the teachers that the settings ask for: one, or one for each seed from 0.

    All have one tokenizer, since the same texts give the same.
    """
    if task.models.teachers_from_seeds is None:
        return [str(kept_teacher(task, splits, args, say, every_epoch))]
    folders: list[Path] = []
    for seed in range(task.models.teachers_from_seeds):
        with_seed = copy.copy(args)
        with_seed.seed = seed
        folders.append(kept_teacher(task, splits, with_seed, say, every_epoch))
    return [str(folder) for folder in folders]


def _train_teacher(
    task: Task,
    splits: DatasetDict,
    args: TrainingArguments,
    folders: dict[int, Path],
) -> None:
    """Train once, to the last of some epochs, and leave the teacher of each in its folder."""
    state = PartialState()
    end = folders[max(folders)]
    unfinished = end.with_name(f"_{end.name}-unfinished")
    with first_on_main(state), short_errors():
        kept = unfinished / "processor"
        if not kept.is_dir():
            beside = unfinished / "_processor"
            task.teacher_processor(splits).save_pretrained(str(beside))
            os.replace(beside, kept)
        processor = task.load_processor(str(kept))
        train = task.encode(splits["train"], processor, training=True)
    set_seed(args.seed)
    model = task.make_teacher(splits, processor)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(unfinished / "checkpoints"),
            num_train_epochs=task.models.teacher_epochs,
            learning_rate=task.models.teacher_learning_rate,
            per_device_train_batch_size=task.models.teacher_batch_size,
            train_sampling_strategy=args.train_sampling_strategy,
            warmup_steps=args.warmup_steps,
            weight_decay=args.weight_decay,
            bf16=args.bf16,
            fp16=args.fp16,
            use_cpu=args.use_cpu,
            seed=args.seed,
            save_total_limit=1,
            save_strategy="epoch",
            logging_strategy="epoch",
            report_to="none",
            disable_tqdm=args.disable_tqdm,
            remove_unused_columns=task.remove_unused_columns,
        ),
        train_dataset=train,
        data_collator=task.teacher_collator(processor),
        processing_class=processor,
        compute_loss_func=task.teacher_loss,
    )
    task.prepare(trainer)
    trainer.add_callback(_KeepEpochs(trainer, folders))
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(str(unfinished / "checkpoints")))
    if not end.is_dir():  # killed after its last checkpoint, so that no epoch was left to end
        _keep(trainer, end)
    if state.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    state.wait_for_everyone()


class _KeepEpochs(TrainerCallback):
    """Keeps the teacher as it is at the end of some epochs, and stops after the last of them.

    An epoch's end comes before its checkpoint, so a run that goes on from a checkpoint has kept the epochs before.
    """

    def __init__(self, trainer: Trainer, folders: dict[int, Path]) -> None:
        self.trainer, self.folders = trainer, folders

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = math.ceil(state.epoch - 1e-6)  # counted in floats; the last may be a part of one
        if epoch in self.folders:
            _keep(self.trainer, self.folders[epoch])
        if epoch >= max(self.folders):
            control.should_training_stop = True


def _keep(trainer: Trainer, folder: Path) -> None:
    """Save a model beside its folder, and rename when it is whole."""
    state = PartialState()
    _check_finite(trainer)
    beside = folder.with_name(f"_{folder.name}-unsaved")
    trainer.save_model(str(beside))
    state.wait_for_everyone()
    if state.is_main_process:
        (beside / "training_args.bin").unlink(missing_ok=True)
        os.replace(beside, folder)
    state.wait_for_everyone()


def _check_finite(trainer: Trainer) -> None:
    """Leave where training went wrong, without what it wrote: a run that goes on from there would go wrong too."""
    assert trainer.model is not None
    if all(bool(weight.isfinite().all()) for weight in trainer.model.parameters()):
        return
    state = PartialState()
    if state.is_main_process:
        shutil.rmtree(Path(str(trainer.args.output_dir)).parent, ignore_errors=True)
        print(file=sys.stderr)  # below the progress bar
    state.wait_for_everyone()
    precision = next((name for name in ("bf16", "fp16") if getattr(trainer.args, name)), None)
    fail(
        "the teacher's training: expected finite weights, received NaN or infinity in epoch "
        f"{math.ceil(trainer.state.epoch or 0)}. Lower --teacher_learning_rate ({trainer.args.learning_rate:g})"
        + (f", or train in float32 (--no_{precision})." if precision else ".")
    )
