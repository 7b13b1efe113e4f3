"""rkd against its definition written out in float64, and a number worked by hand."""

import math

import pytest
import torch

from hf_distill.features import Features, ModelShape
from hf_distill.objectives.rkd import RelationalDistillation
from tests.feature_rows import LENGTHS, STUDENT, TEACHER, feature_rows, features

Vectors = list[list[float]]


def huber(one: float, other: float) -> float:
    gap = abs(one - other)
    return 0.5 * gap**2 if gap <= 1 else gap - 0.5


def distances(vectors: Vectors) -> list[list[float]]:
    """Equations 5 and 6: distances over the mean of all pairs."""
    rows = [[math.dist(x, y) for y in vectors] for x in vectors]
    pairs = [rows[i][j] for i in range(len(rows)) for j in range(len(rows)) if i != j]
    mean = sum(pairs) / len(pairs)
    return [[d / mean for d in row] for row in rows]


def cosine(vectors: Vectors, vertex: int, one: int, other: int) -> float:
    """Equation 8: the cosine of the angle at the vertex."""
    e, f = ([a - b for a, b in zip(vectors[i], vectors[vertex], strict=True)] for i in (one, other))
    return sum(a * b for a, b in zip(e, f, strict=True)) / (math.hypot(*e) * math.hypot(*f))


def naive(student: Vectors, teacher: Vectors, distance_weight: float, angle_weight: float) -> list[float]:
    size = len(student)
    ours, theirs = distances(student), distances(teacher)
    values = []
    for i in range(size):
        others = [j for j in range(size) if j != i]
        far = [huber(ours[i][j], theirs[i][j]) for j in others]
        angles = [
            huber(cosine(student, i, j, k), cosine(teacher, i, j, k))
            for j in others
            for k in others
            if j != k
        ]
        values.append(distance_weight * sum(far) / len(far) + angle_weight * sum(angles) / len(angles))
    return values


def pooled(of: Features, number: int, pooling: str) -> Vectors:
    vectors = []
    for states, length in zip(of.hidden_states[number].tolist(), LENGTHS, strict=True):
        rows = states[:length]
        mean = [sum(column) / length for column in zip(*rows, strict=True)]
        vectors.append({"mean": mean, "cls": rows[0], "last": rows[-1]}[pooling])
    return vectors


@pytest.mark.parametrize("weights", [(1.0, 2.0), (25.0, 0.0), (0.0, 50.0)])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_float64_equals_the_definition(weights, pooling):
    student, teacher = features(STUDENT, 0), features(TEACHER, 1)
    expected = naive(pooled(student, 2, pooling), pooled(teacher, 4, pooling), *weights)
    got = RelationalDistillation(*weights, pooling)(feature_rows(student, teacher))
    assert got.tolist() == pytest.approx(expected, rel=1e-11)


def of(vectors: Vectors) -> Features:
    states = torch.tensor(vectors, dtype=torch.float64).unsqueeze(1)
    return Features(
        {1: states}, {}, torch.ones(len(vectors), 1, dtype=torch.bool), ModelShape(1, states.shape[-1], 1)
    )


def test_hand_worked_numbers():
    # Student: three points on a line, distances 1, 1, 2 over their mean 4/3. Teacher: all distances equal.
    student, teacher = of([[0.0], [1.0], [2.0]]), of([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    ends, middle = (0.5 * 0.25**2 + 0.5 * 0.5**2) / 2, 0.5 * 0.25**2
    got = RelationalDistillation(1.0, 0.0)(feature_rows(student, teacher))
    assert got.tolist() == pytest.approx([ends, middle, ends])
    # Angles: cosines 1, -1 and 1 on the line, 1/2 in the triangle; |-1 - 1/2| - 1/2 = 1.
    got = RelationalDistillation(0.0, 1.0)(feature_rows(student, teacher))
    assert got.tolist() == pytest.approx([0.125, 1.0, 0.125])


@pytest.mark.parametrize(("size", "angles"), [(1, False), (2, False), (3, True)])
def test_a_mean_over_nothing_is_zero_with_a_live_graph(size, angles):
    student = torch.randn(size, 1, 3, dtype=torch.float64, requires_grad=True)
    shown = Features({1: student}, {}, torch.ones(size, 1, dtype=torch.bool), ModelShape(1, 3, 1))
    teacher = of([[float(i), float(i * i)] for i in range(size)])
    values = RelationalDistillation(0.0, 1.0)(feature_rows(shown, teacher))
    values.sum().backward()
    assert values.shape == (size,)
    assert bool((values > 0).all()) == angles
    assert torch.isfinite(student.grad).all()


def test_coinciding_examples_form_no_angle_and_pull_nowhere():
    student = torch.tensor(
        [[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 2.0]]], dtype=torch.float64, requires_grad=True
    )
    shown = Features({1: student}, {}, torch.ones(3, 1, dtype=torch.bool), ModelShape(1, 2, 1))
    teacher = of([[0.0, 0.0], [3.0, 1.0], [1.0, 3.0]])
    RelationalDistillation()(feature_rows(shown, teacher)).sum().backward()
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize("setting", ["distance_weight", "angle_weight"])
def test_weights_below_zero_are_refused(setting):
    with pytest.raises(ValueError, match=f"rkd: {setting}: expected a finite number of at least 0"):
        RelationalDistillation(**{setting: -0.5})


def test_nothing_to_match_is_refused():
    with pytest.raises(ValueError, match="distance_weight and angle_weight: expected one above 0"):
        RelationalDistillation(0.0, 0.0)


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="rkd: pooling: expected one of cls, mean, last"):
        RelationalDistillation(pooling="max")
