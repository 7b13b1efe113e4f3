"""binary_kl: per-class Bernoulli KL for multi-label heads, times T^2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_distill.objectives.base import (
    Objective,
    Rows,
    check_temperature,
    kl_of_logits,
)


@dataclass(frozen=True)
class BinaryKL(Objective):
    """Match each class's own yes/no probability: the sigmoid form, for multi-label heads.

    Formula: ``T^2 * mean_c KL(Bern(sigmoid(teacher_c / T)) ‖ Bern(sigmoid(student_c / T)))``;
    zero where both agree. It multiplies by T^2.

    Shapes: ``(items, classes)`` logits to ``(items,)`` values.
    Units: nats per item and class (times T^2).

    Args:
        temperature: T, above 0.

    Raises:
        ValueError: a temperature that is not a finite number above 0.

    Source: the binary case of Hinton et al., arXiv 1503.02531, section 2, per class; asked for in
        TextBrewer issue 50. We subtract the teacher's entropy, so that equality gives 0.

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> teacher = DenseSignals(torch.tensor([[2.0, 0.0]]))
        >>> rows = Rows(student_logits=torch.tensor([[0.0, 0.0]]), teacher=teacher)
        >>> round(BinaryKL(temperature=2.0)(rows).item(), 4)
        0.2219
    """

    temperature: float = 2.0

    name: ClassVar[str] = "binary_kl"
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    heads: ClassVar[frozenset[str]] = frozenset({"multi_label"})
    paper: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531, per class"
    cost: ClassVar[str] = "forward_kl over two outcomes for each class"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_temperature(self.temperature, self.name)

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per row."""
        if rows.teacher.logits is None:
            raise ValueError("binary_kl: expected a teacher with raw logits, received signals without.")
        teacher, student = rows.teacher.logits, rows.student_logits
        # A class that both models rule out (-inf) has the same Bernoulli in both, so it adds 0, and is not counted.
        impossible = (teacher == -torch.inf) & (student == -torch.inf)
        values = kl_of_logits(
            _yes_or_no(teacher, impossible), _yes_or_no(student, impossible), self.temperature
        )
        return self.temperature**2 * values.sum(-1) / (~impossible).sum(-1).clamp(min=1)


def _yes_or_no(logits: torch.Tensor, impossible: torch.Tensor) -> torch.Tensor:
    """Return the logits of yes and of no, ``(items, classes, 2)``, whose softmax is the sigmoid's Bernoulli."""
    yes = logits.masked_fill(impossible, 0.0)
    return torch.stack([yes, torch.zeros_like(yes)], -1)
