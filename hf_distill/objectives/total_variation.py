"""total_variation: half the summed difference of teacher's and student's probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_distill.objectives.base import Objective, Rows, check_temperature, student_log_probs


@dataclass(frozen=True)
class TotalVariation(Objective):
    """Match the teacher's probabilities by their absolute differences: bounded, and symmetric.

    Formula: ``1/2 * sum_c |p_c - q_c|`` with ``p = softmax(teacher / T)`` and
    ``q = softmax(student / T)``: the largest difference in probability of any set of classes, from 0 to
    1. It does not multiply by T^2: it is of first order, and its gradient falls with T, not with T^2;
    raise the weight by T to keep its size. Where both are certain of different classes the gradient
    vanishes, so use it beside another term, or above T = 1.

    Shapes: ``(items, classes)`` logits to ``(items,)`` values.
    Units: probability, from 0 to 1.

    Args:
        temperature: T, above 0.

    Raises:
        ValueError: a temperature that is not a finite number above 0.

    Source: Wen et al., "f-Divergence Minimization for Sequence-Level Knowledge Distillation",
        arXiv 2307.15190, its total variation distance, taken per position; the paper samples the
        positions from teacher and student, here they are those of the data, and T is ours.

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> teacher = DenseSignals(torch.tensor([[2.0, 0.0]]))
        >>> rows = Rows(student_logits=torch.tensor([[0.0, 0.0]]), teacher=teacher)
        >>> round(TotalVariation(temperature=2.0)(rows).item(), 4)
        0.2311
    """

    temperature: float = 2.0

    name: ClassVar[str] = "total_variation"
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label"})
    sparse: ClassVar[frozenset[str]] = frozenset({"top_k"})
    paper: ClassVar[str] = "Wen et al. 2023, arXiv 2307.15190"
    cost: ClassVar[str] = "two softmaxes over the classes"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_temperature(self.temperature, self.name)

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per row."""
        p = rows.teacher.log_probs(self.temperature).exp()
        q = student_log_probs(rows.student_logits, self.temperature).exp()
        return (p - q).abs().sum(-1) / 2
