"""Agreement and mean KL against loops over the items, per kind of head."""

import math

import pytest
import torch

from hf_distill.evaluation.agreement import agreement_sums, finish_agreement
from hf_distill.items import Head
from hf_distill.objectives import Rows
from hf_distill.teachers.signals import DenseSignals

SINGLE, MULTI, REGRESSION = Head("single_label"), Head("multi_label"), Head("regression")


class Mixture:
    """A teacher's mixture: log-probabilities, and no logits."""

    logits = None

    def __init__(self, log_probs: torch.Tensor) -> None:
        self._log_probs = log_probs

    def log_probs(self, temperature: float) -> torch.Tensor:
        return self._log_probs


def random_logits(seed: int, rows: int = 20, classes: int = 3) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def means(student: torch.Tensor, teacher: torch.Tensor, head: Head) -> dict[str, float]:
    sums = agreement_sums(Rows(student, DenseSignals(teacher)), head)
    return {key: (total / count).item() for key, (total, count) in sums.items()}


def naive_kl(student: list[float], teacher: list[float]) -> float:
    p = [math.exp(z) / sum(math.exp(y) for y in teacher) for z in teacher]
    q = [math.exp(z) / sum(math.exp(y) for y in student) for z in student]
    return sum(pc * math.log(pc / qc) for pc, qc in zip(p, q, strict=True))


def naive_bernoulli_kl(s: float, t: float) -> float:
    p, q = 1 / (1 + math.exp(-t)), 1 / (1 + math.exp(-s))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_single_label_is_the_share_of_equal_argmaxes():
    student, teacher = random_logits(0), random_logits(1)
    pairs = list(zip(student.tolist(), teacher.tolist(), strict=True))
    same = [s.index(max(s)) == t.index(max(t)) for s, t in pairs]
    got = means(student, teacher, SINGLE)
    assert 0 < sum(same) < len(same)
    assert got["agreement"] == pytest.approx(sum(same) / len(same))
    assert got["mean_kl"] == pytest.approx(sum(naive_kl(s, t) for s, t in pairs) / len(pairs))


def test_multi_label_is_the_share_of_equal_decisions():
    student, teacher = random_logits(0), random_logits(1)
    cells = list(zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    got = means(student, teacher, MULTI)
    assert got["agreement"] == pytest.approx(sum((s > 0) == (t > 0) for s, t in cells) / len(cells))
    assert got["mean_kl"] == pytest.approx(sum(naive_bernoulli_kl(s, t) for s, t in cells) / len(cells))


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_is_the_root_mean_square_and_has_no_kl(outputs):
    student, teacher = random_logits(0, classes=outputs), random_logits(1, classes=outputs)
    cells = list(zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    got = means(student, teacher, REGRESSION)
    assert set(got) == {"agreement"}
    expected = math.sqrt(sum((s - t) ** 2 for s, t in cells) / len(cells))
    assert finish_agreement(got["agreement"], REGRESSION) == pytest.approx(expected)


@pytest.mark.parametrize("head", [SINGLE, MULTI])
def test_shares_are_reported_as_they_are(head):
    assert finish_agreement(0.25, head) == 0.25


@pytest.mark.parametrize(("head", "best"), [(SINGLE, 1.0), (MULTI, 1.0), (REGRESSION, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_student_that_is_its_teacher_agrees(head, best, dtype):
    logits = random_logits(0, classes=5).to(dtype)
    got = means(logits, logits, head)
    assert finish_agreement(got["agreement"], head) == best
    assert got.get("mean_kl", 0.0) == pytest.approx(0.0, abs=1e-6)


def test_a_student_that_is_its_teacher_agrees_on_logits_that_hardly_differ():
    logits = torch.tensor([[1e-9, 2e-9], [0.0, 1e-8]])
    assert means(logits, logits, SINGLE)["agreement"] == 1.0


@pytest.mark.parametrize("head", [SINGLE, MULTI, REGRESSION])
def test_sums_add_up_over_batches(head):
    student, teacher = random_logits(0), random_logits(1)
    whole = agreement_sums(Rows(student, DenseSignals(teacher)), head)
    parts = [
        agreement_sums(Rows(student[rows], DenseSignals(teacher[rows])), head)
        for rows in (slice(0, 7), slice(7, 20))
    ]
    for key, (total, count) in whole.items():
        assert sum(part[key][1] for part in parts) == count
        assert sum(part[key][0].item() for part in parts) == pytest.approx(total.item())


def test_classes_that_both_rule_out_leave_the_kl_finite():
    student, teacher = random_logits(0), random_logits(1)
    student[:, 0] = teacher[:, 0] = -math.inf
    assert means(student, teacher, SINGLE)["mean_kl"] == pytest.approx(
        means(student[:, 1:], teacher[:, 1:], SINGLE)["mean_kl"]
    )


def test_a_mixture_has_agreement_from_its_log_probabilities_alone():
    student, teacher = random_logits(0), random_logits(1)
    rows = Rows(student, Mixture(torch.log_softmax(teacher, -1)))
    total, count = agreement_sums(rows, SINGLE)["agreement"]
    assert (total / count).item() == means(student, teacher, SINGLE)["agreement"]
    assert agreement_sums(rows, MULTI) == {}
    assert agreement_sums(rows, REGRESSION) == {}
