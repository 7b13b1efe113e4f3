"""dist: how teacher and student relate classes within an item, and items within a class, by correlation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_distill.objectives.base import (
    FAR,
    Objective,
    Rows,
    check_temperature,
    check_weight,
    student_log_probs,
)

# A deviation of so many units in the last place of the largest value is rounding: its direction means nothing.
_ROUNDING = 32


@dataclass(frozen=True)
class Dist(Objective):
    """Match the teacher's probabilities up to scale and shift, per item over classes and per class over items.

    Formula: ``inter_class_weight * (1 - pearson(p_i, q_i)) + intra_class_weight * v_i`` with
    ``p = softmax(teacher / T)``, ``q = softmax(student / T)``, and
    ``v_i = 1 - items * mean_c(a_ic b_ic)``, where a and b are the columns of p and q, each centred and of
    length 1 over the items. The mean of v_i over the items is ``mean_c(1 - pearson)`` of the columns, the
    paper's intra-class term; a single v_i may be below 0. A row or column that is constant in either model has no
    correlation, and adds 0. It does not multiply by T^2: correlation has no scale, and its gradient
    keeps its size as T grows. With two classes each row's correlation is 1 or -1, without a gradient.

    Batches: the intra-class term relates the rows of one micro-batch on one process, and is 0 for a
    single row. Accumulating 4 batches of 8 or running 4 processes therefore relates 8 rows at a time,
    not 32, and evaluation relates those of an evaluation batch: compare its values at equal sizes only.

    Shapes: ``(items, classes)`` logits to ``(items,)`` values.
    Units: correlation: each of the two terms has a mean from 0 to 2.

    Args:
        temperature: T, above 0; the paper's is 4 on CIFAR-100.
        inter_class_weight: the paper's beta, at least 0.
        intra_class_weight: the paper's gamma, at least 0.

    Raises:
        ValueError: a temperature not above 0, or a weight below 0.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536.
        The authors' code multiplies by T^2, which the formulas lack; we follow the formulas. There a
        constant row or column adds 1, here 0, as it has no correlation to learn from.

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> teacher = DenseSignals(torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.5]]))
        >>> rows = Rows(student_logits=torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 1.0]]), teacher=teacher)
        >>> round(Dist()(rows).mean().item(), 4)
        1.8286
    """

    temperature: float = 4.0
    inter_class_weight: float = 2.0
    intra_class_weight: float = 2.0

    name: ClassVar[str] = "dist"
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label"})
    batch_relational: ClassVar[bool] = True
    paper: ClassVar[str] = "Huang et al. 2022 (DIST), arXiv 2205.10536"
    cost: ClassVar[str] = (
        "two log-softmaxes, and correlations over the classes and over the rows: 2.5 times forward_kl on a CPU"
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        check_temperature(self.temperature, self.name)
        check_weight(self.inter_class_weight, f"{self.name} inter_class_weight")
        check_weight(self.intra_class_weight, f"{self.name} intra_class_weight")
        if self.inter_class_weight == 0 and self.intra_class_weight == 0:
            raise ValueError(
                f"{self.name}: inter_class_weight and intra_class_weight: expected one above 0, received 0 for "
                "both, which teach nothing."
            )

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per row."""
        log_p = rows.teacher.log_probs(self.temperature)
        log_q = student_log_probs(rows.student_logits, self.temperature)
        allowed = (log_p > -torch.inf) | (log_q > -torch.inf)
        inter = _one_minus_correlation(log_p, log_q, allowed)
        intra = _intra_class_values(log_p, log_q, allowed.any(0))
        return self.inter_class_weight * inter + self.intra_class_weight * intra


def _one_minus_correlation(log_p: torch.Tensor, log_q: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Return ``1 - pearson`` of each row over its allowed classes, ``(rows,)``; 0 for constant rows."""
    a, constant_a = _directions(log_p, allowed, -1)
    b, constant_b = _directions(log_q, allowed, -1)
    # Half the squared distance of two vectors of length 1 is 1 less their product, without cancellation.
    return (a - b).square().sum(-1).div(2).masked_fill((constant_a | constant_b).squeeze(-1), 0.0)


def _intra_class_values(log_p: torch.Tensor, log_q: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Return ``v_i``, ``(rows,)``, over the classes that any row allows; constant columns add 0."""
    everywhere = torch.ones_like(log_p, dtype=torch.bool)
    a, constant_a = _directions(log_p, everywhere, 0)
    b, constant_b = _directions(log_q, everywhere, 0)
    per_class = (1 - log_p.shape[0] * a * b).masked_fill(constant_a | constant_b, 0.0)
    return per_class.sum(-1) / allowed.sum().clamp(min=1)


def _directions(log_values: torch.Tensor, kept: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probabilities centred and of length 1 along a dimension, and which are constant there.

    Scale and shift don't count, so they are taken relative to the largest, less 1: what is tiny, or nearly
    constant, keeps its digits.
    """
    log_values = log_values.clamp(min=FAR)
    largest = log_values.detach().amax(dim, keepdim=True)
    values = torch.expm1(log_values - largest).masked_fill(~kept, 0.0)
    count = kept.sum(dim, keepdim=True).clamp(min=1)
    centred = (values - values.sum(dim, keepdim=True) / count).masked_fill(~kept, 0.0)
    squares = centred.square().sum(dim, keepdim=True)
    constant = squares <= count * (_ROUNDING * torch.finfo(values.dtype).eps) ** 2
    length = squares.masked_fill(constant, 1.0).sqrt()
    return (centred / length).masked_fill(constant, 0.0), constant
