"""What an objective is: settings, what it needs of the teacher, and one value per row."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from hf_distill.features import FeatureNeeds, Features, ModelShape
from hf_distill.teachers.signals import TeacherSignals

if TYPE_CHECKING:
    from hf_distill.input_functions import InputFunctions

# Far below any log-probability, and finite, so that its gradient is 0 and not NaN.
FAR = -1e30

HeadKind = Literal["single_label", "multi_label", "regression"]
Level = Literal["item", "example", "token"]
# What one model has inside, and a mixture of several has not: an objective that needs it follows a teacher.
OF_ONE_MODEL = frozenset({"features", "input_gradient"})


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
        student_features, teacher_features: what both computed inside, for objectives that asked;
            the logits are then those of the whole batch, in no order of rows.
        projection: the objective's own trained module, from :meth:`Objective.projection`.
        functions: both models as functions of the examples' input, for an objective of level
            ``example`` that needs ``input_gradient``; its ``student_logits`` are whole examples'.
    """

    student_logits: torch.Tensor
    teacher: TeacherSignals
    labels: torch.Tensor | None = None
    level: Level = "item"
    student_features: Features | None = None
    teacher_features: Features | None = None
    projection: nn.Module | None = None
    functions: InputFunctions | None = None

    def features(self) -> tuple[Features, Features]:
        """Return the student's and the teacher's features, which the trainer has checked are there."""
        assert self.student_features is not None
        assert self.teacher_features is not None
        return self.student_features, self.teacher_features

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """Return the student's states in the teacher's width."""
        return states if self.projection is None else self.projection(states)


class Objective(ABC):
    """One way of matching a teacher: a frozen dataclass whose fields are its settings.

    A subclass lives in a file of its own, named like the objective, and gives one value per row.
    It never sees padding, ``-100``, batch means, weights or the number of processes: those are
    the trainer's.

    Class attributes:
        name: the objective's name, and its file's.
        level: what a row is: ``item`` (a supervised position), ``example`` or ``token``.
        needs: what it reads of the teacher, ``log_probs``, ``logits``, ``features`` or ``input_gradient``; and
            ``labels``, if it reads those of the data, which then must have some.
        heads: the kinds of head it is defined for.
        batch_relational: whether a row's value depends on the other rows of the micro-batch, and so on how
            a batch is split.
        sparse: which signals over a part of the classes it can be taken over in place of ``log_probs``: ``top_k``
            (with all others as one class) where merging classes leaves it a divergence, and ``sampled`` where it is
            linear in the teacher's probabilities but for what the student does not move.
        paper: where it comes from, for the generated table.
        cost: what it adds to a step, for the generated table.
    """

    name: ClassVar[str]
    level: ClassVar[Level] = "item"
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label"})
    batch_relational: ClassVar[bool] = False
    sparse: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str]
    cost: ClassVar[str]

    @abstractmethod
    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return ``(rows,)`` values in float32 or better, with the graph to the student's logits."""

    def feature_needs(self, student: ModelShape, teacher: ModelShape) -> tuple[FeatureNeeds, FeatureNeeds]:
        """Return what it must be shown of the student's and of the teacher's inside; by default nothing.

        Raises:
            ValueError: settings that these two models can't satisfy.
        """
        return FeatureNeeds(), FeatureNeeds()

    def projection(self, student: ModelShape, teacher: ModelShape) -> nn.Module | None:
        """Return a new module to be trained with the student, and never saved in it; by default none."""
        return None


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
    probability 0 under p leave the sum; what q gives them adds ``-log q(the others)``. The gradients are
    ``(q - p) / T`` to the second and ``p (log p - log q - KL) / T`` to the first, so that nothing is kept for
    them but the logits themselves; there is no second derivative.

    Shapes: ``(rows, classes)`` twice, to ``(rows,)``.

    Example:
        >>> kl_of_logits(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]]), 1.0)
        tensor([0.3278])
        >>> never = torch.tensor([[0.0, -torch.inf]])
        >>> kl_of_logits(never, torch.tensor([[0.0, 0.0]]), 1.0), kl_of_logits(torch.zeros(1, 2), never, 1.0)
        (tensor([0.6931]), tensor([inf]))
    """
    return _KLOfLogits.apply(of, against, temperature)


class _KLOfLogits(torch.autograd.Function):
    """The value and its two gradients, each from the logits alone."""

    @staticmethod
    def forward(ctx: Any, of: torch.Tensor, against: torch.Tensor, temperature: float) -> torch.Tensor:
        value = _kl_value(of, against, temperature)
        ctx.save_for_backward(of, against, value)
        ctx.temperature = temperature
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        of, against, value = ctx.saved_tensors
        log_p = torch.log_softmax(of.to(value.dtype) / ctx.temperature, -1)
        log_q = torch.log_softmax(against.to(value.dtype) / ctx.temperature, -1)
        p, scale = log_p.exp(), (gradient / ctx.temperature).unsqueeze(-1)
        to_of = to_against = None
        if ctx.needs_input_grad[0]:
            blank = (p == 0) | (log_q == -torch.inf) | ~value.isfinite().unsqueeze(-1)
            surplus = (log_p - log_q).masked_fill(blank, 0.0) - value.unsqueeze(-1)
            to_of = (scale * p * surplus).masked_fill(blank, 0.0).to(of.dtype)
        if ctx.needs_input_grad[1]:
            to_against = (scale * (log_q.exp() - p)).to(against.dtype)
        return to_of, to_against, None


def _kl_value(of: torch.Tensor, against: torch.Tensor, temperature: float) -> torch.Tensor:
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
    coarse = torch.logsumexp((log_p + centred).masked_fill(blank, FAR), -1) - mass.squeeze(-1).log()
    # A class that p rules out takes its mass of q away from the others, which were compared alone.
    # Without such a class both log-sum-exps are the same, to the last digit.
    outside = torch.logsumexp(against, -1) - torch.logsumexp(against.masked_fill(impossible, FAR), -1)
    value = torch.where(small, fine, coarse) + outside
    return value.masked_fill(unreachable, torch.inf)


def skew_divergence(log_p: torch.Tensor, log_q: torch.Tensor, skew: float) -> torch.Tensor:
    """Return ``KL(p ‖ skew p + (1 - skew) q)``, at most ``-log(skew)``, to the last digits.

    Formula: with ``y = (1 - skew) (q / p - 1)`` it is ``sum_c p_c (y_c - log(1 + y_c))``, because
    ``sum_c p_c y_c = 0``. Each term is at least 0 and of second order, so that what rounding does to
    both log-probabilities alike cancels before T^2 can multiply it. A class of p = 0 adds ``(1 - skew) q_c``.

    Shapes: ``(rows, classes)`` log-probabilities twice, to ``(rows,)``.

    Example:
        >>> skew_divergence(torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log(), 0.5)
        tensor([0.0354])
    """
    p, q = log_p.exp(), log_q.exp()
    impossible = p == 0
    ratio = log_q.masked_fill(impossible, 0.0) - log_p.masked_fill(impossible, 0.0)
    small = ratio.abs() < 1
    y = (1 - skew) * torch.expm1(ratio.clamp(-1, 1))
    fine = p * (y - torch.log1p(y))
    # Where q is far from p, q / p may overflow, and nothing cancels.
    weighed = ratio.masked_fill(small, 0.0) + math.log1p(-skew)
    coarse = (1 - skew) * (q - p) - p * torch.logaddexp(torch.full_like(weighed, math.log(skew)), weighed)
    terms = torch.where(small, fine, coarse).masked_fill(impossible, 0.0)
    return (terms + (1 - skew) * q.masked_fill(~impossible, 0.0)).sum(-1)


def check_temperature(temperature: float, where: str) -> None:
    """Raise ValueError unless the temperature is a finite number above 0."""
    number = isinstance(temperature, Real) and not isinstance(temperature, bool)
    if not (number and math.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"{where}: expected a finite temperature above 0, received {temperature!r}. "
            "Usual values are 1 to 8."
        )


def check_weight(weight: float, where: str) -> None:
    """Raise ValueError unless the weight is a finite number of at least 0; ``where`` names the setting."""
    number = isinstance(weight, Real) and not isinstance(weight, bool)
    if not (number and math.isfinite(weight) and weight >= 0):
        raise ValueError(f"{where}: expected a finite number of at least 0, received {weight!r}.")


def check_share(share: float, where: str, at_the_ends: str) -> None:
    """Raise ValueError unless the share lies strictly between 0 and 1.

    Args:
        share: the setting's value.
        where: names the objective and the setting.
        at_the_ends: what 0 and 1 would mean, and what to use for it.
    """
    number = isinstance(share, Real) and not isinstance(share, bool)
    if not (number and 0 < share < 1):
        raise ValueError(
            f"{where}: expected a number strictly between 0 and 1, received {share!r}. {at_the_ends}"
        )


def check_choice(setting: str, value: object, choices: tuple[str, ...], where: str) -> None:
    """Raise ValueError unless a setting is one of some words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{where}: {setting}: expected one of {', '.join(choices)}, received {value!r}.")


def check_positive(setting: str, value: object, where: str) -> None:
    """Raise ValueError unless a setting is a finite number above 0."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value > 0):  # type: ignore[arg-type, operator]
        raise ValueError(f"{where}: {setting}: expected a finite number above 0, received {value!r}.")


def check_count(setting: str, value: object, where: str) -> None:
    """Raise ValueError unless a setting is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{where}: {setting}: expected a whole number of at least 1, received {value!r}.")


def check_not_negative(setting: str, value: object, where: str) -> None:
    """Raise ValueError unless a setting is a finite number of at least 0."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value >= 0):  # type: ignore[arg-type, operator]
        raise ValueError(f"{where}: {setting}: expected a finite number of at least 0, received {value!r}.")
