"""forward_kl against its definition written out in float64, and what T does to value and gradient."""

import math

import pytest
import torch

from hf_distill.objectives import Rows
from hf_distill.objectives.forward_kl import ForwardKL
from hf_distill.teachers.signals import DenseSignals

TEMPERATURES = [0.5, 1.0, 2.0, 4.0, 8.0, 20.0]


def softmax(logits: list[float], temperature: float) -> list[float]:
    largest = max(logits)
    powers = [math.exp((z - largest) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def naive(student: list[float], teacher: list[float], temperature: float) -> float:
    """T^2 * sum_c p_c log(p_c / q_c), as in section 2 of the paper."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return temperature**2 * sum(pc * math.log(pc / qc) for pc, qc in zip(p, q, strict=True) if pc > 0)


def vectorised(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The definition in float64, for sizes where a loop takes too long."""
    log_p = torch.log_softmax(teacher.double() / temperature, -1)
    log_q = torch.log_softmax(student.double() / temperature, -1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def normal(rows: int, classes: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * scale


def value(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    return ForwardKL(temperature)(Rows(student, DenseSignals(teacher)))


def excess(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """The largest error over the bound 1e-6 * (1 + T^2 * max|logit|); at most 1 is wanted."""
    error = (value(student, teacher, temperature).double() - vectorised(student, teacher, temperature)).abs()
    largest = torch.maximum(student.abs().amax(-1), teacher.abs().amax(-1)).double()
    return (error / (1e-6 * (1 + temperature**2 * largest))).max().item()


def test_hand_worked_number():
    # T = 2, teacher (2 log 3, 0): p = (3/4, 1/4); student (0, 0): q = (1/2, 1/2).
    # 4 * (3/4 log(3/2) + 1/4 log(1/2)) = 3 log(3/2) - log 2 = 0.5232481...
    got = value(torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]]), 2.0)
    assert got.item() == pytest.approx(3 * math.log(1.5) - math.log(2), abs=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_float64_equals_the_definition(temperature):
    student, teacher = normal(6, 7, 0, 3.0).double(), normal(6, 7, 1, 3.0).double()
    expected = [naive(s, t, temperature) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert value(student, teacher, temperature).tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_float32_keeps_to_the_bound(temperature, scale, classes):
    assert excess(normal(32, classes, 0, scale), normal(32, classes, 1, scale), temperature) <= 1


@pytest.mark.parametrize("classes", [30_000, 150_000])
def test_float32_keeps_to_the_bound_on_a_large_vocabulary(classes):
    cases = [(scale, temperature) for scale in (1.0, 3.0, 10.0) for temperature in (0.5, 2.0, 20.0)]
    found = [excess(normal(2, classes, 0, s), normal(2, classes, 1, s), t) for s, t in cases]
    assert max(found) <= 1


@pytest.mark.parametrize(("temperature", "scale"), [(2.0, 1e-3), (20.0, 1e-3), (20.0, 1e-1)])
def test_float32_keeps_to_the_bound_for_small_logits(temperature, scale):
    assert excess(normal(32, 100, 0, scale), normal(32, 100, 1, scale), temperature) <= 1


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradient_is_t_times_q_minus_p(temperature):
    student = normal(5, 6, 0, 4.0).requires_grad_(True)
    teacher = normal(5, 6, 1, 4.0)
    value(student, teacher, temperature).sum().backward()
    p = torch.tensor([softmax(row, temperature) for row in teacher.tolist()])
    q = torch.tensor([softmax(row, temperature) for row in student.tolist()])
    torch.testing.assert_close(student.grad, temperature * (q - p), rtol=1e-5, atol=1e-6 * temperature)


def gradient_norms(student: torch.Tensor, teacher: torch.Tensor) -> list[float]:
    """The norm of the gradient of the mean over rows, at T = 1, 2, 4 and 8."""
    norms = []
    for temperature in (1.0, 2.0, 4.0, 8.0):
        leaf = student.clone().requires_grad_(True)
        value(leaf, teacher, temperature).mean().backward()
        norms.append(leaf.grad.norm().item())
    return norms


@pytest.mark.parametrize("classes", [5, 10, 100, 1000])
def test_gradient_norm_is_flat_in_t_for_unit_scale_logits(classes):
    # Conditions: student and teacher logits independent and uniform in [-1, 1], 512 rows. Flatness is a
    # matter of scale: N(0, 1) logits of 1000 classes fall by 23 % from T = 1 to 8, as the exact T (q - p) does.
    logits = torch.rand(2, 512, classes, generator=torch.Generator().manual_seed(0)) * 2 - 1
    norms = gradient_norms(*logits.unbind())
    assert max(norms) / min(norms) < 1.05


def test_gradient_norm_is_flat_in_t_for_normal_logits_of_ten_classes():
    norms = gradient_norms(normal(512, 10, 0), normal(512, 10, 1))
    assert max(norms) / min(norms) < 1.05


def test_gradient_would_vanish_without_t_squared():
    norms = gradient_norms(normal(512, 10, 0), normal(512, 10, 1))
    untempered = [norm / t**2 for norm, t in zip(norms, (1, 2, 4, 8), strict=True)]
    assert untempered[0] / untempered[-1] > 50


def test_classes_that_only_the_teacher_rules_out_add_nothing():
    student, teacher = normal(2, 4, 0), normal(2, 4, 1)
    teacher[:, 1] = -math.inf
    got = value(student, teacher, 2.0)
    expected = [naive(s, t, 2.0) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert got.tolist() == pytest.approx(expected, abs=1e-5)


def test_only_differences_of_logits_count():
    student, teacher = normal(3, 5, 0).double(), normal(3, 5, 1).double()
    torch.testing.assert_close(value(student + 7, teacher - 3, 2.0), value(student, teacher, 2.0))
