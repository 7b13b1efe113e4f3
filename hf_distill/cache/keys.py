"""What a teacher was asked: a key for each example, made of the content of its inputs and of nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy
import torch

from hf_distill.columns import columns_for
from hf_distill.items import IGNORED

KEY_BYTES = 16
# What a decoder reads, or what its input is made from.
_OF_DECODER = ("decoder_input_ids", "decoder_attention_mask", "labels")


@dataclass(frozen=True)
class Question:
    """One example in a batch.

    Args:
        key: a hash of the teacher's inputs without their padding.
        row: of the batch.
        start, stop: its positions in that row; of an encoder-decoder, the decoder's.
    """

    key: bytes
    row: int
    start: int
    stop: int


def columns_read(batch: Mapping[str, Any], columns: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """Return what a teacher reads of a batch: labels as well, where a decoder's input is made from them.

    Args:
        batch: the whole batch.
        columns: what the teacher reads.
        prefix: what the names in the batch start with, those of labels apart; taken off.

    Example:
        >>> columns_read({"ids": 1, "labels": 2}, ["ids", "labels"]), columns_read({"ids": 1, "labels": 2}, ["ids"])
        ({'ids': 1, 'labels': 2}, {'ids': 1})
    """
    wanted = frozenset(columns)
    read = columns_for(batch, wanted, prefix)
    if "labels" in wanted and batch.get("labels") is not None:
        read["labels"] = batch["labels"]
    return read


def is_packed(asked: Sequence[Question]) -> bool:
    """Whether some row holds several examples."""
    return len({question.row for question in asked}) < len(asked)


def questions(
    batch: Mapping[str, Any], columns: Iterable[str], counts_from_zero: bool = True
) -> list[Question]:
    """Return the examples of a batch, each with the key of what a teacher reads of it.

    The key is a 128-bit BLAKE2b hash over names, shapes and values of the columns, without padding: the same text
    has the same key in any batch, at any place and in any epoch. Positions that a model counts by itself are left out,
    and so is a mask of ones alone. A row without a mask whose ``position_ids`` start anew is a packed one: each of its
    documents is a question of its own, as for a teacher that read it alone. Where ``labels`` are read, they are those
    of a decoder that predicts them one by one: an answer is of its positions, and the key has its input as well.

    Args:
        batch: tensors with one row per example.
        columns: those that the teacher reads; ``attention_mask`` tells what is padding.
        counts_from_zero: whether the model's own positions are 0, 1, 2, ...; RoBERTa's are not.

    Raises:
        ValueError: no column that the teacher reads, one without a row per example, or padding on the left, where
            positions depend on the batch.

    Example:
        >>> short = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.tensor([[1, 1]])}
        >>> padded = {"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
        >>> read = ["input_ids", "attention_mask"]
        >>> questions(short, read)[0].key == questions(padded, read)[0].key
        True
    """
    arrays = {name: _array(name, batch[name]) for name in sorted(columns) if batch.get(name) is not None}
    if not arrays:
        raise ValueError(
            f"cache: expected columns that the teacher reads ({', '.join(sorted(columns))}), received {sorted(batch)}."
        )
    rows = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"cache: expected one row per example in every column, received {rows} rows.")
    if "labels" in columns:
        return _of_decoder(arrays, next(iter(rows.values())), counts_from_zero)
    mask, positions = arrays.pop("attention_mask", None), arrays.get("position_ids")
    if positions is not None and positions.ndim == 2 and mask is None and counts_from_zero:  # noqa: SIM102
        if (positions[:, 1:] == 0).any():
            return _packed(arrays, positions)
    return [_question(arrays, mask, row, counts_from_zero) for row in range(next(iter(rows.values())))]


def _of_decoder(arrays: dict[str, numpy.ndarray], rows: int, counts_from_zero: bool) -> list[Question]:
    """Return the questions to an encoder-decoder: both inputs, and the decoder's positions."""
    decoder = {name: arrays.pop(name) for name in _OF_DECODER if name in arrays}
    if "labels" not in decoder and "decoder_input_ids" not in decoder:
        raise ValueError(
            "cache: expected labels or decoder_input_ids, since a decoder predicts each token from those before, "
            f"received {sorted(arrays)}. Keep the labels in the batch."
        )
    mask = arrays.pop("attention_mask", None)
    found = []
    for row in range(rows):
        length = _decoder_length(decoder, row)
        # A collator that makes the decoder's input itself made it from the labels.
        read = [name for name in decoder if name != "labels" or "decoder_input_ids" not in decoder]
        content = {name: decoder[name][row, :length] for name in read}
        encoder = _question(arrays, mask, row, counts_from_zero)
        content["encoder"] = numpy.frombuffer(encoder.key, numpy.uint8)
        found.append(Question(_key(content), row, 0, length))
    return found


def _decoder_length(decoder: Mapping[str, numpy.ndarray], row: int) -> int:
    """Return how many positions a decoder answers: up to the last label, or those that it attends to."""
    if "labels" in decoder:
        told = (decoder["labels"][row] != IGNORED).nonzero()[0]
    elif "decoder_attention_mask" in decoder:
        told = decoder["decoder_attention_mask"][row].nonzero()[0]
    else:
        return int(decoder["decoder_input_ids"].shape[1])
    return int(told[-1]) + 1 if len(told) else 0


def _without_own_count(content: dict[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
    """Leave out positions that are 0, 1, 2, ..., which the model counts by itself."""
    positions = content.get("position_ids")
    if positions is not None and positions.ndim == 1 and (positions == numpy.arange(len(positions))).all():
        del content["position_ids"]
    return content


def _array(name: str, value: Any) -> numpy.ndarray:
    """Return a column as the numbers that are hashed: 64-bit integers, or 32-bit floats, which hold half ones too."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        raise ValueError(
            f"cache: {name}: expected a tensor with a row per example, received {type(value).__name__}."
        )
    value = value.detach().cpu()
    if value.is_floating_point():
        return (value if value.dtype == torch.float64 else value.float()).numpy()
    return value.long().numpy()


def _question(
    arrays: Mapping[str, numpy.ndarray], mask: numpy.ndarray | None, row: int, counts_from_zero: bool
) -> Question:
    if mask is None:
        length = max((array.shape[1] for array in arrays.values() if array.ndim > 1), default=1)
        whole = {name: array[row] for name, array in arrays.items()}
        return Question(_key(_without_own_count(whole) if counts_from_zero else whole), row, 0, length)
    if mask.ndim != 2:
        raise ValueError(
            f"cache: attention_mask: expected one entry per position, received the shape {tuple(mask.shape)}."
        )
    attended = mask[row].nonzero()[0]
    start, stop = (int(attended[0]), int(attended[-1]) + 1) if len(attended) else (0, 0)
    if start > 0 and "position_ids" not in arrays:
        raise ValueError(
            f"cache: expected padding behind the text, received {start} pads before it in row {row}: positions, and "
            "with them the teacher's answers, would depend on the batch. Set tokenizer.padding_side='right', or give "
            "position_ids."
        )
    content = {
        name: array[row, start:stop] if array.shape[:2] == mask.shape else array[row]
        for name, array in arrays.items()
    }
    if (mask[row, start:stop] != 1).any():
        content["attention_mask"] = mask[row, start:stop]
    return Question(_key(_without_own_count(content) if counts_from_zero else content), row, start, stop)


def _packed(arrays: Mapping[str, numpy.ndarray], positions: numpy.ndarray) -> list[Question]:
    """Return the documents of packed rows; each starts where its positions do."""
    found = []
    for row, places in enumerate(positions):
        starts = [*(places == 0).nonzero()[0].tolist(), len(places)]
        if starts[0] != 0:
            raise ValueError(
                f"cache: position_ids: expected a packed row to start with a document, received a first position of "
                f"{int(places[0])} in row {row}."
            )
        for start, stop in pairwise(starts):
            content = {
                name: array[row, start:stop] if array.shape[:2] == positions.shape else array[row]
                for name, array in arrays.items()
            }
            found.append(Question(_key(_without_own_count(content)), row, start, stop))
    return found


def _key(content: Mapping[str, numpy.ndarray]) -> bytes:
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for name, values in content.items():
        digest.update(f"{name}{values.dtype.str}{values.shape}".encode())
        digest.update(numpy.ascontiguousarray(values).data)
    return digest.digest()
