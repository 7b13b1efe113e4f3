"""The tables and the plot of when_it_helps.py, from its results."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.when_it_helps import Setting, Task

Results = list[dict[str, Any]]
_PLAIN = "stopping point, teacher without word dropout"
_AXES = {
    "stopping point": "epochs of the teacher",
    "temperature": "temperature",
    "alpha": "alpha",
    "budget": "epochs of the student",
    "unlabelled texts": "texts without labels",
    "augmentation": "augmentation",
}


def of(results: Results, setting: Setting, name: str) -> dict[int, float]:
    """Return one value of a setting for each seed that has it."""
    wanted = asdict(setting)
    return {row["seed"]: row[name] for row in results if row["setting"] == wanted and name in row}


def differences(results: Results, setting: Setting) -> list[float]:
    """Return distilled minus alone in points of accuracy, seed by seed."""
    distilled, alone = of(results, setting, "accuracy"), of(results, setting.alone, "accuracy")
    return [100 * (distilled[seed] - alone[seed]) for seed in sorted(distilled.keys() & alone.keys())]


def spread(values: list[float]) -> float:
    """Return the standard deviation over seeds, 0 for one seed."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _cell(values: list[float], sign: str = "", unit: str = "") -> str:
    if not values:
        return ""
    text = f"{statistics.fmean(values):{sign}.1f}"
    return f"{text} ± {spread(values):.1f}{unit}" if len(values) > 1 else f"{text}{unit}"


def tables(task: Task, results: Results) -> str:
    """Return a table in Markdown for each factor: mean ± standard deviation over the seeds."""
    lines: list[str] = []
    for factor, points in task.factors().items():
        lines += [
            f"\n### {factor[0].upper()}{factor[1:]}\n",
            f"| {factor.split(',')[0]} | seeds | teacher | entropy, nats | near one-hot "
            "| alone | distilled | difference |",
            f"|{' --- |' * 8}",
        ]
        for value, setting in points:
            percent = {
                name: [100 * x for x in of(results, setting, name).values()]
                for name in ("teacher_accuracy", "near_one_hot", "accuracy")
            }
            entropy = list(of(results, setting, "entropy").values())
            alone = [100 * x for x in of(results, setting.alone, "accuracy").values()]
            cells = [
                f"{value:g}" if isinstance(value, (int, float)) else value,
                str(len(differences(results, setting))),
                _cell(percent["teacher_accuracy"], unit=" %"),
                f"{statistics.fmean(entropy):.2f}" if entropy else "",
                f"{statistics.fmean(percent['near_one_hot']):.0f} %" if percent["near_one_hot"] else "",
                _cell(alone, unit=" %"),
                _cell(percent["accuracy"], unit=" %"),
                _cell(differences(results, setting), "+"),
            ]
            bold = "**" if setting == task.base else ""
            lines.append(f"| {bold}{cells[0]}{bold} | {' | '.join(cells[1:])} |")
    return "\n".join(lines)


def draw(task: Task, results: Results, path: Path) -> Path:
    """Draw accuracy minus that of the student alone over each factor, with the seeds' standard deviation."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # The same results give the same file, and its text is text.
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": path.stem,
        "font.size": 8,
        "font.family": "sans-serif",
    }
    with matplotlib.rc_context(settings):
        figure, axes = pyplot.subplots(2, 3, figsize=(8, 4.6), sharey=True, layout="constrained")
        factors = task.factors()
        for axis, (factor, label) in zip(axes.flat, _AXES.items(), strict=True):
            _panel(axis, task, results, factors[factor], "C0", "o", "with word dropout")
            if factor == "stopping point":
                _panel(axis, task, results, factors[_PLAIN], "C1", "s", "without")
                axis.legend(title="teacher", frameon=False, fontsize=7)
            axis.axhline(0, color="0.6", linewidth=0.8)
            axis.set_xlabel(label)
            axis.spines[["top", "right"]].set_visible(False)
        for axis in axes[:, 0]:
            axis.set_ylabel("points over the student alone")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
    return path


def _panel(
    axis: Any,
    task: Task,
    results: Results,
    points: list[tuple[Any, Setting]],
    color: str,
    marker: str,
    label: str,
) -> None:
    """Draw one factor; the base setting is the filled point."""
    places = [(place, *point) for place, point in enumerate(points)]
    drawn = [(place, differences(results, setting), setting) for place, _, setting in places]
    drawn = [entry for entry in drawn if entry[1]]
    means = [statistics.fmean(values) for _, values, _ in drawn]
    axis.errorbar(
        [place for place, *_ in drawn],
        means,
        [spread(values) for _, values, _ in drawn],
        color=color,
        marker=marker,
        markerfacecolor="white",
        capsize=2,
        linewidth=1,
        linestyle="none" if isinstance(points[0][0], str) else "-",
        label=label,
    )  # fmt: skip
    for (place, _, setting), mean in zip(drawn, means, strict=True):
        if setting == task.base:
            axis.plot(place, mean, marker=marker, color=color, zorder=3)
    names = [f"{value:g}" if isinstance(value, (int, float)) else value.split()[0] for value, _ in points]
    axis.set_xticks(range(len(points)), names)
