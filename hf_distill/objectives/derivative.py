"""derivative: match how the teacher's logits move with the input (Sobolev training, Jacobian matching)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, ClassVar

import torch

from hf_distill.objectives.base import Level, Objective, Rows, at_least_float32

if TYPE_CHECKING:
    from hf_distill.input_functions import InputFunctions

_METHODS = ("vjp", "finite_difference")


@dataclass(frozen=True)
class Derivative(Objective):
    """Match how the teacher's logits move with the input: embeddings of text, pixels, or audio values.

    Formula: with ``J = dz/dx`` over all logits z of the example's items and its attended input x,
    one random direction per example and step estimates ``‖J_s - J_t‖_F^2``, without bias:
    ``vjp``: u uniform on the unit sphere of the C logits, the same for both models,
    ``g = grad_x <u, z>``, value ``C ‖g_s - g_t‖^2``; ``normalized``: ``1 - cos(g_s, g_t)`` instead.
    ``finite_difference``: ``v ~ N(0, I)`` over the attended input,
    ``‖[z_s(x + e v) - z_s(x)] - [z_t(x + e v) - z_t(x)]‖^2 / e^2``, without bias as e goes to 0.
    No temperature, no T^2. For text, x is the teacher's embedding of the tokens, for both models.

    Shapes: two functions of ``(examples, ...)`` inputs to ``(examples,)`` values.
    Units: squared logits per squared unit of the input, per example; ``normalized`` has none (0 to 2).

    Args:
        method: ``vjp`` (exact in one direction, differentiates the student twice) or
            ``finite_difference`` (two more forwards of each model, any attention kernel).
        epsilon: e of ``finite_difference``, above 0, in units of the input; float32 bears 1e-3 to 1e-2.
        normalized: compare the directions of the gradients alone, whatever their size; ``vjp`` only.
        every_n_steps: take the term in every n-th step, from the first on, and leave it out in the
            others. Nothing is multiplied for the steps left out: over the run the term weighs 1/n.

    Raises:
        ValueError: an unknown method, or a setting out of range.

    Source: Czarnecki et al., "Sobolev Training for Neural Networks", arXiv 1706.04859, section 2
        (random projections of the derivatives); Srinivas and Fleuret, "Knowledge Transfer with Jacobian
        Matching", arXiv 1803.00443 (Jacobians of students and teachers); Hoffman et al., "Robust
        Learning with Jacobian Regularization", arXiv 1908.02729 (the factor C); finite differences
        after IGDM, arXiv 2312.03286. The published gains are with little data, and in robustness.

    Example:
        >>> from hf_distill.directions import example_keys
        >>> from hf_distill.input_functions import InputFunctions
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> x, everything = torch.ones(1, 1), torch.ones(1, 1, 1, dtype=torch.bool)
        >>> three = torch.tensor(3.0, requires_grad=True)
        >>> functions = InputFunctions(x, everything[0], everything, example_keys(0, 0, 0, 1, x.device),
        ...     student=lambda x: three * x[:, None], teacher=lambda x: 5.0 * x[:, None])
        >>> rows = Rows(x, DenseSignals(x), level="example", functions=functions)
        >>> Derivative()(rows).item()  # one logit of slope 3 against one of slope 5
        4.0
    """

    method: str = "vjp"
    epsilon: float = 1e-3
    normalized: bool = False
    every_n_steps: int = 1

    name: ClassVar[str] = "derivative"
    level: ClassVar[Level] = "example"
    needs: ClassVar[frozenset[str]] = frozenset({"input_gradient"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label", "multi_label", "regression"})
    paper: ClassVar[str] = (
        "Czarnecki et al. 2017, arXiv 1706.04859; Srinivas & Fleuret 2018, arXiv 1803.00443"
    )
    cost: ClassVar[str] = (
        "vjp: one more forward and backward of each model, and a second backward of the student; "
        "finite_difference: two more forwards of each, and a backward"
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.method not in _METHODS:
            raise ValueError(
                f"derivative: expected the method {' or '.join(_METHODS)}, received {self.method!r}."
            )
        real = isinstance(self.epsilon, Real) and not isinstance(self.epsilon, bool)
        if not (real and math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(
                f"derivative: expected epsilon to be a finite number above 0, received {self.epsilon!r}. "
                "1e-3 is the default."
            )
        if not isinstance(self.normalized, bool):
            raise ValueError(
                f"derivative: expected normalized to be true or false, received {self.normalized!r}."
            )
        if self.normalized and self.method != "vjp":
            raise ValueError(
                f"derivative: normalized=True compares gradients, which method {self.method!r} does not form. Use "
                "method 'vjp', or normalized=False."
            )
        whole = isinstance(self.every_n_steps, int) and not isinstance(self.every_n_steps, bool)
        if not (whole and self.every_n_steps >= 1):
            raise ValueError(
                f"derivative: expected every_n_steps to be a whole number of at least 1, received "
                f"{self.every_n_steps!r}."
            )

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per example, with the graph to the student where gradients are on."""
        if rows.functions is None:
            raise ValueError(
                "derivative: expected rows with functions of the input, received rows of logits alone. Only a teacher "
                "that is a model of its own has them, and the trainer makes them."
            )
        if self.method == "vjp":
            return self._vjp(rows.functions)
        return self._finite_difference(rows.functions)

    def _vjp(self, functions: InputFunctions) -> torch.Tensor:
        trains = torch.is_grad_enabled()
        with torch.enable_grad(), functions.twice_differentiable():
            x = functions.inputs.detach().requires_grad_()
            student, teacher = functions.student(x), functions.teacher(x)
            counted = _counted(functions.items, student, teacher)
            logits = torch.where(counted, at_least_float32(student), 0.0)
            direction = functions.output_directions(counted, logits.dtype)
            target = torch.where(counted, at_least_float32(teacher), 0.0)
            (of_teacher,) = torch.autograd.grad((direction * target).sum(), x)
            (of_student,) = torch.autograd.grad((direction * logits).sum(), x, create_graph=trains)
            if trains and not of_student.requires_grad:
                raise ValueError(
                    "derivative: expected a student whose input gradient depends on its parameters, received one "
                    "that a kernel cuts off from them. Use method 'finite_difference'."
                )
        of_student, of_teacher = (
            torch.where(functions.mask, gradient, 0.0).flatten(1) for gradient in (of_student, of_teacher)
        )
        if self.normalized:
            values = (1.0 - _cosine(of_student, of_teacher)) * counted.flatten(1).any(1)
        else:
            values = counted.flatten(1).sum(1) * (of_student - of_teacher).square().sum(1)
        if not trains:
            return values.detach()
        # A bias that no derivative depends on still gets its gradient of 0, which DDP waits for.
        return values + 0.0 * logits.flatten(1).sum(1)

    def _finite_difference(self, functions: InputFunctions) -> torch.Tensor:
        x = functions.inputs
        moved = x + self.epsilon * functions.input_directions()
        with torch.no_grad():
            of_teacher = [at_least_float32(functions.teacher(point)) for point in (x, moved)]
        of_student = [at_least_float32(functions.student(point)) for point in (x, moved)]
        counted = _counted(functions.items, *of_teacher, *of_student)
        (before, after), (target_before, target_after) = (
            [torch.where(counted, logits, 0.0) for logits in pair] for pair in (of_student, of_teacher)
        )
        difference = (after - before) - (target_after - target_before)
        return difference.flatten(1).square().sum(1) / self.epsilon**2


def _counted(items: torch.Tensor, *logits: torch.Tensor) -> torch.Tensor:
    """Return which logits are items; a class that any of the models rules out, at -inf, moves with nothing."""
    counted = items.expand_as(logits[0])
    for values in logits:
        if values.shape != counted.shape:
            raise ValueError(
                f"derivative: expected student and teacher to give logits of one shape, received "
                f"{tuple(counted.shape)} and {tuple(values.shape)}."
            )
        counted = counted & (values.detach() != -torch.inf)
    return counted


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the cosine of two batches of vectors, 0 where one of them is 0, with a finite gradient there."""
    squares = [vector.square().sum(1) for vector in (a, b)]
    norms = [torch.where(square > 0, square, 1.0).sqrt() for square in squares]
    return (a * b).sum(1) / (norms[0] * norms[1])
