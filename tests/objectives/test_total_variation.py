"""total_variation against its definition in float64, its range and its gradient."""

import math

import pytest
import torch

from hf_distill.objectives import Rows
from hf_distill.objectives.total_variation import TotalVariation
from hf_distill.teachers.signals import DenseSignals


def softmax(logits: list[float], temperature: float) -> list[float]:
    largest = max(logits)
    powers = [math.exp((z - largest) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def naive(student: list[float], teacher: list[float], temperature: float) -> float:
    """1/2 * sum_c |p_c - q_c|."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return sum(abs(pc - qc) for pc, qc in zip(p, q, strict=True)) / 2


def normal(seed: int, scale: float = 3.0, classes: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, classes, generator=generator, dtype=torch.float64) * scale


def value(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    return TotalVariation(temperature)(Rows(student, DenseSignals(teacher)))


def test_hand_worked_number():
    # p = (3/4, 1/4), q = (1/2, 1/2): 1/2 * (1/4 + 1/4) = 1/4; T^2 does not multiply it.
    got = value(torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]]), 2.0)
    assert got.item() == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0, 20.0])
def test_float64_equals_the_definition(temperature):
    student, teacher = normal(0), normal(1)
    expected = [naive(s, t, temperature) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert value(student, teacher, temperature).tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1000.0])
@pytest.mark.parametrize("classes", [2, 1000])
def test_float32_keeps_to_the_bound(temperature, scale, classes):
    student, teacher = normal(0, scale, classes).float(), normal(1, scale, classes).float()
    exact = value(student.double(), teacher.double(), temperature)
    error = (value(student, teacher, temperature).double() - exact).abs().max().item()
    assert error <= 1e-6 * (1 + max(student.abs().max().item(), teacher.abs().max().item()) / temperature)


def test_is_symmetric_and_at_most_1():
    torch.testing.assert_close(value(normal(0), normal(1)), value(normal(1), normal(0)))
    assert value(torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]])).item() == 1.0


def test_gradient_equals_the_formula():
    # d/dz_c = q_c / (2 T) * (s_c - sum_k q_k s_k), s the sign of q - p.
    student, teacher = normal(0).requires_grad_(True), normal(1)
    value(student, teacher, 2.0).sum().backward()
    p, q = torch.softmax(teacher / 2, -1), torch.softmax(student.detach() / 2, -1)
    sign = (q - p).sign()
    torch.testing.assert_close(student.grad, q / 4 * (sign - (q * sign).sum(-1, keepdim=True)))


def test_stays_finite_where_only_one_rules_a_class_out():
    student, teacher = normal(0), normal(1)
    student[:, 0], teacher[:, 1] = -math.inf, -math.inf
    student.requires_grad_(True)
    got = value(student, teacher)
    got.sum().backward()
    expected = [naive(s, t, 2.0) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert got.tolist() == pytest.approx(expected, rel=1e-10)
    assert torch.isfinite(student.grad).all()
