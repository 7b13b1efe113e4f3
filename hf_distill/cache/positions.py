"""Answers per position, at the places of their tokens in a padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_distill.cache.keys import Question

Places = tuple[torch.Tensor, torch.Tensor]


def places_of(asked: Sequence[Question]) -> Places:
    """Return row and position of each answered position, in order.

    Example:
        >>> places_of([Question(b"", row=0, start=1, stop=3), Question(b"", row=1, start=0, stop=1)])
        (tensor([0, 0, 1]), tensor([1, 2, 0]))
    """
    rows = [torch.full((one.stop - one.start,), one.row) for one in asked]
    return torch.cat(rows), torch.cat([torch.arange(one.start, one.stop) for one in asked])


def spread(values: torch.Tensor, rows: int, length: int, places: Places) -> torch.Tensor:
    """Return answers at their places, ``(rows, length, ...)``, with zeros elsewhere."""
    result = torch.zeros(rows, length, *values.shape[1:], dtype=values.dtype)
    result[places] = values
    return result
