"""Schedules: a weight or a temperature that moves while training goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

Kind = Literal["constant", "linear", "cosine", "warmup"]

# What a mapping of each kind may hold beside "schedule"; the first ones are required.
_REQUIRED: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "linear": ("start", "end"),
    "cosine": ("start", "end"),
    "warmup": ("value", "steps"),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "constant": (),
    "linear": ("steps", "delay_steps"),
    "cosine": ("steps", "delay_steps"),
    "warmup": ("delay_steps",),
}
_LIKE = "like {'schedule': 'linear', 'start': 0.0, 'end': 1.0}"


@dataclass(frozen=True)
class Schedule:
    """A number for every optimizer step, which moves one way, or not at all.

    Formula: ``value(s) = start + (end - start) * shape(f)`` with ``f = (s - d) / n`` held in [0, 1], where s
    steps are done, d is the delay and n the number of steps that the change takes; ``shape(f)`` is f for
    ``linear`` and ``warmup``, ``(1 - cos(pi f)) / 2`` for ``cosine``. As with Transformers' learning rate
    schedules the first optimizer step has s = 0, so it has ``start``, and the last has s = max_steps - 1;
    ``end`` is reached once the d + n steps are done.

    Args:
        kind: ``constant`` (``start`` and ``end`` are the same), ``linear``, ``cosine`` or ``warmup``
            (linear from 0, as DKD's weight; over 20 of 240 epochs ``steps`` is 0.0833).
        start: the value up to the end of the delay, finite and at least 0.
        end: the value after the change, finite and at least 0.
        steps: how long the change takes: a share of training in (0, 1], or a whole number of
            steps above 1. Shares are rounded up to whole steps, as by
            ``TrainingArguments.warmup_steps``. None, the default, is the rest of training.
        delay_steps: how long ``start`` is held before: a share in [0, 1), or a whole number of
            steps above 1. Default 0.

    Raises:
        ValueError: an unknown kind, a value that is negative or not finite, or a span out of range.

    Source: ``warmup`` is the warm-up of the weight in Zhao et al., "Decoupled Knowledge Distillation",
        arXiv 2203.08679, which rises once per epoch; ours rises at every optimizer step.

    Example:
        >>> warm_up = Schedule("linear", start=0.0, end=1.0, steps=0.5)
        >>> [warm_up.at(step, max_steps=8) for step in (0, 1, 2, 4, 8)]
        [0.0, 0.25, 0.5, 1.0, 1.0]
        >>> cosine = Schedule("cosine", start=4.0, end=1.0, delay_steps=2)
        >>> [round(cosine.at(step, max_steps=8), 2) for step in (2, 5, 8)]
        [4.0, 2.5, 1.0]
    """

    kind: Kind
    start: float
    end: float
    steps: float | None = None
    delay_steps: float = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.kind not in _REQUIRED:
            raise ValueError(
                f"schedule: expected one of {', '.join(_REQUIRED)}, received {self.kind!r}. Choose one of them."
            )
        for name in ("start", "end"):
            if not _is_number(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError(
                    f"{name if self.kind in ('linear', 'cosine') else 'value'}: expected a finite number of at least "
                    f"0, received {getattr(self, name)!r}. Correct the schedule."
                )
        if self.kind == "constant" and self.start != self.end:
            raise ValueError(
                f"constant: expected start and end to be the same, received {self.ends}. Use linear."
            )
        if self.kind == "warmup" and (self.start != 0 or self.steps is None):
            raise ValueError(
                f"warmup: expected the start 0 and steps, received {self.start} and {self.steps}. Use linear."
            )
        self._check_spans()

    def _check_spans(self) -> None:
        if self.steps is not None and not (_is_number(self.steps) and self.steps > 0 and _whole(self.steps)):
            raise ValueError(
                f"steps: expected a share of training in (0, 1] or a whole number of steps above 1, received "
                f"{self.steps!r}. Leave it out for the rest of training."
            )
        delay = self.delay_steps
        if not (_is_number(delay) and delay >= 0 and delay != 1 and _whole(delay)):
            raise ValueError(
                f"delay_steps: expected a share of training in [0, 1) or a whole number of steps above 1, received "
                f"{delay!r}. Leave it out for none."
            )
        # Only shares can be added up here: how many steps there are is known when training starts.
        if self.steps is not None and self.steps <= 1 and delay < 1 and delay + self.steps > 1 + 1e-9:
            raise ValueError(
                f"delay_steps + steps: expected shares of training that add up to at most 1, received {delay} + "
                f"{self.steps}. Shorten one, or leave steps out for the rest of training."
            )

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last value; every other one lies between them."""
        return self.start, self.end

    def at(self, step: int, max_steps: int) -> float:
        """Return the value at a step.

        Args:
            step: optimizer steps done so far, ``state.global_step``.
            max_steps: optimizer steps of the whole training, ``state.max_steps``.

        Example:
            >>> Schedule("warmup", start=0.0, end=8.0, steps=4).at(1, max_steps=100)
            2.0
        """
        first = _in_steps(self.delay_steps, max_steps)
        last = max_steps
        if self.steps is not None:
            last = first + _in_steps(self.steps, max_steps)
            if self.steps <= 1:
                last = min(last, max_steps)  # two shares that add up to 1 are each rounded up
        if step <= first:
            return self.start
        if step >= last:
            return self.end
        share = (step - first) / (last - first)
        if self.kind == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        value = self.start + (self.end - self.start) * share
        # The last digit may be rounded past an end, where an alpha would make a negative weight.
        return min(max(value, min(self.ends)), max(self.ends))

    def describe(self) -> dict[str, Any]:
        """Return the mapping that :func:`read_schedule` reads as this schedule.

        Example:
            >>> Schedule("warmup", start=0.0, end=1.0, steps=0.1).describe()
            {'schedule': 'warmup', 'value': 1.0, 'steps': 0.1}
        """
        plain: dict[str, Any] = {"schedule": self.kind}
        plain |= {name: self.end if name == "value" else getattr(self, name) for name in _REQUIRED[self.kind]}
        if self.steps is not None:
            plain["steps"] = self.steps
        if self.delay_steps:
            plain["delay_steps"] = self.delay_steps
        return plain


@dataclass(frozen=True)
class Complement:
    """``1 - schedule``: the weight of the labels beside a scheduled alpha.

    It is taken from each step's value, so that a step has the weights of a run with that constant alpha,
    to the last bit.

    Args:
        of: a schedule whose values lie in [0, 1].

    Example:
        >>> alpha = Schedule("warmup", start=0.0, end=1.0, steps=4)
        >>> Complement(alpha).at(1, max_steps=100), Complement(alpha).ends
        (0.75, (1.0, 0.0))
        >>> Complement(alpha).describe()
        {'schedule': 'linear', 'start': 1.0, 'end': 0.0, 'steps': 4}
    """

    of: Schedule

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last value; every other one lies between them."""
        return 1.0 - self.of.start, 1.0 - self.of.end

    def at(self, step: int, max_steps: int) -> float:
        """Return the value at a step, as :meth:`Schedule.at` does."""
        return 1.0 - self.of.at(step, max_steps)

    def describe(self) -> dict[str, Any]:
        """Return a mapping with the same values; a warm-up of alpha is a linear fall of its complement."""
        start, end = self.ends
        kind: Kind = "linear" if self.of.kind == "warmup" else self.of.kind
        return Schedule(kind, start, end, self.of.steps, self.of.delay_steps).describe()


Scheduled = float | Schedule | Complement


def read_schedule(name: str, mapping: Mapping[str, Any]) -> Schedule:
    """Read a schedule from its mapping.

    Args:
        name: what is scheduled, for errors.
        mapping: ``schedule`` (the kind), and by kind: ``value`` (constant); ``start``, ``end`` and
            perhaps ``steps``, ``delay_steps`` (linear, cosine); ``value``, ``steps`` and perhaps
            ``delay_steps`` (warmup).

    Raises:
        ValueError: an unknown kind or key, one that is missing, or a value or span out of range.

    Example:
        >>> read_schedule("alpha", {"schedule": "warmup", "value": 0.5, "steps": 0.1})
        Schedule(kind='warmup', start=0.0, end=0.5, steps=0.1, delay_steps=0)
    """
    kind = mapping.get("schedule")
    if not isinstance(kind, str) or kind not in _REQUIRED:
        raise ValueError(
            f"{name}: expected a schedule that is one of {', '.join(_REQUIRED)}, {_LIKE}, received {dict(mapping)!r}. "
            "Name one of them under the key 'schedule', or give a number."
        )
    required, optional = _REQUIRED[kind], _OPTIONAL[kind]
    unknown = [key for key in mapping if key not in ("schedule", *required, *optional)]
    missing = [key for key in required if mapping.get(key) is None]
    if unknown or missing:
        problem = f"the unknown {', '.join(map(repr, unknown))}" if unknown else f"none for {missing[0]!r}"
        raise ValueError(
            f"{name}: expected the keys {', '.join(required)}{''.join(f', {key}' for key in optional)} for a "
            f"{kind} schedule ({', '.join(required)} required), received {problem} in {dict(mapping)!r}. "
            "Correct the keys."
        )
    end = mapping["end" if "end" in required else "value"]
    start = mapping["start"] if "start" in required else 0.0 if kind == "warmup" else end
    try:
        return Schedule(
            kind,  # type: ignore[arg-type]
            float(start) if _is_number(start) else start,
            float(end) if _is_number(end) else end,
            mapping.get("steps"),
            mapping.get("delay_steps", 0),
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def value_at(value: Scheduled, step: int, max_steps: int) -> float:
    """Return the number itself, or the schedule's value at a step.

    Example:
        >>> value_at(0.5, step=3, max_steps=10)
        0.5
    """
    return value if isinstance(value, (int, float)) else value.at(step, max_steps)


def highest(value: Scheduled) -> float:
    """Return the number itself, or the highest value of the schedule.

    Example:
        >>> highest(Schedule("linear", start=1.0, end=0.25))
        1.0
    """
    return value if isinstance(value, (int, float)) else max(value.ends)


def as_plain(value: Scheduled) -> float | dict[str, Any]:
    """Return the number itself, or the schedule as a mapping that can be read again.

    Example:
        >>> as_plain(Schedule("linear", start=1.0, end=0.25))
        {'schedule': 'linear', 'start': 1.0, 'end': 0.25}
    """
    return value if isinstance(value, (int, float)) else value.describe()


def _in_steps(span: float, max_steps: int) -> int:
    """Return a share of training, rounded up as ``TrainingArguments.get_warmup_steps`` does, or the steps."""
    return math.ceil(span * max_steps) if span <= 1 else int(span)


def _whole(span: float) -> bool:
    return span <= 1 or span == int(span)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
