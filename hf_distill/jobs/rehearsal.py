"""Tries a recipe's student out on a few texts, before hours go into a teacher that it would not fit."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from datasets import DatasetDict, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from hf_distill.jobs.command_line import short_errors
from hf_distill.jobs.comparison import Comparison
from hf_distill.tasks.model_arguments import number_of_teachers
from hf_distill.tasks.task import Task, student_processor


def rehearse(task: Task, splits: DatasetDict, args: Any) -> None:
    """Build all that a student needs on a few examples, so that what does not fit is said before a teacher is trained.

    Raises:
        SystemExit: with the error that the student of a trained teacher would have met.
    """
    models = task.models
    if models.teacher_model_name_or_path is not None:
        return  # the real thing comes as soon
    few = DatasetDict({name: task.few(rows) for name, rows in splits.items()})
    # Trainer makes its folder, which is no student's here.
    with short_errors(), _silence(), tempfile.TemporaryDirectory() as folder:
        args = copy.copy(args)
        args.output_dir = folder
        own = task.teacher_processor(few)
        count = number_of_teachers(models)
        teachers = [task.make_teacher(few, own) for _ in range(count)]
        processor, owned = student_processor(task, [own] * count)
        job = Comparison(task, few, teachers, [], processor, owned, args, lambda line: None)
        job.prepare(args.seed)


def rehearse_student(job: Comparison, seed: int) -> None:
    """Build the student of named teachers, so that what does not fit is said before they are asked about every text.

    Raises:
        SystemExit: with the error that the student would have met after it.
    """
    if job.task.models.teacher_model_name_or_path is None:
        return  # tried out before its teacher was trained
    with short_errors(), _silence(), tempfile.TemporaryDirectory() as folder:
        trial = copy.copy(job)
        trial.args = copy.copy(job.args)
        trial.args.output_dir = folder
        trial.prepare(seed)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep back the warnings about models and data that are only tried out."""
    before, without_bars = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if not without_bars:
            enable_progress_bars()
