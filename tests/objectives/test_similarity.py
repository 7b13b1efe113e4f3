"""similarity against its definition written out in float64, and a number worked by hand."""

import math

import pytest
import torch

from hf_distill.features import Features, ModelShape
from hf_distill.objectives.similarity import Similarity
from tests.feature_rows import LENGTHS, STUDENT, TEACHER, feature_rows, features


def pooled(of: Features, number: int, pooling: str) -> list[list[float]]:
    vectors = []
    for states, length in zip(of.hidden_states[number].tolist(), LENGTHS, strict=True):
        rows = states[:length]
        mean = [sum(column) / length for column in zip(*rows, strict=True)]
        vectors.append({"mean": mean, "cls": rows[0], "last": rows[-1]}[pooling])
    return vectors


def similarities(vectors: list[list[float]]) -> list[list[float]]:
    """Equations 1 to 3: A A^T, each row over its norm."""
    rows = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in vectors] for x in vectors]
    return [[g / math.sqrt(sum(h * h for h in row)) for g in row] for row in rows]


def naive(student: list[list[float]], teacher: list[list[float]]) -> list[float]:
    ours, theirs = similarities(student), similarities(teacher)
    return [
        sum((t - s) ** 2 for s, t in zip(own, other, strict=True)) / len(ours)
        for own, other in zip(ours, theirs, strict=True)
    ]


@pytest.mark.parametrize(
    ("layers", "pairs"), [("last", [(2, 4)]), ("uniform", [(1, 1), (2, 4)]), ([[0, 2]], [(0, 2)])]
)
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_float64_equals_the_definition(layers, pairs, pooling):
    student, teacher = features(STUDENT, 0), features(TEACHER, 1)
    terms = [naive(pooled(student, own, pooling), pooled(teacher, other, pooling)) for own, other in pairs]
    expected = [sum(of_pairs) for of_pairs in zip(*terms, strict=True)]
    got = Similarity(layers, pooling)(feature_rows(student, teacher))
    assert got.tolist() == pytest.approx(expected, rel=1e-11)


def of(vectors: list[list[float]]) -> Features:
    states = torch.tensor(vectors, dtype=torch.float64).unsqueeze(1)
    return Features(
        {1: states}, {}, torch.ones(len(vectors), 1, dtype=torch.bool), ModelShape(1, states.shape[-1], 1)
    )


def test_hand_worked_number():
    # Student: two examples alike, rows (1, 1) / sqrt 2. Teacher: nothing in common, the identity.
    # Each row: ((1 - 1 / sqrt 2)^2 + 1 / 2) / 2 = 1 - 1 / sqrt 2.
    got = Similarity()(feature_rows(of([[2.0, 0.0], [2.0, 0.0]]), of([[1.0, 0.0], [0.0, 3.0]])))
    assert got.tolist() == pytest.approx([1 - 1 / math.sqrt(2)] * 2)


def test_the_mean_is_the_papers_frobenius_norm():
    student, teacher = features(STUDENT, 0), features(TEACHER, 1)
    got = Similarity()(feature_rows(student, teacher)).mean().item()
    ours, theirs = (
        torch.tensor(similarities(pooled(x, n, "mean")), dtype=torch.float64)
        for x, n in ((student, 2), (teacher, 4))
    )
    assert got == pytest.approx(((theirs - ours).norm() ** 2 / len(LENGTHS) ** 2).item())


def test_one_example_alone_is_like_itself():
    assert Similarity()(feature_rows(of([[1.0, 2.0]]), of([[5.0]]))).tolist() == [0.0]


@pytest.mark.parametrize("settings", [{"layers": "skip"}, {"pooling": "max"}])
def test_unknown_words_are_refused(settings):
    with pytest.raises(ValueError, match=f"similarity: {next(iter(settings))}: expected"):
        Similarity(**settings)
