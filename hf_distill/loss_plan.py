"""Turns the short or the long form of the arguments into the weights and objectives of one run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from hf_distill.objectives import Objective, build_objective
from hf_distill.objectives.base import HeadKind, check_temperature

DEFAULT_ALPHA = 0.5
DEFAULT_TEMPERATURE = 2.0
_HEAD_OBJECTIVE = {"single_label": "forward_kl", "multi_label": "binary_kl", "regression": "regression"}
_RESERVED = {"name", "weight", "key"}
# Sums that evaluation keeps beside the objectives', under these names.
_KEYS_OF_EVALUATION = {"label", "agreement", "mean_kl"}


@dataclass(frozen=True)
class Term:
    """One weighted objective of a run; ``key`` is its name in the logs."""

    objective: Objective
    weight: float
    key: str


@dataclass(frozen=True)
class LossPlan:
    """``loss = label_weight * label loss + sum_i weight_i * objective_i``, terms of weight 0 left out."""

    label_weight: float
    terms: tuple[Term, ...]

    @property
    def needs_teacher(self) -> bool:
        """Whether any term asks the teacher in training."""
        return bool(self.terms)

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain values, for the model card and the results file."""
        return {
            "label_weight": self.label_weight,
            "objectives": [
                {
                    "name": term.objective.name,
                    "weight": term.weight,
                    "key": term.key,
                    **{
                        field.name: getattr(term.objective, field.name)
                        for field in fields(term.objective)  # type: ignore[arg-type]
                    },
                }
                for term in self.terms
            ],
        }


def resolve_loss(args: Any, head: HeadKind) -> LossPlan:
    """Resolve the arguments' short or long form into the loss of one run.

    The short form takes the objective that fits the head: ``forward_kl``, ``binary_kl`` for
    multi-label heads (the sigmoid form), ``regression`` for regression heads (no temperature).

    Args:
        args: any arguments; fields of :class:`hf_distill.arguments.DistillationArgumentsMixin`
            that they lack take the defaults.
        head: the kind of head the student has.

    Raises:
        ValueError: both forms given, a number out of range, an unknown objective or setting, a key
            used twice, an objective that the head has no meaning for, or nothing to train on.

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
    weight = _number("label_weight", 1.0 if label_weight is None else label_weight)
    return LossPlan(weight, _long_form(_read(objectives), head, weight))


def _short_form(alpha: Any, temperature: Any, head: HeadKind) -> LossPlan:
    alpha = _number("alpha", DEFAULT_ALPHA if alpha is None else alpha)
    if alpha > 1:
        raise ValueError(
            f"alpha: expected a number in [0, 1], received {alpha}. For weights that do not sum to 1 use objectives."
        )
    # Checked even where alpha is 0 or the head has no temperature: a mistake is one all the same.
    temperature = DEFAULT_TEMPERATURE if temperature is None else temperature
    check_temperature(temperature, "temperature")
    name = _HEAD_OBJECTIVE[head]
    settings = {} if name == "regression" else {"temperature": float(temperature)}
    objective = build_objective(name, settings)
    terms = () if alpha == 0 else (Term(objective, alpha, name),)
    return LossPlan(1.0 - alpha, terms)


def _long_form(specifications: list[Any], head: HeadKind, label_weight: float) -> tuple[Term, ...]:
    terms: list[Term] = []
    keys: set[str] = set()
    for position, specification in enumerate(specifications):
        if not isinstance(specification, Mapping) or not isinstance(specification.get("name"), str):
            raise ValueError(
                f"objectives[{position}]: expected a mapping with a name, like {{'name': 'forward_kl', "
                f"'weight': 1.0}}, received {specification!r}."
            )
        name = specification["name"]
        objective = build_objective(name, {k: v for k, v in specification.items() if k not in _RESERVED})
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
        weight = _number(f"objectives[{position}] weight", specification.get("weight", 1.0))
        if weight > 0:
            terms.append(Term(objective, weight, key))
    if label_weight == 0 and not terms:
        raise ValueError("nothing to train on: label_weight is 0 and no objective has a weight above 0.")
    return tuple(terms)


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


def _number(name: str, value: Any) -> float:
    """Return a finite number of at least 0; searches may hand over ints."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
    ):
        raise ValueError(f"{name}: expected a finite number of at least 0, received {value!r}.")
    return float(value)
