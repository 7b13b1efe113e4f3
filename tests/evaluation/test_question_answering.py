"""Exact match and F1 by hand, and the best span over windows."""

from __future__ import annotations

import numpy
import pytest

from hf_distill.evaluation.question_answering import (
    LONGEST_ANSWER,
    SpanMeasure,
    TextFeature,
    exact_match,
    word_f1,
)


@pytest.mark.parametrize(
    ("answer", "truths", "f1", "exact"),
    [
        ("The Eiffel Tower", ["eiffel tower!"], 1.0, 1.0),
        ("Eiffel", ["the Eiffel Tower"], 2 / 3, 0.0),
        ("a cat", ["dog", "cat"], 1.0, 1.0),
        ("x y", ["y x"], 1.0, 0.0),
        ("b b c", ["b d"], 2 * 1 / 5, 0.0),
        ("the", ["an"], 1.0, 1.0),
        ("", ["word"], 0.0, 0.0),
    ],
)
def test_scores_by_hand(answer: str, truths: list[str], f1: float, exact: float) -> None:
    assert word_f1(answer, truths) == pytest.approx(f1)
    assert exact_match(answer, truths) == exact


def test_the_best_span_over_all_windows_of_a_text() -> None:
    context = "one two three four"
    first = TextFeature(0, [None, None, (0, 3), (4, 7), None])
    second = TextFeature(0, [None, None, (8, 13), (14, 18), None])
    other = TextFeature(1, [None, (0, 3)])
    start = numpy.array([[9.0, 9, 1, 0, 9], [9, 9, 0, 2, 9], [5, 1, -100, -100, -100]])
    end = numpy.array([[9.0, 9, 0, 1, 9], [9, 9, 5, 1, 9], [5, 1, -100, -100, -100]])
    measure = SpanMeasure([context, "yes no"], [["one two"], ["yes"]], [first, second, other])
    # In the first window "one two" has 1 + 1; in the second "three" 0 + 5, since "four ... three" is no span.
    assert measure.answers((start, end)) == ["three", "yes"]
    assert measure.statistics((start, end), None).tolist() == [[0, 0, 1], [1, 1, 1]]
    found = measure.metrics((start, end), None)
    assert found == {"f1": 0.5, "exact_match": 0.5}
    assert measure.value(measure.statistics((start, end), None).sum(0)) == 0.5
    end[1, 2] = 1.5
    assert measure.answers((start, end))[0] == "four", "2 + 1 is more than 1 + 1 and 0 + 1.5"


def test_no_answer_is_longer_than_the_limit() -> None:
    words = " ".join("w" for _ in range(50))
    offsets = [None, *((2 * place, 2 * place + 1) for place in range(50))]
    start, end = numpy.zeros((1, 51)), numpy.zeros((1, 51))
    start[0, 1], end[0, 50], end[0, 10] = 9, 9, 1
    (answer,) = SpanMeasure([words], [["w"]], [TextFeature(0, offsets)]).answers((start, end))
    assert len(answer.split()) == 10
    assert LONGEST_ANSWER == 30


def test_predictions_of_another_set_are_refused() -> None:
    measure = SpanMeasure(["a"], [["a"]], [TextFeature(0, [(0, 1)])])
    with pytest.raises(ValueError, match="expected those of 1 windows, received 2"):
        measure.metrics((numpy.zeros((2, 1)), numpy.zeros((2, 1))), None)
