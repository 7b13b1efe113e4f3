"""logit_mse against its definition written out in float64, and a number worked by hand."""

import math

import pytest
import torch

from hf_distill.objectives import Rows
from hf_distill.objectives.logit_mse import LogitMSE
from hf_distill.teachers.signals import DenseSignals


class NoLogits:
    """A teacher's mixture, which has log-probabilities only."""

    logits = None


def naive(student: list[float], teacher: list[float]) -> float:
    return sum((s - t) ** 2 for s, t in zip(student, teacher, strict=True)) / len(student)


def value(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return LogitMSE()(Rows(student, DenseSignals(teacher)))


def test_hand_worked_number():
    # ((1 - 4)^2 + (2 - 2)^2 + (0 - -1)^2) / 3 = 10 / 3.
    assert value(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[4.0, 2.0, -1.0]])).item() == pytest.approx(
        10 / 3
    )


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_float64_equals_the_definition(scale):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64).mul(scale).unbind()
    expected = [naive(s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert value(student, teacher).tolist() == pytest.approx(expected, rel=1e-12)


def test_counts_the_level_of_the_logits():
    logits = torch.tensor([[1.0, 2.0]])
    assert value(logits + 3, logits).item() == 9.0


def test_mean_is_over_the_remaining_classes():
    student, teacher = torch.tensor([[1.0, -math.inf, 4.0]]), torch.tensor([[0.0, -math.inf, 2.0]])
    assert value(student, teacher).item() == pytest.approx((1 + 4) / 2)


def test_signals_without_logits_are_refused():
    with pytest.raises(ValueError, match="logit_mse: expected a teacher with raw logits"):
        LogitMSE()(Rows(torch.zeros(1, 2), NoLogits()))
