"""regression: squared distance to the teacher's prediction, for regression heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_distill.objectives.base import Objective, Rows, at_least_float32


@dataclass(frozen=True)
class Regression(Objective):
    """Match the teacher's prediction, and not only the label.

    Formula: ``mean_d (student_d - teacher_d)^2`` over the head's outputs (one, as a rule).
    No temperature, no T^2.

    Shapes: ``(items, outputs)`` or ``(items,)`` predictions to ``(items,)`` values.
    Units: squared units of the label.

    Source: the unbounded form of Chen et al., "Learning Efficient Object Detection Models with
        Knowledge Distillation", NeurIPS 2017, section 3.4; we leave out its teacher bound.

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> teacher = DenseSignals(torch.tensor([[3.0]]))
        >>> rows = Rows(student_logits=torch.tensor([[1.0]]), teacher=teacher)
        >>> Regression()(rows).item()
        4.0
    """

    name: ClassVar[str] = "regression"
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    heads: ClassVar[frozenset[str]] = frozenset({"regression"})
    paper: ClassVar[str] = "Chen et al. 2017, NeurIPS, section 3.4"
    cost: ClassVar[str] = "one difference"

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per row."""
        if rows.teacher.logits is None:
            raise ValueError("regression: expected a teacher with raw predictions, received signals without.")
        difference = at_least_float32(rows.student_logits) - at_least_float32(rows.teacher.logits)
        return difference.square().flatten(1).mean(-1) if difference.dim() > 1 else difference.square()
