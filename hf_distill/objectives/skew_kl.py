"""skew_kl: KL of the teacher from a mixture of teacher and student, times T^2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_distill.objectives.base import (
    Objective,
    Rows,
    check_share,
    check_temperature,
    skew_divergence,
    student_log_probs,
)


@dataclass(frozen=True)
class SkewKL(Objective):
    """Match the teacher as forward_kl does, with some of the teacher mixed into the student: bounded.

    Formula: ``T^2 * KL(p ‖ skew p + (1 - skew) q)`` with ``p = softmax(teacher / T)`` and
    ``q = softmax(student / T)``; at most ``-T^2 log(skew)``, and its gradient stays small where the
    student rules out what the teacher allows. It multiplies by T^2.

    Shapes: ``(items, classes)`` logits to ``(items,)`` values.
    Units: nats per item (times T^2).

    Args:
        temperature: T, above 0; the paper's is 1.
        skew: the teacher's share of the mixture, strictly between 0 and 1.

    Raises:
        ValueError: a temperature not above 0, or a skew outside (0, 1).

    Source: Ko et al., "DistiLLM", arXiv 2402.03898, section 3.1 (skew 0.1); T^2 is ours.

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> teacher = DenseSignals(torch.tensor([[2.0, 0.0]]))
        >>> rows = Rows(student_logits=torch.tensor([[0.0, 0.0]]), teacher=teacher)
        >>> round(SkewKL(temperature=2.0, skew=0.1)(rows).item(), 4)
        0.3626
    """

    temperature: float = 2.0
    skew: float = 0.1

    name: ClassVar[str] = "skew_kl"
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label"})
    sparse: ClassVar[frozenset[str]] = frozenset({"top_k"})
    paper: ClassVar[str] = "Ko et al. 2024 (DistiLLM), arXiv 2402.03898"
    cost: ClassVar[str] = "two log-softmaxes and the logarithm of a mixture over the classes"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_temperature(self.temperature, self.name)
        ends = "0 is forward_kl, and at 1 the value is 0 for any student."
        check_share(self.skew, f"{self.name} skew", ends)

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per row."""
        log_p = rows.teacher.log_probs(self.temperature)
        log_q = student_log_probs(rows.student_logits, self.temperature)
        return self.temperature**2 * skew_divergence(log_p, log_q, self.skew)
