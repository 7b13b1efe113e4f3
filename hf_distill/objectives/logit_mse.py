"""logit_mse: mean squared difference of the raw logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_distill.objectives.base import Objective, Rows, at_least_float32


@dataclass(frozen=True)
class LogitMSE(Objective):
    """Match the teacher's logits themselves, their level included.

    Formula: ``mean_c (student_c - teacher_c)^2``. No temperature, no T^2. Classes at -inf in both
    models leave the mean.

    Shapes: ``(items, classes)`` logits to ``(items,)`` values.
    Units: squared logits, mean over classes.

    Source: Ba & Caruana, "Do Deep Nets Really Need to be Deep?", arXiv 1312.6184, equation 1
        (the paper halves the sum over classes; here it is the mean).

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> teacher = DenseSignals(torch.tensor([[2.0, 0.0]]))
        >>> rows = Rows(student_logits=torch.tensor([[0.0, 1.0]]), teacher=teacher)
        >>> LogitMSE()(rows).item()
        2.5
    """

    name: ClassVar[str] = "logit_mse"
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label", "multi_label", "regression"})
    paper: ClassVar[str] = "Ba & Caruana 2014, arXiv 1312.6184"
    cost: ClassVar[str] = "one difference over the classes"

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per row."""
        if rows.teacher.logits is None:
            raise ValueError("logit_mse: expected a teacher with raw logits, received signals without.")
        student = at_least_float32(rows.student_logits)
        teacher = at_least_float32(rows.teacher.logits)
        impossible = (student == -torch.inf) & (teacher == -torch.inf)
        difference = student.masked_fill(impossible, 0.0) - teacher.masked_fill(impossible, 0.0)
        return difference.square().sum(-1) / (~impossible).sum(-1).clamp(min=1)
