"""Reading CSV, JSON lines or Parquet files into the columns `text`, `text_pair` and `label`, with checks."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import ClassLabel, Dataset, DatasetDict, Features

# One record must fit into a block of Arrow's readers; their own 1 MB is less than a long document.
_BLOCK_BYTES = 64 * 2**20


class DataError(ValueError):
    """The data can't be used; the message says what was expected, what was found and what to do."""


def read_files(
    files: dict[str, str | os.PathLike[str]],
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str = "label",
) -> DatasetDict:
    """Read one file per split and check that a classifier can be trained on them.

    Args:
        files: split name -> path ending in .csv, .json, .jsonl or .parquet. `train` is needed; `unlabeled` is
            a file whose labels, if any, are not read.
        text_column: the column with the text.
        text_pair_column: the column with a second text (premise and hypothesis, question and answer), if any.
        label_column: the column with the labels, strings or integers.

    Returns:
        The splits with the columns of `checked_splits`.

    Raises:
        DataError: for a file that is missing, unreadable or empty, and for what `checked_splits` refuses.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "train.csv").write_text("text,label\\nlost card,card\\nsend money,transfer\\n")
        >>> splits = read_files({"train": folder / "train.csv"})
        >>> splits["train"].features["label"].names
        ['card', 'transfer']
        >>> splits["train"][1]
        {'text': 'send money', 'label': 1}
    """
    text_columns = [text_column] + ([text_pair_column] if text_pair_column else [])
    tables = {name: read_table(Path(path), text_columns, label_column) for name, path in files.items()}
    sources = {name: str(path) for name, path in files.items()}
    return checked_splits(tables, sources, text_column, text_pair_column, label_column)


def checked_splits(
    splits: dict[str, Dataset],
    sources: dict[str, str],
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str = "label",
) -> DatasetDict:
    """Bring splits of any origin to the columns `text`, `text_pair` (if asked for) and `label`; check them.

    Labels are numbered by the sorted order of those in `train` (integers by value, strings by letters),
    unless they are a ClassLabel, whose numbers and names are kept. Other splits follow by name, whatever
    numbers a ClassLabel of their own has. The split `unlabeled` gets no label column.

    Args:
        splits: split name -> rows; `train` is needed.
        sources: split name -> what to call it in an error (a path).
        text_column, text_pair_column, label_column: the names of the columns in `splits`.

    Raises:
        DataError: for a missing column, no rows, a row without text or label, labels that are neither strings
            nor integers, a number for which a ClassLabel has no name (-1 is no label), a single class, or a
            label outside `train` that `train` does not have.
    """
    names: dict[str, str] = {"text": text_column}
    if text_pair_column:
        names["text_pair"] = text_pair_column
    checked: dict[str, Dataset] = {}
    for split, rows in splits.items():
        wanted = dict(names) if split == "unlabeled" else {**names, "label": label_column}
        checked[split] = _select_columns(rows, sources[split], wanted)
    feature = _class_label(checked["train"], sources["train"])
    seen = set(_names_of(checked["train"]))
    for split in [split for split in checked if split != "unlabeled"]:
        checked[split] = _number_labels(checked[split], sources[split], feature, seen)
    return DatasetDict(checked)


def labelled_media(
    splits: dict[str, Dataset], sources: dict[str, str], media: str, media_column: str, label_column: str
) -> DatasetDict:
    """Bring splits of images or sounds to the columns `image` (or `audio`) and `label`, and check the labels.

    Labels are numbered as :func:`checked_splits` does it. A test split without labels (-1) is left out.

    Args:
        splits: split name -> rows; `train` is needed.
        sources: split name -> what to call it in an error.
        media: ``image`` or ``audio``.
        media_column, label_column: the names of the columns in `splits`.

    Raises:
        DataError: for a missing column, and for labels that :func:`checked_splits` refuses.
    """
    wanted = {media: media_column, "label": label_column}
    checked = {}
    for split, rows in splits.items():
        if split == "test" and (label_column not in rows.column_names or -1 in rows[label_column]):
            continue
        _refuse_missing(rows, sources[split], wanted)
        labels = rows.select_columns([label_column]).with_format("arrow")[:][label_column]
        _refuse_empty(labels, sources[split], "label", label_column)
        _refuse_odd_labels(labels, rows.features[label_column], sources[split], label_column)
        names = {old: new for new, old in wanted.items() if old != new}
        checked[split] = rows.select_columns(list(wanted.values())).rename_columns(names)
    feature = _class_label(checked["train"], sources["train"])
    seen = set(_names_of(checked["train"]))
    numbered = {split: _number_labels(rows, sources[split], feature, seen) for split, rows in checked.items()}
    return DatasetDict(numbered)


def read_table(path: Path, text_columns: list[str], label_column: str) -> Dataset:
    """Return the rows of a CSV, JSON lines or Parquet file.

    Raises:
        DataError: a file that is missing, empty or unreadable.
    """
    check_file(path)
    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            table = _read_csv(path, text_columns, label_column)
        elif kind in (".json", ".jsonl"):
            table = pyarrow.json.read_json(
                path, read_options=pyarrow.json.ReadOptions(block_size=_BLOCK_BYTES)
            )
        elif kind == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            raise DataError(f"{path}: expected a file ending in .csv, .json, .jsonl or .parquet.")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        expected = {".csv": "CSV in UTF-8", ".parquet": "Parquet"}.get(
            kind, "JSON lines (one object on each line)"
        )
        detail = " ".join(str(error).split())[:160]
        raise DataError(f"{path}: can't be read as {expected}: {detail}") from error
    twice = [name for name in table.column_names if table.column_names.count(name) > 1]
    if twice:
        raise DataError(
            f"{path}: expected one column {twice[0]!r}; it has several. Rename or drop the others."
        )
    return Dataset(table)


def check_file(path: Path) -> None:
    """Raise for what is no file, or an empty one.

    Raises:
        DataError: naming it.
    """
    if path.is_dir():
        raise DataError(f"{path}: expected a file, received a folder. Name one file in it.")
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty.")


def _read_csv(path: Path, text_columns: list[str], label_column: str) -> pyarrow.Table:
    # A text such as "42" or "2024-01-01" is a text, not a number or a date; and the labels "01" and "1" are two.
    as_text = {column: pyarrow.string() for column in (*text_columns, label_column)}
    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=as_text),
    )
    if label_column in text_columns or table.column_names.count(label_column) != 1:
        return table
    index = table.column_names.index(label_column)
    return table.set_column(index, label_column, _plain_numbers(table[label_column]))


def _plain_numbers(labels: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Return a column of text as numbers if it holds nothing else but NA and the like; "07" is text, like a name."""
    texts = pyarrow.compute.utf8_trim_whitespace(labels)
    nothing = pyarrow.compute.is_in(texts, pyarrow.array(pyarrow.csv.ConvertOptions().null_values))
    texts = pyarrow.compute.if_else(nothing, None, texts)
    try:
        whole = texts.cast(pyarrow.int64())
        return whole if whole.cast(pyarrow.string()) == texts else texts
    except pyarrow.ArrowInvalid:
        with contextlib.suppress(pyarrow.ArrowInvalid):
            return texts.cast(pyarrow.float64())
    return labels


def _select_columns(rows: Dataset, source: str, wanted: dict[str, str]) -> Dataset:
    """Keep the wanted columns under our own names, and refuse missing columns and rows without a value."""
    _refuse_missing(rows, source, wanted)
    table = rows.select_columns(list(set(wanted.values()))).with_format("arrow")[:]
    columns: dict[str, pyarrow.ChunkedArray] = {}
    for name, column in wanted.items():
        values = table[column]
        if name != "label":
            if not (pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type)):
                raise DataError(f"{source}: expected texts in the column {column!r}; received {values.type}.")
            values = values.cast(pyarrow.string())
        _refuse_empty(values, source, name, column)
        columns[name] = values
    label = rows.features[wanted["label"]] if "label" in wanted else None
    if label is not None:
        _refuse_odd_labels(columns["label"], label, source, wanted["label"])
    selected = Dataset(pyarrow.table(columns))
    return selected.cast_column("label", label) if isinstance(label, ClassLabel) else selected


def _refuse_missing(rows: Dataset, source: str, wanted: dict[str, str]) -> None:
    missing = {name: column for name, column in wanted.items() if column not in rows.column_names}
    if missing:
        flags = ", ".join(f"--{name}_column" for name in missing)
        raise DataError(
            f"{source}: expected a column {next(iter(missing.values()))!r}; "
            f"it has {', '.join(map(repr, rows.column_names))}. Name the right one with {flags}."
        )
    if len(rows) == 0:
        raise DataError(f"{source}: expected at least one row; it has none.")


def _refuse_empty(values: pyarrow.ChunkedArray, source: str, name: str, column: str) -> None:
    for number, value in enumerate(values.to_pylist(), start=1):
        if value is None or (isinstance(value, str) and not value.strip()):
            remedy = (
                "Texts without labels go into --unlabeled_file." if name == "label" else "Remove the row."
            )
            raise DataError(f"{source}: row {number} has nothing in the column {column!r}. {remedy}")


def _refuse_odd_labels(values: pyarrow.ChunkedArray, feature: Any, source: str, column: str) -> None:
    """Refuse labels that are neither strings nor integers, and numbers for which a ClassLabel has no name."""
    labels = values.to_pylist()
    if not all(isinstance(label, (str, int)) for label in labels):
        raise DataError(
            f"{source}: expected labels that are strings or integers in the column {column!r}; received "
            f"{values.type}. Turn them into names, or name another column with --label_column."
        )
    if not isinstance(feature, ClassLabel):
        return
    classes = len(feature.names)
    rows = [row for row, label in enumerate(labels, 1) if isinstance(label, int) and not 0 <= label < classes]
    if not rows:
        return
    shown = ", ".join(map(str, rows[:3])) + (", ..." if len(rows) > 3 else "")
    if any(labels[row - 1] >= 0 for row in rows):
        raise DataError(
            f"{source}: expected numbers from 0 to {classes - 1} in the column {column!r}, which names {classes} "
            f"classes; received others in {len(rows)} row(s): {shown}. Name all classes, or remove the rows."
        )
    raise DataError(
        f"{source}: {len(rows)} row(s) have no label (-1 in the column {column!r}): {shown}. Remove them; in files, "
        "their texts can go into --unlabeled_file."
    )


def _class_label(train: Dataset, source: str) -> ClassLabel:
    feature = train.features["label"]
    values: set[Any] = set(train["label"])
    if len(values) < 2:
        one = _names_of(train)[0]
        raise DataError(f"{source}: expected at least two classes; every row has the label {one!r}.")
    if isinstance(feature, ClassLabel):
        return feature
    return ClassLabel(names=[str(value) for value in sorted(values)])


def _names_of(rows: Dataset) -> list[str]:
    """Return the name of each row's label, whatever number a ClassLabel of its own gives it."""
    feature = rows.features["label"]
    if isinstance(feature, ClassLabel):
        return [str(feature.names[number]) for number in rows["label"]]
    return [str(value) for value in rows["label"]]


def _number_labels(rows: Dataset, source: str, feature: ClassLabel, seen: set[str]) -> Dataset:
    """Number labels as training does, by name: another split's own numbers may be in another order."""
    labels = _names_of(rows)
    unknown = sorted(set(labels) - seen)
    if unknown:
        shown = ", ".join(map(repr, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
        raise DataError(
            f"{source}: {len(unknown)} label(s) that the training file never has: {shown}. "
            "Add examples of them to the training file, or remove the rows."
        )
    if rows.features["label"] == feature:
        return rows
    numbers = {str(name): number for number, name in enumerate(feature.names)}
    others = rows.remove_columns("label")  # images among them, which are not read here
    features = Features({**others.features, "label": feature})
    return others.add_column("label", [numbers[label] for label in labels]).cast(features)
