"""patient against its definition written out in float64, and a number worked by hand."""

import math

import pytest
import torch

from hf_distill.features import Features, ModelShape
from hf_distill.objectives.patient import Patient
from tests.feature_rows import LENGTHS, TEACHER, feature_rows, features, projection_for


def unit(vector: list[float]) -> list[float]:
    norm = math.sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector]


def pooled(states: torch.Tensor, length: int, pooling: str) -> list[float]:
    rows = states[:length].tolist()
    if pooling == "mean":
        return [sum(column) / length for column in zip(*rows, strict=True)]
    return rows[0] if pooling == "cls" else rows[-1]


def naive(pairs, pooling, student, teacher, matrix) -> list[float]:
    """Equation 7: sum over pairs of || h / ||h|| - g / ||g|| ||^2."""
    values = []
    for example, length in enumerate(LENGTHS):
        total = 0.0
        for own, other in pairs:
            vector = pooled(student.hidden_states[own][example], length, pooling)
            if matrix is not None:
                vector = [sum(w * x for w, x in zip(row, vector, strict=True)) for row in matrix]
            ours, theirs = unit(vector), unit(pooled(teacher.hidden_states[other][example], length, pooling))
            total += sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True))
        values.append(total)
    return values


@pytest.mark.parametrize(
    ("layers", "pairs"), [("skip", [(1, 1), (2, 2)]), ("last", [(1, 2), (2, 3)]), ([[3, 1]], [(3, 1)])]
)
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("width", [12, 24])
def test_float64_equals_the_definition(layers, pairs, pooling, width):
    shape = ModelShape(3, width, 2)
    student, teacher = features(shape, 0), features(TEACHER, 1)
    objective = Patient(layers, pooling)
    projection = projection_for(objective, shape, TEACHER)
    matrix = None if projection is None else projection.weight.tolist()
    got = objective(feature_rows(student, teacher, projection))
    assert got.tolist() == pytest.approx(naive(pairs, pooling, student, teacher, matrix), rel=1e-12)


def test_hand_worked_number():
    def of(vector: list[float]) -> Features:
        states = torch.tensor([[vector]], dtype=torch.float64)
        return Features({1: states}, {}, torch.ones(1, 1, dtype=torch.bool), ModelShape(2, 2, 1))

    # (0.6, 0.8) and (1, 0): 0.4^2 + 0.8^2 = 0.8; opposite directions are 4 apart, whatever the lengths.
    objective = Patient([[1, 1]])
    assert objective(feature_rows(of([3.0, 4.0]), of([7.0, 0.0]))).item() == pytest.approx(0.8)
    assert objective(feature_rows(of([0.0, 5.0]), of([0.0, -1.0]))).item() == pytest.approx(4.0)


def test_left_padding_has_its_first_position_where_the_text_begins():
    states = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 2.0]]])
    of = Features({1: states}, {}, torch.tensor([[False, True, True]]), ModelShape(2, 2, 1))
    assert of.pooled(1, "cls").tolist() == [[1.0, 0.0]]
    assert of.pooled(1, "last").tolist() == [[0.0, 2.0]]
    assert of.pooled(1, "mean").tolist() == [[0.5, 1.0]]


def test_a_student_of_one_layer_has_no_layer_before_the_last():
    with pytest.raises(ValueError, match="patient: expected a student of at least 2 layers"):
        Patient().feature_needs(ModelShape(1, 8, 1), TEACHER)


@pytest.mark.parametrize("settings", [{"layers": "uniform"}, {"pooling": "max"}])
def test_unknown_words_are_refused(settings):
    with pytest.raises(ValueError, match=f"patient: {next(iter(settings))}: expected"):
        Patient(**settings)
