"""decoupled_kl against its definition in float64, its parts, and items without a label."""

import math

import pytest
import torch

from hf_distill.objectives import Rows
from hf_distill.objectives.decoupled_kl import DecoupledKL
from hf_distill.teachers.signals import DenseSignals


def softmax(logits: list[float], temperature: float) -> list[float]:
    largest = max(logits)
    powers = [math.exp((z - largest) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(pc * math.log(pc / qc) for pc, qc in zip(p, q, strict=True) if pc > 0)


def naive(student: list[float], teacher: list[float], label: int, temperature: float, a: float, b: float):
    """T^2 * (a TCKD + b NCKD), with the probabilities of the paper's section 3."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    target = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
    others_p, others_q = (softmax(z[:label] + z[label + 1 :], temperature) for z in (teacher, student))
    return temperature**2 * (a * target + b * kl(others_p, others_q))


def normal(seed: int, scale: float = 3.0, classes: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, classes, generator=generator, dtype=torch.float64) * scale


LABELS = torch.tensor([0, 6, 3, 3, 1, 5])


def value(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor = LABELS, **settings: float
) -> torch.Tensor:
    return DecoupledKL(**settings)(Rows(student, DenseSignals(teacher), labels))


def test_hand_worked_number():
    # p = (1/2, 3/8, 1/8), q = (1/4, 3/8, 3/8), label 0, T = 1: the target's parts are 1/2 and 1/4, and the
    # others are (3/4, 1/4) and (1/2, 1/2): 1/2 log 2 + 1/2 log(2/3) + 8 (3/4 log(3/2) + 1/4 log(1/2)).
    teacher, student = torch.tensor([[4.0, 3.0, 1.0]]).log(), torch.tensor([[2.0, 3.0, 3.0]]).log()
    by_hand = 0.5 * math.log(2) + 0.5 * math.log(2 / 3) + 6 * math.log(1.5) - 2 * math.log(2)
    got = value(student, teacher, torch.tensor([0]), temperature=1.0)
    assert got.item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize(("a", "b"), [(1.0, 8.0), (1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_float64_equals_the_definition(temperature, a, b):
    student, teacher = normal(0), normal(1)
    got = value(student, teacher, temperature=temperature, target_weight=a, non_target_weight=b)
    rows = zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True)
    expected = [naive(s, t, label, temperature, a, b) for s, t, label in rows]
    assert got.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("temperature", [0.5, 4.0, 20.0])
@pytest.mark.parametrize("scale", [1.0, 10.0, 1000.0])
@pytest.mark.parametrize("classes", [7, 1000, 30_000])
def test_float32_keeps_to_the_bound(temperature, scale, classes):
    student, teacher = normal(0, scale, classes).float(), normal(1, scale, classes).float()
    exact = value(student.double(), teacher.double(), temperature=temperature)
    error = (value(student, teacher, temperature=temperature).double() - exact).abs()
    largest = torch.maximum(student.abs().amax(-1), teacher.abs().amax(-1)).double()
    # The weights, 1 and 8, multiply the error as they do the value.
    assert (error / (9e-6 * (1 + temperature**2 * largest))).max().item() <= 1


def test_forward_kl_is_the_case_of_the_teachers_own_weight():
    student, teacher = normal(0), normal(1)
    p = torch.softmax(teacher / 2, -1)
    target = value(student, teacher, temperature=2.0, target_weight=1.0, non_target_weight=0.0)
    others = value(student, teacher, temperature=2.0, target_weight=0.0, non_target_weight=1.0)
    log_ratio = torch.log_softmax(teacher / 2, -1) - torch.log_softmax(student / 2, -1)
    forward = 4 * (p * log_ratio).sum(-1)
    share = 1 - p.gather(-1, LABELS.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(target + share * others, forward)


def test_items_without_a_label_have_neither_value_nor_gradient():
    student, teacher = normal(0), normal(1)
    student[1], teacher[1] = 1e4, -1e4
    student[4, 2] = math.nan
    labels = torch.tensor([0, -100, 3, 3, -100, 5])
    kept = [0, 2, 3, 5]
    student.requires_grad_(True)
    got = value(student, teacher, labels)
    got.sum().backward()
    alone = student.detach()[kept].requires_grad_(True)
    expected = value(alone, teacher[kept], labels[kept])
    expected.sum().backward()
    assert got[[1, 4]].tolist() == [0.0, 0.0]
    assert student.grad[[1, 4]].abs().max().item() == 0
    torch.testing.assert_close(got[kept], expected)
    torch.testing.assert_close(student.grad[kept], alone.grad)


def test_a_batch_without_any_label_is_zero_with_a_live_graph():
    student = normal(0).requires_grad_(True)
    got = value(student, normal(1), torch.full((6,), -100))
    got.sum().backward()
    assert got.tolist() == [0.0] * 6
    assert student.grad.abs().max().item() == 0


def test_two_classes_have_no_others():
    student, teacher, labels = normal(0, classes=2), normal(1, classes=2), LABELS % 2
    assert value(student, teacher, labels, target_weight=0.0).abs().max().item() == 0
    both = value(student, teacher, labels, temperature=1.0)
    p, q = torch.softmax(teacher, -1), torch.softmax(student, -1)
    torch.testing.assert_close(both, (p * (p / q).log()).sum(-1))


def test_a_target_that_both_rule_out_leaves_the_others():
    student, teacher = normal(0), normal(1)
    student[:, 2] = teacher[:, 2] = -math.inf
    student.requires_grad_(True)
    got = value(student, teacher, torch.full((6,), 2), temperature=1.0)
    got.sum().backward()
    rest = [0, 1, 3, 4, 5, 6]
    p, q = torch.softmax(teacher[:, rest], -1), torch.softmax(student[:, rest], -1)
    torch.testing.assert_close(got, 8 * (p * (p / q).log()).sum(-1))
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("label", [0, 2])
def test_gradient_is_that_of_finite_differences_for_any_label(label):
    labels = torch.tensor([label, -100, 1])
    student, teacher = normal(0)[:3, :4].clone().requires_grad_(True), normal(1)[:3, :4]
    assert torch.autograd.gradcheck(lambda logits: value(logits, teacher, labels), (student,))


def test_signals_without_logits_give_the_same():
    class LogProbsOnly:
        logits = None

        def log_probs(self, temperature):
            return torch.log_softmax(normal(1) / temperature, -1)

    got = DecoupledKL()(Rows(normal(0), LogProbsOnly(), LABELS))
    torch.testing.assert_close(got, value(normal(0), normal(1)))


def test_a_batch_without_labels_is_refused():
    with pytest.raises(
        ValueError, match=r"decoupled_kl: expected labels.*received a batch without.*forward_kl"
    ):
        DecoupledKL()(Rows(torch.zeros(1, 2), DenseSignals(torch.zeros(1, 2))))


def test_two_weights_of_0_teach_nothing_and_are_refused():
    with pytest.raises(
        ValueError, match="decoupled_kl: target_weight and non_target_weight: expected one above 0"
    ):
        DecoupledKL(target_weight=0.0, non_target_weight=0.0)
