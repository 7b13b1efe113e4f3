"""The end of a run: the table a person reads, the same as JSON, and whether the gain is more than chance."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hf_distill.evaluation.cost import ModelCost

RESULTS_FILE = "distillation_results.json"
_TITLES = {
    "best_teacher": "best single teacher",
    "teacher": "teacher",
    "student_alone": "student alone",
    "student_distilled": "student distilled",
}


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelResults:
    """What was measured of one model, or of one model trained with several seeds.

    Args:
        metrics: for each seed, metric name -> value; `accuracy` is needed.
        cost: size and latency.
        agreement: for each seed, the share of texts where its class is the teacher's, in [0, 1]; empty for
            the teacher itself.
    """

    metrics: Sequence[dict[str, float]]
    cost: ModelCost
    agreement: Sequence[float] = ()

    def mean(self, metric: str) -> float:
        """Mean of a metric over the seeds."""
        return statistics.fmean(result[metric] for result in self.metrics)


def paired_bootstrap(
    correct_distilled: ArrayLike,
    correct_alone: ArrayLike,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the accuracy of the distilled student minus that of the student alone.

    Each resample draws seeds and texts with replacement, the same ones for both students, and takes the
    difference of their accuracies; the interval is the middle share of these differences. So it covers both
    causes of chance: another initialisation, and other texts. With one seed only the texts are drawn, and
    nothing is said about other seeds.

    Formula: `mean over drawn seeds s and drawn texts i of (distilled[s, i] - alone[s, i])`.

    Args:
        correct_distilled: 1 where the prediction is right, else 0; shape `(seeds, texts)`.
        correct_alone: the same for the student alone, row by row with the same seed and column by column with
            the same text.
        resamples: number of resamples, at least 1.
        confidence: share of the resamples inside the interval, in (0, 1).
        seed: of the resampling.

    Returns:
        The mean difference and the ends of the interval, as shares (0.01 is one point).

    Raises:
        ValueError: for shapes that differ or are empty.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile interval);
        resampling both factors of a crossed design is Owen 2007, arXiv 0708.1253.

    Example:
        >>> paired_bootstrap([[1, 1, 1, 0]] * 3, [[1, 1, 0, 0]] * 3).mean
        0.25
        >>> paired_bootstrap([[1, 0]], [[1, 0]])
        Interval(mean=0.0, low=0.0, high=0.0)
    """
    distilled = np.atleast_2d(np.asarray(correct_distilled, dtype=np.float64))
    alone = np.atleast_2d(np.asarray(correct_alone, dtype=np.float64))
    if distilled.shape != alone.shape or distilled.ndim != 2 or distilled.size == 0:
        raise ValueError(
            f"expected two arrays of one shape (seeds, texts); received {distilled.shape} and {alone.shape}."
        )
    differences = distilled - alone
    seeds, texts = differences.shape
    generator = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for number in range(resamples):
        # How often each text is drawn, instead of the drawn texts themselves: one product gives all the
        # seeds.
        counts = np.bincount(generator.integers(texts, size=texts), minlength=texts)
        of_seed = differences @ counts / texts
        drawn[number] = of_seed[generator.integers(seeds, size=seeds)].mean()
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(differences.mean()), float(low), float(high))


def summarise(
    models: dict[str, ModelResults],
    settings: dict[str, Any],
    difference: Interval | None = None,
    teachers: Sequence[tuple[str, ModelResults]] = (),
) -> dict[str, Any]:
    """The results of a run as plain numbers, for `distillation_results.json`.

    Metrics are means over seeds, with the sample standard deviation beside them as `..._std` where there are
    several.

    Args:
        models: `teacher` (the ensemble, if there are several), `student_distilled` and, if it was trained,
            `student_alone`.
        settings: what the run was called with; `seeds` and `test_texts` appear under the table.
        difference: accuracy of the distilled student minus the student alone, from `paired_bootstrap`.
        teachers: name and results of each teacher by itself.

    Returns:
        `teacher`, `student_alone` (None without a baseline), `student_distilled`, `retention`, `agreement`,
        `difference` (None without a baseline), `settings`. `retention` is distilled accuracy / teacher
        accuracy; `agreement` is the distilled student's. `teachers` is a list of what each teacher reaches by
        itself, with its `name`; of several, `best_teacher` is the one of the highest accuracy on the same texts,
        which flatters it, and `retention_best_teacher` the distilled student's accuracy / its accuracy.
    """
    teacher_accuracy = models["teacher"].mean("accuracy")
    summary: dict[str, Any] = dict.fromkeys(_TITLES)
    for name, model in models.items():
        summary[name] = _row(model, teacher_accuracy)
    summary["teachers"] = [{"name": name, **_row(model, teacher_accuracy)} for name, model in teachers]
    if len(teachers) > 1:
        best = max(summary["teachers"], key=lambda row: row["accuracy"])
        student = summary["student_distilled"]["accuracy"]
        summary["best_teacher"] = best
        summary["retention_best_teacher"] = student / best["accuracy"] if best["accuracy"] else None
    summary["retention"] = summary["student_distilled"]["retention"]
    summary["agreement"] = summary["student_distilled"]["agreement"]
    summary["difference"] = difference._asdict() if difference else None
    summary["settings"] = settings
    return summary


def _row(model: ModelResults, teacher_accuracy: float) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for metric in model.metrics[0]:
        row |= _over_seeds(metric, [result[metric] for result in model.metrics])
    row |= vars(model.cost)
    if model.agreement:
        row |= _over_seeds("agreement", model.agreement)
        row["retention"] = model.mean("accuracy") / teacher_accuracy if teacher_accuracy else None
    return row


def _over_seeds(name: str, values: Sequence[float]) -> dict[str, float]:
    mean = {name: statistics.fmean(values)}
    return mean | {f"{name}_std": statistics.stdev(values)} if len(values) > 1 else mean


def results_table(summary: dict[str, Any]) -> str:
    """The table of a run, in Markdown that also reads well in a terminal.

    Args:
        summary: from `summarise`.

    Example:
        >>> cost = ModelCost(parameters=1200, size_on_disk_bytes=4_800_000, latency_ms=1.25)
        >>> teacher, student = {"accuracy": 0.8}, {"accuracy": 0.76}
        >>> models = {
        ...     "teacher": ModelResults([teacher], cost),
        ...     "student_distilled": ModelResults([student], cost, [0.9]),
        ... }
        >>> print(results_table(summarise(models, {"seeds": [0], "test_texts": 100})))
        |                   | parameters | on disk | accuracy | agreement | ms / text | retention |
        | ----------------- | ---------- | ------- | -------- | --------- | --------- | --------- |
        | teacher           |      1,200 |  4.8 MB |   80.0 % |           |      1.25 |           |
        | student distilled |      1,200 |  4.8 MB |   76.0 % |    90.0 % |      1.25 |    95.0 % |
        <BLANKLINE>
        Measured on 100 texts that no model was trained on; 1 seed.
    """
    metrics = ["accuracy", "macro_f1", "matthews", "calibration_error"]
    metrics = [metric for metric in metrics if metric in summary["teacher"]]
    names = {"macro_f1": "macro F1", "matthews": "Matthews", "calibration_error": "calibration error"}
    titles = [names.get(metric, metric) for metric in metrics]
    rows = [["", "parameters", "on disk", *titles, "agreement", "ms / text", "retention"]]
    for name, title in _TITLES.items():
        row = summary[name]
        if row is None:
            continue
        if name == "teacher" and summary["best_teacher"]:
            title = f"teacher (ensemble of {len(summary['teachers'])})"
        cells = [title, f"{row['parameters']:,}", f"{row['size_on_disk_bytes'] / 1e6:.1f} MB"]
        cells += [_percent(row, metric) for metric in [*metrics, "agreement"]]
        rows.append([*cells, f"{row['latency_ms']:.2f}", _percent(row, "retention")])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    lines = ["| " + " | ".join(_pad(cells, widths)) + " |" for cells in rows]
    return "\n".join([*lines, "", *_notes(summary)])


def _percent(row: dict[str, Any], name: str) -> str:
    if row.get(name) is None:
        return ""
    spread = f" ± {100 * row[name + '_std']:.1f}" if name + "_std" in row else ""
    return f"{100 * row[name]:.1f}{spread} %"


def _pad(cells: list[str], widths: list[int]) -> list[str]:
    return [cells[0].ljust(widths[0])] + [
        cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)
    ]


def _notes(summary: dict[str, Any]) -> list[str]:
    settings = summary["settings"]
    seeds = len(settings["seeds"])
    spread = "1 seed" if seeds == 1 else f"{seeds} seeds: mean ± standard deviation"
    notes = [f"Measured on {settings['test_texts']:,} texts that no model was trained on; {spread}."]
    if summary["best_teacher"]:
        reached = ", ".join(f"{100 * row['accuracy']:.1f}" for row in summary["teachers"])
        notes.append(
            f"Agreement and retention are against the ensemble. The teachers reach {reached} %; the distilled student "
            f"has {_percent(summary, 'retention_best_teacher')} of the best one's accuracy, which these texts chose."
        )
    difference = summary["difference"]
    if difference:
        resampled = "seeds and texts" if seeds > 1 else "texts"
        notes.append(
            f"Distilled minus alone: {100 * difference['mean']:+.2f} points of accuracy, 95 % interval "
            f"{100 * difference['low']:+.2f} to {100 * difference['high']:+.2f} ({resampled} resampled)."
        )
    return notes


def write_results(summary: dict[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Write `distillation_results.json` into a folder, whole or not at all.

    Args:
        summary: from `summarise`.
        folder: an existing folder.

    Returns:
        The path of the file.
    """
    path = Path(folder) / RESULTS_FILE
    unfinished = path.with_suffix(".json.unfinished")
    unfinished.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path
