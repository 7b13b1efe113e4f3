"""The end of a run: the table a person reads, the same as JSON, and whether the gain is more than chance."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_distill.evaluation.cost import ModelCost
from hf_distill.evaluation.measures import Column, Measure, ratio
from hf_distill.evaluation.metrics import ClassificationMeasure
from hf_distill.evaluation.retention import retention

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
        metrics: for each seed, metric name -> value; the headline metric is needed.
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
    distilled: ArrayLike,
    alone: ArrayLike,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    measure: Measure | None = None,
) -> Interval:
    """Interval of a metric of the distilled student minus that of the student alone.

    Each resample draws seeds and texts with replacement, the same ones for both students, and takes the
    difference of their metrics; the interval is the middle share of these differences. So it covers both
    causes of chance: another initialisation, and other texts. With one seed only the texts are drawn, and
    nothing is said about other seeds.

    Formula: `mean over drawn seeds s of metric(sum over drawn texts i of distilled[s, i]) - metric(... alone[s, i])`.

    Args:
        distilled: what a measure's `statistics` gives for each seed, shape `(seeds, texts, sums)`; or, without a
            measure, 1 where the prediction is right, else 0, shape `(seeds, texts)`, whose mean is accuracy.
        alone: the same for the student alone, row by row with the same seed and column by column with the same text.
        resamples: number of resamples, at least 1.
        confidence: share of the resamples inside the interval, in (0, 1).
        seed: of the resampling.
        measure: makes its headline metric of sums over texts; accuracy if None.

    Returns:
        The mean difference and the ends of the interval, in the metric's unit (of accuracy, 0.01 is one point).

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
    both = [np.asarray(given, dtype=np.float64) for given in (distilled, alone)]
    if measure is None:
        both = [np.stack([one, np.ones_like(one)], axis=-1) for one in map(np.atleast_2d, both)]
    value = ratio if measure is None else measure.value
    if both[0].shape != both[1].shape or both[0].ndim != 3 or both[0].size == 0:
        shapes = " and ".join(str(one.shape[:2]) for one in both)
        raise ValueError(f"expected two arrays of one shape (seeds, texts); received {shapes}.")
    seeds, texts, width = both[0].shape
    # Text by text, so that one product with how often each is drawn gives the sums of all seeds of both.
    table = np.concatenate(both).transpose(1, 0, 2).reshape(texts, -1)

    def differences(counts: NDArray[Any]) -> NDArray[np.float64]:
        values = value((counts @ table).reshape(2, seeds, width))
        return values[0] - values[1]

    generator = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for number in range(resamples):
        counts = np.bincount(generator.integers(texts, size=texts), minlength=texts)
        drawn[number] = differences(counts)[generator.integers(seeds, size=seeds)].mean()
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(differences(np.ones(texts)).mean()), float(low), float(high))


def summarise(
    models: dict[str, ModelResults],
    settings: dict[str, Any],
    difference: Interval | None = None,
    teachers: Sequence[tuple[str, ModelResults]] = (),
    measure: Measure | None = None,
) -> dict[str, Any]:
    """The results of a run as plain numbers, for `distillation_results.json`.

    Metrics are means over seeds, with the sample standard deviation beside them as `..._std` where there are
    several.

    Args:
        models: `teacher` (the ensemble, if there are several), `student_distilled` and, if it was trained,
            `student_alone`.
        settings: what the run was called with; `seeds` and `test_texts` appear under the table.
        difference: the headline metric of the distilled student minus the student alone, from `paired_bootstrap`.
        teachers: name and results of each teacher by itself.
        measure: gives the headline metric and the table's columns; that of classification if None.

    Returns:
        `teacher`, `student_alone` (None without a baseline), `student_distilled`, `retention`, `agreement`,
        `difference` (None without a baseline), `settings`, `measure`. `retention` is that of the headline metric:
        the student's / the teacher's, or the teacher's / the student's where less is better; `agreement` is the
        distilled student's. `teachers` is a list of what each teacher reaches by itself, with its `name`; of several,
        `best_teacher` is the one that is best on the same texts, which flatters it, and `retention_best_teacher` what
        the distilled student keeps of it.
    """
    measure = measure or ClassificationMeasure()
    headline = measure.headline
    of_teacher = models["teacher"].mean(headline)

    def kept(student: float, teacher: float) -> float | None:
        return retention(headline, student, teacher)

    summary: dict[str, Any] = dict.fromkeys(_TITLES)
    for name, model in models.items():
        summary[name] = _row(model, kept(model.mean(headline), of_teacher))
    summary["teachers"] = [
        {"name": name, **_row(model, kept(model.mean(headline), of_teacher))} for name, model in teachers
    ]
    if len(teachers) > 1:
        best = (min if measure.lower_is_better else max)(summary["teachers"], key=lambda row: row[headline])
        summary["best_teacher"] = best
        summary["retention_best_teacher"] = kept(summary["student_distilled"][headline], best[headline])
    summary["retention"] = summary["student_distilled"]["retention"]
    summary["agreement"] = summary["student_distilled"]["agreement"]
    summary["difference"] = difference._asdict() if difference else None
    summary["settings"] = settings
    summary["measure"] = {
        "headline": headline,
        "lower_is_better": measure.lower_is_better,
        "columns": [asdict(column) for column in measure.columns],
    }
    return summary


def _row(model: ModelResults, kept: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for metric in model.metrics[0]:
        row |= _over_seeds(metric, [result[metric] for result in model.metrics])
    row |= vars(model.cost)
    if model.agreement:
        row |= _over_seeds("agreement", model.agreement)
        row["retention"] = kept
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
    columns = [Column(**column) for column in summary["measure"]["columns"]]
    columns = [column for column in columns if column.name in summary["teacher"]]
    titles = [column.title for column in columns]
    one = _counted(summary).removesuffix("s")
    rows = [["", "parameters", "on disk", *titles, "agreement", f"ms / {one}", "retention"]]
    for name, title in _TITLES.items():
        row = summary[name]
        if row is None:
            continue
        if name == "teacher" and summary["best_teacher"]:
            title = f"teacher (ensemble of {len(summary['teachers'])})"
        cells = [title, f"{row['parameters']:,}", f"{row['size_on_disk_bytes'] / 1e6:.1f} MB"]
        cells += [_percent(row, c.name) if c.percent else _plain(row, c.name) for c in columns]
        cells += [_percent(row, "agreement")]
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


def _plain(row: dict[str, Any], name: str) -> str:
    if row.get(name) is None:
        return ""
    spread = f" ± {row[name + '_std']:.3f}" if name + "_std" in row else ""
    return f"{row[name]:.3f}{spread}"


def _counted(summary: dict[str, Any]) -> str:
    return str(summary["settings"].get("counted", "texts"))


def _pad(cells: list[str], widths: list[int]) -> list[str]:
    return [cells[0].ljust(widths[0])] + [
        cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)
    ]


def _notes(summary: dict[str, Any]) -> list[str]:
    settings, counted = summary["settings"], _counted(summary)
    headline = summary["measure"]["headline"]
    (column,) = [Column(**one) for one in summary["measure"]["columns"] if one["name"] == headline]
    seeds = len(settings["seeds"])
    spread = "1 seed" if seeds == 1 else f"{seeds} seeds: mean ± standard deviation"
    notes = [f"Measured on {settings['test_texts']:,} {counted} that no model was trained on; {spread}."]
    if summary["best_teacher"]:
        values = [row[headline] for row in summary["teachers"]]
        reached = ", ".join(f"{100 * v:.1f}" if column.percent else f"{v:.3f}" for v in values)
        notes.append(
            f"Agreement and retention are against the ensemble. The teachers reach {reached}"
            f"{' %' if column.percent else ''}; the distilled student has "
            f"{_percent(summary, 'retention_best_teacher')} of the best one's {column.title}, which these {counted} "
            "chose."
        )
    difference = summary["difference"]
    if difference:
        resampled = f"seeds and {counted}" if seeds > 1 else counted
        scale, unit = (100, f"points of {column.title}") if column.percent else (1, f"of {column.title}")
        mean, low, high = (scale * difference[name] for name in ("mean", "low", "high"))
        better = ", less being better" if summary["measure"]["lower_is_better"] else ""
        notes.append(
            f"Distilled minus alone: {mean:+.2f} {unit}, 95 % interval {low:+.2f} to {high:+.2f} ({resampled} "
            f"resampled{better})."
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
