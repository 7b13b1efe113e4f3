"""jensen_shannon against its definition written out in float64, its bound, symmetry and open ends."""

import math

import pytest
import torch

from hf_distill.objectives import Rows
from hf_distill.objectives.jensen_shannon import JensenShannon
from hf_distill.teachers.signals import DenseSignals


def softmax(logits: list[float], temperature: float) -> list[float]:
    largest = max(logits)
    powers = [math.exp((z - largest) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(pc * math.log(pc / qc) for pc, qc in zip(p, q, strict=True) if pc > 0)


def naive(student: list[float], teacher: list[float], temperature: float, weight: float) -> float:
    """T^2 * (w KL(p ‖ m) + (1 - w) KL(q ‖ m)), m = w p + (1 - w) q: equation 1 of GKD times T^2."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    m = [weight * pc + (1 - weight) * qc for pc, qc in zip(p, q, strict=True)]
    return temperature**2 * (weight * kl(p, m) + (1 - weight) * kl(q, m))


def normal(seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(6, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def value(student: torch.Tensor, teacher: torch.Tensor, **settings: float) -> torch.Tensor:
    return JensenShannon(**settings)(Rows(student, DenseSignals(teacher)))


def test_hand_worked_number():
    # p = (3/4, 1/4), q = (1/2, 1/2), m = (5/8, 3/8); T = 2:
    # 4 * 1/2 * (3/4 log(6/5) + 1/4 log(2/3) + 1/2 log(4/5) + 1/2 log(4/3)).
    got = value(torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]]), temperature=2.0)
    by_hand = 2 * (
        0.75 * math.log(1.2) + 0.25 * math.log(2 / 3) + 0.5 * math.log(0.8) + 0.5 * math.log(4 / 3)
    )
    assert got.item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0, 20.0])
@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_float64_equals_the_definition(temperature, weight):
    student, teacher = normal(0), normal(1)
    got = value(student, teacher, temperature=temperature, teacher_weight=weight)
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = [naive(s, t, temperature, weight) for s, t in pairs]
    assert got.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-11)


def test_weights_say_whose_share_is_whose():
    student, teacher = normal(0), normal(1)
    ours = value(student, teacher, teacher_weight=0.2)
    swapped = value(teacher, student, teacher_weight=0.8)
    torch.testing.assert_close(ours, swapped)
    assert not torch.allclose(ours, value(teacher, student, teacher_weight=0.2))


def test_is_symmetric_at_one_half():
    torch.testing.assert_close(value(normal(0), normal(1)), value(normal(1), normal(0)))


def test_is_at_most_t_squared_log_2():
    student, teacher = torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]])
    assert value(student, teacher, temperature=2.0).item() == pytest.approx(4 * math.log(2), rel=1e-6)


def test_stays_finite_where_only_one_rules_a_class_out():
    student, teacher = normal(0), normal(1)
    student[:, 0], teacher[:, 1] = -math.inf, -math.inf
    student.requires_grad_(True)
    got = value(student, teacher, temperature=1.0)
    got.sum().backward()
    expected = [naive(s, t, 1.0, 0.5) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert got.tolist() == pytest.approx(expected, rel=1e-9)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_the_ends_are_refused_and_name_the_one_sided_objectives(weight):
    with pytest.raises(ValueError, match=r"teacher_weight.*forward_kl.*reverse_kl"):
        JensenShannon(teacher_weight=weight)


@pytest.mark.parametrize("weight", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [2.0, 20.0])
def test_near_equality_the_digits_are_right(weight, temperature):
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(256, 100, generator=generator)
    student = (teacher + 1e-3 * torch.randn(256, 100, generator=generator)).requires_grad_(True)
    found = {}
    for dtype in (torch.float32, torch.float64):
        rows = Rows(student.to(dtype), DenseSignals(teacher.to(dtype)))
        values = JensenShannon(temperature=temperature, teacher_weight=weight)(rows)
        (gradient,) = torch.autograd.grad(values.sum(), student)
        found[dtype] = values.detach().double(), gradient.double()
    values, gradient = found[torch.float32]
    exact, exact_gradient = found[torch.float64]
    assert (values >= 0).all()
    assert (values - exact).abs().max() <= 0.01 * exact.max()
    assert (gradient - exact_gradient).abs().max() <= 0.01 * exact_gradient.abs().max()
