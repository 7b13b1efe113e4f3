"""regression against its definition written out in float64, and a number worked by hand."""

import pytest
import torch

from hf_distill.objectives import Rows
from hf_distill.objectives.regression import Regression
from hf_distill.teachers.signals import DenseSignals


class NoLogits:
    """A teacher's mixture, which has log-probabilities only."""

    logits = None


def naive(student: list[float], teacher: list[float]) -> float:
    return sum((s - t) ** 2 for s, t in zip(student, teacher, strict=True)) / len(student)


def value(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return Regression()(Rows(student, DenseSignals(teacher)))


def test_hand_worked_number():
    # One output: (2.5 - 4)^2 = 2.25; two outputs: ((1 - 3)^2 + (0 - 1)^2) / 2 = 2.5.
    assert value(torch.tensor([[2.5]]), torch.tensor([[4.0]])).item() == 2.25
    assert value(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 1.0]])).item() == 2.5


@pytest.mark.parametrize("outputs", [1, 3])
def test_float64_equals_the_definition(outputs):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, outputs, generator=generator, dtype=torch.float64).unbind()
    expected = [naive(s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert value(student, teacher).tolist() == pytest.approx(expected, rel=1e-12)


def test_predictions_without_a_class_dimension():
    assert value(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0])).tolist() == [0.0, 9.0]


def test_gradient_is_twice_the_difference():
    student = torch.tensor([[1.0], [5.0]], requires_grad=True)
    value(student, torch.tensor([[3.0], [5.0]])).sum().backward()
    assert student.grad.tolist() == [[-4.0], [0.0]]


def test_signals_without_predictions_are_refused():
    with pytest.raises(ValueError, match="regression: expected a teacher with raw predictions"):
        Regression()(Rows(torch.zeros(1, 1), NoLogits()))
