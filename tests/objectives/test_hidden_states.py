"""hidden_states against its definition written out in float64, and a number worked by hand."""

import math

import pytest
import torch

from hf_distill.features import Features, ModelShape
from hf_distill.objectives.hidden_states import HiddenStates
from tests.feature_rows import STUDENT, TEACHER, feature_rows, features, projection_for


def project(vector: list[float], matrix: list[list[float]] | None) -> list[float]:
    if matrix is None:
        return vector
    return [sum(w * x for w, x in zip(row, vector, strict=True)) for row in matrix]


def mse(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one)


def one_minus_cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return 1 - dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


def naive(pairs, distance, student, teacher, matrix) -> list[float]:
    """For each attended position, the sum over pairs of distance(W h, g)."""
    values = []
    for example in range(student.attended.shape[0]):
        for position in range(student.attended.shape[1]):
            if student.attended[example, position]:
                values.append(
                    sum(
                        distance(
                            project(student.hidden_states[own][example, position].tolist(), matrix),
                            teacher.hidden_states[other][example, position].tolist(),
                        )
                        for own, other in pairs
                    )
                )
    return values


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [("uniform", [(1, 1), (2, 4)]), ("last", [(2, 4)]), ([[0, 0], [1, 3]], [(0, 0), (1, 3)])],
)
@pytest.mark.parametrize(("distance", "function"), [("mse", mse), ("cosine", one_minus_cosine)])
@pytest.mark.parametrize("width", [12, 24])
def test_float64_equals_the_definition(layers, pairs, distance, function, width):
    shape = ModelShape(2, width, 2)
    student, teacher = features(shape, 0), features(TEACHER, 1)
    objective = HiddenStates(layers, distance)
    projection = projection_for(objective, shape, TEACHER)
    assert (projection is None) == (width == TEACHER.width)
    matrix = None if projection is None else projection.weight.tolist()
    got = objective(feature_rows(student, teacher, projection))
    assert got.tolist() == pytest.approx(naive(pairs, function, student, teacher, matrix), rel=1e-12)


def of(states: list[list[list[float]]]) -> Features:
    tensor = torch.tensor(states, dtype=torch.float64)
    return Features({1: tensor}, {}, torch.ones(tensor.shape[:2], dtype=torch.bool), ModelShape(1, 2, 1))


def test_hand_worked_numbers():
    student, teacher = of([[[1.0, 2.0], [3.0, 4.0]]]), of([[[1.0, 0.0], [6.0, 8.0]]])
    # ((0)^2 + 2^2) / 2 = 2; (3^2 + 4^2) / 2 = 12.5.
    assert HiddenStates("last")(feature_rows(student, teacher)).tolist() == [2.0, 12.5]
    # 1 - 1 / sqrt(5); parallel vectors are 0 apart.
    got = HiddenStates("last", "cosine")(feature_rows(student, teacher)).tolist()
    assert got == pytest.approx([1 - 1 / math.sqrt(5), 0.0], abs=1e-15)


def test_one_matrix_serves_all_pairs():
    made = HiddenStates().projection(STUDENT, TEACHER)
    assert [tuple(p.shape) for p in made.parameters()] == [(24, 12)]


@pytest.mark.parametrize(
    "layers", ["skip", "Uniform", [], [[1]], [[1, 2, 3]], [[-1, 2]], [[1.0, 2]], [1, 2], {"1": 2}]
)
def test_layers_that_are_none_are_refused(layers):
    with pytest.raises(ValueError, match="hidden_states: layers: expected uniform, last or a list"):
        HiddenStates(layers)


@pytest.mark.parametrize(("layers", "who"), [([[3, 1]], "student's 2"), ([[1, 5]], "teacher's 4")])
def test_layers_that_a_model_lacks_are_refused_before_training(layers, who):
    with pytest.raises(ValueError, match=f"layers: expected at most the {who} layers, received"):
        HiddenStates(layers).feature_needs(STUDENT, TEACHER)


def test_unknown_distance_is_refused():
    with pytest.raises(ValueError, match="distance: expected one of mse, cosine, received 'l1'"):
        HiddenStates(distance="l1")


def test_pairs_from_yaml_are_hashable():
    assert hash(HiddenStates([[1, 2]])) == hash(HiddenStates(((1, 2),)))
