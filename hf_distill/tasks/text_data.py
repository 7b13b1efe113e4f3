"""The texts of a classification recipe: built in, the user's files, or a Hub data set; and their encoding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets

from hf_distill.corpora.docstrings import docstring_corpus
from hf_distill.corpora.files import DataError, checked_splits, read_files
from hf_distill.items import IGNORED
from hf_distill.tasks.data_arguments import DataArguments, check_sources, complete, given_files, hub_splits


@dataclass
class TextDataArguments(DataArguments):
    """Which texts to train and report on.

    Without any of them the built-in text is used: docstrings of the installed libraries, and the
    task of telling which library wrote one.
    """

    unlabeled_file: str | None = field(
        default=None,
        metadata={"help": "Texts without labels, which the student learns from the teacher alone"},
    )
    text_column: str = field(default="text", metadata={"help": "The column with the text"})
    text_pair_column: str | None = field(
        default=None, metadata={"help": "The column with a second text, if any"}
    )
    label_column: str = field(default="label", metadata={"help": "The column with the label"})
    max_seq_length: int = field(default=64, metadata={"help": "Texts are cut at this many tokens"})
    max_unlabeled_samples: int | None = field(
        default=None, metadata={"help": "Learn from N texts without labels only"}
    )


def load_texts(data: TextDataArguments) -> DatasetDict:
    """Return the splits ``train``, ``validation``, ``test`` and perhaps ``unlabeled``.

    Columns are ``text``, perhaps ``text_pair``, and ``label`` (a ClassLabel).

    Raises:
        DataError: for settings that contradict each other, and for data that can't be used.
    """
    check_sources(data, ("validation_file", "test_file", "unlabeled_file"))
    if data.train_file:
        files = given_files(data, ("train", "validation", "test", "unlabeled"))
        splits = read_files(files, data.text_column, data.text_pair_column, data.label_column)
    elif data.dataset_name:
        splits = _from_hub(data)
    else:
        splits = docstring_corpus()
    return complete(splits, data, unlabeled=data.max_unlabeled_samples)


def tuning_splits(splits: DatasetDict, report_on: str) -> tuple[DatasetDict, bool]:
    """Return the splits to choose settings on, none of whose validation texts is reported on.

    Where the texts reported on are validation texts themselves, a tenth of the training texts is held out in
    their place; the choice's own splits lack it, the reported run's do not.

    Args:
        splits: from :func:`load_texts`.
        report_on: the split that the run reports on.

    Returns:
        ``train``, ``validation`` and perhaps ``unlabeled``; and whether training texts were held out.

    Raises:
        DataError: where every text to choose on is one that is reported on.

    Example:
        >>> train = Dataset.from_dict({"text": [str(number) for number in range(20)]})
        >>> test = Dataset.from_dict({"text": ["0", "a"]})
        >>> chosen, held_out = tuning_splits(DatasetDict(train=train, validation=test, test=test), "test")
        >>> held_out, len(chosen["train"])
        (True, 18)
    """
    reported = set(_texts(splits[report_on]))
    held_out = reported <= set(_texts(splits["validation"]))
    train, validation = splits["train"], splits["validation"]
    if held_out:
        parts = train.train_test_split(0.1, seed=0)
        train, validation = parts["train"], parts["test"]
    apart = [index for index, text in enumerate(_texts(validation)) if text not in reported]
    if not apart:
        raise DataError(
            f"--tune: expected texts to choose on that are not among those reported on ({report_on}), received "
            f"{len(validation)} that all are. Give other texts."
        )
    rest = {"unlabeled": splits["unlabeled"]} if "unlabeled" in splits else {}
    return DatasetDict(train=train, validation=validation.select(apart), **rest), held_out


def _texts(rows: Dataset) -> list[tuple[str, ...]]:
    columns = [rows[name][:] for name in ("text", "text_pair") if name in rows.column_names]
    return list(zip(*columns, strict=True))


def _from_hub(data: TextDataArguments) -> DatasetDict:
    """Load a data set by name; a test split whose labels are withheld (GLUE) is left out."""
    found = hub_splits(data)
    test = found.get("test")
    if test is not None and (data.label_column not in test.column_names or -1 in test[data.label_column]):
        del found["test"]
    sources = {name: f"{data.dataset_name} ({name})" for name in found}
    return checked_splits(found, sources, data.text_column, data.text_pair_column, data.label_column)


def encode(rows: Dataset, tokenizer: Any, max_length: int, keep_text: bool = False) -> Dataset:
    """Tokenize a split; the label column becomes ``labels``, and the text goes unless it is kept.

    Args:
        rows: a split of :func:`load_texts`.
        tokenizer: encodes text, and text pairs.
        max_length: longest encoding, in tokens.
        keep_text: leave the text for a teacher that encodes it itself.
    """
    texts = [column for column in ("text", "text_pair") if column in rows.column_names]

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        return dict(tokenizer(*(batch[column] for column in texts), truncation=True, max_length=max_length))

    encoded = rows.map(tokenize, batched=True, remove_columns=[] if keep_text else texts, desc="Tokenizing")
    return encoded.rename_column("label", "labels") if "label" in encoded.column_names else encoded


def with_unlabelled(train: Dataset, unlabelled: Dataset) -> Dataset:
    """Append rows without labels to encoded training rows; -100 marks them.

    Example:
        >>> train = Dataset.from_dict({"input_ids": [[1]], "labels": [2]})
        >>> with_unlabelled(train, Dataset.from_dict({"input_ids": [[3]]}))["labels"][:]
        [2, -100]
    """
    plain = train.cast_column("labels", _integer())
    marked = unlabelled.add_column("labels", [IGNORED] * len(unlabelled))
    return concatenate_datasets([plain, marked.cast_column("labels", _integer())])


def _integer() -> Any:
    from datasets import Value

    return Value("int64")
