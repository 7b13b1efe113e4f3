"""standardized_kl: forward KL of logits that are first brought to mean 0 and standard deviation 1, times T^2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_distill.objectives.base import Objective, Rows, at_least_float32, check_temperature, kl_of_logits

# A deviation of so many units in the last place of the largest logit is rounding: its direction means nothing.
_ROUNDING = 8


@dataclass(frozen=True)
class StandardizedKL(Objective):
    """Match the teacher's order of classes and their spacing, but neither the level nor the spread of its logits.

    Formula: ``T^2 * KL(softmax(s(teacher) / T) ‖ softmax(s(student) / T))`` with
    ``s(z) = (z - mean(z)) / std(z)`` over the classes, std with 1/classes; so each row has a
    temperature of its own, T times its std. It is 0 wherever the student's logits are the teacher's up to
    scale and shift. Classes at -inf leave mean and std. A constant row has no std, and is centred only. With two
    classes s(z) is 1 and -1: only the sign is left, without a gradient. It multiplies by T^2.

    Shapes: ``(items, classes)`` logits to ``(items,)`` values.
    Units: nats per item (times T^2).

    Args:
        temperature: T, above 0, of the standardized logits; the paper's are 2 to 7.

    Raises:
        ValueError: a temperature that is not a finite number above 0.

    Source: Sun et al., "Logit Standardization in Knowledge Distillation", arXiv 2403.01427. Its code
        divides by classes - 1 in the variance and adds 1e-7 to std; here std is that of the formula.

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> teacher = DenseSignals(torch.tensor([[2.0, 0.0, 1.0]]))
        >>> rows = Rows(student_logits=torch.tensor([[0.0, 0.0, 3.0]]), teacher=teacher)
        >>> round(StandardizedKL(temperature=2.0)(rows).item(), 4)
        1.1572
    """

    temperature: float = 2.0

    name: ClassVar[str] = "standardized_kl"
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label"})
    paper: ClassVar[str] = "Sun et al. 2024, arXiv 2403.01427"
    cost: ClassVar[str] = "forward_kl, and mean and standard deviation over the classes"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_temperature(self.temperature, self.name)

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per row."""
        if rows.teacher.logits is None:
            raise ValueError("standardized_kl: expected a teacher with raw logits, received signals without.")
        teacher, student = _standardized(rows.teacher.logits), _standardized(rows.student_logits)
        return self.temperature**2 * kl_of_logits(teacher, student, self.temperature)


def _standardized(logits: torch.Tensor) -> torch.Tensor:
    """Return ``(logits - mean) / std`` over the classes that are not at -inf."""
    logits = at_least_float32(logits)
    closed = logits == -torch.inf
    values = logits.masked_fill(closed, 0.0)
    count = (~closed).sum(-1, keepdim=True).clamp(min=1)
    centred = (values - values.sum(-1, keepdim=True) / count).masked_fill(closed, 0.0)
    variance = centred.square().sum(-1, keepdim=True) / count
    rounding = _ROUNDING * torch.finfo(values.dtype).eps * values.detach().abs().amax(-1, keepdim=True)
    # Masked before the root, which has no gradient at 0.
    std = variance.masked_fill(variance <= rounding**2, 1.0).sqrt()
    return (centred / std).masked_fill(closed, -torch.inf)
