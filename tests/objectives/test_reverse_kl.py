"""reverse_kl against its definition written out in float64, and a number worked by hand."""

import math

import pytest
import torch

from hf_distill.objectives import Rows
from hf_distill.objectives.reverse_kl import ReverseKL
from hf_distill.teachers.signals import DenseSignals


def softmax(logits: list[float], temperature: float) -> list[float]:
    largest = max(logits)
    powers = [math.exp((z - largest) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def naive(student: list[float], teacher: list[float], temperature: float) -> float:
    """T^2 * sum_c q_c log(q_c / p_c)."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return temperature**2 * sum(qc * math.log(qc / pc) for pc, qc in zip(p, q, strict=True) if qc > 0)


def normal(seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(6, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def value(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    return ReverseKL(temperature)(Rows(student, DenseSignals(teacher)))


def test_hand_worked_number():
    # p = (3/4, 1/4), q = (1/2, 1/2): 4 * (1/2 log(2/3) + 1/2 log 2) = 2 log(4/3).
    got = value(torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]]), 2.0)
    assert got.item() == pytest.approx(2 * math.log(4 / 3), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0, 20.0])
def test_float64_equals_the_definition(temperature):
    student, teacher = normal(0), normal(1)
    expected = [naive(s, t, temperature) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert value(student, teacher, temperature).tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_float32_is_close_to_float64(scale):
    student, teacher = normal(0, scale), normal(1, scale)
    exact = value(student.float().double(), teacher.float().double(), 2.0)
    got = value(student.float(), teacher.float(), 2.0).double()
    assert (got - exact).abs().max().item() <= 1e-6 * (1 + 4 * scale * 5)


def test_gradient_equals_the_formula():
    # d/dz_c = T q_c (log(q_c / p_c) - KL(q ‖ p)).
    student, teacher = normal(0).requires_grad_(True), normal(1)
    value(student, teacher, 2.0).sum().backward()
    for row, gradient in zip(range(6), student.grad.tolist(), strict=True):
        p, q = softmax(teacher[row].tolist(), 2.0), softmax(student[row].tolist(), 2.0)
        logs = [math.log(qc / pc) for pc, qc in zip(p, q, strict=True)]
        kl = sum(qc * log for qc, log in zip(q, logs, strict=True))
        expected = [2.0 * qc * (log - kl) for qc, log in zip(q, logs, strict=True)]
        assert gradient == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_classes_that_only_the_student_rules_out_add_nothing():
    student, teacher = normal(0), normal(1)
    student[:, 2] = -math.inf
    student.requires_grad_(True)
    got = value(student, teacher, 2.0)
    got.sum().backward()
    expected = [naive(s, t, 2.0) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert got.tolist() == pytest.approx(expected, rel=1e-9)
    assert torch.isfinite(student.grad).all()


def test_a_class_that_only_the_teacher_rules_out_is_infinite():
    assert value(torch.zeros(1, 2), torch.tensor([[0.0, -math.inf]]), 1.0).item() == math.inf
