"""The tables and the plot of when_it_helps.py, from its results."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.when_it_helps import Setting, Task

Results = list[dict[str, Any]]
# A factor, what is drawn over it, and the names of the two.
_OVER = {
    "stopping point": (
        "stopping point, teacher without word dropout",
        "with word dropout",
        "without",
    ),
    "unlabelled texts": ("unlabelled texts, three times the steps", "base steps", "three times"),
    "augmentation": ("augmentation, three times the steps", "base steps", "three times"),
}
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


def _cell(values: list[float], sign: str = "") -> str:
    if not values:
        return ""
    text = f"{statistics.fmean(values):{sign}.1f}"
    return f"{text} ± {spread(values):.1f}" if len(values) > 1 else text


def tables(task: Task, results: Results) -> str:
    """Return a table in Markdown, a line for each point of each factor: mean ± standard deviation over the seeds."""
    lines = [
        "| Factor | Value | seeds | teacher, % | entropy, nats | alone, % | distilled, % | difference |",
        f"|{' --- |' * 8}",
    ]
    for factor, points in task.factors().items():
        for value, setting in points:
            percent = {
                name: [100 * x for x in of(results, setting, name).values()]
                for name in ("teacher_accuracy", "accuracy")
            }
            entropy = list(of(results, setting, "entropy").values())
            cells = [
                factor,
                f"{value:g}" if isinstance(value, (int, float)) else value,
                str(len(differences(results, setting))),
                _cell(percent["teacher_accuracy"]),
                f"{statistics.fmean(entropy):.2f}" if entropy else "",
                _cell([100 * x for x in of(results, setting.alone, "accuracy").values()]),
                _cell(percent["accuracy"]),
                _cell(differences(results, setting), "+"),
            ]
            if setting == task.base:
                cells[1] = f"**{cells[1]}**"
            lines.append(f"| {' | '.join(cells)} |")
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
            over, first, second = _OVER.get(factor, (None, None, None))
            _panel(axis, task, results, factors[factor], "C0", "o", first)
            if over is not None and any(differences(results, setting) for _, setting in factors[over]):
                _panel(axis, task, results, factors[over], "C1", "s", second)
                axis.legend(frameon=False, fontsize=7)
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
    label: str | None,
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
