"""Retention: which metrics are errors, and what the ratio is where it means something."""

import math

import pytest

from hf_distill.evaluation.retention import lower_is_better, retention

ERRORS = [
    "loss",
    "label_loss",
    "eval_loss",
    "hamming_loss",
    "log_loss",
    "perplexity",
    "mse",
    "MSE",
    "rmse",
    "mae",
    "mean_absolute_error",
    "expected_calibration_error",
    "ece",
    "brier",
    "brier_score",
    "wer",
    "cer",
    "nll",
    "word_error_rate",
]
SCORES = ["accuracy", "f1", "macro_f1", "matthews_correlation", "pearson", "spearmanr", "recall", "r2", "auc"]
# Names that hold an error's name inside another word.
NOT_ERRORS = ["precision", "precedence", "answered", "lossless_share", "powers", "summer_f1"]


@pytest.mark.parametrize("metric", ERRORS)
def test_errors_are_better_when_lower(metric):
    assert lower_is_better(metric)
    assert retention(metric, student=2.0, teacher=1.0) == 0.5
    assert retention(metric, student=1.0, teacher=2.0) == 2.0


@pytest.mark.parametrize("metric", [*SCORES, *NOT_ERRORS])
def test_scores_are_better_when_higher(metric):
    assert not lower_is_better(metric)
    assert retention(metric, student=0.9, teacher=1.0) == 0.9


def test_hand_worked_number():
    assert retention("accuracy", student=0.882, teacher=0.9) == pytest.approx(0.98)
    assert retention("rmse", student=0.5, teacher=0.4) == pytest.approx(0.8)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", ["accuracy", "rmse"])
def test_undefined_where_a_value_is_not_finite(bad, metric):
    assert retention(metric, bad, 1.0) is None
    assert retention(metric, 1.0, bad) is None


@pytest.mark.parametrize(("metric", "student", "teacher"), [("f1", 0.5, 0.0), ("rmse", 0.0, 1.0)])
def test_undefined_where_it_would_divide_by_zero(metric, student, teacher):
    assert retention(metric, student, teacher) is None


def test_undefined_where_the_teacher_is_worse_than_chance():
    assert retention("matthews_correlation", 0.1, -0.2) is None
