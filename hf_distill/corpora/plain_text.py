"""Reading plain text: files and folders of them as paragraphs, and prompts with what completes them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from datasets import Dataset, DatasetDict

from hf_distill.corpora.files import DataError, read_table

SUFFIXES = (".txt", ".md")
# Of one file or folder, where no other is given, in order: what comes later is not what was trained on.
SHARES = {"train": 0.80, "validation": 0.05, "test": 0.15}
# Of prompts with several completions, where no validation file is given.
HELD_OUT = 0.1
# Characters of the longest tokens that there are of any number.
_LONGEST_TOKENS = 20


def read_plain_text(places: Mapping[str, str | os.PathLike[str]], text_column: str = "text") -> DatasetDict:
    """Read text without labels, a row for each paragraph, or for each row of a table.

    Text files and folders of them give their paragraphs, which blank lines separate; CSV, JSON lines and Parquet
    give a column. Where only `train` is given, and it is text, it is divided: a folder of at least three files by whole
    files, anything else into consecutive blocks of 80, 5 and 15 %.

    Args:
        places: split name -> file or folder; `train` is needed.
        text_column: the column of tables.

    Returns:
        The splits with the column `text`.

    Raises:
        DataError: a place that is not there, or without text.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = path.write_text("\\n\\n".join(f"Paragraph\\n{number}" for number in range(20)))
        >>> splits = read_plain_text({"train": path})
        >>> {name: len(rows) for name, rows in splits.items()}, splits["test"]["text"][0]
        ({'train': 16, 'validation': 1, 'test': 3}, 'Paragraph 17')
    """
    train = Path(places["train"])
    if len(places) == 1 and (train.is_dir() or train.suffix.lower() in SUFFIXES):
        return _divided(train)
    return DatasetDict({split: _rows(Path(place), text_column) for split, place in places.items()})


def _rows(path: Path, text_column: str) -> Dataset:
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        return _texts([text for file in _files(path) for text in paragraphs(file)], path)
    table = read_table(path, [text_column], text_column)
    if text_column not in table.column_names:
        raise DataError(
            f"{path}: expected a column {text_column!r}; it has {', '.join(map(repr, table.column_names))}. Name the "
            "right one with --text_column."
        )
    texts = table[text_column][:]
    for row, text in enumerate(texts, 1):
        if not isinstance(text, str | None):
            raise DataError(
                f"{path}: row {row}: expected a text in the column {text_column!r}, received {repr(text)[:80]}. Turn "
                "it into one, or name another column with --text_column."
            )
    return _texts([text for text in texts if text and text.strip()], path)


def _divided(path: Path) -> DatasetDict:
    files = _files(path)
    if len(files) >= len(SHARES):
        # Whole files: at least one for each of the later splits.
        counts = {name: max(int(share * len(files)), 1) for name, share in SHARES.items() if name != "train"}
        parts = {"test": files[-counts["test"] :], "train": files[: -sum(counts.values())]}
        parts["validation"] = files[len(parts["train"]) : len(files) - counts["test"]]
        return DatasetDict(
            {name: _texts([t for f in parts[name] for t in paragraphs(f)], path) for name in SHARES}
        )
    texts = [text for file in files for text in paragraphs(file)]
    ends = [round(sum(list(SHARES.values())[: place + 1]) * len(texts)) for place in range(len(SHARES))]
    starts = [0, *ends[:-1]]
    return DatasetDict(
        {name: _texts(texts[start:end], path) for name, start, end in zip(SHARES, starts, ends, strict=True)}
    )


def _texts(texts: Sequence[str], path: Path) -> Dataset:
    if not texts:
        raise DataError(
            f"{path}: expected some paragraphs of text for each split, found too few. Put blank lines between "
            "paragraphs, or give a longer text."
        )
    return Dataset.from_dict({"text": list(texts)})


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file.")
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES]
    # What a data set says of itself is no text of it.
    files = [file for file in files if file.stem.upper() not in ("README", "SOURCE", "LICENSE", "COPYRIGHT")]
    if not files:
        raise DataError(f"{path}: expected files ending in {' or '.join(SUFFIXES)}, found none. Name one.")
    return files


def paragraphs(path: Path) -> list[str]:
    """Return the paragraphs of a file, each on one line.

    Raises:
        DataError: where it can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: can't be read as text in UTF-8: {error}. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error}") from error
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def enough_for(rows: Dataset, tokens: int) -> Dataset:
    """Return the first rows that have some blocks of a number of tokens by any tokenizer, or all there are.

    Example:
        >>> rows = Dataset.from_dict({"text": ["a short text"] * 100})
        >>> len(enough_for(rows, 4)), len(enough_for(rows, 4000))
        (8, 100)
    """
    count, characters = 0, 0
    for text in rows["text"]:
        if count >= 8 and characters >= _LONGEST_TOKENS * tokens:
            break
        count, characters = count + 1, characters + len(text)
    return rows.select(range(count))


def read_completions(
    files: Mapping[str, str | os.PathLike[str]],
    prompt_column: str,
    completion_column: str,
    group: bool = True,
    flags: tuple[str, str] = ("prompt_column", "completion_column"),
) -> DatasetDict:
    """Read prompts and what completes them: CSV, JSON lines or Parquet.

    Rows with the same prompt, one after another, are one example of an evaluation split with several ``references``.
    Where prompts are repeated and no validation file is given, a tenth of the training prompts is held out for it,
    drawn by a fixed seed: what is chosen on it then was not trained on.

    Args:
        files: split name -> path; `train` is needed.
        prompt_column, completion_column: their columns.
        group: whether such rows are made one.
        flags: what names the columns, for errors.

    Returns:
        The splits with the columns `prompt`, `completion` (the first), and in other splits than `train` `references`.

    Raises:
        DataError: a missing file or column, or a row without text.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = path.write_text("q,a\\n1+1,2\\n1+1,two\\n2+2,4\\n")
        >>> splits = read_completions({"train": path, "test": path}, "q", "a")
        >>> {name: len(rows) for name, rows in splits.items()}, splits["test"][0]["references"]
        ({'train': 1, 'test': 2, 'validation': 1}, ['2', 'two'])
    """
    splits = {}
    for split, place in files.items():
        table = read_table(Path(place), [prompt_column, completion_column], "")
        together = group and split != "train"
        splits[split] = completions(table, str(place), prompt_column, completion_column, together, flags)
    if "validation" not in splits:
        splits |= _held_out(splits["train"], str(files["train"]), group)
    return DatasetDict(splits)


def _held_out(train: Dataset, source: str, group: bool) -> dict[str, Dataset]:
    """Divide training pairs by whole prompts where prompts are repeated; rows drawn one by one would share them.

    Where few prompts have most of the rows, like instructions that are the same for all, that would leave out too much.
    """
    prompts = train["prompt"][:]
    distinct = sorted(set(prompts))
    if not 1 < len(distinct) < len(prompts):
        return {}
    count = max(round(HELD_OUT * len(distinct)), 1)
    chosen = {distinct[place] for place in numpy.random.default_rng(0).permutation(len(distinct))[:count]}
    held = train.select([row for row, prompt in enumerate(prompts) if prompt in chosen])
    if len(held) > max(2 * HELD_OUT * len(train), 2):
        return {}
    kept = train.select([row for row, prompt in enumerate(prompts) if prompt not in chosen])
    return {"train": kept, "validation": completions(held, source, "prompt", "completion", group)}


def completions(
    table: Dataset,
    source: str,
    prompt_column: str,
    completion_column: str,
    group: bool = False,
    flags: tuple[str, str] = ("prompt_column", "completion_column"),
) -> Dataset:
    """Bring rows of any origin to the columns `prompt` and `completion`, and `references` where grouped.

    Args:
        table: the rows.
        source: what to call it in an error.
        prompt_column, completion_column: their columns.
        group: make one example of rows with the same prompt that follow each other.
        flags: what names the columns, for errors.

    Raises:
        DataError: a missing column, no rows, or a row without text.
    """
    for flag, column in zip(flags, (prompt_column, completion_column), strict=True):
        if column not in table.column_names:
            raise DataError(
                f"{source}: expected a column {column!r}; it has {', '.join(map(repr, table.column_names))}. Name the "
                f"right one with --{flag}."
            )
    pairs = list(zip(table[prompt_column], table[completion_column], strict=True))
    if not pairs:
        raise DataError(f"{source}: expected at least one row; it has none.")
    for row, pair in enumerate(pairs, 1):
        if not all(isinstance(text, str) and text.strip() for text in pair):
            raise DataError(
                f"{source}: row {row}: expected text in {prompt_column!r} and {completion_column!r}, received "
                f"{repr(pair)[:120]}. Remove the row, or turn it into text."
            )
    if not group:
        prompts, ends = zip(*pairs, strict=True)
        return Dataset.from_dict({"prompt": list(prompts), "completion": list(ends)})
    grouped: list[tuple[str, list[str]]] = []
    for prompt, completion in pairs:
        if grouped and grouped[-1][0] == prompt:
            grouped[-1][1].append(completion)
        else:
            grouped.append((prompt, [completion]))
    return Dataset.from_dict(
        {
            "prompt": [prompt for prompt, _ in grouped],
            "completion": [references[0] for _, references in grouped],
            "references": [references for _, references in grouped],
        }
    )
