"""binary_kl: per-class Bernoulli KL for multi-label heads, times T^2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid

from hf_distill.objectives.base import (
    Objective,
    Rows,
    at_least_float32,
    check_temperature,
    divergence_terms,
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
    cost: ClassVar[str] = "four log-sigmoids over the classes"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_temperature(self.temperature, self.name)

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per row."""
        if rows.teacher.logits is None:
            raise ValueError("binary_kl: expected a teacher with raw logits, received signals without.")
        teacher = at_least_float32(rows.teacher.logits) / self.temperature
        student = at_least_float32(rows.student_logits) / self.temperature
        # A class that both models rule out (-inf) has the same Bernoulli in both, so it adds 0; but
        # log sigmoid(-inf) has no finite gradient, so it is taken out before.
        impossible = (teacher == -torch.inf) & (student == -torch.inf)
        teacher, student = teacher.masked_fill(impossible, 0.0), student.masked_fill(impossible, 0.0)
        yes = divergence_terms(logsigmoid(teacher), logsigmoid(student))
        no = divergence_terms(logsigmoid(-teacher), logsigmoid(-student))
        return self.temperature**2 * (yes + no).sum(-1) / (~impossible).sum(-1).clamp(min=1)
