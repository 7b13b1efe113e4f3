"""soft_cross_entropy against its definition in float64, its minimum, and two temperatures."""

import math

import pytest
import torch

from hf_distill.objectives import Rows
from hf_distill.objectives.soft_cross_entropy import SoftCrossEntropy
from hf_distill.teachers.signals import DenseSignals

TEMPERATURES = [0.5, 1.0, 2.0, 8.0, 20.0]


def softmax(logits: list[float], temperature: float) -> list[float]:
    largest = max(logits)
    powers = [math.exp((z - largest) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def naive(student: list[float], teacher: list[float], of_student: float, of_teacher: float) -> float:
    """T_s^2 * -sum_c p_c log q_c."""
    p, q = softmax(teacher, of_teacher), softmax(student, of_student)
    return -(of_student**2) * sum(pc * math.log(qc) for pc, qc in zip(p, q, strict=True) if pc > 0)


def normal(seed: int, scale: float = 3.0, classes: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, classes, generator=generator, dtype=torch.float64) * scale


def value(student: torch.Tensor, teacher: torch.Tensor, **settings: float) -> torch.Tensor:
    return SoftCrossEntropy(**settings)(Rows(student, DenseSignals(teacher)))


def test_hand_worked_number():
    # p = (3/4, 1/4), q = (1/2, 1/2), T = 2: 4 * (3/4 log 2 + 1/4 log 2) = 4 log 2; and with the roles
    # exchanged 4 * (1/2 log(4/3) + 1/2 log 4) = 2 log(16/3).
    uniform, sure = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    assert value(uniform, sure, temperature=2.0).item() == pytest.approx(4 * math.log(2), abs=1e-6)
    assert value(sure, uniform, temperature=2.0).item() == pytest.approx(2 * math.log(16 / 3), abs=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_float64_equals_the_definition(temperature):
    student, teacher = normal(0), normal(1)
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = [naive(s, t, temperature, temperature) for s, t in pairs]
    assert value(student, teacher, temperature=temperature).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("scale", [1.0, 100.0, 1000.0])
@pytest.mark.parametrize("classes", [2, 1000])
def test_float32_keeps_to_the_bound(temperature, scale, classes):
    # The entropy alone is up to T^2 log(classes), whose last digit the value can't leave.
    student, teacher = normal(0, scale, classes).float(), normal(1, scale, classes).float()
    exact = value(student.double(), teacher.double(), temperature=temperature)
    error = (value(student, teacher, temperature=temperature).double() - exact).abs()
    bound = 1e-6 * (1 + temperature**2 * (math.log(classes) + max(student.abs().max(), teacher.abs().max())))
    assert error.max().item() <= bound


def test_two_temperatures_equal_the_definition():
    student, teacher = normal(0), normal(1)
    got = value(student, teacher, student_temperature=3.0, teacher_temperature=0.5)
    expected = [naive(s, t, 3.0, 0.5) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert got.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("of_student", "of_teacher"), [(2.0, 2.0), (3.0, 0.5), (0.1, 0.04)])
def test_gradient_is_the_students_t_times_q_minus_p(of_student, of_teacher):
    student, teacher = normal(0, 0.1).requires_grad_(True), normal(1, 0.1)
    value(student, teacher, student_temperature=of_student, teacher_temperature=of_teacher).sum().backward()
    expected = torch.softmax(student / of_student, -1) - torch.softmax(teacher / of_teacher, -1)
    torch.testing.assert_close(student.grad, of_student * expected.detach())


def test_one_temperature_stands_for_both_unless_one_is_given():
    student, teacher = normal(0), normal(1)
    both = value(student, teacher, temperature=3.0)
    assert torch.equal(both, value(student, teacher, teacher_temperature=3.0, student_temperature=3.0))
    assert torch.equal(both, value(student, teacher, temperature=3.0, teacher_temperature=3.0))
    assert not torch.equal(both, value(student, teacher, temperature=3.0, teacher_temperature=1.0))


def test_equality_gives_t_squared_times_the_entropy():
    logits = torch.tensor([[2 * math.log(3), 0.0]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert value(logits, logits, temperature=2.0).item() == pytest.approx(4 * entropy, rel=1e-6)


def test_classes_that_only_the_teacher_rules_out_add_nothing():
    student, teacher = normal(0), normal(1)
    teacher[:, 2] = -math.inf
    expected = [naive(s, t, 2.0, 2.0) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert value(student, teacher).tolist() == pytest.approx(expected, rel=1e-12)


def test_a_class_that_only_the_student_rules_out_is_infinite():
    assert value(torch.tensor([[0.0, -math.inf]]), torch.zeros(1, 2)).item() == math.inf
