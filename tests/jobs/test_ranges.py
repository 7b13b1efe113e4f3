"""Numbers out of range end in a line that names the flag, what was expected and what came."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hf_distill import DistillationTrainingArguments
from hf_distill.jobs.ranges import check_best_metric, check_ranges
from hf_distill.tasks.bert_models import TextModelArguments
from hf_distill.tasks.text_data import TextDataArguments


def check(tmp_path: Any, seeds: Any = (0,), **flags: Any) -> None:
    kinds = (
        TextDataArguments(),
        TextModelArguments(),
        DistillationTrainingArguments(str(tmp_path), report_to="none"),
    )
    for name, value in flags.items():
        owner = next(kind for kind in kinds if hasattr(kind, name))
        setattr(owner, name, value)
    check_ranges(*kinds, seeds)


def test_how_a_teacher_writes_is_checked() -> None:
    def check_beams(beams: int | None) -> None:
        args = SimpleNamespace(num_train_epochs=1.0, max_steps=-1, generation_num_beams=beams)
        check_ranges(TextDataArguments(), TextModelArguments(), args, [0])

    check_beams(None)
    with pytest.raises(ValueError, match="--generation_num_beams: expected a whole number of at least 1"):
        check_beams(0)


def test_the_defaults_pass(tmp_path: Any) -> None:
    check(tmp_path)
    check(tmp_path, seeds=[2, 0, 1], max_steps=5, num_train_epochs=0.0)
    with pytest.raises(ValueError, match="seeds"):  # it does look
        check(tmp_path, seeds=[])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_train_samples", 0, "a whole number of at least 1, received 0"),
        ("gradient_accumulation_steps", 0, "a whole number of at least 1, received 0"),
        ("teacher_batch_size", 0, "a whole number of at least 1, received 0"),
        ("student_layers", -2, "a whole number of at least 1, received -2"),
        ("max_seq_length", 2, "a whole number of at least 3, received 2"),
        ("vocabulary_size", 5, "a whole number of at least 6, received 5"),
        ("learning_rate", -1.0, "a number above 0, received -1.0"),
        ("num_train_epochs", 0.0, "a number above 0, received 0.0"),
        ("teacher_epochs", float("nan"), "a number above 0, received nan"),
        ("weight_decay", -1.0, "a number of at least 0, received -1.0"),
        ("dataloader_drop_last", True, "false, since every example is reported on, received true"),
        (
            "eval_do_concat_batches",
            False,
            "true, since every example is reported on, received false",
        ),
        ("student_dropout", -0.1, "a number of at least 0 and below 1, received -0.1"),
        ("teacher_word_dropout", 1.0, "a number of at least 0 and below 1, received 1.0"),
    ],
)
def test_a_number_out_of_range(tmp_path: Any, name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^--{name}: expected {message}"):
        check(tmp_path, **{name: value})


@pytest.mark.parametrize("seeds", [[], [1.5], [-1], [0, 0], [True]])
def test_seeds(tmp_path: Any, seeds: Any) -> None:
    with pytest.raises(ValueError, match="--seeds: expected different whole numbers"):
        check(tmp_path, seeds=seeds)


@pytest.mark.parametrize("metric", [None, "accuracy", "eval_retention_accuracy", "loss/label", "eval_loss"])
def test_metrics_of_every_student(metric: str | None) -> None:
    args = SimpleNamespace(eval_strategy="epoch", metric_for_best_model=metric)
    check_best_metric(args, ["forward_kl"], baseline=True, measured=["accuracy", "macro_f1"])


@pytest.mark.parametrize(
    ("metric", "baseline", "message"),
    [
        ("loss/forward_kl", True, "student alone has too, received 'loss/forward_kl'. .* --no_baseline"),
        ("loss/reverse_kl", True, "expected one of accuracy, .* received 'loss/reverse_kl'"),
        ("f1", False, "expected one of accuracy, .* loss/forward_kl; received 'f1'"),
    ],
)
def test_metrics_that_a_student_has_not(metric: str, baseline: bool, message: str) -> None:
    args = SimpleNamespace(eval_strategy="epoch", metric_for_best_model=metric)
    with pytest.raises(ValueError, match=message):
        check_best_metric(args, ["forward_kl"], baseline, ["accuracy", "macro_f1"])
    args.eval_strategy = "no"  # nothing is measured on the way
    check_best_metric(args, ["forward_kl"], baseline, ["accuracy", "macro_f1"])
