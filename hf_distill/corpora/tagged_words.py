"""Reading sentences whose words have tags: CoNLL, CoNLL-U, JSON lines or Parquet."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

from hf_distill.corpora.files import DataError, read_table

# A word and its tag in two columns, a blank line between sentences; and the format of Universal Dependencies.
_CONLLU = (".conllu",)
_COLUMNS = (".conll", ".annotated", ".bio", ".iob", ".iob2", ".tsv", ".txt")


def read_tagged_words(
    files: Mapping[str, str | os.PathLike[str]], tokens_column: str = "tokens", tags_column: str = "tags"
) -> DatasetDict:
    """Read one file of tagged sentences for each split.

    A file ending in ``.conllu`` gives the form and the universal part of speech of each word, without ranges of
    several words and without words that are not there; ``.conll``, ``.tsv``, ``.txt`` and the like give a word first
    and its tag last on each line, with a blank line between sentences; ``.json``, ``.jsonl`` and ``.parquet`` have a
    list of words and a list of tags in each row.

    Args:
        files: split name -> path; `train` is needed.
        tokens_column, tags_column: the columns of JSON lines and Parquet.

    Returns:
        The splits with the columns of :func:`checked_words`.

    Raises:
        DataError: a file that is missing or can't be read, naming the line, and what :func:`checked_words` refuses.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "train.conll"
        >>> _ = path.write_text("Paris\\tB-LOC\\nis\\tO\\n\\nHe\\tO\\n")
        >>> splits = read_tagged_words({"train": path})
        >>> splits["train"][0], splits["train"].features["tags"].feature.names
        ({'tokens': ['Paris', 'is'], 'tags': [0, 1]}, ['B-LOC', 'O'])
    """
    splits = {name: _read(Path(path), tokens_column, tags_column) for name, path in files.items()}
    sources = {name: str(path) for name, path in files.items()}
    return checked_words(splits, sources, tokens_column, tags_column)


def checked_words(
    splits: Mapping[str, Any],
    sources: Mapping[str, str],
    tokens_column: str = "tokens",
    tags_column: str = "tags",
) -> DatasetDict:
    """Bring splits of any origin to the columns `tokens` and `tags`, and check them.

    Tags are numbered by the sorted order of those in `train`, unless they are a ClassLabel, whose numbers are kept.

    Args:
        splits: split name -> rows; `train` is needed.
        sources: split name -> what to call it in an error (a path).
        tokens_column, tags_column: their columns.

    Raises:
        DataError: a missing column, no rows, sentences with another number of tags than of words, a single tag, or one
            that `train` does not have.
    """
    named: dict[str, tuple[list[list[str]], list[list[str]]]] = {}
    feature = None
    for split, rows in splits.items():
        for flag, column in (("tokens_column", tokens_column), ("tags_column", tags_column)):
            if column not in rows.column_names:
                raise DataError(
                    f"{sources[split]}: expected a column {column!r}; it has "
                    f"{', '.join(map(repr, rows.column_names))}. Name the right one with --{flag}."
                )
        if len(rows) == 0:
            raise DataError(f"{sources[split]}: expected at least one sentence; it has none.")
        own = getattr(rows.features[tags_column], "feature", None)
        if split == "train" and isinstance(own, ClassLabel):
            feature = own
        tags = [_names(tags, own, sources[split], row) for row, tags in enumerate(rows[tags_column], 1)]
        words = [[str(word) for word in sentence or ()] for sentence in rows[tokens_column]]
        _check_lengths(words, tags, sources[split])
        named[split] = words, tags
    seen = sorted({tag for tags in named["train"][1] for tag in tags})
    if len(seen) < 2:
        raise DataError(
            f"{sources['train']}: expected at least two tags; every word has {seen[0] if seen else 'none'!r}."
        )
    feature = feature or ClassLabel(names=seen)
    return DatasetDict({split: _numbered(*rows, feature, sources[split]) for split, rows in named.items()})


def _numbered(words: list[list[str]], tags: list[list[str]], feature: ClassLabel, source: str) -> Dataset:
    numbers = {name: number for number, name in enumerate(feature.names)}
    unknown = sorted({tag for sentence in tags for tag in sentence} - set(numbers))
    if unknown:
        shown = ", ".join(map(repr, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
        raise DataError(
            f"{source}: {len(unknown)} tag(s) that the training file never has: {shown}. Add examples of them to the "
            "training file, or remove the sentences."
        )
    rows = {"tokens": words, "tags": [[numbers[tag] for tag in sentence] for sentence in tags]}
    return Dataset.from_dict(
        rows, features=Features({"tokens": Sequence(Value("string")), "tags": Sequence(feature)})
    )


def _names(tags: Any, feature: Any, source: str, row: int) -> list[str]:
    """Return the names of a sentence's tags, whatever numbers a ClassLabel of their own gives them."""
    if not isinstance(feature, ClassLabel):
        return [str(tag) for tag in tags or ()]
    if any(not 0 <= tag < len(feature.names) for tag in tags):
        raise DataError(
            f"{source}: row {row}: expected tags from 0 to {len(feature.names) - 1}, received {tags}. Name all classes."
        )
    return [str(feature.names[tag]) for tag in tags]


def _check_lengths(words: list[list[str]], tags: list[list[str]], source: str) -> None:
    for row, (sentence, of_words) in enumerate(zip(words, tags, strict=True), 1):
        if len(sentence) != len(of_words) or not sentence:
            raise DataError(
                f"{source}: row {row}: expected a tag for each word, received {len(sentence)} words and "
                f"{len(of_words)} tags. Mend or remove the row."
            )


def _read(path: Path, tokens_column: str, tags_column: str) -> Dataset:
    kind = path.suffix.lower()
    if kind not in (*_CONLLU, *_COLUMNS):
        return read_table(path, [], tags_column)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as text in UTF-8: {error}") from error
    sentences = list(_sentences(lines, path, kind in _CONLLU))
    return Dataset.from_dict(
        {
            tokens_column: [[word for word, _ in sentence] for sentence in sentences],
            tags_column: [[tag for _, tag in sentence] for sentence in sentences],
        }
    )


def _sentences(lines: list[str], path: Path, universal: bool) -> Iterator[list[tuple[str, str]]]:
    sentence: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if sentence:
                yield sentence
            sentence = []
        elif universal:
            sentence += _of_universal(line, path, number)
        else:
            fields = line.split("\t") if "\t" in line else line.split()
            if len(fields) < 2 or not fields[-1].strip():
                raise DataError(
                    f"{path}, line {number}: expected a word and its tag, received {line!r}. Separate them by a tab, "
                    "and sentences by a blank line."
                )
            sentence.append((fields[0].strip(), fields[-1].strip()))
    if sentence:
        yield sentence


def _of_universal(line: str, path: Path, number: int) -> list[tuple[str, str]]:
    """Return a line's word and part of speech; nothing for a comment, a range of words or a word not there."""
    if line.startswith("#"):
        return []
    fields = line.split("\t")
    if len(fields) != 10:
        raise DataError(
            f"{path}, line {number}: expected the 10 columns of CoNLL-U, received {len(fields)}: {line[:60]!r}. Name "
            "the file .conll if it has a word and a tag on each line."
        )
    return [] if "-" in fields[0] or "." in fields[0] else [(fields[1], fields[3])]
