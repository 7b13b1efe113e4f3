"""Which data a recipe has: the flags that all recipes share, and what is done with any data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import DatasetDict, load_dataset

from hf_distill.corpora.files import DataError


@dataclass
class DataArguments:
    """Which examples to train and report on: the user's files, a Hub data set, or those built in."""

    train_file: str | None = field(
        default=None,
        metadata={"help": "Your training texts: CSV, JSON lines or Parquet. Default: built-in text"},
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Your validation texts. Default: a tenth of the training file"}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "Texts to report on. Default: the validation texts"}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set of the Hub, in place of files"}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration, e.g. sst2"})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on N examples only"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Report on N examples only"})
    report_on: str = field(
        default="test",
        metadata={"help": "The split to report on; tune on validation", "choices": ["test", "validation"]},
    )


def check_sources(data: DataArguments, beside: Sequence[str] = ("validation_file", "test_file")) -> None:
    """Raise for sources of data that contradict each other.

    Args:
        data: the recipe's arguments.
        beside: the files that need a training file.

    Raises:
        DataError: naming the flags.

    Example:
        >>> check_sources(DataArguments(test_file="test.csv"))
        Traceback (most recent call last):
            ...
        hf_distill.corpora.files.DataError: expected --train_file beside --test_file, received none. Give both.
    """
    if data.train_file and data.dataset_name:
        raise DataError("expected --train_file or --dataset_name, received both. Drop one.")
    for name in beside:
        if getattr(data, name) and not data.train_file:
            raise DataError(f"expected --train_file beside --{name}, received none. Give both.")


def given_files(
    data: DataArguments, names: Sequence[str] = ("train", "validation", "test")
) -> dict[str, Any]:
    """Return the user's files by the split that each is.

    Example:
        >>> given_files(DataArguments(train_file="a.csv", test_file="b.csv"))
        {'train': 'a.csv', 'test': 'b.csv'}
    """
    return {name: getattr(data, f"{name}_file") for name in names if getattr(data, f"{name}_file")}


def hub_splits(data: DataArguments) -> dict[str, Any]:
    """Load a data set by name, and return those of its splits that are used.

    Raises:
        DataError: where it can't be loaded, or has nothing to train on.
    """
    try:
        loaded: Any = load_dataset(data.dataset_name, data.dataset_config_name)
    except Exception as error:  # datasets raises a dozen kinds for a wrong name; all mean the same here
        raise DataError(f"--dataset_name {data.dataset_name}: {str(error).splitlines()[0]}") from error
    found = {name: loaded[name] for name in ("train", "validation", "test") if name in loaded}
    if "train" not in found:
        raise DataError(
            f"--dataset_name {data.dataset_name}: expected a split train, received {sorted(loaded)}."
        )
    return found


def complete(splits: DatasetDict, data: DataArguments, **limits: int | None) -> DatasetDict:
    """Return three splits of the sizes asked for: a tenth of the training examples is held out where none were given.

    Args:
        splits: with ``train`` at least.
        data: the recipe's arguments.
        limits: most examples of other splits, by name.
    """
    if "validation" not in splits:
        if len(splits["train"]) < 2:
            raise DataError(
                "--train_file: expected at least two examples, one to train on and one to hold out, received "
                f"{len(splits['train'])}. Add examples, or give --validation_file."
            )
        parts = splits["train"].train_test_split(0.1, seed=0)
        splits["train"], splits["validation"] = parts["train"], parts["test"]
    splits.setdefault("test", splits["validation"])
    wanted = {"train": data.max_train_samples, data.report_on: data.max_eval_samples, **limits}
    for name, limit in wanted.items():
        if limit is not None and name in splits:
            splits[name] = splits[name].shuffle(seed=0).select(range(min(limit, len(splits[name]))))
    return splits
