"""The record of a search: its trials on disk, the best of them, and what to try next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy

# Bounds that the search keeps to, widened where the command line's own settings lie outside. Below the least alpha
# a student hardly hears its teacher.
ALPHA = (0.1, 1.0)
TEMPERATURE = (1.0, 10.0)
# Trials drawn at random before the estimator of optuna's sampler has something to go by.
RANDOM_TRIALS = 5


@dataclass(frozen=True)
class Choice:
    """What a search chooses.

    Args:
        alpha: weight of the teacher's term, in [0, 1].
        temperature: T, above 0.
        teacher_stop_epoch: the epoch, from 1, after which the teacher stopped; None where it has none to choose.

    Example:
        >>> Choice(0.9, 3.4, 2).flags
        '--alpha 0.9 --temperature 3.4 --teacher_stop_epoch 2'
    """

    alpha: float
    temperature: float
    teacher_stop_epoch: int | None = None

    @property
    def flags(self) -> str:
        """The recipe's flags that set it."""
        return " ".join(f"--{name} {value}" for name, value in asdict(self).items() if value is not None)


@dataclass(frozen=True)
class Trial:
    """A student trained with a choice: its accuracy and cross-entropy on the texts to choose on, and its time."""

    choice: Choice
    accuracy: float
    cross_entropy: float
    seconds: float


def best_trial(trials: Sequence[Trial]) -> Trial:
    """Return the trial of the highest accuracy; of equals the one of the lowest cross-entropy, then the first.

    Example:
        >>> tied = [Trial(Choice(alpha, 2.0), 0.5, loss, 1.0) for alpha, loss in ((0.1, 1.2), (0.2, 1.1))]
        >>> best_trial(tied).choice.alpha
        0.2
    """
    return min(trials, key=lambda trial: (-trial.accuracy, trial.cross_entropy))


def next_choice(start: Choice, epochs: int | None, seed: int, trials: Sequence[Trial]) -> Choice:
    """Return what to try after some trials: a function of them and the seed, so a killed search goes on as it was.

    The first is ``start``. The others are drawn by optuna's TPE sampler, seeded anew for each, alpha from
    [0.1, 1], temperature log-uniform from [1, 10], the teacher's epoch from 1 to ``epochs``; alpha is rounded to
    0.05 and temperature to two digits, so that they can be passed by hand. What was tried is not drawn again.

    Args:
        start: the command line's settings.
        epochs: the teacher's epochs; None or 1 where there is none to choose.
        seed: of the draws.
        trials: all that are finished, in their order.

    Source: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011 (TPE).

    Example:
        >>> start = Choice(0.7, 4.0)
        >>> next_choice(start, None, 0, [])
        Choice(alpha=0.7, temperature=4.0, teacher_stop_epoch=None)
        >>> trials = [Trial(start, 0.5, 1.0, 1.0)]
        >>> next_choice(start, None, 0, trials) == next_choice(start, None, 0, trials) != start
        True
    """
    if not trials:
        return start
    import optuna  # an extra, which only a search needs

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = _space(start, epochs)
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        known = {name: getattr(trial.choice, name) for name in space}
        study.add_trial(optuna.create_trial(params=known, distributions=space, value=trial.accuracy))
    tried = {trial.choice for trial in trials}
    choice = start
    for attempt in range(100):
        words = numpy.random.SeedSequence([seed, len(trials), attempt]).generate_state(1)
        study.sampler = optuna.samplers.TPESampler(seed=int(words[0]), n_startup_trials=RANDOM_TRIALS)
        drawn = study.ask(space).params
        choice = Choice(
            round(round(drawn["alpha"] * 20) / 20, 2),
            float(f"{drawn['temperature']:.2g}"),
            drawn.get("teacher_stop_epoch", start.teacher_stop_epoch),
        )
        if choice not in tried:
            break
    return choice


def _space(start: Choice, epochs: int | None) -> dict[str, Any]:
    """Return optuna's distributions, which hold the start."""
    from optuna.distributions import FloatDistribution, IntDistribution

    ranges = {
        name: (min(low, value), max(high, value))
        for name, (low, high), value in (
            ("alpha", ALPHA, start.alpha),
            ("temperature", TEMPERATURE, start.temperature),
        )
    }
    space: dict[str, Any] = {
        name: FloatDistribution(*ends, log=name == "temperature") for name, ends in ranges.items()
    }
    if epochs is not None and epochs > 1:
        space["teacher_stop_epoch"] = IntDistribution(1, epochs)
    return space


def read_trials(path: Path) -> list[Trial]:
    """Return the trials that :func:`write_json` left, none where there is no file."""
    if not path.is_file():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [as_trial(row) for row in rows]


def as_row(trial: Trial) -> dict[str, Any]:
    """Return a trial as one flat mapping.

    Example:
        >>> as_trial(as_row(Trial(Choice(0.5, 2.0, 1), 0.25, 1.5, 3.0))).choice
        Choice(alpha=0.5, temperature=2.0, teacher_stop_epoch=1)
    """
    measured = {name: value for name, value in asdict(trial).items() if name != "choice"}
    return {**asdict(trial.choice), **measured}


def as_trial(row: dict[str, Any]) -> Trial:
    """Return the trial of a mapping made by :func:`as_row`."""
    choice = Choice(row["alpha"], row["temperature"], row["teacher_stop_epoch"])
    return Trial(choice, row["accuracy"], row["cross_entropy"], row["seconds"])


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all, so that a killed search loses no finished trial."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".json.unfinished")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
