"""SQuAD's files: read, divided by article, and refused where an answer is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_distill.corpora.files import DataError
from hf_distill.corpora.squad import read_questions

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CONTEXT = "Paris is the capital of France."


def article(title: str, start: int = 0, text: str = "Paris") -> dict[str, Any]:
    answers = [{"text": text, "answer_start": start}]
    asked = {"id": title, "question": f"What of {title}?", "answers": answers}
    return {"title": title, "paragraphs": [{"context": CONTEXT, "qas": [asked]}]}


def write(path: Path, articles: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"version": "1.1", "data": articles}))
    return path


def test_articles_are_never_in_two_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [article(name) for name in "abcdefghij"])
    splits = read_questions({"train": path})
    titles = {name: set(rows["title"]) for name, rows in splits.items()}
    assert {name: len(found) for name, found in titles.items()} == {"train": 6, "validation": 1, "test": 3}
    assert sum(map(len, titles.values())) == len(set.union(*titles.values()))
    assert {name: set(rows["title"]) for name, rows in read_questions({"train": path}).items()} == titles


def test_validation_articles_are_held_out_where_only_test_is_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [article(name) for name in "abcdefghij"])
    given = read_questions({"train": path, "test": path})
    assert {name: len(rows) for name, rows in given.items()} == {"train": 9, "validation": 1, "test": 10}
    assert not set(given["train"]["title"]) & set(given["validation"]["title"])
    every = read_questions(dict.fromkeys(("train", "validation", "test"), path))
    assert {len(rows) for rows in every.values()} == {10}


def test_questions_without_titles_are_divided_by_context(tmp_path: Path) -> None:
    rows = [
        {
            "context": f"{number} is a number.",
            "question": question,
            "answers": {"text": ["is"], "answer_start": [2]},
        }
        for number in range(5)
        for question in ("What?", "Which?")
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = read_questions({"train": tmp_path / "a.jsonl"})
    assert {name: len(of) for name, of in splits.items()} == {"train": 4, "validation": 2, "test": 4}
    contexts = [set(of["context"]) for of in splits.values()]
    assert sum(map(len, contexts)) == len(set.union(*contexts)) == 5


def test_questions_in_place_of_articles(tmp_path: Path) -> None:
    rows = [
        {
            "id": name,
            "title": name,
            "context": CONTEXT,
            "question": "Which?",
            "answers": {"text": ["Paris"], "answer_start": [0]},
        }
        for name in "abc"
    ]
    splits = read_questions({"train": write(tmp_path / "a.json", rows)})
    assert sorted(title for of in splits.values() for title in of["title"]) == ["a", "b", "c"]
    with pytest.raises(DataError, match="'question' is missing"):
        read_questions({"train": write(tmp_path / "b.json", [{"context": CONTEXT, "answers": []}])})
    with pytest.raises(DataError, match=r"b\.json: expected SQuAD's JSON"):
        read_questions({"train": write(tmp_path / "b.json", [{"context": CONTEXT}, 3])})


def test_a_list_of_answers_is_read_as_columns_are(tmp_path: Path) -> None:
    row = {"context": CONTEXT, "question": "?", "answers": [{"text": "France", "answer_start": 24}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    found = read_questions({"train": tmp_path / "a.jsonl"})["train"]
    assert found[0]["answers"] == {"text": ["France"], "answer_start": [24]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"text": ["France"], "answer_start": [-7]}}, "expected the answer 'France' at -7"),
        ({"answers": {"text": ["France"], "answer_start": [24.0]}}, "expected at least one answer with its start"),
        ({"answers": {"text": ["France"], "answer_start": [None]}}, "expected at least one answer with its start"),
        ({"answers": "France"}, "expected at least one answer with its start, such as .*received 'France'"),
        ({"context": None}, "question 1: expected a text in the column 'context', received None"),
        ({"question": " "}, "question 1: expected a text in the column 'question', received ' '"),
    ],
)  # fmt: skip
def test_rows_that_are_no_questions(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"context": CONTEXT, "question": "?", "answers": {"text": ["France"], "answer_start": [24]}}
    (tmp_path / "a.jsonl").write_text(json.dumps({**row, **change}))
    with pytest.raises(DataError, match=message):
        read_questions({"train": tmp_path / "a.jsonl"})


def test_rows_with_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    row = {"context": CONTEXT, "question": "?", "answers": {"text": ["France"], "answer_start": [24]}}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row))
    found = read_questions({"train": path})["train"]
    assert len(found) == 2
    assert found[0]["answers"] == row["answers"]


@pytest.mark.parametrize(
    ("articles", "message"),
    [
        ([article("a", 1)], r"question 1: expected the answer 'Paris' at 1 of the context, found 'aris '"),
        ([article("a", 0, "")], "expected the answer ''"),
        ([{"title": "a", "paragraphs": [{"context": CONTEXT}]}], "expected SQuAD's JSON"),
        ([], "at least one question"),
    ],
)
def test_what_is_refused(tmp_path: Path, articles: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_questions({"train": write(tmp_path / "a.json", articles)})


def test_questions_without_an_answer_and_other_columns(tmp_path: Path) -> None:
    none = article("a")
    none["paragraphs"][0]["qas"][0]["answers"] = []
    with pytest.raises(DataError, match="Remove questions without an answer"):
        read_questions({"train": write(tmp_path / "a.json", [none])})
    (tmp_path / "b.jsonl").write_text('{"question": "?"}')
    with pytest.raises(DataError, match="of which 'context' is missing"):
        read_questions({"train": tmp_path / "b.jsonl"})


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_the_shared_data_is_read() -> None:
    splits = read_questions({"train": SHARED / "xquad" / "xquad.en.json"})
    assert sum(len(rows) for rows in splits.values()) == 1190
