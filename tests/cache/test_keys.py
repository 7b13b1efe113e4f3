"""Keys are of what the teacher read: the same in any batch, another where anything it read is another."""

from typing import Any

import pytest
import torch

from hf_distill.cache.keys import questions

READ = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "pixel_values")


def keys(batch: dict[str, Any]) -> list[bytes]:
    return [question.key for question in questions(batch, READ)]


def text(*rows: list[int], pad_to: int = 0) -> dict[str, torch.Tensor]:
    longest = max(pad_to, *map(len, rows))
    return {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }


def test_neither_padding_nor_place_nor_neighbours_matter() -> None:
    alone = keys(text([5, 6, 7]))[0]
    batch = text([1, 2, 3, 4], [5, 6, 7], pad_to=9)
    assert keys(batch)[1] == alone
    assert keys({**batch, "labels": torch.tensor([0, 1])})[1] == alone, "a label is no input"
    found = questions(batch, READ)[1]
    assert (found.row, found.start, found.stop) == (1, 0, 3)


def test_what_a_pad_holds_does_not_matter() -> None:
    batch = text([5, 6], pad_to=4)
    other = {**batch, "input_ids": torch.tensor([[5, 6, 9, 9]])}
    assert keys(batch) == keys(other)


def test_integer_types_do_not_matter() -> None:
    batch = text([5, 6, 7])
    assert keys({name: value.int() for name, value in batch.items()}) == keys(batch)
    assert keys({**batch, "attention_mask": batch["attention_mask"].bool()}) == keys(batch)


@pytest.mark.parametrize(
    "other",
    [
        text([5, 6, 8]),
        text([5, 6]),
        text([5, 6, 7, 0]),  # a token that happens to be the pad's, and attended
        {**text([5, 6, 7]), "token_type_ids": torch.tensor([[0, 0, 1]])},
        {**text([5, 6, 7]), "position_ids": torch.tensor([[1, 2, 3]])},
        {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.tensor([[1, 0, 1]])},
    ],
)
def test_other_content_is_another_key(other: dict[str, Any]) -> None:
    assert keys(other)[0] != keys(text([5, 6, 7]))[0]


def test_positions_that_only_count_are_left_out() -> None:
    batch = text([5, 6, 7], pad_to=5)
    assert keys({**batch, "position_ids": torch.arange(5).unsqueeze(0)}) == keys(batch)


def test_without_a_mask_pads_are_read_like_text() -> None:
    short, padded = text([5, 6]), text([5, 6], pad_to=3)
    del short["attention_mask"], padded["attention_mask"]
    assert keys(short) != keys(padded)


def test_pixels_are_keyed_by_their_bytes() -> None:
    pixels = torch.randn(2, 3, 4, 4)
    one, other = keys({"pixel_values": pixels})
    assert one != other
    assert keys({"pixel_values": pixels[1:]}) == [other]
    half = pixels.bfloat16()
    assert keys({"pixel_values": half}) == keys({"pixel_values": half.float()})


def test_documents_of_a_packed_row_are_questions_of_their_own() -> None:
    documents = ([5, 6, 7], [8, 9])
    packed = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1]]),
    }
    found = questions(packed, READ)
    alone = [
        questions(
            {"input_ids": torch.tensor([one]), "position_ids": torch.arange(len(one)).unsqueeze(0)}, READ
        )[0]
        for one in documents
    ]
    assert [one.key for one in found] == [one.key for one in alone]
    assert [(one.start, one.stop) for one in found] == [(0, 3), (3, 5)]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"labels": torch.zeros(2)}, "expected columns that the teacher reads"),
        ({"input_ids": [[1, 2]]}, "input_ids: expected a tensor"),
        ({"input_ids": torch.ones(2, 3), "token_type_ids": torch.ones(1, 3)}, "one row per example"),
        (
            {"input_ids": torch.ones(1, 3), "attention_mask": torch.tensor([[0, 1, 1]])},
            "1 pads before it in row 0",
        ),
        ({"input_ids": torch.ones(1, 3), "attention_mask": torch.ones(1, 1, 3, 3)}, "one entry per position"),
        (
            {"input_ids": torch.ones(1, 3), "position_ids": torch.tensor([[1, 0, 1]])},
            "expected a packed row to start with a document",
        ),
    ],
)
def test_what_has_no_key_is_refused(batch: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        questions(batch, READ)


def test_left_padding_with_positions_is_read_by_its_text() -> None:
    padded = {
        "input_ids": torch.tensor([[0, 5, 6]]),
        "attention_mask": torch.tensor([[0, 1, 1]]),
        "position_ids": torch.tensor([[0, 0, 1]]),
    }
    assert keys(padded) == keys(text([5, 6]))
    assert (questions(padded, READ)[0].start, questions(padded, READ)[0].stop) == (1, 3)
