"""contrastive against its definition written out in float64, and a number worked by hand."""

import math

import pytest
import torch

from hf_distill.features import Features, ModelShape
from hf_distill.objectives.contrastive import Contrastive
from tests.feature_rows import LENGTHS, TEACHER, feature_rows, features, projection_for


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


def naive(student: list[list[float]], teacher: list[list[float]], temperature: float) -> list[float]:
    """InfoNCE: -log of the softmax over the teacher's vectors, at the example's own."""
    values = []
    for i, ours in enumerate(student):
        powers = [math.exp(cosine(ours, theirs) / temperature) for theirs in teacher]
        values.append(-math.log(powers[i] / sum(powers)))
    return values


def pooled(of: Features, number: int, pooling: str) -> list[list[float]]:
    vectors = []
    for states, length in zip(of.hidden_states[number].tolist(), LENGTHS, strict=True):
        rows = states[:length]
        mean = [sum(column) / length for column in zip(*rows, strict=True)]
        vectors.append({"mean": mean, "cls": rows[0], "last": rows[-1]}[pooling])
    return vectors


@pytest.mark.parametrize("temperature", [0.07, 1.0, 10.0])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("width", [12, 24])
def test_float64_equals_the_definition(temperature, pooling, width):
    shape = ModelShape(2, width, 2)
    student, teacher = features(shape, 0), features(TEACHER, 1)
    objective = Contrastive(temperature, pooling)
    projection = projection_for(objective, shape, TEACHER)
    ours = pooled(student, 2, pooling)
    if projection is not None:
        ours = [
            [sum(w * x for w, x in zip(row, vector, strict=True)) for row in projection.weight.tolist()]
            for vector in ours
        ]
    expected = naive(ours, pooled(teacher, 4, pooling), temperature)
    got = objective(feature_rows(student, teacher, projection))
    assert got.tolist() == pytest.approx(expected, rel=1e-9)


def of(vectors: list[list[float]]) -> Features:
    states = torch.tensor(vectors, dtype=torch.float64).unsqueeze(1)
    return Features(
        {1: states}, {}, torch.ones(len(vectors), 1, dtype=torch.bool), ModelShape(1, states.shape[-1], 1)
    )


def test_hand_worked_number():
    # Cosines 1 with its own and 0 with the other: log(1 + exp(-1 / T)), whatever the lengths.
    student, teacher = of([[2.0, 0.0], [0.0, 1.0]]), of([[5.0, 0.0], [0.0, 7.0]])
    got = Contrastive(1 / math.log(3))(feature_rows(student, teacher))
    assert got.tolist() == pytest.approx([math.log(4 / 3)] * 2)


def test_swapped_examples_cost_more():
    student, teacher = of([[1.0, 0.0], [0.0, 1.0]]), of([[0.0, 1.0], [1.0, 0.0]])
    assert Contrastive(1.0)(feature_rows(student, teacher)).tolist() == pytest.approx(
        [math.log(1 + math.e)] * 2
    )


def test_one_example_alone_is_zero():
    assert Contrastive()(feature_rows(of([[1.0, 2.0]]), of([[2.0, -1.0]]))).tolist() == [0.0]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_above_zero(temperature):
    with pytest.raises(ValueError, match="contrastive: temperature: expected a finite temperature above 0"):
        Contrastive(temperature)


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="contrastive: pooling: expected one of cls, mean, last"):
        Contrastive(pooling="max")
