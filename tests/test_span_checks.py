"""Answers that are none are refused before training, and those that models read in another way are told of."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
from datasets import Dataset
from transformers import default_data_collator

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from hf_distill.span_checks import check_spans
from tests.every_head import CASES, rows_of
from tests.test_every_head import trainer_of
from tests.tiny import one_step

IDS = [[5, 6, 7], [5, 6, 7, 8], [5, 6]]


def refusal(kind: type, **columns: Any) -> str:
    rows = Dataset.from_dict(columns)
    with pytest.raises(ValueError, match="positions") as caught:
        check_spans(rows if kind is Dataset else rows.to_list())
    return str(caught.value)


@pytest.mark.parametrize("kind", [Dataset, list])
@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ([0, 3, 1], [2, 1, 1], "end_positions: expected an end at or behind the start, received start 3 and end 1 in"),
        ([0, None, 1], [2, 3, 1], r"start_positions: expected a position for each example, received a missing one"),
        ([0, 0, 0], [1.0, 1.0, 1.0], r"end_positions: expected whole numbers, received 1.0 \(double\)"),
        ([[0], [1], [1]], [1, 1, 1], "start_positions: expected one position for each example, received several"),
        (["a", "b", "c"], [1, 1, 1], "start_positions: expected whole numbers, received 'a'"),
    ],
)  # fmt: skip
def test_answers_that_are_none(kind: type, start: list[Any], end: list[Any], message: str) -> None:
    assert re.match(message, refusal(kind, input_ids=IDS, start_positions=start, end_positions=end))


@pytest.mark.parametrize("kind", [Dataset, list])
def test_one_column_alone(kind: type) -> None:
    assert "expected a column each, received start_positions alone" in refusal(
        kind, input_ids=IDS, start_positions=[0, 1, 1]
    )


@pytest.mark.parametrize("kind", [Dataset, list])
def test_answers_that_are_read_in_another_way_are_told_of(kind: type) -> None:
    rows: Any = Dataset.from_dict(
        {"input_ids": IDS, "start_positions": [-100, 1, 2], "end_positions": [-100, 9, 2]}
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_spans(rows if kind is Dataset else rows.to_list())
    told = [str(one.message) for one in caught]
    assert [message.split(": ")[1].split(",")[0].split(" lie")[0] for message in told] == [
        "2 positions are below 0", "3 positions",
    ]  # fmt: skip


def test_a_row_is_named_by_its_number_in_the_whole_set() -> None:
    ends = [1] * 25_000
    ends[23_456] = 0
    rows = Dataset.from_dict({"start_positions": [1] * 25_000, "end_positions": ends})
    with pytest.raises(ValueError, match=r"received start 1 and end 0 in row 23456\."):
        check_spans(rows)


def test_what_can_not_be_read_for_nothing_is_not_read() -> None:
    made = Dataset.from_dict({"text": ["a"]}).with_transform(
        lambda batch: {"input_ids": [[1]], "start_positions": [4]}
    )
    for rows in ([], made, [{"start_positions": numpy.array(3), "end_positions": numpy.array(1)}]):
        check_spans(rows)


def test_a_trainer_refuses_before_it_trains(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.head == "spans")
    rows = rows_of(case, ragged=False)
    rows[3]["start_positions"], rows[3]["end_positions"] = 4, 2
    with pytest.raises(ValueError, match="in row 3"):
        DistillationTrainer(
            case.model(), case.model(7), one_step(tmp_path, 8, 1, DistillationTrainingArguments, alpha=0.5),
            data_collator=default_data_collator, train_dataset=rows,
        )  # fmt: skip
    trainer_of(case, tmp_path, rows=rows)  # a collator of the user's own may make anything of them
