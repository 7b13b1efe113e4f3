"""What a teacher was asked: a key for each example, made of the content of its inputs and of nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy
import torch

KEY_BYTES = 16


@dataclass(frozen=True)
class Question:
    """One example in a batch.

    Args:
        key: a hash of the teacher's inputs without their padding.
        row: of the batch.
        start, stop: its positions in that row.
    """

    key: bytes
    row: int
    start: int
    stop: int


def questions(batch: Mapping[str, Any], columns: Iterable[str]) -> list[Question]:
    """Return the examples of a batch, each with the key of what a teacher reads of it.

    The key is a 128-bit BLAKE2b hash over names, shapes and values of the columns, without padding: the same text
    has the same key in any batch, at any place and in any epoch. Positions that merely count from 0 are left out. A
    row without a mask whose ``position_ids`` start anew is a packed one: each of its documents is a question of its
    own, as for a teacher that read it alone.

    Args:
        batch: tensors with one row per example.
        columns: those that the teacher reads; ``attention_mask`` tells what is padding.

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
    mask, positions = arrays.pop("attention_mask", None), arrays.get("position_ids")
    if mask is None and positions is not None and positions.ndim == 2 and (positions[:, 1:] == 0).any():
        return _packed(arrays, positions)
    return [_question(arrays, mask, row) for row in range(next(iter(rows.values())))]


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


def _question(arrays: Mapping[str, numpy.ndarray], mask: numpy.ndarray | None, row: int) -> Question:
    if mask is None:
        length = max((array.shape[1] for array in arrays.values() if array.ndim > 1), default=1)
        return Question(_key({name: array[row] for name, array in arrays.items()}), row, 0, length)
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
    if len(attended) != stop - start:
        content["attention_mask"] = mask[row, start:stop]
    return Question(_key(content), row, start, stop)


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
            found.append(Question(_key(content), row, start, stop))
    return found


def _key(content: Mapping[str, numpy.ndarray]) -> bytes:
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for name, values in content.items():
        if name == "position_ids" and values.ndim == 1 and (values == numpy.arange(len(values))).all():
            continue  # what every model counts by itself
        digest.update(f"{name}{values.dtype.str}{values.shape}".encode())
        digest.update(numpy.ascontiguousarray(values).data)
    return digest.digest()
