"""Built-in questions: answers are where they are said to be, and are right, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_distill.corpora import library_sources
from hf_distill.corpora import signature_questions as module
from hf_distill.corpora.signature_questions import signature_questions

CODE = '''
def first_{n}(a, b: int = {n}, *, c: "List[str]" = None) -> Dict[str, int]:
    """Say the first thing.

    More.
    """

class Some:
    def second_{n}(self, x=("t", {n})):
        """Say another."""

def without_docstring(a: int): ...

def copied(a: float = 0.5) -> "Copy":
    """In every file of these."""

def beside_it_{n}(a: bool = True) -> bytes:
    """In this one alone."""
'''


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    root = tmp_path / "library"
    root.mkdir()
    for number in range(30):
        (root / f"file_{number}.py").write_text(CODE.replace("{n}", str(number)))
    monkeypatch.setattr(library_sources, "root_of_library", lambda label: root)
    monkeypatch.setattr(module, "LABELS", ["own"])
    return signature_questions(tmp_path / "kept", report=lambda line: None)


def test_every_answer_is_in_its_text_and_right(corpus: Any) -> None:
    seen = set()
    for rows in corpus.values():
        for row in rows:
            (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
            assert row["context"][start : start + len(text)] == text
            if "beside_it" in row["context"]:
                continue
            number = row["context"].split("first_")[1].split()[0]
            expected = {
                f"what does first_{number} return?": "Dict[str, int]",
                f"which type has b of first_{number}?": "int",
                f"which type has c of first_{number}?": "'List[str]'",
                f"what is the default of b of first_{number}?": number,
                f"what is the default of x of second_{number}?": f"('t', {number})",
            }
            assert expected[row["question"]] == text
            seen.add(row["question"].split(" ")[1] + text[:4])
            assert row["context"].endswith("Say another. ; ")
    assert len(seen) > 3, "questions of all kinds"


def test_texts_are_in_one_split_and_no_question_is_asked_twice(corpus: Any) -> None:
    contexts = [context for rows in corpus.values() for context in set(rows["context"])]
    assert len(contexts) == len(set(contexts))
    assert sum("copied (" in context for context in contexts) == 1
    asked = [(row["context"], row["question"]) for rows in corpus.values() for row in rows]
    assert len(asked) == len(set(asked)) > 40
