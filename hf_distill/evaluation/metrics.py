"""Accuracy, macro F1, Matthews correlation and calibration as `evaluate` metrics that need no network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import f1_score, matthews_corrcoef
from transformers import EvalPrediction

from hf_distill.evaluation.measures import Column, Measure, compute_metrics, ratio

UNLABELLED = -100
CALIBRATION_BINS = 15


class _Classes(evaluate.Metric):
    """A metric over predicted and true classes; `evaluate.load` would ask the Hub for its code."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=type(self).__doc__, citation="", features=datasets.Features(features)
        )


class Accuracy(_Classes):
    """Share of rows whose predicted class is the true one."""

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


class MacroF1(_Classes):
    """Mean over classes of F1; the classes are those that occur, predicted or true."""

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        return {"macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0))}


class Matthews(_Classes):
    """Matthews correlation in its form for several classes (R_K): 1 is right, 0 is chance, -1 is reversed."""

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        return {"matthews": float(matthews_corrcoef(references, predictions))}


class CalibrationError(evaluate.Metric):
    """Expected calibration error of the predicted class; see `expected_calibration_error`."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=type(self).__doc__, citation="", features=datasets.Features(features)
        )

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        # Here a prediction is a confidence, and its reference is 1 where the predicted class is right.
        return {"calibration_error": expected_calibration_error(predictions, references)}


def expected_calibration_error(
    confidences: ArrayLike, correct: ArrayLike, bins: int = CALIBRATION_BINS
) -> float:
    """Mean gap between how sure a model is and how often it is right, over bins of confidence.

    Formula: `sum over bins b of |b| / rows * |mean correct in b - mean confidence in b|`, where bin k of n
        holds the
    confidences in `((k - 1) / n, k / n]`, and 0 falls into the first.

    Args:
        confidences: probability of the predicted class, in [0, 1]; shape `(rows,)`.
        correct: 1 where the predicted class is right, else 0; shape `(rows,)`.
        bins: number of bins of equal width, at least 1.

    Returns:
        A share in [0, 1]; 0 is calibrated.

    Raises:
        ValueError: without rows.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3, with their 15 bins.

    Example:
        >>> round(expected_calibration_error([0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0]), 6)
        0.1
    """
    sure, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if sure.size == 0:
        raise ValueError("expected at least one row to measure calibration on; received none.")
    edges = np.arange(1, bins) / bins
    places = np.searchsorted(edges, sure, side="left")
    # Per bin, |b| * |mean correct - mean confidence| is the size of the sum of the differences.
    gaps = np.bincount(places, weights=right - sure, minlength=bins)
    return float(np.abs(gaps).sum() / sure.size)


class ClassificationMeasure(Measure):
    """Accuracy, macro F1, Matthews correlation and calibration of heads with one label per example.

    Examples with the label -100 (unlabelled) are left out; without any labelled example there are no metrics.

    Example:
        >>> logits, labels = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array([0, 1, 1])
        >>> measure = ClassificationMeasure()
        >>> round(float(measure.value(measure.statistics(logits, labels).sum(0))), 3)
        0.667
    """

    headline = "accuracy"
    columns = (
        Column("accuracy", "accuracy"),
        Column("macro_f1", "macro F1"),
        Column("matthews", "Matthews"),
        Column("calibration_error", "calibration error"),
    )

    def __init__(self) -> None:
        # In memory: every rank measures, and files of the same name would have them wait for each other.
        self._classes = evaluate.combine(
            [metric(keep_in_memory=True) for metric in (Accuracy, MacroF1, Matthews)]
        )
        self._calibration = CalibrationError(keep_in_memory=True)

    def preprocess(self, logits: Any, labels: Any) -> Any:
        """Keep the logits, of which calibration needs all; of several outputs the first."""
        return logits[0] if isinstance(logits, tuple) else logits

    def metrics(self, predictions: Any, labels: Any) -> dict[str, float]:
        """Return the four metrics of logits ``(rows, classes)`` and labels ``(rows,)``."""
        labels = np.asarray(labels)
        kept = labels != UNLABELLED
        logits, labels = _first(predictions).astype(np.float64)[kept], labels[kept]
        if len(labels) == 0:
            return {}
        predicted = logits.argmax(axis=-1)
        # The largest probability is 1 / sum of exp(logit - largest logit).
        confidences = 1.0 / np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)
        results = self._classes.compute(predictions=predicted, references=labels)
        right = (predicted == labels).astype(int)
        results |= self._calibration.compute(predictions=confidences, references=right)
        return {name: float(value) for name, value in results.items()}

    def statistics(self, predictions: Any, labels: Any) -> NDArray[np.float64]:
        """Return right and counted, 0 or 1, for each row."""
        labels = np.asarray(labels)
        counted = labels != UNLABELLED
        right = (_first(predictions).argmax(axis=-1) == labels) & counted
        return np.stack([right, counted], axis=-1).astype(np.float64)

    def value(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return accuracy from right and counted."""
        return ratio(sums)


def _first(predictions: Any) -> NDArray[Any]:
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)


def classification_metrics() -> Callable[[EvalPrediction], dict[str, float]]:
    """The `compute_metrics` of a Trainer for heads with one label per row: :class:`ClassificationMeasure`.

    Returns:
        A function from logits `(rows, classes)` and labels `(rows,)` to `accuracy`, `macro_f1`, `matthews`
        and `calibration_error`.

    Example:
        >>> import numpy as np
        >>> logits = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
        >>> results = classification_metrics()(EvalPrediction(logits, np.array([0, 1, 1])))
        >>> {name: round(value, 3) for name, value in results.items()}
        {'accuracy': 0.667, 'macro_f1': 0.667, 'matthews': 0.5, 'calibration_error': 0.3}
    """
    return compute_metrics(ClassificationMeasure())
