"""forward_kl: KL(teacher ‖ student) of softened probabilities, times T^2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_distill.objectives.base import (
    Objective,
    Rows,
    check_temperature,
    divergence_terms,
    kl_of_logits,
    student_log_probs,
)
from hf_distill.teachers.signals import retemperable_logits


@dataclass(frozen=True)
class ForwardKL(Objective):
    """Match the teacher's softened distribution, weighting classes by the teacher.

    Formula: ``T^2 * sum_c p_c (log p_c - log q_c)`` with ``p = softmax(teacher / T)`` and
    ``q = softmax(student / T)``; its gradient to the student's logits is ``T (q - p)``.
    It multiplies by T^2, so that the gradient keeps its size when T changes.

    Shapes: ``(items, classes)`` logits to ``(items,)`` values.
    Units: nats per item (times T^2).

    Args:
        temperature: T, above 0; published values are 1 to 8.

    Raises:
        ValueError: a temperature that is not a finite number above 0.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network",
        arXiv 1503.02531, section 2 (equation 2 gives the gradient; the factor T^2 is from the
        text under equation 4).

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> teacher = DenseSignals(torch.tensor([[2.0, 0.0]]))
        >>> rows = Rows(student_logits=torch.tensor([[0.0, 0.0]]), teacher=teacher)
        >>> round(ForwardKL(temperature=2.0)(rows).item(), 4)
        0.4438
    """

    temperature: float = 2.0

    name: ClassVar[str] = "forward_kl"
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label"})
    sparse: ClassVar[frozenset[str]] = frozenset({"top_k", "sampled"})
    paper: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531"
    cost: ClassVar[str] = (
        "exact to the last digits: 3 to 4 times soft_cross_entropy, whose gradient is the same; keeps nothing but the "
        "logits for the backward pass"
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        check_temperature(self.temperature, self.name)

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per row."""
        logits = retemperable_logits(rows.teacher)
        if logits is not None:
            return self.temperature**2 * kl_of_logits(logits, rows.student_logits, self.temperature)
        log_p = rows.teacher.log_probs(self.temperature)
        log_q = student_log_probs(rows.student_logits, self.temperature)
        return self.temperature**2 * divergence_terms(log_p, log_q).sum(-1)
