"""adaptive_kl against its definition in float64: head, tail, weights held constant."""

import math

import pytest
import torch

from hf_distill.objectives import Rows
from hf_distill.objectives.adaptive_kl import AdaptiveKL
from hf_distill.teachers.signals import DenseSignals


def softmax(logits: list[float], temperature: float) -> list[float]:
    largest = max(logits)
    powers = [math.exp((z - largest) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def head_of(p: list[float], mass: float) -> set[int]:
    """The fewest of the likeliest classes that together hold the mass, with those tied with the last."""
    order = sorted(range(len(p)), key=lambda c: -p[c])
    held, last = 0.0, 0
    for c in order:
        held, last = held + p[c], c
        if held >= mass:
            break
    return {c for c in order if p[c] >= p[last]}


def weight_of(p: list[float], q: list[float], mass: float) -> float:
    """g_head / (g_head + g_tail)."""
    head = head_of(p, mass)
    gaps = [abs(pc - qc) for pc, qc in zip(p, q, strict=True)]
    return sum(gap for c, gap in enumerate(gaps) if c in head) / sum(gaps)


def kl(p: list[float], q: list[float]) -> float:
    return sum(pc * math.log(pc / qc) for pc, qc in zip(p, q, strict=True) if pc > 0)


def naive(student: list[float], teacher: list[float], temperature: float, mass: float) -> float:
    """T^2 * (w KL(p ‖ q) + (1 - w) KL(q ‖ p))."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    weight = weight_of(p, q, mass)
    return temperature**2 * (weight * kl(p, q) + (1 - weight) * kl(q, p))


def normal(seed: int, scale: float = 3.0, classes: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, classes, generator=generator, dtype=torch.float64) * scale


def value(student: torch.Tensor, teacher: torch.Tensor, **settings: float) -> torch.Tensor:
    return AdaptiveKL(**settings)(Rows(student, DenseSignals(teacher)))


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_hand_worked_number():
    # p = (6, 3, 1)/10, q = (1, 1, 2)/4, T = 1: the head is the first class; gaps .35, .05, .4, so w = 7/16.
    got = value(logits_of(0.25, 0.25, 0.5), logits_of(0.6, 0.3, 0.1), temperature=1.0)
    forward = 0.6 * math.log(2.4) + 0.3 * math.log(1.2) + 0.1 * math.log(0.2)
    reverse = 0.25 * math.log(5 / 12) + 0.25 * math.log(5 / 6) + 0.5 * math.log(5)
    assert got.item() == pytest.approx(7 / 16 * forward + 9 / 16 * reverse, rel=1e-9)


def test_the_head_holds_at_least_its_mass():
    # The first class holds .4, so the second, with which .5 is reached, is of the head too: w = (.15 + .05) / .4.
    p, q = (0.4, 0.3, 0.2, 0.1), (0.25, 0.25, 0.25, 0.25)
    got = value(logits_of(*q), logits_of(*p), temperature=1.0).item()
    assert got == pytest.approx(0.5 * kl(p, q) + 0.5 * kl(q, p), rel=1e-9)


@pytest.mark.parametrize(("mass", "weight"), [(0.05, 3 / 8), (0.45, 4 / 8), (0.75, 5 / 8), (0.95, 1.0)])
def test_head_mass_moves_the_border(mass, weight):
    p, q = (0.4, 0.3, 0.2, 0.1), (0.25, 0.25, 0.25, 0.25)
    got = value(logits_of(*q), logits_of(*p), temperature=1.0, head_mass=mass).item()
    assert got == pytest.approx(weight * kl(p, q) + (1 - weight) * kl(q, p), rel=1e-9)


def test_classes_as_likely_as_the_last_of_the_head_are_of_the_head():
    p, q = (0.2, 0.2, 0.2, 0.3, 0.1), (0.3, 0.1, 0.2, 0.2, 0.2)
    got = value(logits_of(*q), logits_of(*p), temperature=1.0).item()
    assert got == pytest.approx(0.75 * kl(p, q) + 0.25 * kl(q, p), rel=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 20.0])
@pytest.mark.parametrize("mass", [0.2, 0.5, 0.9])
def test_float64_equals_the_definition(temperature, mass):
    student, teacher = normal(0), normal(1)
    got = value(student, teacher, temperature=temperature, head_mass=mass)
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = [naive(s, t, temperature, mass) for s, t in pairs]
    assert got.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("scale", [1.0, 10.0, 1000.0])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_float32_keeps_to_the_bound(temperature, scale, classes):
    student, teacher = normal(0, scale, classes).float(), normal(1, scale, classes).float()
    exact = value(student.double(), teacher.double(), temperature=temperature)
    error = (value(student, teacher, temperature=temperature).double() - exact).abs()
    largest = torch.maximum(student.abs().amax(-1), teacher.abs().amax(-1)).double()
    assert (error / (1e-6 * (1 + temperature**2 * largest))).max().item() <= 1


def test_gradient_is_that_of_the_definition_with_constant_weights():
    student, teacher = normal(0).requires_grad_(True), normal(1)
    weights = [
        weight_of(softmax(t, 2.0), softmax(s, 2.0), 0.5)
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]

    def with_constant_weights(logits: torch.Tensor) -> torch.Tensor:
        log_p, log_q = torch.log_softmax(teacher / 2, -1), torch.log_softmax(logits / 2, -1)
        forward = (log_p.exp() * (log_p - log_q)).sum(-1)
        reverse = (log_q.exp() * (log_q - log_p)).sum(-1)
        weight = torch.tensor(weights, dtype=torch.float64)
        return 4 * (weight * forward + (1 - weight) * reverse)

    assert torch.autograd.gradcheck(with_constant_weights, (student,))
    (expected,) = torch.autograd.grad(with_constant_weights(student).sum(), student)
    (got,) = torch.autograd.grad(value(student, teacher, temperature=2.0).sum(), student)
    torch.testing.assert_close(got, expected)


def test_signals_without_logits_give_the_same():
    class LogProbsOnly:
        logits = None

        def log_probs(self, temperature):
            return torch.log_softmax(normal(1) / temperature, -1)

    got = AdaptiveKL()(Rows(normal(0), LogProbsOnly()))
    torch.testing.assert_close(got, value(normal(0), normal(1)))


@pytest.mark.parametrize("mass", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_the_ends_are_refused(mass):
    with pytest.raises(ValueError, match=r"adaptive_kl head_mass: expected .* between 0 and 1.*forward_kl"):
        AdaptiveKL(head_mass=mass)
