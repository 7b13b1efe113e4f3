"""reverse_kl: KL(student ‖ teacher) of softened probabilities, times T^2."""

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
class ReverseKL(Objective):
    """Match the teacher's distribution where the student puts its mass (mode seeking).

    Formula: ``T^2 * sum_c q_c (log q_c - log p_c)`` with ``p = softmax(teacher / T)`` and
    ``q = softmax(student / T)``. It multiplies by T^2. It is infinite where the teacher rules a
    class out (-inf) that the student does not.

    Shapes: ``(items, classes)`` logits to ``(items,)`` values.
    Units: nats per item (times T^2).

    Args:
        temperature: T, above 0.

    Raises:
        ValueError: a temperature that is not a finite number above 0.

    Source: Gu et al., "MiniLLM", arXiv 2306.08543, equation 1, taken per position; the paper
        samples from the student, here the positions are those of the data, and T^2 is ours.

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> teacher = DenseSignals(torch.tensor([[2.0, 0.0]]))
        >>> rows = Rows(student_logits=torch.tensor([[0.0, 0.0]]), teacher=teacher)
        >>> round(ReverseKL(temperature=2.0)(rows).item(), 4)
        0.4805
    """

    temperature: float = 2.0

    name: ClassVar[str] = "reverse_kl"
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label"})
    sparse: ClassVar[frozenset[str]] = frozenset({"top_k"})
    paper: ClassVar[str] = "Gu et al. 2023 (MiniLLM), arXiv 2306.08543"
    cost: ClassVar[str] = "that of forward_kl"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_temperature(self.temperature, self.name)

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per row."""
        logits = retemperable_logits(rows.teacher)
        if logits is not None:
            return self.temperature**2 * kl_of_logits(rows.student_logits, logits, self.temperature)
        log_p = rows.teacher.log_probs(self.temperature)
        log_q = student_log_probs(rows.student_logits, self.temperature)
        return self.temperature**2 * divergence_terms(log_q, log_p).sum(-1)
