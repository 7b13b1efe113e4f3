"""standardized_kl against its definition in float64, and what it leaves out of the logits."""

import math

import pytest
import torch

from hf_distill.objectives import Rows
from hf_distill.objectives.standardized_kl import StandardizedKL
from hf_distill.teachers.signals import DenseSignals


class NoLogits:
    """A teacher's mixture, which has log-probabilities only."""

    logits = None


def softmax(logits: list[float], temperature: float) -> list[float]:
    largest = max(logits)
    powers = [math.exp((z - largest) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def standardized(logits: list[float]) -> list[float]:
    mean = sum(logits) / len(logits)
    std = math.sqrt(sum((z - mean) ** 2 for z in logits) / len(logits))
    return [(z - mean) / std for z in logits]


def naive(student: list[float], teacher: list[float], temperature: float) -> float:
    """T^2 * KL(softmax(s(teacher) / T) ‖ softmax(s(student) / T))."""
    p, q = softmax(standardized(teacher), temperature), softmax(standardized(student), temperature)
    return temperature**2 * sum(pc * math.log(pc / qc) for pc, qc in zip(p, q, strict=True))


def normal(seed: int, scale: float = 3.0, classes: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, classes, generator=generator, dtype=torch.float64) * scale


def value(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    return StandardizedKL(temperature)(Rows(student, DenseSignals(teacher)))


def test_hand_worked_number():
    # Means 2 and 1; variances (4 + 1 + 1)/3 = 2 and (1 + 1 + 4)/3 = 2; so s = (2, -1, -1)/r and (-1, -1, 2)/r
    # with r = sqrt 2. At T = 3 / r / log 4, e^(s/T) is 4^(2/3) and twice 4^(-1/3):
    # p = (4, 1, 1)/6, q = (1, 1, 4)/6, and KL = 4/6 log 4 + 1/6 log(1/4) = log(4) / 2.
    temperature = 3 / math.sqrt(2) / math.log(4)
    got = value(torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([[4.0, 1.0, 1.0]]), temperature)
    assert got.item() == pytest.approx(temperature**2 * math.log(4) / 2, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0, 20.0])
def test_float64_equals_the_definition(temperature):
    student, teacher = normal(0), normal(1)
    expected = [naive(s, t, temperature) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert value(student, teacher, temperature).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1000.0])
@pytest.mark.parametrize("classes", [3, 1000, 30_000])
def test_float32_keeps_to_the_bound(temperature, scale, classes):
    # Whatever the scale, the standardized logits are of order 1, and it is their largest that counts.
    student, teacher = normal(0, scale, classes).float(), normal(1, scale, classes).float()
    exact = value(student.double(), teacher.double(), temperature)
    error = (value(student, teacher, temperature).double() - exact).abs().max().item()
    assert error <= 1e-6 * (1 + temperature**2)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 100.0), (5.0, 0.0), (0.01, -3.0)])
def test_scale_and_shift_of_the_logits_do_not_count(scale, shift):
    student, teacher = normal(0), normal(1)
    torch.testing.assert_close(value(scale * student + shift, teacher), value(student, teacher))
    assert value(scale * teacher + shift, teacher).abs().max().item() < 1e-12


def test_two_classes_leave_the_sign():
    student = torch.tensor([[3.0, 1.0], [0.1, 0.2]], requires_grad=True)
    got = value(student, torch.tensor([[0.5, 0.4], [9.0, 1.0]]), 1.0)
    got.sum().backward()
    assert got[0].item() == pytest.approx(0, abs=1e-6)
    assert got[1].item() == pytest.approx(2 * math.tanh(1.0), rel=1e-5)
    assert student.grad.abs().max().item() < 1e-5


@pytest.mark.parametrize("level", [0.0, 0.1, 1e4])
def test_a_constant_student_learns(level):
    student, teacher = torch.full((1, 3), level, requires_grad=True), torch.tensor([[4.0, 1.0, 1.0]])
    got = value(student, teacher, 1.0)
    got.sum().backward()
    p = torch.softmax(torch.tensor(standardized([4.0, 1.0, 1.0])), -1)
    assert got.item() == pytest.approx((p * (3 * p).log()).sum().item(), abs=1e-5)
    torch.testing.assert_close(student.grad[0], 1 / 3 - p, rtol=1e-4, atol=1e-5)


def test_classes_that_both_rule_out_leave_mean_and_std():
    student, teacher = normal(0), normal(1)
    kept = [0, 1, 3, 4, 6]
    expected = value(student[:, kept], teacher[:, kept])
    student[:, [2, 5]] = teacher[:, [2, 5]] = -math.inf
    torch.testing.assert_close(value(student, teacher), expected)


def test_signals_without_logits_are_refused():
    with pytest.raises(ValueError, match="standardized_kl: expected a teacher with raw logits"):
        StandardizedKL()(Rows(torch.zeros(1, 2), NoLogits()))
