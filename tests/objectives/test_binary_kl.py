"""binary_kl against its definition written out in float64, and a number worked by hand."""

import math

import pytest
import torch

from hf_distill.objectives import Rows
from hf_distill.objectives.binary_kl import BinaryKL
from hf_distill.teachers.signals import DenseSignals


class NoLogits:
    """A teacher's mixture, which has log-probabilities only."""

    logits = None


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def naive(student: list[float], teacher: list[float], temperature: float) -> float:
    """T^2 * mean_c KL(Bern(sigmoid(t_c / T)) ‖ Bern(sigmoid(s_c / T)))."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = sigmoid(t / temperature), sigmoid(s / temperature)
        total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    return temperature**2 * total / len(student)


def normal(seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(6, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def value(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    return BinaryKL(temperature)(Rows(student, DenseSignals(teacher)))


def test_hand_worked_number():
    # T = 2; class 0: p = 3/4, q = 1/2; class 1: both 1/2, so 0.
    # 4 * 1/2 * (3/4 log(3/2) + 1/4 log(1/2)).
    got = value(torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]]))
    assert got.item() == pytest.approx(2 * (0.75 * math.log(1.5) - 0.25 * math.log(2)), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_float64_equals_the_definition(temperature):
    student, teacher = normal(0, 2.0), normal(1, 2.0)
    expected = [naive(s, t, temperature) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert value(student, teacher, temperature).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_float32_is_close_to_float64(temperature, scale):
    student, teacher = normal(0, scale).float(), normal(1, scale).float()
    exact = value(student.double(), teacher.double(), temperature)
    got = value(student, teacher, temperature).double()
    assert (got - exact).abs().max().item() <= 1e-6 * (1 + temperature**2 * scale * 4)


def test_gradient_is_t_over_classes_times_the_difference():
    student, teacher = normal(0).requires_grad_(True), normal(1)
    value(student, teacher, 4.0).sum().backward()
    expected = 4.0 / 7 * (torch.sigmoid(student / 4) - torch.sigmoid(teacher / 4))
    torch.testing.assert_close(student.grad, expected.detach())


def test_classes_do_not_compete():
    student, teacher = normal(0), normal(1)
    student.requires_grad_(True)
    value(student, teacher).sum().backward()
    before = student.grad[:, 0].clone()
    moved = torch.cat([student.detach()[:, :1], student.detach()[:, 1:] + 5], -1).requires_grad_(True)
    value(moved, teacher).sum().backward()
    torch.testing.assert_close(moved.grad[:, 0], before)


def test_certain_teachers_stay_finite():
    student = torch.tensor([[0.0, 0.0]], requires_grad=True)
    got = value(student, torch.tensor([[1000.0, -math.inf]]), 1.0)
    got.sum().backward()
    assert got.item() == pytest.approx(math.log(2), abs=1e-6)
    assert student.grad.tolist()[0] == pytest.approx([-0.25, 0.25], abs=1e-6)


def test_mean_is_over_the_remaining_classes():
    student, teacher = torch.tensor([[1.0, -math.inf, -1.0]]), torch.tensor([[0.0, -math.inf, 2.0]])
    assert value(student, teacher).item() == pytest.approx(naive([1.0, -1.0], [0.0, 2.0], 2.0), rel=1e-5)


def test_signals_without_logits_are_refused():
    with pytest.raises(ValueError, match="binary_kl: expected a teacher with raw logits"):
        BinaryKL()(Rows(torch.zeros(1, 2), NoLogits()))


@pytest.mark.parametrize("temperature", [2.0, 20.0])
def test_near_equality_the_digits_are_right(temperature):
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(256, 100, generator=generator)
    student = (teacher + 1e-3 * torch.randn(256, 100, generator=generator)).requires_grad_(True)
    found = {}
    for dtype in (torch.float32, torch.float64):
        rows = Rows(student.to(dtype), DenseSignals(teacher.to(dtype)))
        values = BinaryKL(temperature=temperature)(rows)
        (gradient,) = torch.autograd.grad(values.sum(), student)
        found[dtype] = values.detach().double(), gradient.double()
    values, gradient = found[torch.float32]
    exact, exact_gradient = found[torch.float64]
    assert (values >= 0).all()
    assert (values - exact).abs().max() <= 0.01 * exact.max()
    assert (gradient - exact_gradient).abs().max() <= 0.01 * exact_gradient.abs().max()
