"""The embedded reading task: questions about signatures of the installed libraries, answered by a part of the text."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Sequence, Value

from hf_distill.corpora.library_sources import (
    LABELS,
    SPLIT_SHARES,
    definitions,
    kept_corpus,
    number_of,
    parsed,
    source_paths,
    split_of,
    versions_key,
)

# Raise this when a change below changes the questions, so that what an older version kept is not used.
BUILDER_VERSION = 2
QUESTIONS = {"train": 6000, "validation": 800, "test": 2000}
QUESTIONS_PER_FILE = 20
LONGEST_TEXT, LONGEST_ANSWER, WORDS_OF_DOCSTRING = 420, 60, 20
SQUAD = Features(
    {
        "id": Value("string"), "title": Value("string"), "context": Value("string"), "question": Value("string"),
        "answers": {"text": Sequence(Value("string")), "answer_start": Sequence(Value("int32"))},
    }
)  # fmt: skip


def signature_questions(
    cache_folder: str | os.PathLike[str] | None = None, report: Callable[[str], None] = print
) -> DatasetDict:
    """Questions about signatures, each answered by a part of its text, in the columns of SQuAD.

    A text is two functions of one source file, one after another: signature and the beginning of the docstring. The
    questions are what one of them returns, and which type or which default one of its parameters has; both have names
    and types that could be the answer. All questions of one source file are in the same split, and a function that was
    copied from one file to another is in one text alone. Equal versions of the libraries give equal questions.

    The first call reads the libraries (some seconds) and keeps the result on disk; later calls load it.

    Args:
        cache_folder: where the corpus is kept; by default `$HF_DISTILL_CACHE`, else `~/.cache/hf_distill`.
        report: receives each line of progress while the corpus is built.

    Returns:
        Splits `train` (about 4,000 questions), `validation` (600) and `test` (1,600), with `id`, `title` (the library),
        `context`, `question` and `answers`.

    Raises:
        FileNotFoundError: if one of the libraries has no source files here.

    Example:
        >>> row = signature_questions(report=lambda line: None)["test"][0]
        >>> start = row["answers"]["answer_start"][0]
        >>> row["context"][start:].startswith(row["answers"]["text"][0])
        True
    """
    return kept_corpus("signature_questions", versions_key(BUILDER_VERSION), _build, cache_folder, report)


def _build(report: Callable[[str], None]) -> DatasetDict:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in QUESTIONS}
    known: set[str] = set()
    for label in LABELS:
        of_library = _questions_of_library(label, known)
        report(f"  {label}: {sum(map(len, of_library.values()))} questions")
        for name, found in of_library.items():
            rows[name] += [
                {"id": f"{label}-{name}-{number}", "title": label, **one} for number, one in enumerate(found)
            ]
    return DatasetDict({name: Dataset.from_list(found, features=SQUAD) for name, found in rows.items()})


def _questions_of_library(label: str, known: set[str]) -> dict[str, list[dict[str, Any]]]:
    wanted = {name: -(-count // len(LABELS)) for name, count in QUESTIONS.items()}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
    sizes = dict.fromkeys(SPLIT_SHARES, 0)
    for path in source_paths(label):
        split = split_of(sizes)
        questions = _questions_of_file(path, known)
        sizes[split] += len(questions)
        found[split] += questions[: wanted[split] - len(found[split])]
        if all(len(found[name]) >= wanted[name] for name in wanted):
            break
    return found


@dataclass
class _Text:
    """A text that is being put together, and the questions that parts of it answer."""

    text: str = ""
    questions: list[tuple[str, str, int]] = field(default_factory=list)

    def add(self, part: str, question: str | None = None) -> None:
        if question is not None and len(part) <= LONGEST_ANSWER:
            self.questions.append((question, part, len(self.text)))
        self.text += part


def _questions_of_file(path: Path, known: set[str]) -> list[dict[str, Any]]:
    tree = parsed(path.read_bytes())
    functions = (
        []
        if tree is None
        else [node for node in definitions(tree.body) if not isinstance(node, ast.ClassDef)]
    )
    functions = [one for one in functions if _answers_something(one) and ast.get_docstring(one)]
    functions = [one for one in functions if _is_new(one, known)]
    found: list[dict[str, Any]] = []
    for first, second in zip(functions[::2], functions[1::2], strict=False):
        if first.name == second.name:
            continue
        text = _Text()
        for function in (first, second):
            _describe(function, text)
        if len(text.text) <= LONGEST_TEXT:
            found += _chosen(text, number_of(text.text))
    return found[:QUESTIONS_PER_FILE]


def _is_new(function: Any, known: set[str]) -> bool:
    """Whether nothing the same was described before, in whichever file and split; from now on it was."""
    alone = _Text()
    _describe(function, alone)
    new = alone.text not in known
    known.add(alone.text)
    return new


def _chosen(text: _Text, turn: int) -> Iterator[dict[str, Any]]:
    """Yield two questions of a text, of other kinds and functions from one text to the next."""
    count = len(text.questions)
    for step in range(min(2, count)):
        question, answer, start = text.questions[(turn + step * max(count // 2, 1)) % count]
        answers = {"text": [answer], "answer_start": [start]}
        yield {"context": text.text, "question": question, "answers": answers}


def _answers_something(function: Any) -> bool:
    """Whether a signature says what is returned, or a type or a default."""
    arguments = function.args
    given = [function.returns, *arguments.defaults, *arguments.kw_defaults]
    given += [one.annotation for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return any(one is not None for one in given)


def _describe(function: Any, text: _Text) -> None:
    """Add a function's signature and the beginning of its docstring."""
    name, arguments = function.name, function.args
    text.add(f"{name} (")
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(plain, defaults, strict=True)]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    for place, (one, default) in enumerate(pairs):
        text.add((", " if place else "") + one.arg)
        if one.annotation is not None:
            text.add(": ")
            text.add(ast.unparse(one.annotation), f"which type has {one.arg} of {name}?")
        if default is not None:
            text.add(" = ")
            value = ast.unparse(default)  # None is so common that a guess would do
            text.add(value, None if value == "None" else f"what is the default of {one.arg} of {name}?")
    text.add(")")
    if function.returns is not None:
        text.add(" -> ")
        text.add(ast.unparse(function.returns), f"what does {name} return?")
    words = (ast.get_docstring(function) or "").split("\n\n")[0].split()[:WORDS_OF_DOCSTRING]
    text.add(" : " + " ".join(words) + " ; ")
