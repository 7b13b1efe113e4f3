"""Turns the short or the long form of the arguments into the weights and objectives of one run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from hf_distill.objectives import Objective, build_objective
from hf_distill.objectives.base import OF_ONE_MODEL, HeadKind, check_temperature
from hf_distill.schedules import (
    Complement,
    Schedule,
    Scheduled,
    as_plain,
    highest,
    read_schedule,
    value_at,
)

DEFAULT_ALPHA = 0.5
DEFAULT_TEMPERATURE = 2.0
_HEAD_OBJECTIVE = {"single_label": "forward_kl", "multi_label": "binary_kl", "regression": "regression"}
_RESERVED = {"name", "weight", "key", "teacher"}
# The settings of objectives that may be schedules.
_TEMPERATURES = ("temperature", "teacher_temperature", "student_temperature")
# Sums that evaluation keeps beside the objectives', under these names.
_KEYS_OF_EVALUATION = {"label", "agreement", "mean_kl"}


@dataclass(frozen=True)
class Term:
    """One weighted objective of a run; ``key`` is its name in the logs.

    ``temperatures`` are those of its settings that are scheduled; the objective itself has them as they
    are at the start. ``teacher`` says which of several teachers an objective on features or derivatives
    follows, by its number from 0, or ``average``: the mean of its values against all of them.
    """

    objective: Objective
    weight: Scheduled
    key: str
    temperatures: tuple[tuple[str, Schedule], ...] = ()
    teacher: int | Literal["average"] | None = None

    def at(self, step: int, max_steps: int) -> Term:
        """Return the term with the numbers of one step."""
        objective = self.objective
        if self.temperatures:
            values = {name: schedule.at(step, max_steps) for name, schedule in self.temperatures}
            objective = replace(objective, **values)  # type: ignore[type-var]
        return Term(objective, value_at(self.weight, step, max_steps), self.key, teacher=self.teacher)


@dataclass(frozen=True)
class LossPlan:
    """``loss = label_weight * label loss + sum_i weight_i * objective_i``, terms of weight 0 left out.

    Weights, and temperatures of objectives, may be schedules: :meth:`at` gives the plan of one step, in
    which they are numbers.
    """

    label_weight: Scheduled
    terms: tuple[Term, ...]

    @property
    def needs_teacher(self) -> bool:
        """Whether any term asks the teacher in training, at some step."""
        return bool(self.terms)

    @property
    def needs_labels(self) -> bool:
        """Whether the label loss has a weight above 0 at some step."""
        return highest(self.label_weight) > 0

    @property
    def weights(self) -> dict[str, Scheduled]:
        """The weight of each part of the loss, by its name in the logs."""
        return {"label": self.label_weight, **{term.key: term.weight for term in self.terms}}

    @cached_property
    def schedules(self) -> dict[str, Schedule | Complement]:
        """What is scheduled, by its name in the logs, like ``schedule/forward_kl/weight``."""
        weights = {f"schedule/{key}/weight": weight for key, weight in self.weights.items()}
        found = {name: weight for name, weight in weights.items() if not isinstance(weight, (int, float))}
        for term in self.terms:
            found.update({f"schedule/{term.key}/{name}": schedule for name, schedule in term.temperatures})
        return found

    def at(self, step: int, max_steps: int, keep_idle: bool = False) -> LossPlan:
        """Return the plan of one step, without schedules; a plan without any is its own.

        Args:
            step: optimizer steps done so far, ``state.global_step``.
            max_steps: optimizer steps of the whole training, ``state.max_steps``.
            keep_idle: keep terms whose weight is 0 at this step, as evaluation does, which shows
                the same parts at every step.

        Example:
            >>> from types import SimpleNamespace
            >>> alpha = {"schedule": "linear", "start": 0.0, "end": 1.0}
            >>> plan = resolve_loss(SimpleNamespace(alpha=alpha), "single_label")
            >>> plan.at(0, max_steps=4)
            LossPlan(label_weight=1.0, terms=())
            >>> plan.at(1, max_steps=4).weights
            {'label': 0.75, 'forward_kl': 0.25}
        """
        if not self.schedules:
            return self
        terms = (term.at(step, max_steps) for term in self.terms)
        return LossPlan(
            value_at(self.label_weight, step, max_steps),
            tuple(term for term in terms if keep_idle or highest(term.weight) > 0),
        )

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain values, for the model card and the results file."""
        return {
            "label_weight": as_plain(self.label_weight),
            "objectives": [
                {
                    "name": term.objective.name,
                    "weight": as_plain(term.weight),
                    "key": term.key,
                    **({} if term.teacher is None else {"teacher": term.teacher}),
                    **{
                        field.name: getattr(term.objective, field.name)
                        for field in fields(term.objective)  # type: ignore[arg-type]
                    },
                    **{name: schedule.describe() for name, schedule in term.temperatures},
                }
                for term in self.terms
            ],
        }


def resolve_loss(args: Any, head: HeadKind) -> LossPlan:
    """Resolve the arguments' short or long form into the loss of one run.

    The short form takes the objective that fits the head: ``forward_kl``, ``binary_kl`` for
    multi-label heads (the sigmoid form), ``regression`` for regression heads (no temperature).
    ``alpha``, ``label_weight``, any ``weight`` and any temperature may be a schedule, as
    :func:`hf_distill.schedules.read_schedule` reads it.

    Args:
        args: any arguments; fields of :class:`hf_distill.arguments.DistillationArgumentsMixin`
            that they lack take the defaults.
        head: the kind of head the student has.

    Raises:
        ValueError: both forms given, a number out of range, be it only at some point of a schedule,
            an unknown objective, setting or schedule, a key used twice, an objective that the head
            has no meaning for, a teacher for an objective on the mixture of all, or nothing to train on.

    Example:
        >>> from types import SimpleNamespace
        >>> plan = resolve_loss(SimpleNamespace(alpha=0.25), "single_label")
        >>> plan.label_weight, plan.terms[0].weight, plan.terms[0].objective
        (0.75, 0.25, ForwardKL(temperature=2.0))
    """
    alpha, temperature = getattr(args, "alpha", None), getattr(args, "temperature", None)
    objectives, label_weight = getattr(args, "objectives", None), getattr(args, "label_weight", None)
    if objectives is None:
        if label_weight is not None:
            raise ValueError(
                f"label_weight={label_weight} belongs to the long form: give objectives with it, or use "
                "alpha, which weights both terms."
            )
        return _short_form(alpha, temperature, head)
    if alpha is not None or temperature is not None:
        raise ValueError(
            f"expected the short form (alpha, temperature) or the long form (objectives, label_weight), "
            f"received both: alpha={alpha}, temperature={temperature} and objectives. Drop alpha and "
            "temperature, and set weight and temperature in the objectives."
        )
    weight = _number_or_schedule("label_weight", 1.0 if label_weight is None else label_weight)
    return LossPlan(weight, _long_form(_read(objectives), head, weight))


def _short_form(alpha: Any, temperature: Any, head: HeadKind) -> LossPlan:
    alpha = _number_or_schedule("alpha", DEFAULT_ALPHA if alpha is None else alpha)
    if highest(alpha) > 1:
        raise ValueError(
            f"alpha: expected a number in [0, 1]{'' if isinstance(alpha, float) else ' at every step'}, received "
            f"{as_plain(alpha)}. For weights that do not sum to 1 use objectives."
        )
    # Checked even where alpha is 0 or the head has no temperature: a mistake is one all the same.
    temperature = _temperature("temperature", DEFAULT_TEMPERATURE if temperature is None else temperature)
    name = _HEAD_OBJECTIVE[head]
    settings = {} if name == "regression" else {"temperature": temperature}
    objective, temperatures = _build(name, settings, "the short form")
    terms = () if highest(alpha) == 0 else (Term(objective, alpha, name, temperatures),)
    return LossPlan(1.0 - alpha if isinstance(alpha, float) else Complement(alpha), terms)


def _build(
    name: str, settings: dict[str, Any], where: str
) -> tuple[Objective, tuple[tuple[str, Schedule], ...]]:
    """Build an objective as it is at the start, and return it with the schedules of its temperatures."""
    schedules: dict[str, Schedule] = {}
    for key, value in settings.items():
        if key in _TEMPERATURES and isinstance(value, Mapping):
            value = _temperature(f"{where} {key}", value)
        elif isinstance(value, Mapping) and "schedule" in value:
            raise ValueError(
                f"{where} {key}: expected a number, received the schedule {dict(value)!r}. Only weights and "
                f"temperatures ({', '.join(_TEMPERATURES)}) can be scheduled."
            )
        if isinstance(value, Schedule):
            schedules[key] = value
    objective = build_objective(name, {**settings, **{key: s.start for key, s in schedules.items()}})
    if schedules:  # an objective may want more of a temperature than that it is above 0
        build_objective(name, {**settings, **{key: s.end for key, s in schedules.items()}})
    return objective, tuple(schedules.items())


def _long_form(specifications: list[Any], head: HeadKind, label_weight: Scheduled) -> tuple[Term, ...]:
    terms: list[Term] = []
    keys: set[str] = set()
    for position, specification in enumerate(specifications):
        if not isinstance(specification, Mapping) or not isinstance(specification.get("name"), str):
            raise ValueError(
                f"objectives[{position}]: expected a mapping with a name, like {{'name': 'forward_kl', "
                f"'weight': 1.0}}, received {specification!r}."
            )
        name = specification["name"]
        settings = {k: v for k, v in specification.items() if k not in _RESERVED}
        objective, temperatures = _build(name, settings, f"objectives[{position}]")
        key = str(specification.get("key") or objective.name)
        if key in keys or key in _KEYS_OF_EVALUATION:
            raise ValueError(
                f"objectives[{position}]: the key {key!r} is taken. Give each objective a key of its own."
            )
        keys.add(key)
        if head not in objective.heads:
            fitting = _HEAD_OBJECTIVE[head]
            raise ValueError(
                f"objective {name!r} is defined for {', '.join(sorted(objective.heads))} heads; the student's is "
                f"{head}. Use {fitting!r}, or set the student's config.problem_type."
            )
        weight = _number_or_schedule(f"objectives[{position}] weight", specification.get("weight", 1.0))
        teacher = _teacher(f"objectives[{position}] teacher", specification.get("teacher"), objective)
        if highest(weight) > 0:
            terms.append(Term(objective, weight, key, temperatures, teacher))
    if highest(label_weight) == 0 and not terms:
        raise ValueError("nothing to train on: label_weight is 0 and no objective has a weight above 0.")
    return tuple(terms)


def _teacher(where: str, value: Any, objective: Objective) -> int | Literal["average"] | None:
    """Return which teacher an objective follows; how many there are is not known here."""
    if value is None:
        return None
    if not objective.needs & OF_ONE_MODEL:
        raise ValueError(
            f"{where}: expected none for {objective.name!r}, which follows the mixture of all teachers, received "
            f"{value!r}. Only objectives on features or derivatives choose one; set teacher_weights instead."
        )
    if value == "average" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError(f"{where}: expected the number of a teacher, from 0, or average, received {value!r}.")


def _read(objectives: Any) -> list[Any]:
    """Return the list behind a Python list, a JSON text or the path of a YAML file."""
    if isinstance(objectives, str):
        text, where = objectives, "objectives"
        if not objectives.lstrip().startswith(("[", "{")):
            where = f"objectives file {objectives}"
            path = Path(objectives)
            if not path.is_file():
                raise ValueError(
                    f"objectives: expected a JSON list or the path of a YAML file, received {objectives!r}, "
                    "which is neither."
                )
            text = path.read_text(encoding="utf-8")
        try:
            objectives = json.loads(text) if where == "objectives" else yaml.safe_load(text)
        except (json.JSONDecodeError, yaml.YAMLError) as error:
            raise ValueError(
                f"{where}: not readable as {'JSON' if where == 'objectives' else 'YAML'}: {error}"
            ) from error
    if isinstance(objectives, Mapping) and "objectives" in objectives:
        objectives = objectives["objectives"]
    if not isinstance(objectives, list) or not objectives:
        raise ValueError(f"objectives: expected a list with at least one entry, received {objectives!r}.")
    return objectives


def _temperature(name: str, value: Any) -> float | Schedule:
    """Return a temperature above 0, or a schedule that is above 0 at every step."""
    if not isinstance(value, Mapping):
        check_temperature(value, name)
        return float(value)
    schedule = read_schedule(name, value)
    for point, number in zip(("start", "end"), schedule.ends, strict=True):
        check_temperature(number, f"{name}, at the {point} of its schedule")
    return schedule


def _number_or_schedule(name: str, value: Any) -> float | Schedule:
    """Return a finite number of at least 0, or a schedule; searches may hand over ints."""
    if isinstance(value, Mapping):
        return read_schedule(name, value)
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
    ):
        raise ValueError(f"{name}: expected a finite number of at least 0, received {value!r}.")
    return float(value)
