"""decoupled_kl: the target's probability and the distribution of the other classes, each with its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_distill.items import IGNORED
from hf_distill.objectives.base import (
    FAR,
    Objective,
    Rows,
    at_least_float32,
    check_temperature,
    check_weight,
    kl_of_logits,
)
from hf_distill.teachers.signals import retemperable_logits


@dataclass(frozen=True)
class DecoupledKL(Objective):
    """Match how likely the target is, and how the other classes compare, as two terms of their own.

    Formula: ``T^2 * (target_weight * TCKD + non_target_weight * NCKD)``: with ``p = softmax(teacher / T)``,
    ``q = softmax(student / T)`` and the label ``t``, ``TCKD = KL((p_t, 1 - p_t) ‖ (q_t, 1 - q_t))``, and
    NCKD is the KL of the two distributions over the classes without t. forward_kl is the case of the
    weights 1 and ``1 - p_t``, which hides what a certain teacher knows of the other classes. An item
    without a label (-100) gives 0 and has no gradient, though the mean over items counts it. With two
    classes NCKD is 0. It multiplies by T^2.

    Cost: the KL over the classes and one over two outcomes, 1.6 times forward_kl's step on a CPU; 2.5 times
    for a few classes, where both take less than a millisecond.

    Shapes: ``(items, classes)`` logits and ``(items,)`` labels to ``(items,)`` values.
    Units: nats per item (times T^2).

    Args:
        temperature: T, above 0; the paper's is 4 on CIFAR-100, 1 on ImageNet.
        target_weight: the paper's alpha, at least 0.
        non_target_weight: the paper's beta, at least 0; about 0.5 to 8, larger for surer teachers.

    Raises:
        ValueError: a temperature not above 0, a weight below 0, or no labels.

    Source: Zhao et al., "Decoupled Knowledge Distillation", arXiv 2203.08679, section 3, which leaves T
        out of its formulas; T^2 is as in its code. That code lowers the target by 1000 to take it out of
        NCKD, and takes the logarithm of summed probabilities; here the target is left out, and both are
        computed from logarithms, which never reach log 0. Its warm-up of the weight over the first 20
        epochs is not part of the objective.

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> teacher = DenseSignals(torch.tensor([[2.0, 1.0, 0.0]]))
        >>> rows = Rows(torch.zeros(1, 3), teacher, labels=torch.tensor([0]))
        >>> round(DecoupledKL(temperature=1.0)(rows).item(), 4)
        1.1166
    """

    temperature: float = 4.0
    target_weight: float = 1.0
    non_target_weight: float = 8.0

    name: ClassVar[str] = "decoupled_kl"
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs", "labels"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label"})
    paper: ClassVar[str] = "Zhao et al. 2022 (DKD), arXiv 2203.08679"
    cost: ClassVar[str] = (
        "forward_kl twice, once over two outcomes: 2 times forward_kl, 2.5 times for a few classes"
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        check_temperature(self.temperature, self.name)
        check_weight(self.target_weight, f"{self.name} target_weight")
        check_weight(self.non_target_weight, f"{self.name} non_target_weight")
        if self.target_weight == 0 and self.non_target_weight == 0:
            raise ValueError(
                f"{self.name}: target_weight and non_target_weight: expected one above 0, received 0 for "
                "both, which teach nothing."
            )

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per row."""
        if rows.labels is None:
            raise ValueError(
                "decoupled_kl: expected labels, which say which class is the target, received a batch without. "
                "Add a column named labels (-100 where there is none), or use forward_kl, which needs none."
            )
        unlabelled = (rows.labels == IGNORED).unsqueeze(-1)
        # Equal logits have neither a value nor a gradient, whatever the row held.
        teacher = self._softened_teacher(rows).masked_fill(unlabelled, 0.0)
        student = (at_least_float32(rows.student_logits) / self.temperature).masked_fill(unlabelled, 0.0)
        target = rows.labels.unsqueeze(-1).masked_fill(unlabelled, 0)
        is_target = torch.zeros_like(student, dtype=torch.bool).scatter(-1, target, True)
        target_kl = kl_of_logits(_target_or_not(teacher, target), _target_or_not(student, target), 1.0)
        others_kl = _kl_of_others(teacher, student, is_target)
        return self.temperature**2 * (self.target_weight * target_kl + self.non_target_weight * others_kl)

    def _softened_teacher(self, rows: Rows) -> torch.Tensor:
        """Return logits at T; log-probabilities are as good, since only differences count."""
        logits = retemperable_logits(rows.teacher)
        if logits is not None:
            return at_least_float32(logits) / self.temperature
        return rows.teacher.log_probs(self.temperature)


def _target_or_not(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the logits ``(rows, 2)`` of the two outcomes: the target, or any other class."""
    # Far below rather than -inf: the log-sum-exp of nothing but -inf has no gradient.
    others = logits.masked_fill(logits == -torch.inf, FAR).scatter(-1, target, FAR)
    return torch.cat([logits.gather(-1, target), torch.logsumexp(others, -1, keepdim=True)], -1)


def _kl_of_others(teacher: torch.Tensor, student: torch.Tensor, is_target: torch.Tensor) -> torch.Tensor:
    """Return the KL of the distributions over the classes that are not the target."""
    teacher, student = (logits.masked_fill(is_target, -torch.inf) for logits in (teacher, student))
    # Without another class there is no distribution, and nothing to match.
    none = ((teacher == -torch.inf).all(-1) | (student == -torch.inf).all(-1)).unsqueeze(-1)
    return kl_of_logits(teacher.masked_fill(none, 0.0), student.masked_fill(none, 0.0), 1.0)
