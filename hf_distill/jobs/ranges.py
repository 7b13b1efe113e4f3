"""Checks a recipe's flags before anything is built: numbers out of range, and a metric that nobody measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hf_distill.tasks.data_arguments import DataArguments
from hf_distill.tasks.model_arguments import ModelArguments

_COUNTS = (
    "max_train_samples",
    "max_eval_samples",
    "max_unlabeled_samples",
    "teacher_layers",
    "student_layers",
    "student_num_hidden_layers",
    "teacher_width",
    "student_width",
    "teacher_batch_size",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "image_size",
    "pretrained_image_size",
    "student_encoder_layers",
    "student_decoder_layers",
    "generation_num_beams",
    "generation_max_length",
    "sequence_level_beams",
    "sampling_rate",
)
_POSITIVE = ("teacher_epochs", "teacher_learning_rate", "learning_rate")
_NOT_BELOW_0 = ("weight_decay", "max_grad_norm", "dataloader_num_workers")
# All examples are measured, one by one, and each model's answers are at hand in the end.
_NEEDED = {
    "prediction_loss_only": False,
    "eval_do_concat_batches": True,
    "dataloader_drop_last": False,
    "predict_with_generate": True,
}
_SHARES = ("teacher_dropout", "student_dropout", "teacher_word_dropout")
# [CLS], a word and [SEP]; the special tokens and a character.
_LEAST = {"max_seq_length": 3, "max_source_length": 3, "max_target_length": 2, "vocabulary_size": 6}


def check_ranges(data: DataArguments, models: ModelArguments, args: Any, seeds: Sequence[int]) -> None:
    """Raise for a flag out of range.

    Args:
        data, models: the recipe's arguments.
        args: its training arguments.
        seeds: its seeds.

    Raises:
        ValueError: naming the flag, what was expected and what came.

    Example:
        >>> from types import SimpleNamespace
        >>> args = SimpleNamespace(num_train_epochs=3.0, max_steps=-1)
        >>> check_ranges(DataArguments(max_train_samples=0), ModelArguments(), args, [0])
        Traceback (most recent call last):
            ...
        ValueError: --max_train_samples: expected a whole number of at least 1, received 0.
    """
    given = {**vars(args), **vars(data), **vars(models)}
    for name, least in {**dict.fromkeys(_COUNTS, 1), **_LEAST}.items():
        value = given.get(name)
        if value is not None and (not isinstance(value, int) or value < least):
            raise ValueError(f"--{name}: expected a whole number of at least {least}, received {value}.")
    lengths = ("num_train_epochs",) if args.max_steps <= 0 else ()
    for name in (*_POSITIVE, *lengths):
        value = given.get(name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"--{name}: expected a number above 0, received {value}.")
    for name in _NOT_BELOW_0:
        if given.get(name) is not None and not given[name] >= 0:
            raise ValueError(f"--{name}: expected a number of at least 0, received {given[name]}.")
    for name, needed in _NEEDED.items():
        if given.get(name, needed) is not needed:
            raise ValueError(
                f"--{name}: expected {str(needed).lower()}, since every example is reported on, received "
                f"{str(given[name]).lower()}. Leave it out."
            )
    for name in (share for share in _SHARES if share in given):
        if not 0 <= given[name] < 1:
            raise ValueError(
                f"--{name}: expected a number of at least 0 and below 1, received {given[name]}."
            )
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"--seeds: expected different whole numbers from 0 to 4294967295, like 0 1 2, received {list(seeds)}."
        )


def check_best_metric(args: Any, objectives: Sequence[str], baseline: bool, measured: Sequence[str]) -> None:
    """Raise where the best checkpoint is chosen by a metric that a student's evaluation will not have.

    Args:
        args: training arguments.
        objectives: the keys of the distilled student's objectives; the student alone has none.
        baseline: whether the student alone is trained too.
        measured: the names of the task's own metrics.

    Raises:
        ValueError: naming the metrics there are.

    Example:
        >>> from types import SimpleNamespace
        >>> args = SimpleNamespace(eval_strategy="epoch", metric_for_best_model="eval_loss/forward_kl")
        >>> check_best_metric(args, ["forward_kl"], baseline=False, measured=["f1"])
        >>> check_best_metric(args, ["forward_kl"], baseline=True, measured=["f1"])
        Traceback (most recent call last):
            ...
        ValueError: --metric_for_best_model: expected a metric that the student alone has too, received ...
    """
    best = str(args.metric_for_best_model).removeprefix("eval_")
    # What every evaluation has, of the student alone as well.
    against_teacher = [f"{of}_{name}" for of in ("teacher", "retention") for name in measured]
    metrics = [*measured, *against_teacher, "loss", "loss/label", "agreement", "mean_kl"]
    if args.metric_for_best_model is None or args.eval_strategy == "no" or best in metrics:
        return
    of_distilled = [f"loss/{key}" for key in objectives]
    if best not in of_distilled:
        known = ", ".join([*metrics, *([] if baseline else of_distilled)])
        raise ValueError(f"--metric_for_best_model: expected one of {known}; received {best!r}.")
    if baseline:
        raise ValueError(
            f"--metric_for_best_model: expected a metric that the student alone has too, received {best!r}. Take "
            f"mean_kl, agreement, {measured[0]} or loss/label, or leave the student alone out with --no_baseline."
        )
