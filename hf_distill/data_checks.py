"""What the data sets must hold, checked before training starts from what costs no pass over the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow
import pyarrow.compute

from hf_distill.compatibility import predicts_tokens
from hf_distill.items import IGNORED, Head, chooses
from hf_distill.schedules import Scheduled, as_plain, highest
from hf_distill.spans import START

_LABEL_COLUMNS = ("labels", "label", "label_ids")


def check_splits(train: Any, evaluation: Any) -> None:
    """Raise for a data set that is several splits, or empty.

    Args:
        train: the training set, or None.
        evaluation: the evaluation set, a mapping of names to sets, or None.

    Raises:
        ValueError: naming the argument and what it holds.

    Example:
        >>> check_splits([], None)
        Traceback (most recent call last):
            ...
        ValueError: train_dataset: expected at least one example, received none. Was everything filtered out?
    """
    if isinstance(train, dict):
        names = ", ".join(map(str, train))
        raise ValueError(
            f"train_dataset: expected one data set, received {type(train).__name__} with {names}. Give one of them, "
            f"such as train_dataset=dataset[{next(iter(train), 'train')!r}]."
        )
    named = evaluation.items() if isinstance(evaluation, dict) else [("", evaluation)]
    sets = {"train_dataset": train, **{f"eval_dataset{f'[{name!r}]' * bool(name)}": d for name, d in named}}
    for argument, dataset in sets.items():
        if dataset is not None and hasattr(dataset, "__len__") and len(dataset) == 0:
            raise ValueError(
                f"{argument}: expected at least one example, received none. Was everything filtered out?"
            )


def check_label_names(names: Iterable[str] | None) -> None:
    """Raise if the arguments name label columns without ``labels``, which every loss here reads.

    Raises:
        ValueError: naming the columns given.
    """
    if names is not None and "labels" not in names:
        raise ValueError(
            f"label_names: expected to find 'labels', which the label loss reads, received {list(names)}. Rename the "
            "column: dataset.rename_column(old, 'labels')."
        )


def makes_labels(collator: Any) -> bool:
    """Whether a data collator makes labels itself: transformers' for language models, or one that says so.

    Args:
        collator: a data collator; one of a user's own says so by an attribute ``makes_labels`` that is true.

    Example:
        >>> from transformers import default_data_collator
        >>> makes_labels(default_data_collator)
        False
    """
    while getattr(collator, "collator", None) is not None:
        collator = collator.collator
    return bool(getattr(collator, "makes_labels", False)) or "LanguageModeling" in type(collator).__name__


def check_label_column(dataset: Any, label_weight: Scheduled, readers: Sequence[str]) -> None:
    """Raise if the loss reads labels, and the training set shows that it has none.

    Args:
        dataset: the training set, or None.
        label_weight: the weight of the label loss, a number or a schedule.
        readers: the objectives that read labels.

    Raises:
        ValueError: saying what reads the labels, and which columns came.

    Example:
        >>> check_label_column([{"input_ids": [1]}], 0.5, [])  # a list shows its columns in training
    """
    names = getattr(dataset, "column_names", None)
    if not names or {*_LABEL_COLUMNS, START} & set(names):
        return
    if highest(label_weight) > 0:
        reason = f"the label loss has the weight {as_plain(label_weight)}"
        remedy = "set alpha=1 to train on the teacher alone"
    elif readers:
        reason = f"the objective {readers[0]!r} reads them"
        remedy = "take an objective that needs none, such as forward_kl"
    else:
        return
    raise ValueError(
        f"labels: expected a column named labels, because {reason}, received the columns {sorted(names)}. Add the "
        f"labels, or {remedy}."
    )


def check_input_columns(dataset: Any, accepted: Iterable[str]) -> None:
    """Raise if a data set has nothing that the student's forward reads, as one of raw text.

    Args:
        dataset: any data set; one that makes its columns on the fly is not looked at.
        accepted: the names that the student's forward accepts.

    Raises:
        ValueError: naming the columns there.
    """
    names = getattr(dataset, "column_names", None)
    inputs = set(accepted) - set(_LABEL_COLUMNS)
    if (
        not names
        or not inputs
        or inputs & set(names)
        or getattr(dataset, "format", {}).get("type") == "custom"
    ):
        return
    raise ValueError(
        f"dataset: expected columns that the student reads, such as {_first(inputs)}, received {sorted(names)}. Encode "
        "the data first: dataset.map(lambda row: tokenizer(row['text'], truncation=True))."
    )


def _first(inputs: set[str]) -> str:
    usual = ("input_ids", "pixel_values", "input_values", "input_features")
    return next((name for name in usual if name in inputs), min(inputs))


def check_text_columns(dataset: Any, text_columns: Iterable[str]) -> None:
    """Raise if the teacher's own tokenizer finds nothing to encode in a data set, or in some example.

    Raises:
        ValueError: naming the columns looked for and those there.
    """
    names = getattr(dataset, "column_names", None)
    if not names or any(name.startswith("teacher_") for name in names):
        return
    found = [name for name in text_columns if name in names]
    for name in found:
        for chunk in _arrow_chunks(dataset, name):
            if chunk.null_count:
                raise ValueError(
                    f"{name}: expected a text for the teacher in each example, received None in some. Drop those "
                    "examples, or put an empty text there."
                )
    if found:
        return
    raise ValueError(
        f"teacher_processing_class: expected a text column to encode for the teacher ({' or '.join(text_columns)}), "
        f"received the columns {sorted(names)}. Keep the text in the dataset, or name its columns in "
        "teacher_text_columns."
    )


def check_labels(dataset: Any, model: Any, head: Head) -> None:
    """Raise for labels that the model's head can't take: text, none at all, or a class out of range.

    Read from Arrow without a copy, or from a list of examples; other data sets show theirs in training.

    Args:
        dataset: any data set.
        model: the student, for its number of classes.
        head: what its outputs mean.

    Raises:
        ValueError: saying which labels were expected and which came.
    """
    for chunk in _label_chunks(dataset):
        if head.kind == "single_label" and not head.positions and pyarrow.types.is_nested(chunk.type):
            _refuse("one class for each example", "several numbers", head)
        column, depth = chunk, 0
        while pyarrow.types.is_nested(column.type) and hasattr(column, "flatten"):
            column, depth = pyarrow.compute.list_flatten(column), depth + 1
        if column.null_count or chunk.null_count:
            _refuse("a label for each example", "a missing one (None)", head)
        kind = column.type
        if pyarrow.types.is_boolean(kind) or not (
            pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_null(kind)
        ):
            first = column[0].as_py() if len(column) else None
            raise ValueError(
                f"labels: expected numbers, received {first!r} ({kind}). Encode the column: "
                "dataset.class_encode_column('label') for text, cast_column for another type."
            )
        if head.kind == "single_label":
            _check_classes(column, model, head)
        elif head.kind == "multi_label":
            if pyarrow.types.is_integer(kind):
                _refuse("floats (0.0 or 1.0)", "integers", head)
            _check_width(chunk, depth, model, head)
        elif pyarrow.compute.any(pyarrow.compute.equal(column, IGNORED)).as_py():
            _refuse("NaN for an example without a label", f"{IGNORED}, a target like any other number", head)


def _check_classes(column: Any, model: Any, head: Head) -> None:
    if not pyarrow.types.is_integer(column.type):
        _refuse("integers", f"{column.type} numbers", head)
    config = model.config.get_text_config() if predicts_tokens(model) else model.config
    classes = getattr(config, "vocab_size" if predicts_tokens(model) else "num_labels", None)
    if chooses(model):  # as many as the example has
        classes = None
    present = column.filter(pyarrow.compute.not_equal(column, IGNORED))
    bounds = pyarrow.compute.min_max(present).as_py()
    if bounds["min"] is None:
        return
    if classes is None and bounds["min"] < 0:
        _refuse(f"classes from 0, or {IGNORED} for none", str(bounds["min"]), head)
    if classes is not None and (bounds["min"] < 0 or bounds["max"] >= classes):
        wrong = bounds["min"] if bounds["min"] < 0 else bounds["max"]
        raise ValueError(
            f"labels: expected classes from 0 to {classes - 1} (the model has {classes}), or {IGNORED} for none, "
            f"received {wrong}. Number the classes from 0, or load the model with num_labels."
        )


def _check_width(chunk: Any, depth: int, model: Any, head: Head) -> None:
    lengths = set(pyarrow.compute.list_value_length(chunk).to_pylist()) if depth == 1 else {1}
    expected = model.config.num_labels
    if lengths - {expected}:
        _refuse(f"{expected} numbers for each example", f"{min(lengths - {expected})}", head)


def _refuse(expected: str, received: str, head: Head) -> None:
    unlabelled = IGNORED if head.kind == "single_label" else "NaN"
    raise ValueError(
        f"labels: expected {expected}, as the student's head is {head.kind}, received {received}. Convert the "
        f"column; an example without a label has {unlabelled} there. Set config.problem_type if the head is another."
    )


def _label_chunks(dataset: Any) -> Iterable[Any]:
    """Yield the label column as Arrow arrays, where it can be had without reading anything else."""
    if isinstance(dataset, list):
        names = [name for name in _LABEL_COLUMNS if dataset and name in dict(dataset[0])]
        if names and not hasattr(dataset[0][names[0]], "shape"):
            try:
                yield pyarrow.array([example.get(names[0]) for example in dataset])
            except pyarrow.ArrowException:  # a mixture of kinds: the collator will say which
                return
        return
    names = [name for name in _LABEL_COLUMNS if name in (getattr(dataset, "column_names", None) or ())]
    if names:
        yield from _arrow_chunks(dataset, names[0])


def _arrow_chunks(dataset: Any, name: str) -> Iterable[Any]:
    """Yield a column in pieces, unless the data set makes it on the fly."""
    transformed = getattr(dataset, "format", {}).get("type") == "custom"
    if not transformed and hasattr(dataset, "with_format") and hasattr(dataset, "data"):
        for table in dataset.select_columns(name).with_format("arrow").iter(10_000):
            yield table.column(name).combine_chunks()
