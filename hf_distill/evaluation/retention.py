"""Retention: the share of the teacher's metric that the student keeps."""

from __future__ import annotations

import math
import re

_LOWER_IS_BETTER = re.compile(
    r"(^|[_/-])(loss|mean_kl|perplexity|mse|rmse|mae|error|ece|calibration_error|brier|wer|cer|nll|cross_entropy|distance|ppl|mape|bpc|logloss|kl_divergence)($|[_/-])"
)


def lower_is_better(metric: str) -> bool:
    """Return whether a metric's name is one of an error, of which less is better.

    Example:
        >>> lower_is_better("rmse"), lower_is_better("calibration_error"), lower_is_better("accuracy")
        (True, True, False)
    """
    return _LOWER_IS_BETTER.search(metric.lower()) is not None


def retention(metric: str, student: float, teacher: float) -> float | None:
    """Return student / teacher, or teacher / student where lower is better; None where undefined.

    Args:
        metric: the metric's name, which tells its direction.
        student: the student's value.
        teacher: the teacher's value.

    Example:
        >>> retention("accuracy", 0.9, 1.0), retention("rmse", 2.0, 1.0), retention("accuracy", 0.5, 0.0)
        (0.9, 0.5, None)
    """
    part, whole = (teacher, student) if lower_is_better(metric) else (student, teacher)
    if not (math.isfinite(part) and math.isfinite(whole)) or whole <= 0:
        return None
    return part / whole
