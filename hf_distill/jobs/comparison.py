"""Trains a student alone and distilled, seed by seed, and compares both with the teacher."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from transformers import set_seed
from transformers.trainer_utils import PredictionOutput

from hf_distill.cache.source import default_folder, source_of
from hf_distill.cache.teacher_cache import TeacherCache
from hf_distill.evaluation.measures import Measure, compute_metrics
from hf_distill.jobs.caching import uncached_because
from hf_distill.jobs.command_line import resuming, short_errors
from hf_distill.jobs.comparison_report import ComparisonReport, shown
from hf_distill.jobs.own_teacher import content_hash, kept_teachers
from hf_distill.loss_plan import resolve_loss
from hf_distill.schedules import highest
from hf_distill.tasks.task import Task, processors_of
from hf_distill.teachers.online import OnlineTeacher, load_trained_model, loading_options
from hf_distill.trainer import DistillationTrainer
from hf_distill.whole_checkpoints import last_whole_checkpoint, settings_of


def prepare_comparison(task: Task, splits: DatasetDict, args: Any, say: Callable[[str], None]) -> Comparison:
    """Load the teachers, trained first where none is named, and return the comparison with them."""
    folders, revision = task.models.teacher_model_name_or_path, args.teacher_revision
    with short_errors():
        options = loading_options(revision, args.teacher_dtype, args.teacher_attn_implementation)
    if folders is None:
        folders = kept_teachers(task, splits, args, say)
    with short_errors():
        teachers = [load_trained_model(one, task.auto_class, **options) for one in folders]
        processor, own = processors_of(task, folders, revision)
        return Comparison(task, splits, teachers, folders, processor, own, args, say)


def _check_same_loss(checkpoint: str | None, trainer: DistillationTrainer) -> None:
    """Raise where a checkpoint was trained with another loss: the table would call its numbers this one's."""
    written = settings_of(checkpoint).get("loss") if checkpoint else None
    now = json.loads(json.dumps(trainer.checkpoint_settings()["loss"], default=str))
    if written is not None and written != now:
        raise ValueError(
            f"--resume_from_checkpoint: expected {checkpoint} to be trained with the loss {now}, received one trained "
            f"with {written}. Give the flags it was started with, or another --output_dir."
        )


def reads_labels(args: Any) -> bool:
    """Whether a loss has the labels in it."""
    plan = resolve_loss(args, "single_label")
    return highest(plan.label_weight) > 0 or any("labels" in term.objective.needs for term in plan.terms)


@dataclass
class Comparison:
    """One task with its teacher, on which students are trained and compared.

    Args:
        task: what is compared on, with the recipe's arguments.
        splits: its raw examples.
        teachers: the teacher's model, or those of an ensemble.
        teacher_folders: where they came from.
        processor: makes the student's input: a tokenizer, say.
        teacher_processors: each teacher's own where it differs, else None.
        args: distillation arguments; folders and seeds are set for each run.
        say: tells the user what is being done.
        tuned: what :func:`hf_distill.jobs.tuning.tune` chose before, for the results.
        caches: the teachers' answers on disk, from :meth:`cache_teachers`; None to ask the models.
    """

    task: Task
    splits: DatasetDict
    teachers: list[Any]
    teacher_folders: list[str]
    processor: Any
    teacher_processors: list[Any]
    args: Any
    say: Callable[[str], None]
    tuned: dict[str, Any] | None = None
    caches: list[TeacherCache] | None = None

    def __post_init__(self) -> None:
        """Encode the splits once for all runs."""
        keep = any(processor is not None for processor in self.teacher_processors)
        wanted = ["train", self.report_on, *(["unlabeled"] if "unlabeled" in self.splits else [])]
        self.encoded = {
            name: self.task.encode(self.splits[name], self.processor, keep, training=name != self.report_on)
            for name in wanted
        }
        reported = self.encoded[self.report_on]
        self.measure: Measure = self.task.measure(self.splits[self.report_on], reported, self.processor)

    @cached_property
    def _taught(self) -> Any:
        """What a distilled student is trained on: the data, unless the teacher writes it."""
        given = (self.splits["train"], self.teachers, self.processor, self.args, self.say)
        written = self.task.taught_rows(*given)
        if written is None:
            return self.encoded["train"]
        return self.task.encode(written, self.processor, training=True)

    @property
    def report_on(self) -> str:
        """The split that models are measured on."""
        return str(self.task.data.report_on)

    def run(self, seeds: list[int], baseline: bool) -> dict[str, Any]:
        """Train every seed, print the table, write the results, and return them."""
        measured: dict[str, list[PredictionOutput]] = {"alone": [], "distilled": []}
        firsts: dict[str, Any] = {}
        for seed in seeds:
            for kind in ("alone", "distilled") if baseline else ("distilled",):
                with short_errors():  # what does not fit together is found here, before any student trains
                    trainer = self._trainer(seed, kind, publish=kind == "distilled" and seed == seeds[0])
                measured[kind].append(self._train(trainer, seed, kind))
                firsts.setdefault(kind, trainer)
        return ComparisonReport(self, measured, firsts, seeds).publish()

    def cache_teachers(self, seeds: int) -> None:
        """Ask each teacher about every example once; a run with the same teacher and examples finds the answers there.

        Where answers can't be kept, or it does not pay, it is said why, and the models stay the teachers.

        Args:
            seeds: how many students will be distilled.
        """
        examples = sum(len(self.encoded[name]) for name in ("train", "unlabeled") if name in self.encoded)
        encoders = [own or self.processor for own in self.teacher_processors]
        reason = self.task.uncached_because
        reason = reason or uncached_because(self.args, encoders, examples, seeds)
        if reason is not None:
            self.say(f"Teacher: its answers are not kept, since {reason}")
            return
        with_own = zip(self.teachers, self.teacher_processors, strict=True)
        self.caches = [self._cached(teacher, own) for teacher, own in with_own]

    def _cached(self, teacher: Any, own: Any) -> TeacherCache:
        processor = own or self.processor
        encoded = {**self.encoded, "train": self._taught}  # what distilled students are trained on
        # What reads the raw input in its own way is captured from that, as it is asked in training.
        rows = {
            name: split
            if own is None
            else split.select_columns(
                [column for column in self.task.raw_columns if column in split.column_names]
            )
            for name, split in encoded.items()
        }
        settings = {"processing_class": processor, "bf16": bool(self.args.bf16)}
        device = self.args.device
        online = OnlineTeacher(
            teacher,
            autocast=lambda: torch.autocast(device.type, torch.bfloat16, enabled=bool(self.args.bf16)),
        )
        folder = default_folder(self.args.output_dir, source_of(online.to(device), **settings))
        with short_errors():
            cache: TeacherCache = TeacherCache.capture(
                online, rows, folder, data_collator=self.task.collator(processor), device=device,
                batch_size=self.args.per_device_eval_batch_size, say=self.say, **settings,
            )  # fmt: skip
        return cache

    def prepare(self, seed: int) -> None:
        """Build the trainer of one distilled student, with all its checks, and train nothing."""
        self._trainer(seed, "distilled", publish=False)

    def score(self, seed: int) -> dict[str, float]:
        """Train one distilled student and return what evaluation measures of it."""
        with short_errors():
            trainer = self._trainer(seed, "distilled", publish=False)
        return dict(self._train(trainer, seed, "distilled").metrics or {})

    # ---- one run ----------------------------------------------------------------------

    def _arguments(self, seed: int, kind: str, publish: bool) -> Any:
        args = copy.deepcopy(self.args)
        args.seed = seed
        args.output_dir = str(Path(self.args.output_dir) / f"seed_{seed}" / kind)
        args.push_to_hub = self.args.push_to_hub and publish
        args.remove_unused_columns = self.task.remove_unused_columns
        if kind == "alone":
            args.alpha, args.temperature, args.objectives, args.label_weight = 0.0, None, None, None
        return args

    def _trainer(self, seed: int, kind: str, publish: bool) -> DistillationTrainer:
        args = self._arguments(seed, kind, publish)
        teachers: list[Any] = self.teachers if self.caches is None else [*self.caches]
        set_seed(seed)  # both students of a seed start from the same weights
        student = self.task.make_student(self.teachers[0], self.splits, self.processor)
        train = self._taught if kind == "distilled" else self.encoded["train"]
        if "unlabeled" in self.encoded:
            rows = len(train) + len(self.encoded["unlabeled"])
            if kind == "distilled":
                train = self.task.with_unlabelled(train, self.encoded["unlabeled"])
            elif args.max_steps <= 0:  # the same number of steps, on the examples that it can learn from
                args.num_train_epochs *= rows / len(train)
        trainer: DistillationTrainer = self.task.trainer_class(
            student,
            teachers,
            args,
            data_collator=self.task.collator(
                self.processor, self.teacher_processors, labelled=kind == "alone" or reads_labels(args)
            ),
            train_dataset=train,
            eval_dataset=self.encoded[self.report_on],
            processing_class=self.processor,
            compute_metrics=compute_metrics(self.measure),
            preprocess_logits_for_metrics=self.measure.preprocess,
            teacher_processing_class=self.teacher_processors,
        )
        self.task.prepare(trainer)
        return trainer

    @cached_property
    def _data(self) -> str:
        """What tells one training set, as this task reads it, from another."""
        told = json.dumps([self.task.encoding, self.task.label_names(self.splits)], default=str)
        return hashlib.sha256(told.encode() + content_hash(self.splits["train"])).hexdigest()

    @staticmethod
    def _data_file(folder: Path) -> Path:
        """Return where it is kept: beside the student's folder, which is handed on as it is."""
        return folder.with_name(f"_{folder.name}-data")

    def _check_same_data(self, checkpoint: str | None, folder: Path) -> None:
        """Raise where a checkpoint was trained on other data, with which the table would have nothing to do."""
        file = self._data_file(folder)
        if checkpoint and file.is_file() and file.read_text(encoding="utf-8") != self._data:
            raise ValueError(
                f"--resume_from_checkpoint: expected {checkpoint} to be trained on these examples, lengths and labels, "
                "received one trained on others. Leave the flag out to train anew, or give another --output_dir."
            )

    def _train(self, trainer: DistillationTrainer, seed: int, kind: str) -> PredictionOutput:
        """Train a student, save it, and return what it predicts for the texts reported on and how good that is."""
        args = trainer.args
        self.say(f"Student {kind}, seed {seed}: training into {args.output_dir} ...")
        resume = last_whole_checkpoint(str(args.output_dir)) if resuming(args) else None
        with short_errors():
            _check_same_loss(resume, trainer)
            self._check_same_data(resume, Path(str(args.output_dir)))
        if resume is None and trainer.is_world_process_zero():
            for stale in Path(str(args.output_dir)).glob("*checkpoint-*"):
                shutil.rmtree(stale)  # of an earlier run, perhaps with other settings
        if trainer.is_world_process_zero():
            self._data_file(Path(str(args.output_dir))).write_text(self._data, encoding="utf-8")
        if resume:
            self.say(f"Student {kind}, seed {seed}: going on from {resume}")
        trainer.train(resume_from_checkpoint=resume)
        # Trainer groups by length in evaluation too, at random: from here on rows keep their order, in which the
        # predictions of all models are compared.
        trainer.args.train_sampling_strategy = "sequential"
        measured = trainer.predict(self.encoded[self.report_on], metric_key_prefix="eval")
        metrics = measured.metrics or {}
        trainer.log(metrics)  # as evaluate() would, whose predictions are nowhere to be had
        self.say(f"Student {kind}, seed {seed}: {shown(metrics, self.measure)}")
        trainer.save_model()
        return measured
