"""soft_cross_entropy: cross-entropy of the student to the teacher's softened probabilities, times T^2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_distill.objectives.base import Objective, Rows, check_temperature, student_log_probs


@dataclass(frozen=True)
class SoftCrossEntropy(Objective):
    """Match the teacher's softened distribution as if it were a label: forward_kl plus the teacher's entropy.

    Formula: ``T^2 * -sum_c p_c log q_c`` with ``p = softmax(teacher / T)`` and
    ``q = softmax(student / T)``. It is smallest, but not 0, where both agree: T^2 times the
    teacher's entropy. The gradient is forward_kl's, ``T (q - p)``. With two temperatures
    ``p = softmax(teacher / T_t)``, ``q = softmax(student / T_s)``, and the factor is the student's
    ``T_s^2``, which keeps the gradient ``T_s (q - p)``. It multiplies by T^2.

    Shapes: ``(items, classes)`` logits to ``(items,)`` values.
    Units: nats per item (times T^2).

    Args:
        temperature: T of both, above 0; published values are 1 to 8.
        teacher_temperature: T_t where it is another, above 0; None takes ``temperature``. Below the
            student's it sharpens the teacher.
        student_temperature: T_s where it is another, above 0; None takes ``temperature``.

    Raises:
        ValueError: a temperature that is not a finite number above 0.

    Source: Hinton, Vinyals, Dean, arXiv 1503.02531, section 2, one temperature. Two temperatures are
        from Caron et al. (DINO), arXiv 2104.14294, section 3.1, which has no such factor: there
        T_s is 0.1 and T_t 0.04, and the weight here has to be 100 for the same loss.

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> teacher = DenseSignals(torch.tensor([[2.0, 0.0]]))
        >>> rows = Rows(student_logits=torch.tensor([[0.0, 0.0]]), teacher=teacher)
        >>> round(SoftCrossEntropy(temperature=2.0)(rows).item(), 4)
        2.7726
    """

    temperature: float = 2.0
    teacher_temperature: float | None = None
    student_temperature: float | None = None

    name: ClassVar[str] = "soft_cross_entropy"
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label"})
    sparse: ClassVar[frozenset[str]] = frozenset({"top_k", "sampled"})
    paper: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531"
    cost: ClassVar[str] = "two log-softmaxes over the classes"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_temperature(self.temperature, self.name)
        for setting in ("teacher_temperature", "student_temperature"):
            value = getattr(self, setting)
            if value is not None:
                check_temperature(value, f"{self.name} {setting}")

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per row."""
        of_teacher = self.temperature if self.teacher_temperature is None else self.teacher_temperature
        of_student = self.temperature if self.student_temperature is None else self.student_temperature
        p = rows.teacher.log_probs(of_teacher).exp()
        log_q = student_log_probs(rows.student_logits, of_student)
        # A class of probability 0 adds nothing, whatever the student says: 0 * -inf would be NaN.
        return -(of_student**2) * (p * log_q.masked_fill(p == 0, 0.0)).sum(-1)
