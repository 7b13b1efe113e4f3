"""Reading questions whose answers are parts of a text: SQuAD's JSON, and rows with its columns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
from datasets import Dataset, DatasetDict

from hf_distill.corpora.files import DataError, read_table
from hf_distill.corpora.signature_questions import SQUAD

_COLUMNS = ("context", "question", "answers")
# Of the articles of one file, where no other is given.
SHARES = {"train": 0.6, "validation": 0.1, "test": 0.3}


def read_questions(files: Mapping[str, str | os.PathLike[str]]) -> DatasetDict:
    """Read one file of questions for each split: SQuAD 1.1's JSON, or JSON lines or Parquet with its columns.

    Where only `train` is given, and it is of several articles (`title`), it is divided by whole articles, 60, 10 and
    30 % of them, drawn by a fixed seed: questions about one text are never in two splits.

    Args:
        files: split name -> path; `train` is needed.

    Returns:
        The splits with `id`, `title`, `context`, `question` and `answers`.

    Raises:
        DataError: a file that is missing or can't be read, or an answer that is not where it is said to be.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.json"
        >>> answer = {"text": "blue", "answer_start": 11}
        >>> asked = {"id": "1", "question": "Which colour?", "answers": [answer]}
        >>> articles = [{"title": n, "paragraphs": [{"context": "The sky is blue.", "qas": [asked]}]} for n in "abc"]
        >>> _ = path.write_text(json.dumps({"data": articles}))
        >>> {name: len(rows) for name, rows in read_questions({"train": path}).items()}
        {'train': 1, 'validation': 1, 'test': 1}
    """
    splits = {name: checked_questions(_read(Path(path)), str(path)) for name, path in files.items()}
    titles = sorted(set(splits["train"]["title"]))
    if len(splits) > 1 or len(titles) < len(SHARES):
        return DatasetDict(splits)
    order = numpy.random.default_rng(0).permutation(len(titles))
    counts = {name: max(round(SHARES[name] * len(titles)), 1) for name in ("validation", "test")}
    ends = [len(titles) - sum(counts.values()), len(titles) - counts["test"], len(titles)]
    whole, parts, start = splits["train"], {}, 0
    for name, end in zip(SHARES, ends, strict=True):
        chosen = {titles[place] for place in order[start:end]}
        parts[name] = whole.select([row for row, title in enumerate(whole["title"]) if title in chosen])
        start = end
    return DatasetDict(parts)


def checked_questions(rows: Any, source: str) -> Dataset:
    """Bring rows of any origin to SQuAD's columns, and check that each answer is where it is said to be.

    Args:
        rows: with the columns `context`, `question`, `answers`, and perhaps `id` and `title`.
        source: what to call them in an error.

    Raises:
        DataError: a missing column, no rows, a question without an answer, or an answer that is not there.
    """
    missing = [name for name in _COLUMNS if name not in rows.column_names]
    if missing:
        raise DataError(
            f"{source}: expected the columns of SQuAD, of which {missing[0]!r} is missing; it has "
            f"{', '.join(map(repr, rows.column_names))}. Rename them to {', '.join(_COLUMNS)}."
        )
    if len(rows) == 0:
        raise DataError(f"{source}: expected at least one question; it has none.")
    found = []
    for number, row in enumerate(rows):
        answers = row["answers"] or {}
        texts, starts = list(answers.get("text") or ()), list(answers.get("answer_start") or ())
        if not texts or len(texts) != len(starts):
            raise DataError(
                f"{source}: question {number + 1}: expected at least one answer with its start, received {answers}. "
                "Remove questions without an answer (SQuAD 2's)."
            )
        for text, start in zip(texts, starts, strict=True):
            if row["context"][start : start + len(text)] != text or not text:
                raise DataError(
                    f"{source}: question {number + 1}: expected the answer {text!r} at {start} of the context, found "
                    f"{row['context'][start : start + len(text)]!r} there. Mend answer_start, which counts characters."
                )
        found.append(
            {
                "id": str(row.get("id", number)), "title": str(row.get("title", "")), "context": row["context"],
                "question": row["question"], "answers": {"text": texts, "answer_start": starts},
            }
        )  # fmt: skip
    return Dataset.from_list(found, features=SQUAD)


def _read(path: Path) -> Dataset:
    if path.suffix.lower() == ".json" and path.is_file():
        try:
            held = json.loads(path.read_text(encoding="utf-8-sig"))
            if isinstance(held, dict) and "data" in held:
                rows = list(_of_articles(held["data"]))
                return Dataset.from_list(rows, features=SQUAD) if rows else _nothing()
        except (OSError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: expected SQuAD's JSON (data, paragraphs, qas), which can't be read: {error!r}."
            ) from error
        except json.JSONDecodeError:
            pass  # JSON lines, whose ending some give
    return read_table(path, [], "")


def _nothing() -> Dataset:
    return Dataset.from_dict({name: [] for name in SQUAD})


def _of_articles(articles: Any) -> Iterator[dict[str, Any]]:
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = asked["answers"]
                yield {
                    "id": str(asked["id"]), "title": str(article.get("title", "")), "context": paragraph["context"],
                    "question": asked["question"],
                    "answers": {
                        "text": [one["text"] for one in answers],
                        "answer_start": [one["answer_start"] for one in answers],
                    },
                }  # fmt: skip
