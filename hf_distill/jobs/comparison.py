"""Trains a student alone and distilled, seed by seed, and compares both with the teacher."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from datasets import DatasetDict
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    set_seed,
)
from transformers.trainer_utils import PredictionOutput

from hf_distill.cache.source import default_folder, source_of
from hf_distill.cache.teacher_cache import TeacherCache
from hf_distill.evaluation.metrics import classification_metrics
from hf_distill.jobs.caching import uncached_because
from hf_distill.jobs.command_line import resuming, short_errors
from hf_distill.jobs.comparison_report import ComparisonReport
from hf_distill.jobs.own_teacher import kept_teachers
from hf_distill.jobs.text_data import TextDataArguments, encode, with_unlabelled
from hf_distill.jobs.text_models import (
    TextModelArguments,
    make_student,
    tokenizers_of,
)
from hf_distill.teachers.online import OnlineTeacher, load_trained_model, loading_options
from hf_distill.trainer import DistillationTrainer
from hf_distill.whole_checkpoints import last_whole_checkpoint, settings_of


def prepare_comparison(
    splits: DatasetDict,
    data: TextDataArguments,
    models: TextModelArguments,
    args: Any,
    say: Callable[[str], None],
) -> TextComparison:
    """Load the teachers, trained first where none is named, and return the comparison with them."""
    folders, revision = models.teacher_model_name_or_path, args.teacher_revision
    with short_errors():
        options = loading_options(revision, args.teacher_dtype, args.teacher_attn_implementation)
    if folders is None:
        folders = kept_teachers(models, splits, args, data.max_seq_length, say)
    with short_errors():
        teachers = [load_trained_model(one, AutoModelForSequenceClassification, **options) for one in folders]
        tokenizer, own = tokenizers_of(models, folders, revision)
    return TextComparison(splits, teachers, folders, tokenizer, own, data, models, args, say)


def _check_same_loss(checkpoint: str | None, trainer: DistillationTrainer) -> None:
    """Raise where a checkpoint was trained with another loss: the table would call its numbers this one's."""
    written = settings_of(checkpoint).get("loss") if checkpoint else None
    now = json.loads(json.dumps(trainer.checkpoint_settings()["loss"], default=str))
    if written is not None and written != now:
        raise ValueError(
            f"--resume_from_checkpoint: expected {checkpoint} to be trained with the loss {now}, received one trained "
            f"with {written}. Give the flags it was started with, or another --output_dir."
        )


@dataclass
class TextComparison:
    """One task with its teacher, on which students are trained and compared.

    Args:
        splits: from :func:`hf_distill.jobs.text_data.load_texts`.
        teachers: the teacher's model, or those of an ensemble.
        teacher_folders: where they came from.
        tokenizer: the student's tokenizer.
        teacher_tokenizers: each teacher's own where it differs, else None.
        data, models: the recipe's arguments.
        args: distillation arguments; folders and seeds are set for each run.
        say: tells the user what is being done.
        tuned: what :func:`hf_distill.jobs.tuning.tune` chose before, for the results.
        caches: the teachers' answers on disk, from :meth:`cache_teachers`; None to ask the models.
    """

    splits: DatasetDict
    teachers: list[Any]
    teacher_folders: list[str]
    tokenizer: Any
    teacher_tokenizers: list[Any]
    data: TextDataArguments
    models: TextModelArguments
    args: Any
    say: Callable[[str], None]
    tuned: dict[str, Any] | None = None
    caches: list[TeacherCache] | None = None

    def __post_init__(self) -> None:
        """Encode the splits once for all runs."""
        keep = any(tokenizer is not None for tokenizer in self.teacher_tokenizers)
        wanted = ["train", self.data.report_on, *(["unlabeled"] if "unlabeled" in self.splits else [])]
        self.encoded = {
            name: encode(self.splits[name], self.tokenizer, self.data.max_seq_length, keep) for name in wanted
        }

    def run(self, seeds: list[int], baseline: bool) -> dict[str, Any]:
        """Train every seed, print the table, write the results, and return them."""
        predictions: dict[str, list[numpy.ndarray]] = {"alone": [], "distilled": []}
        firsts: dict[str, Any] = {}
        for seed in seeds:
            for kind in ("alone", "distilled") if baseline else ("distilled",):
                with short_errors():  # what does not fit together is found here, before any student trains
                    trainer = self._trainer(seed, kind, publish=kind == "distilled" and seed == seeds[0])
                measured = self._train(trainer, seed, kind)
                predictions[kind].append(numpy.asarray(measured.predictions))
                firsts.setdefault(kind, trainer)
        return ComparisonReport(self, predictions, firsts, seeds).publish()

    def cache_teachers(self, seeds: int) -> None:
        """Ask each teacher about every text once; a run with the same teacher and texts finds the answers there.

        Where answers can't be kept, or it does not pay, it is said why, and the models stay the teachers.

        Args:
            seeds: how many students will be distilled.
        """
        texts = sum(len(self.encoded[name]) for name in ("train", "unlabeled") if name in self.encoded)
        reason = uncached_because(self.args, self.teachers, self._encoders(), texts, seeds)
        if reason is not None:
            self.say(f"Teacher: its answers are not kept, since {reason}")
            return
        tokenizers = zip(self.teachers, self.teacher_tokenizers, strict=True)
        self.caches = [self._cached(teacher, own) for teacher, own in tokenizers]

    def _encoders(self) -> list[Any]:
        return [own or self.tokenizer for own in self.teacher_tokenizers]

    def _cached(self, teacher: Any, own: Any) -> TeacherCache:
        tokenizer = own or self.tokenizer
        # What reads the text in its own way is captured from the text, as it is asked in training.
        texts = ["text", "text_pair"]
        rows = {
            name: encoded
            if own is None
            else encoded.select_columns([column for column in texts if column in encoded.column_names])
            for name, encoded in self.encoded.items()
        }
        settings = {"processing_class": tokenizer, "bf16": bool(self.args.bf16)}
        device = self.args.device
        online = OnlineTeacher(
            teacher,
            autocast=lambda: torch.autocast(device.type, torch.bfloat16, enabled=bool(self.args.bf16)),
        )
        folder = default_folder(self.args.output_dir, source_of(online.to(device), **settings))
        with short_errors():
            cache: TeacherCache = TeacherCache.capture(
                online, rows, folder, data_collator=DataCollatorWithPadding(tokenizer), device=device,
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
        if kind == "alone":
            args.alpha, args.temperature, args.objectives, args.label_weight = 0.0, None, None, None
        return args

    def _trainer(self, seed: int, kind: str, publish: bool) -> DistillationTrainer:
        args = self._arguments(seed, kind, publish)
        teachers: list[Any] = self.teachers if self.caches is None else [*self.caches]
        set_seed(seed)  # both students of a seed start from the same weights
        student = make_student(
            self.models, self.teachers[0], self.splits, self.tokenizer, self.data.max_seq_length
        )
        train = self.encoded["train"]
        if "unlabeled" in self.encoded:
            rows = len(train) + len(self.encoded["unlabeled"])
            if kind == "distilled":
                train = with_unlabelled(train, self.encoded["unlabeled"])
            elif args.max_steps <= 0:  # the same number of steps, on the texts that it can learn from
                args.num_train_epochs *= rows / len(train)
        return DistillationTrainer(
            student,
            teachers,
            args,
            data_collator=DataCollatorWithPadding(self.tokenizer),
            train_dataset=train,
            eval_dataset=self.encoded[self.data.report_on],
            processing_class=self.tokenizer,
            compute_metrics=classification_metrics(),
            teacher_processing_class=self.teacher_tokenizers,
        )

    def _train(self, trainer: DistillationTrainer, seed: int, kind: str) -> PredictionOutput:
        """Train a student, save it, and return what it predicts for the texts reported on and how good that is."""
        args = trainer.args
        self.say(f"Student {kind}, seed {seed}: training into {args.output_dir} ...")
        resume = last_whole_checkpoint(str(args.output_dir)) if resuming(args) else None
        with short_errors():
            _check_same_loss(resume, trainer)
        if resume is None and trainer.is_world_process_zero():
            for stale in Path(str(args.output_dir)).glob("*checkpoint-*"):
                shutil.rmtree(stale)  # of an earlier run, perhaps with other settings
        if resume:
            self.say(f"Student {kind}, seed {seed}: going on from {resume}")
        trainer.train(resume_from_checkpoint=resume)
        # Trainer groups by length in evaluation too, at random: from here on rows keep their order, in which the
        # predictions of all models are compared.
        trainer.args.train_sampling_strategy = "sequential"
        measured = trainer.predict(self.encoded[self.data.report_on], metric_key_prefix="eval")
        metrics = measured.metrics or {}
        trainer.log(metrics)  # as evaluate() would, whose predictions are nowhere to be had
        shown = {
            name: metrics[f"eval_{name}"]
            for name in ("accuracy", "agreement", "teacher_accuracy", "retention_accuracy")
            if f"eval_{name}" in metrics
        }
        self.say(
            f"Student {kind}, seed {seed}: " + ", ".join(f"{k} {100 * v:.2f} %" for k, v in shown.items())
        )
        trainer.save_model()
        return measured
