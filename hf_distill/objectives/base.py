"""What an objective is: settings, what it needs of the teacher, and one value per row."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from hf_distill.teachers.signals import TeacherSignals

if TYPE_CHECKING:
    from hf_distill.input_functions import InputFunctions

# Far below any log-probability, and finite, so that its gradient is 0 and not NaN.
_FAR = -1e30

HeadKind = Literal["single_label", "multi_label", "regression"]
Level = Literal["item", "example", "token"]


@dataclass(frozen=True)
class Rows:
    """Aligned rows of one level: row ``i`` of the student is row ``i`` of the teacher.

    Padding, ``-100`` and unsupervised positions are already gone.

    Args:
        student_logits: ``(rows, classes)``, in the student's own dtype.
        teacher: the teacher's signals for the same rows.
        labels: integer ``(rows,)`` or float ``(rows, classes)`` labels, or None. A row may be
            unlabelled (-100 or NaN): only an objective that needs labels looks at them.
        level: what a row is.
        functions: both models as functions of the examples' input, for an objective of level
            ``example`` that needs ``input_gradient``; its ``student_logits`` are whole examples'.
    """

    student_logits: torch.Tensor
    teacher: TeacherSignals
    labels: torch.Tensor | None = None
    level: Level = "item"
    functions: InputFunctions | None = None


class Objective(ABC):
    """One way of matching a teacher: a frozen dataclass whose fields are its settings.

    A subclass lives in a file of its own, named like the objective, and gives one value per row.
    It never sees padding, ``-100``, batch means, weights or the number of processes: those are
    the trainer's.

    Class attributes:
        name: the objective's name, and its file's.
        level: what a row is: ``item`` (a supervised position), ``example`` or ``token``.
        needs: what it reads of the teacher: ``log_probs``, ``logits`` or ``input_gradient``.
        heads: the kinds of head it is defined for.
        paper: where it comes from, for the generated table.
        cost: what it adds to a step, for the generated table.
    """

    name: ClassVar[str]
    level: ClassVar[Level] = "item"
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label"})
    paper: ClassVar[str]
    cost: ClassVar[str]

    @abstractmethod
    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return ``(rows,)`` values in float32 or better, with the graph to the student's logits."""


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Upcast half types to float32 and keep float32 and float64, so that no loss is summed in 8 bits.

    Example:
        >>> at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
        >>> at_least_float32(torch.zeros(1, dtype=torch.float64)).dtype
        torch.float64
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def student_log_probs(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return ``log softmax(logits / temperature)`` over the last dimension, in float32 or better."""
    return torch.log_softmax(at_least_float32(logits) / temperature, dim=-1)


def divergence_terms(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return ``p (log p - log q)`` per class, with ``0 log 0 = 0`` where p is 0.

    A class at ``-inf`` in both models would be ``0 * (-inf - -inf)``, which is NaN, so classes whose
    p is 0, be it by underflow, leave the sum, and its gradient, before the difference is formed.
    """
    impossible = log_p.exp() == 0
    difference = log_p.masked_fill(impossible, 0.0) - log_q.masked_fill(impossible, 0.0)
    return log_p.exp() * difference


def kl_of_logits(of: torch.Tensor, against: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return ``KL(p ‖ q)`` of the softened softmaxes of two sets of logits, to the last digits.

    Formula: with ``d = (of - against) / T`` and its mean ``m`` under p, ``KL = log sum_c p_c exp(m - d_c)``.
    The difference of two log-softmaxes carries the rounding of both log-sum-exps, which T^2 multiplies;
    here constants cancel before anything is rounded, and equal logits give 0 exactly. Classes of
    probability 0 under p leave the sum; what q gives them adds ``-log q(the others)``.

    Shapes: ``(rows, classes)`` twice, to ``(rows,)``.

    Example:
        >>> kl_of_logits(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]]), 1.0)
        tensor([0.3278])
        >>> never = torch.tensor([[0.0, -torch.inf]])
        >>> kl_of_logits(never, torch.tensor([[0.0, 0.0]]), 1.0), kl_of_logits(torch.zeros(1, 2), never, 1.0)
        (tensor([0.6931]), tensor([inf]))
    """
    dtype = torch.promote_types(at_least_float32(of).dtype, at_least_float32(against).dtype)
    of, against = of.to(dtype) / temperature, against.to(dtype) / temperature
    log_p = torch.log_softmax(of, -1)
    p = log_p.exp()
    mass = p.sum(-1, keepdim=True)  # 1 but for the rounding of the log-sum-exp, which T^2 would multiply
    impossible = p == 0
    unreachable = ((against == -torch.inf) & ~impossible).any(-1)
    blank = impossible | (against == -torch.inf)
    difference = of.masked_fill(blank, 0.0) - against.masked_fill(blank, 0.0)
    centred = ((p * difference).sum(-1, keepdim=True) / mass - difference).masked_fill(blank, 0.0)
    # expm1 and log1p keep what is small; where it is not, a log-sum-exp can't overflow.
    small = centred.abs().amax(-1) < 1
    kept = p.masked_fill(blank, 0.0) / mass
    fine = torch.log1p((kept * torch.expm1(centred.clamp(-1, 1))).sum(-1).clamp(min=-0.999))
    coarse = torch.logsumexp((log_p + centred).masked_fill(blank, _FAR), -1) - mass.squeeze(-1).log()
    # A class that p rules out takes its mass of q away from the others, which were compared alone.
    # Without such a class both log-sum-exps are the same, to the last digit.
    outside = torch.logsumexp(against, -1) - torch.logsumexp(against.masked_fill(impossible, _FAR), -1)
    value = torch.where(small, fine, coarse) + outside
    return value.masked_fill(unreachable, torch.inf)


def check_temperature(temperature: float, where: str) -> None:
    """Raise ValueError unless the temperature is a finite number above 0."""
    number = isinstance(temperature, Real) and not isinstance(temperature, bool)
    if not (number and math.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"{where}: expected a finite temperature above 0, received {temperature!r}. "
            "Usual values are 1 to 8; 2.0 is the default."
        )
