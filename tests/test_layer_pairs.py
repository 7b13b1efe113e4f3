"""Which layer stands beside which: uniform, last, given, and PKD's two."""

import pytest

from hf_distill.features import ModelShape, shape_of
from hf_distill.layer_pairs import check_layers, layer_pairs
from hf_distill.students import student_from_teacher
from tests.tiny import bert


def sized(layers: int, cut_from: tuple[int, ...] | None = None) -> ModelShape:
    return ModelShape(layers, 8, 1, cut_from)


def pairs(layers, student: int, teacher: int):
    return layer_pairs(layers, sized(student), sized(teacher), "here")


def test_uniform_takes_the_map_the_student_was_cut_by() -> None:
    teacher = bert(6)
    student = student_from_teacher(teacher, layers=[0, 1, 5])
    shapes = shape_of(student, "student"), shape_of(teacher, "teacher")
    assert shapes[0].cut_from == (0, 1, 5)
    # Outputs of the copied layers, counted from 1.
    assert layer_pairs("uniform", *shapes, "here") == ((1, 1), (2, 2), (3, 6))


def test_uniform_without_a_map_is_evenly_spaced_from_first_to_last() -> None:
    assert pairs("uniform", 3, 12) == ((1, 1), (2, 7), (3, 12))
    assert pairs("uniform", 2, 2) == ((1, 1), (2, 2))
    assert [other for _, other in pairs("uniform", 6, 12)] == [1, 3, 5, 8, 10, 12]


def test_uniform_of_one_layer() -> None:
    ((own, other),) = pairs("uniform", 1, 4)
    assert own == 1
    assert 1 <= other <= 4


def test_a_map_of_layers_that_this_teacher_lacks_is_not_taken() -> None:
    assert layer_pairs("uniform", sized(2, (0, 11)), sized(4), "here") == ((1, 1), (2, 4))


def test_last_is_the_last_of_both_whatever_their_depth() -> None:
    assert pairs("last", 3, 12) == ((3, 12),)
    assert pairs("last", 12, 3) == ((12, 3),)


def test_given_pairs_are_taken_as_they_are() -> None:
    assert pairs(((0, 0), (2, 7), (2, 8)), 3, 12) == ((0, 0), (2, 7), (2, 8))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    # The paper, section 3.2: a 6-layer student of BERT-base learns from layers 2, 4, 6, 8, 10.
    [(6, 12, [2, 4, 6, 8, 10]), (3, 12, [4, 8]), (3, 4, [1, 2])],
)
def test_skip_is_pkds(student: int, teacher: int, expected: list[int]) -> None:
    assert pairs("skip", student, teacher) == tuple(enumerate(expected, start=1))


@pytest.mark.parametrize(("student", "teacher", "expected"), [(6, 12, [7, 8, 9, 10, 11]), (3, 12, [10, 11])])
def test_last_before_is_pkds(student: int, teacher: int, expected: list[int]) -> None:
    assert pairs("last_before", student, teacher) == tuple(enumerate(expected, start=1))


@pytest.mark.parametrize("layers", ["uniform", "skip", "last_before"])
def test_a_student_deeper_than_its_teacher_is_refused(layers: str) -> None:
    with pytest.raises(
        ValueError, match=r"here: expected a student of at most the teacher's 2 layers.*received 3"
    ):
        pairs(layers, 3, 2)


@pytest.mark.parametrize(
    ("given", "message"), [((3, 1), "student's 2 layers, received 3"), ((2, 9), "teacher's 4")]
)
def test_a_layer_that_is_not_there_is_refused(given: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairs((given,), 2, 4)


@pytest.mark.parametrize("wrong", ["every", [], [[1]], [[True, 1]], [[-1, 1]], "last_before", None, 3])
def test_settings_that_are_no_layers_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="here: layers: expected uniform, last or a list of"):
        check_layers(wrong, ("uniform", "last"), "here")


def test_an_error_says_the_users_word_and_no_way_that_leads_to_the_same_error():
    student, teacher = ModelShape(3, 8, 1), ModelShape(2, 8, 1)
    for given, said in (("last_before", "last"), ("skip", "skip")):
        with pytest.raises(ValueError, match=rf"layers='{said}', received 3. Give the pairs.$"):
            layer_pairs(given, student, teacher, "patient")
    with pytest.raises(ValueError, match=r"Give the pairs, or the last layers of both.$"):
        layer_pairs("uniform", student, teacher, "hidden_states")
