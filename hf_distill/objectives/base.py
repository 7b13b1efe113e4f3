"""What an objective is: settings, what it needs of the teacher, and one value per row."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from hf_distill.teachers.signals import TeacherSignals

HeadKind = Literal["single_label", "multi_label", "regression"]
Level = Literal["item", "example", "token"]


@dataclass(frozen=True)
class Rows:
    """Aligned rows of one level: row ``i`` of the student is row ``i`` of the teacher.

    Padding, ``-100`` and unsupervised positions are already gone.

    Args:
        student_logits: ``(rows, classes)``, in the student's own dtype.
        teacher: the teacher's signals for the same rows.
        labels: integer ``(rows,)`` or float ``(rows, classes)`` labels, or None. A row may be
            unlabelled (-100 or NaN): only an objective that needs labels looks at them.
        level: what a row is.
    """

    student_logits: torch.Tensor
    teacher: TeacherSignals
    labels: torch.Tensor | None = None
    level: Level = "item"


class Objective(ABC):
    """One way of matching a teacher: a frozen dataclass whose fields are its settings.

    A subclass lives in a file of its own, named like the objective, and gives one value per row.
    It never sees padding, ``-100``, batch means, weights or the number of processes: those are
    the trainer's.

    Class attributes:
        name: the objective's name, and its file's.
        level: what a row is: ``item`` (a supervised position), ``example`` or ``token``.
        needs: what it reads of the teacher: ``log_probs`` or ``logits``.
        heads: the kinds of head it is defined for.
        paper: where it comes from, for the generated table.
        cost: what it adds to a step, for the generated table.
    """

    name: ClassVar[str]
    level: ClassVar[Level] = "item"
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label"})
    paper: ClassVar[str]
    cost: ClassVar[str]

    @abstractmethod
    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return ``(rows,)`` values in float32 or better, with the graph to the student's logits."""


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Upcast half types to float32 and keep float32 and float64, so that no loss is summed in 8 bits.

    Example:
        >>> at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
        >>> at_least_float32(torch.zeros(1, dtype=torch.float64)).dtype
        torch.float64
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def student_log_probs(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return ``log softmax(logits / temperature)`` over the last dimension, in float32 or better."""
    return torch.log_softmax(at_least_float32(logits) / temperature, dim=-1)


def divergence_terms(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return ``p (log p - log q)`` per class, with ``0 log 0 = 0`` where p is 0.

    A class at ``-inf`` in both models would be ``0 * (-inf - -inf)``, which is NaN, so classes of
    probability 0 under p leave the sum, and its gradient, before the difference is formed.
    """
    impossible = log_p == -math.inf
    difference = log_p.masked_fill(impossible, 0.0) - log_q.masked_fill(impossible, 0.0)
    return log_p.exp() * difference


def check_temperature(temperature: float, where: str) -> None:
    """Raise ValueError unless the temperature is a finite number above 0."""
    if not (isinstance(temperature, (int, float)) and math.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"{where}: expected a finite temperature above 0, received {temperature!r}. "
            "Usual values are 1 to 8; 2.0 is the default."
        )
