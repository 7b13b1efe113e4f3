"""Reading questions whose answers are parts of a text: SQuAD's JSON, and rows with its columns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
from datasets import Dataset, DatasetDict
from pyarrow.lib import ArrowInvalid

from hf_distill.corpora.files import DataError, read_table
from hf_distill.corpora.signature_questions import SQUAD

_COLUMNS = ("context", "question", "answers")
# Of the articles of one file, where no other is given; and where only the test questions are.
SHARES = {"train": 0.6, "validation": 0.1, "test": 0.3}
HELD_OUT = {"train": 0.9, "validation": 0.1}


def read_questions(files: Mapping[str, str | os.PathLike[str]]) -> DatasetDict:
    """Read one file of questions for each split: SQuAD 1.1's JSON, or JSON lines or Parquet with its columns.

    In the JSON, rows with these columns may stand in place of articles, as transformers' examples read them.

    Where only `train` is given, it is divided by whole articles (`title`), 60, 10 and 30 % of them, drawn by a fixed
    seed; where only `validation` is missing, a tenth of the training articles is held out for it. Questions without
    at least as many titles as splits are divided by their contexts: questions about one text are never in two splits.

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
    if "validation" not in splits:
        splits |= _divided(splits["train"], HELD_OUT if "test" in splits else SHARES)
    return DatasetDict(splits)


def _divided(whole: Dataset, shares: Mapping[str, float]) -> dict[str, Dataset]:
    """Divide questions by whole articles, or whole contexts where there are too few articles."""
    for column in ("title", "context"):
        groups = sorted(set(whole[column]))
        if len(groups) >= len(shares):
            break
    else:
        return {"train": whole}
    order = numpy.random.default_rng(0).permutation(len(groups))
    counts = {name: max(round(share * len(groups)), 1) for name, share in shares.items() if name != "train"}
    counts = {"train": len(groups) - sum(counts.values()), **counts}
    parts, start = {}, 0
    for name, count in counts.items():
        chosen = {groups[place] for place in order[start : start + count]}
        parts[name] = whole.select([row for row, group in enumerate(whole[column]) if group in chosen])
        start += count
    return parts


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
        place = f"{source}: question {number + 1}"
        for column in ("context", "question"):
            if not isinstance(row[column], str) or not row[column].strip():
                raise DataError(
                    f"{place}: expected a text in the column {column!r}, received {row[column]!r}. Remove the row."
                )
        texts, starts = _answers(row["answers"], place)
        for text, start in zip(texts, starts, strict=True):
            if start < 0 or row["context"][start : start + len(text)] != text or not text:
                raise DataError(
                    f"{place}: expected the answer {text!r} at {start} of the context, found "
                    f"{row['context'][max(start, 0) :][: len(text)]!r} there. Mend answer_start, which counts "
                    "characters from 0."
                )
        found.append(
            {
                "id": str(row.get("id", number)), "title": str(row.get("title", "")), "context": row["context"],
                "question": row["question"], "answers": {"text": texts, "answer_start": starts},
            }
        )  # fmt: skip
    return Dataset.from_list(found, features=SQUAD)


def _answers(answers: Any, place: str) -> tuple[list[str], list[int]]:
    """Return the texts of a question's answers and where they start, from columns or from a list of answers."""
    if isinstance(answers, list) and all(isinstance(one, dict) for one in answers):
        answers = {name: [one.get(name) for one in answers] for name in ("text", "answer_start")}
    texts, starts = (
        (answers.get(name) if isinstance(answers, dict) else None) for name in ("text", "answer_start")
    )
    if not (
        isinstance(texts, list)
        and isinstance(starts, list)
        and 0 < len(texts) == len(starts)
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(start, int) for start in starts)
    ):
        raise DataError(
            f"{place}: expected at least one answer with its start, such as "
            f"{{'text': ['blue'], 'answer_start': [11]}}, received {repr(answers)[:80]}. Remove questions without an "
            "answer (SQuAD 2's)."
        )
    return texts, starts


def _read(path: Path) -> Dataset:
    if path.suffix.lower() == ".json" and path.is_file():
        try:
            held = json.loads(path.read_text(encoding="utf-8-sig"))
            if isinstance(held, dict) and "data" in held:
                if _is_flat(held["data"]):
                    return Dataset.from_list(held["data"])
                rows = list(_of_articles(held["data"], path))
                return Dataset.from_list(rows, features=SQUAD) if rows else _nothing()
        except (OSError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ArrowInvalid) as error:
            raise DataError(
                f"{path}: expected SQuAD's JSON, articles in data with paragraphs of context and qas, which can't be "
                f"read: {error!r}. Bring it to that form, or give JSON lines with {', '.join(_COLUMNS)}."
            ) from error
        except json.JSONDecodeError:
            pass  # JSON lines, whose ending some give
    return read_table(path, [], "")


def _is_flat(rows: Any) -> bool:
    """Whether a file has questions where SQuAD has articles, as transformers' examples read them."""
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and "context" in rows[0]


def _nothing() -> Dataset:
    return Dataset.from_dict({name: [] for name in SQUAD})


def _of_articles(articles: Any, path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                number += 1
                missing = [name for name in ("id", "question", "answers") if name not in asked]
                if missing:
                    raise DataError(
                        f"{path}: question {number}: expected id, question and answers, received none of "
                        f"{', '.join(missing)}. Add them."
                    )
                answers = asked["answers"]
                yield {
                    "id": str(asked["id"]), "title": str(article.get("title", "")), "context": paragraph["context"],
                    "question": asked["question"],
                    "answers": {
                        "text": [one["text"] for one in answers],
                        "answer_start": [one["answer_start"] for one in answers],
                    },
                }  # fmt: skip
