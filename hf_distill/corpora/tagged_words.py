"""Reading sentences whose words have tags: CoNLL, CoNLL-U, JSON lines or Parquet."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

from hf_distill.corpora.files import DataError, check_file, read_table
from hf_distill.corpora.identifier_roles import NO_ROLE

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

    Tags are numbered by the sorted order of those in `train` (integers by value, strings by letters), unless they are
    a ClassLabel, whose numbers are kept. An integer below 0, as -100, is no tag: such words get -1, which no loss and
    no metric counts.

    Args:
        splits: split name -> rows; `train` is needed.
        sources: split name -> what to call it in an error (a path).
        tokens_column, tags_column: their columns.

    Raises:
        DataError: a missing column, no rows, sentences that are no lists of words, with another number of tags than of
            words or tags that are neither strings nor integers, a single tag, or one that `train` does not have.
    """
    named: dict[str, tuple[list[list[str]], list[list[str | None]]]] = {}
    seen: set[str | int] = set()
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
        words, tags = rows[tokens_column][:], rows[tags_column][:]
        _check_sentences(words, tags, sources[split])
        named[split] = words, [_names(one, own, sources[split], row) for row, one in enumerate(tags, 1)]
        if split == "train":
            seen = {tag for one in tags for tag in one if not _is_none(tag)}
    if len(seen) < 2:
        raise DataError(
            f"{sources['train']}: expected at least two tags; every word has {next(iter(seen), 'none')!r}."
        )
    feature = feature or ClassLabel(names=[str(tag) for tag in sorted(seen, key=_by_value)])
    return DatasetDict({split: _numbered(*rows, feature, sources[split]) for split, rows in named.items()})


def _is_none(tag: str | int) -> bool:
    return isinstance(tag, int) and tag < 0


def _by_value(tag: str | int) -> tuple[int, str]:
    return (tag, "") if isinstance(tag, int) else (0, tag)


def _numbered(
    words: list[list[str]], tags: list[list[str | None]], feature: ClassLabel, source: str
) -> Dataset:
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(feature.names)}
    numbers[None] = NO_ROLE
    unknown = sorted(str(tag) for tag in {tag for sentence in tags for tag in sentence} - set(numbers))
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


def _names(tags: list[Any], feature: Any, source: str, row: int) -> list[str | None]:
    """Return the names of a sentence's tags, whatever numbers a ClassLabel of their own gives them; None for none."""
    if not isinstance(feature, ClassLabel):
        return [None if _is_none(tag) else str(tag) for tag in tags]
    if any(tag >= len(feature.names) for tag in tags):
        raise DataError(
            f"{source}: row {row}: expected tags from 0 to {len(feature.names) - 1}, received {tags}. Name all classes."
        )
    return [None if _is_none(tag) else str(feature.names[tag]) for tag in tags]


def _check_sentences(words: Any, tags: Any, source: str) -> None:
    """Refuse rows that are no words with a tag each: a text would be read letter by letter, a gap as a word or tag."""
    for row, (sentence, of_words) in enumerate(zip(words, tags, strict=True), 1):
        if not isinstance(sentence, list) or not all(
            isinstance(word, str) and word.strip() for word in sentence
        ):
            raise DataError(
                f"{source}: row {row}: expected a list of words, received {_short(sentence)}. Mend or remove the row."
            )
        listed = of_words if isinstance(of_words, list) else []
        if not all(isinstance(tag, (str, int)) for tag in listed):
            raise DataError(
                f"{source}: row {row}: expected tags that are strings or integers, received {_short(of_words)}. Mend "
                "or remove the row."
            )
        if len(sentence) != len(listed) or not sentence:
            raise DataError(
                f"{source}: row {row}: expected a tag for each word, received {len(sentence)} words and "
                f"{len(listed)} tags. Mend or remove the row."
            )


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."


def _read(path: Path, tokens_column: str, tags_column: str) -> Dataset:
    kind = path.suffix.lower()
    if kind not in (*_CONLLU, *_COLUMNS):
        return read_table(path, [], tags_column)
    check_file(path)
    try:
        # Not by splitlines(), which also takes U+2028 and the like, that are part of a word, for an end of a line.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: can't be read as text in UTF-8: {error}. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error}") from error
    sentences = list(_sentences(lines, path, kind in _CONLLU))
    return Dataset.from_dict(
        {
            tokens_column: [[word for word, _ in sentence] for sentence in sentences],
            tags_column: [[tag for _, tag in sentence] for sentence in sentences],
        }
    )


def _sentences(lines: list[str], path: Path, universal: bool) -> Iterator[list[tuple[str, str]]]:
    sentence: list[tuple[str, str]] = []
    columns = Counter(len(_fields(line)) for line in lines if line.strip() and not line.startswith("#"))
    usual = columns.most_common(1)[0][0] if columns else 0
    for number, line in enumerate(lines, 1):
        if not sentence and not universal and _is_comment(line, usual):
            continue
        if not line.strip() or line.startswith("-DOCSTART-"):
            if sentence:
                yield sentence
            sentence = []
        elif universal:
            sentence += _of_universal(line, path, number)
        else:
            fields = _fields(line)
            if len(fields) < 2 or not fields[0].strip() or not fields[-1].strip():
                raise DataError(
                    f"{path}, line {number}: expected a word and its tag, received {line!r}. Separate them by a tab, "
                    "and sentences by a blank line."
                )
            sentence.append((fields[0].strip(), fields[-1].strip()))
    if sentence:
        yield sentence


def _fields(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else line.split()


def _is_comment(line: str, usual: int) -> bool:
    """Whether a line above a sentence says something of it: ``# id 3``, unlike the word # with its tag."""
    fields = _fields(line)
    return line.startswith("# ") and (len(fields) != usual or " " in fields[0].strip())


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
