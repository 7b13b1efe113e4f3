"""The metrics of a run as its model card shows them: for readers, and for the Hub."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult


def latest_metrics(state: Any) -> dict[str, float]:
    """Collect the evaluation metrics that belong to the model as it is now, without the ``eval_`` prefix.

    After training with ``load_best_model_at_end`` these are the best step's, unless an evaluation followed.

    Args:
        state: a ``TrainerState``.
    """
    history = list(state.log_history)
    ends = [index for index, entry in enumerate(history) if "train_runtime" in entry]
    after = [entry for entry in history[ends[-1] :] if _evaluated(entry)] if ends else []
    best = state.best_global_step if ends and state.best_model_checkpoint else None
    entries = after or [entry for entry in history if best is None or entry.get("step") == best]
    merged: dict[str, float] = {}
    for entry in entries:
        merged.update(_evaluated(entry))
    return merged


def results_table(metrics: Mapping[str, float]) -> list[tuple[str, str, str, str]]:
    """Arrange metrics in rows of name, student, teacher and retention.

    Args:
        metrics: as ``latest_metrics`` gives them.

    Example:
        >>> results_table({"f1": 0.9, "teacher_f1": 1.0, "retention_f1": 0.9, "agreement": 0.95})
        [('f1', '0.9000', '1.0000', '0.9000'), ('agreement', '0.9500', '', '')]
    """

    def shown(name: str, kind: str) -> str:
        # With several evaluation sets the set's name comes first: `a_accuracy`, `a_teacher_accuracy`.
        cuts = [0, *(match.end() for match in re.finditer("_", name))]
        keys = [f"{name[:cut]}{kind}_{name[cut:]}" for cut in cuts]
        return next((_decimals(metrics[key]) for key in keys if key in metrics), "")

    return [
        (name, _decimals(value), shown(name, "teacher"), shown(name, "retention"))
        for name, value in metrics.items()
        if not re.search(r"(^|_)(teacher|retention)_", name)
    ]


def _evaluated(entry: Mapping[str, Any]) -> dict[str, float]:
    timing = re.compile(r"(runtime|per_second|compilation_time|preparation_time)$")
    return {
        name.removeprefix("eval_"): float(value)
        for name, value in entry.items()
        if name.startswith("eval_")
        and isinstance(value, int | float)
        and math.isfinite(value)  # not a number that YAML or the Hub can read
        and not timing.search(name)
    }


def eval_results(
    metrics: Mapping[str, float], task: str, names: list[str], ids: list[str], configurations: list[str]
) -> list[EvalResult] | None:
    """Return what the Hub reads of the metrics, or None where there is nothing to say."""
    return [
        EvalResult(
            task_type=task,
            dataset_type=ids[0] if ids else "custom",
            dataset_name=names[0] if names else "the run's evaluation set",
            dataset_config=configurations[0] if configurations else None,
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=round(value, 6),
        )
        for name, value in metrics.items()
        if "loss" not in name and not re.search(r"(^|_)teacher_", name)  # the teacher's are not the student's
    ] or None


def _decimals(value: float) -> str:
    return f"{round(value, 4) + 0.0:.4f}"  # + 0.0, for -0.0 is no news to a reader
