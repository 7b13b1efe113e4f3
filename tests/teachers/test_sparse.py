"""Objectives over a part of the classes: equal to dense where all are kept, a lower bound where not, or an error."""

import math
from itertools import pairwise

import pytest
import torch

from hf_distill.cache.formats import SampledLogits, TopKLogits
from hf_distill.objectives import build_objective, objective_classes
from hf_distill.objectives.base import Rows
from hf_distill.teachers.signals import DenseSignals
from hf_distill.teachers.sparse import coarsened, rows_for

CLASSES = 10
ABLE = [name for name, kind in objective_classes().items() if "top_k" in kind.sparse]
TEMPERATURES = (1.0, 2.0, 4.0)


def pair(seed: int = 0, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = scale * torch.randn(2, 6, CLASSES, generator=generator)
    return teacher, student


def top(teacher: torch.Tensor, k: int) -> object:
    kind = TopKLogits(k=k, temperatures=TEMPERATURES)
    return kind.signals(kind.decode(kind.encode(teacher, b""), CLASSES), CLASSES, None)


def valued(
    name: str, teacher: object, student: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    objective = build_objective(name, {"temperature": temperature})
    student = student.clone().requires_grad_()
    values = objective(rows_for(objective, Rows(student, teacher)))  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


@pytest.mark.parametrize("name", ABLE)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_with_every_class_kept_it_is_the_dense_value(name: str, temperature: float, scale: float) -> None:
    teacher, student = pair(scale=scale)
    sparse = valued(name, top(teacher, CLASSES), student, temperature)
    dense = valued(name, DenseSignals(teacher), student, temperature)
    for one, other in zip(sparse, dense, strict=True):
        assert torch.isfinite(one).all()
        assert (one - other).abs().max() <= 1e-6 * (1 + temperature**2 * scale)


@pytest.mark.parametrize("name", [name for name in ABLE if name != "soft_cross_entropy"])
def test_merging_classes_never_raises_a_divergence(name: str) -> None:
    teacher, student = pair()
    values = [valued(name, top(teacher, k), student, 2.0)[0] for k in (1, 3, 6, CLASSES)]
    for fewer, more in pairwise(values):
        assert (fewer <= more + 1e-6).all()
    assert (values[1] > 0).all()
    alike = valued(name, top(teacher, 3), teacher, 2.0)
    assert alike[0].abs().max() < 1e-5
    if name != "total_variation":  # a corner there: rounding decides on which side
        assert alike[1].abs().max() < 1e-5


def test_the_ghost_bucket_by_hand() -> None:
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): the top one and the rest are (1/2, 1/2) and (1/4, 3/4)."""
    teacher, student = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    kind = TopKLogits(k=1)
    signals = kind.signals(kind.decode(kind.encode(teacher, b""), 3), 3, None)
    objective = build_objective("forward_kl", {"temperature": 1.0})
    value = objective(rows_for(objective, Rows(student, signals)))
    assert value.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)


def test_separate_temperatures_stay_separate() -> None:
    teacher, student = pair()
    objective = build_objective(
        "soft_cross_entropy", {"teacher_temperature": 1.0, "student_temperature": 4.0}
    )
    sparse = objective(rows_for(objective, Rows(student, top(teacher, CLASSES))))  # type: ignore[arg-type]
    assert torch.allclose(sparse, objective(Rows(student, DenseSignals(teacher))), rtol=1e-5)


@pytest.mark.parametrize("name", ["forward_kl", "soft_cross_entropy"])
def test_the_gradient_of_draws_is_right_on_average(name: str) -> None:
    teacher, student = pair(scale=1.0)
    dense = valued(name, DenseSignals(teacher), student, 1.0)[1]
    many = []
    for seed in range(300):
        kind = SampledLogits(draws=16, seed=seed)
        raw = kind.encode(teacher, b"one key")
        drawn = kind.signals(kind.decode(raw, CLASSES), CLASSES, None)
        many.append(valued(name, drawn, student, 1.0)[1])
    found = torch.stack(many)
    assert torch.isfinite(found).all()
    error = (found.mean(0) - dense).abs()
    assert (error <= 5 * found.std(0) / 300**0.5 + 1e-6).all()


def test_rows_of_a_dense_teacher_are_left_alone() -> None:
    rows = Rows(torch.zeros(2, CLASSES), DenseSignals(torch.zeros(2, CLASSES)))
    assert coarsened(rows, 2.0) is rows


def test_rows_are_selected_by_mask_and_slice() -> None:
    teacher, _ = pair()
    signals = top(teacher, 3)
    mask = torch.tensor([True, False, True, False, False, True])
    assert torch.equal(signals.select(mask).log_probs(2.0), signals.log_probs(2.0)[mask])  # type: ignore[attr-defined]
    assert torch.equal(signals.select(slice(1, 3)).ids, signals.ids[1:3])  # type: ignore[attr-defined]
