"""What the answers of a data set for question answering must be, checked before training starts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.compute as compute

from hf_distill.spans import END, START

_REMEDY = "Give the positions of the first and the last token of one answer; 0 where a text has none."


def check_spans(dataset: Any) -> None:
    """Raise for answers that are none, and warn of those that models read in another way than written.

    Read from Arrow without a copy, or from a list of examples; other data sets show theirs in training.

    Args:
        dataset: any data set, whose columns ``start_positions`` and ``end_positions`` are positions of tokens.

    Raises:
        ValueError: one of the two columns alone, a missing answer, what is no whole number, or an end before its start;
            saying which was expected and which came.

    Example:
        >>> check_spans([{"input_ids": [5, 6, 7], "start_positions": 2, "end_positions": 1}])
        Traceback (most recent call last):
            ...
        ValueError: end_positions: expected an end at or behind the start, received start 2 and end 1 in row 0. ...
    """
    before = low = beyond = 0
    for table in _tables(dataset):
        columns = [_positions(table, name) for name in (START, END)]
        lengths = _lengths(table)
        read = []
        for column in columns:
            low += _count(compute.less(column, 0))
            # As models read them: what is below 0 is 0.
            read.append(compute.if_else(compute.less(column, 0), 0, column))
        inside = compute.greater_equal(read[1], 0)
        if lengths is not None:
            outside = [compute.greater_equal(column, lengths) for column in read]
            beyond += sum(map(_count, outside))
            inside = compute.invert(compute.or_(*outside))
        turned = compute.and_(inside, compute.greater(*read))
        if _count(turned):
            row = compute.index(turned, True).as_py()
            raise ValueError(
                f"{END}: expected an end at or behind the start, received start {columns[0][row]} and end "
                f"{columns[1][row]} in row {before + row}. {_REMEDY}"
            )
        before += len(table)
    _warn(low, beyond)


def _warn(low: int, beyond: int) -> None:
    if low:
        warnings.warn(
            f"{START}, {END}: {low:,} positions are below 0, which models read as 0, the first token. There is no "
            "number for an answer that is to be left out but one beyond the text.",
            UserWarning,
            stacklevel=3,
        )
    if beyond:
        warnings.warn(
            f"{START}, {END}: {beyond:,} positions lie beyond their text, and models take no notice of these. If the "
            "answers were cut off, point them at the first token: 0.",
            UserWarning,
            stacklevel=3,
        )


def _tables(dataset: Any) -> Iterator[Any]:
    """Yield starts, ends and inputs in pieces, where they can be had without reading anything else."""
    if isinstance(dataset, list):
        rows = [dict(row) for row in dataset if isinstance(row, dict)]
        present = [name for name in (START, END, "input_ids") if rows and name in rows[0]]
        _both(present)
        if not rows or START not in present or any(hasattr(rows[0][name], "shape") for name in present):
            return
        try:
            yield pyarrow.table({name: [row.get(name) for row in rows] for name in present})
        except pyarrow.ArrowException:  # a mixture of kinds: the collator will say which
            return
        return
    names = getattr(dataset, "column_names", None) or ()
    present = [name for name in (START, END, "input_ids") if name in names]
    _both(present)
    transformed = getattr(dataset, "format", {}).get("type") == "custom"
    if START in present and not transformed and hasattr(dataset, "with_format") and hasattr(dataset, "data"):
        yield from dataset.select_columns(present).with_format("arrow").iter(10_000)


def _both(present: list[str]) -> None:
    given = [name for name in (START, END) if name in present]
    if len(given) == 1:
        raise ValueError(f"{START}, {END}: expected a column each, received {given[0]} alone. {_REMEDY}")


def _positions(table: Any, name: str) -> Any:
    column = table.column(name).combine_chunks()
    if pyarrow.types.is_nested(column.type):
        raise ValueError(
            f"{name}: expected one position for each example, received several ({column.type}). {_REMEDY}"
        )
    if column.null_count:
        raise ValueError(
            f"{name}: expected a position for each example, received a missing one (None). {_REMEDY}"
        )
    if not pyarrow.types.is_integer(column.type):
        raise ValueError(
            f"{name}: expected whole numbers, received {column[0].as_py()!r} ({column.type}). {_REMEDY}"
        )
    return column


def _lengths(table: Any) -> Any:
    """Return how many tokens each text has, or None where that can't be told."""
    if "input_ids" not in table.column_names:
        return None
    ids = table.column("input_ids").combine_chunks()
    return compute.list_value_length(ids) if pyarrow.types.is_list(ids.type) else None


def _count(flags: Any) -> int:
    return int(compute.sum(flags).as_py() or 0)
