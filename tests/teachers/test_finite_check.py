"""The watch over both models' logits: what is bad, what is fine, and what the error says."""

import math

import pytest
import torch

from hf_distill.teachers.finite_check import FiniteCheck

CPU = torch.device("cpu")
FINE = torch.tensor([[0.0, 1.0], [2.0, -1.0], [3.0, 0.0]])


def state_after(*looks: tuple[torch.Tensor, int]) -> list[int]:
    check = FiniteCheck()
    for logits, step in looks:
        check.see(logits, step)
    return check.state(CPU).tolist()[:2]


def seen_with(teacher: torch.Tensor, student: torch.Tensor) -> list[int]:
    check = FiniteCheck()
    check.see(teacher, 7, student)
    *found, member = check.state(CPU).tolist()
    assert member == min(found[0], 0), "teacher 0 unless told, and -1 where nothing is bad"
    return found


def spoilt(row: int, values: list[float]) -> torch.Tensor:
    logits = FINE.clone()
    logits[row] = torch.tensor(values)
    return logits


def test_nothing_seen_is_nothing_bad():
    assert FiniteCheck().state(CPU).tolist() == [-1] * 5


def test_finite_logits_are_fine():
    assert state_after((FINE, 0), (FINE, 1)) == [-1, -1]


@pytest.mark.parametrize(
    "values",
    [
        [math.nan, 0.0],
        [0.0, math.nan],
        [math.inf, 0.0],
        [-math.inf, -math.inf],
        [math.nan, math.inf],
        [-math.inf, math.nan],
        [-math.inf, math.inf],
    ],
)
@pytest.mark.parametrize("row", [0, 2])
def test_bad_rows_are_named(values, row):
    assert state_after((spoilt(row, values), 7)) == [7, row]


def test_classes_at_minus_infinity_are_fine():
    assert state_after((spoilt(1, [-math.inf, 0.5]), 7)) == [-1, -1]


def test_the_first_bad_row_of_the_first_bad_step_stays():
    both = spoilt(1, [math.nan, 0.0])
    both[2, 0] = math.inf
    assert state_after((FINE, 0), (both, 1), (spoilt(0, [math.nan, 0.0]), 2), (FINE, 3)) == [1, 1]


def test_leading_dimensions_are_flattened():
    logits = torch.zeros(2, 3, 4)
    logits[1, 2, 0] = math.nan
    assert state_after((logits, 4)) == [4, 5]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types(half):
    assert state_after((spoilt(1, [math.nan, 0.0]).to(half), 3)) == [3, 1]


def test_no_rows_are_fine():
    assert state_after((torch.zeros(0, 3), 1)) == [-1, -1]


def test_looking_keeps_no_graph():
    logits = FINE.clone().requires_grad_(True)
    check = FiniteCheck()
    check.see(logits * 2, 1)
    assert not check.state(CPU).requires_grad


def test_the_error_names_step_row_process_and_remedy():
    with pytest.raises(FloatingPointError) as caught:
        FiniteCheck().raise_if_bad([[-1] * 5, [12, 3, 0, 0, 0]])
    message = str(caught.value)
    assert "row 3" in message
    assert "step 12" in message
    assert "process 1" in message
    assert "teacher_dtype='float32'" in message


def test_no_error_where_no_process_saw_a_bad_row():
    check = FiniteCheck()
    check.see(FINE, 0)
    check.raise_if_bad([check.state(CPU).tolist(), [-1] * 5])
    assert check.state(CPU).tolist() == [-1] * 5


def test_after_the_error_the_watch_starts_afresh():
    check = FiniteCheck()
    check.see(spoilt(0, [math.nan, 0.0]), 5)
    with pytest.raises(FloatingPointError, match="row 0"):
        check.raise_if_bad([check.state(CPU).tolist()])
    check.see(FINE, 6)
    assert check.state(CPU).tolist() == [-1] * 5


# ---- classes that one model alone rules out ---------------------------------------------


def test_a_class_at_minus_infinity_in_both_or_in_neither_is_fine():
    assert seen_with(FINE, FINE + 1) == [-1] * 4
    both = spoilt(1, [-math.inf, 0.5])
    assert seen_with(both, both * 2) == [-1] * 4


@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize("column", [0, 1])
def test_a_class_that_one_model_alone_rules_out_is_named(row, column):
    closed = FINE.clone()
    closed[row, column] = -math.inf
    assert seen_with(closed, FINE) == [7, row, 1, column]
    assert seen_with(FINE, closed) == [7, row, 2, column]


def test_other_classes_of_the_same_row_do_not_hide_it():
    teacher, student = FINE.clone(), FINE.clone()
    teacher[1, 0] = student[1, 1] = -math.inf
    assert seen_with(teacher, student) == [7, 1, 1, 0]


def test_the_first_bad_row_says_what_is_wrong_with_it():
    teacher, student = spoilt(2, [math.nan, 0.0]), spoilt(1, [-math.inf, 0.0])
    assert seen_with(teacher, student) == [7, 1, 2, 0]
    assert seen_with(spoilt(0, [math.nan, 0.0]), student) == [7, 0, 0, 0]
    # A row that is bad in itself is not compared.
    assert seen_with(spoilt(1, [-math.inf, math.nan]), FINE)[:3] == [7, 1, 0]


def test_a_student_that_is_nan_is_left_to_the_trainer():
    assert seen_with(FINE, spoilt(1, [math.nan, 0.0])) == [-1] * 4


def test_leading_dimensions_are_flattened_in_both():
    teacher, student = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    student[1, 2, 3] = -math.inf
    assert seen_with(teacher, student.requires_grad_(True)) == [7, 5, 2, 3]


@pytest.mark.parametrize(("kind", "who"), [(1, "teacher"), (2, "student")])
def test_the_error_names_class_model_row_step_process_and_remedy(kind, who):
    with pytest.raises(FloatingPointError) as caught:
        FiniteCheck().raise_if_bad([[12, 3, kind, 9, 0]])
    assert str(caught.value) == (
        "logits: expected a class at -inf in both models or in neither, received class 9 at -inf in the "
        f"{who} alone, in row 3 of its batch after step 12 on process 0. The student has learnt from it since: "
        "go back to the last checkpoint. Rule out the same classes in both models, or lower them by a finite number "
        "such as -1e4 in place of -inf; in half precision -inf may be an overflow."
    )


def test_several_teachers_are_told_apart():
    check = FiniteCheck()
    check.see(FINE, 5, teacher=0)
    check.see(spoilt(2, [math.nan, 0.0]), 5, teacher=1)
    check.see(spoilt(0, [math.nan, 0.0]), 5, teacher=2)
    assert check.state(CPU).tolist() == [5, 2, 0, 0, 1]
    with pytest.raises(FloatingPointError, match=r"^teacher\[1\] \(b\): expected finite logits.*row 2"):
        check.raise_if_bad([check.state(CPU).tolist()], ["a", "b", "c"])
