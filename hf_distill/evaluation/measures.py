"""What a measure is: numbers for a table, and sums over examples from which an interval can be resampled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
from numpy.typing import NDArray
from transformers import EvalPrediction


@dataclass(frozen=True)
class Column:
    """One metric in a table.

    Args:
        name: its key.
        title: what stands above it.
        percent: whether it is a share, shown in per cent, or a plain number.
    """

    name: str
    title: str
    percent: bool = True


class Measure(ABC):
    """How predictions are measured on one evaluation set.

    The headline metric is a function of sums over examples, so that examples can be resampled: accuracy of right and
    all items, F1 of right, predicted and true entities, perplexity of a sum of losses and a count.
    """

    #: The key of the metric that students are compared by.
    headline: ClassVar[str]
    #: Whether less of it is better.
    lower_is_better: ClassVar[bool] = False
    #: What a table shows, in order.
    columns: ClassVar[tuple[Column, ...]]

    @abstractmethod
    def preprocess(self, logits: Any, labels: Any) -> Any:
        """Return what is kept of a batch's logits, on the device; for Trainer's ``preprocess_logits_for_metrics``."""

    @abstractmethod
    def metrics(self, predictions: Any, labels: Any) -> dict[str, float]:
        """Return the values of all columns; nothing where no example has a label."""

    @abstractmethod
    def statistics(self, predictions: Any, labels: Any) -> NDArray[numpy.float64]:
        """Return ``(examples, sums)``, from whose sum over examples :meth:`value` gives the headline metric."""

    @abstractmethod
    def value(self, sums: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
        """Return the headline metric of ``(..., sums)``, with shape ``(...)``."""


def compute_metrics(measure: Measure) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return a measure as Trainer's ``compute_metrics``.

    Example:
        >>> import numpy as np
        >>> from hf_distill.evaluation.metrics import ClassificationMeasure
        >>> compute = compute_metrics(ClassificationMeasure())
        >>> compute(EvalPrediction(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([0, 0])))["accuracy"]
        0.5
    """

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        return measure.metrics(prediction.predictions, prediction.label_ids)

    return compute


def ratio(sums: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """Return the first sum divided by the second, and 0 where that is 0.

    Shapes: ``(..., 2)`` to ``(...)``.

    Example:
        >>> ratio(numpy.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [0.75, 0.0]
    """
    part, whole = sums[..., 0], sums[..., 1]
    return numpy.divide(part, whole, out=numpy.zeros_like(part), where=whole != 0)
