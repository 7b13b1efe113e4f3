"""skew_kl against its definition written out in float64, its bound and its open ends."""

import math

import pytest
import torch

from hf_distill.objectives import Rows
from hf_distill.objectives.skew_kl import SkewKL
from hf_distill.teachers.signals import DenseSignals


def softmax(logits: list[float], temperature: float) -> list[float]:
    largest = max(logits)
    powers = [math.exp((z - largest) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def naive(student: list[float], teacher: list[float], temperature: float, skew: float) -> float:
    """T^2 * KL(p ‖ skew p + (1 - skew) q)."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    mixture = [skew * pc + (1 - skew) * qc for pc, qc in zip(p, q, strict=True)]
    return temperature**2 * sum(pc * math.log(pc / mc) for pc, mc in zip(p, mixture, strict=True) if pc > 0)


def vectorised(student: torch.Tensor, teacher: torch.Tensor, temperature: float, skew: float) -> torch.Tensor:
    """The definition in float64, for sizes where a loop takes too long."""
    log_p, log_q = (torch.log_softmax(z.double() / temperature, -1) for z in (teacher, student))
    log_mixture = torch.logaddexp(log_p + math.log(skew), log_q + math.log(1 - skew))
    return temperature**2 * (log_p.exp() * (log_p - log_mixture)).sum(-1)


def normal(seed: int, scale: float = 3.0, rows: int = 6, classes: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator, dtype=torch.float64) * scale


def value(student: torch.Tensor, teacher: torch.Tensor, **settings: float) -> torch.Tensor:
    return SkewKL(**settings)(Rows(student, DenseSignals(teacher)))


def test_hand_worked_number():
    # p = (3/4, 1/4), q = (1/2, 1/2), skew 1/2: the mixture is (5/8, 3/8); T = 2:
    # 4 * (3/4 log(6/5) + 1/4 log(2/3)).
    teacher = torch.tensor([[2 * math.log(3), 0.0]])
    got = value(torch.zeros(1, 2), teacher, temperature=2.0, skew=0.5)
    assert got.item() == pytest.approx(3 * math.log(1.2) + math.log(2 / 3), abs=1e-6)


def test_the_skew_is_the_teachers_share():
    # Skew 1/4: the mixture is (9/16, 7/16).
    got = value(torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]]), temperature=1.0, skew=0.25)
    assert got.item() == pytest.approx(0.75 * math.log(12 / 9) + 0.25 * math.log(4 / 7), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0, 20.0])
@pytest.mark.parametrize("skew", [0.01, 0.1, 0.5, 0.9])
def test_float64_equals_the_definition(temperature, skew):
    student, teacher = normal(0), normal(1)
    got = value(student, teacher, temperature=temperature, skew=skew)
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = [naive(s, t, temperature, skew) for s, t in pairs]
    assert got.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("classes", [2, 1000, 30_000])
def test_float32_keeps_to_the_bound(temperature, scale, classes):
    student, teacher = normal(0, scale, 3, classes).float(), normal(1, scale, 3, classes).float()
    exact = vectorised(student, teacher, temperature, 0.1)
    error = (value(student, teacher, temperature=temperature, skew=0.1).double() - exact).abs()
    largest = torch.maximum(student.abs().amax(-1), teacher.abs().amax(-1)).double()
    assert (error / (1e-6 * (1 + temperature**2 * largest))).max().item() <= 1


def test_is_at_most_t_squared_times_the_logarithm_of_the_skew():
    student, teacher = torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]])
    got = value(student, teacher, temperature=2.0, skew=0.1)
    assert got.item() == pytest.approx(-4 * math.log(0.1), rel=1e-6)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_stays_finite_where_only_one_rules_a_class_out(who):
    student, teacher = normal(0), normal(1)
    (student if who == "student" else teacher)[:, 1] = -math.inf
    student.requires_grad_(True)
    got = value(student, teacher, temperature=1.0, skew=0.1)
    got.sum().backward()
    expected = [naive(s, t, 1.0, 0.1) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert got.tolist() == pytest.approx(expected, rel=1e-9)
    assert torch.isfinite(student.grad).all()


def test_gradient_is_the_definitions_where_classes_underflow():
    logits = torch.tensor([[0.0, -150.0, -3.0], [-300.0, 0.0, 1.0], [5.0, 0.0, -120.0]])
    student = logits.clone().requires_grad_(True)
    exact = logits.double().requires_grad_(True)
    teacher = logits.roll(1, 0)
    value(student, teacher, temperature=1.0, skew=0.1).sum().backward()
    vectorised(exact, teacher, 1.0, 0.1).sum().backward()
    torch.testing.assert_close(student.grad, exact.grad.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("skew", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_the_ends_are_refused_and_say_what_they_would_be(skew):
    with pytest.raises(ValueError, match=r"skew_kl skew: expected .* between 0 and 1.*0 is forward_kl"):
        SkewKL(skew=skew)
