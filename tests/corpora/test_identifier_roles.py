"""Roles of identifiers: what each is, by hand; lines in one split alone; the same whenever they are built."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from hf_distill.corpora import identifier_roles as module
from hf_distill.corpora import library_sources
from hf_distill.corpora.identifier_roles import NO_ROLE, ROLES, identifier_roles, roles_in


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os.path as p", "os module, path module, p assigned"),
        ("from a.b import c as d, e", "a module, b module, c imported, d assigned, e imported"),
        ("class A(b.C, D):\n    pass", "A class, b read, C base class, D base class"),
        ("@a.b(c)\ndef f(x: int, *y, z=w) -> List[str]: pass",
         "a read, b decorator, c read, f function, x parameter, int annotation, y parameter, z parameter, w read, "
         "List annotation, str annotation"),
        ("a.b.c(d, e=f.g)", "a read, b attribute, c method, d read, e argument, f read, g attribute"),
        ("raise Bad(x)", "Bad exception, x read"),
        ("try:\n    pass\nexcept (A, b.C) as e: pass", "A exception, b read, C exception"),
        ("ä.b = c", "ä read, b attribute, c read"),
        ("async def f(): return await g()", "f function, g called"),
        ("x: Dict = {}", "x assigned, Dict annotation"),
    ],
)  # fmt: skip
def test_roles_by_hand(code: str, expected: str) -> None:
    lines = code.split("\n")
    found = []
    for (line, column), role in sorted(roles_in(ast.parse(code), code).items()):
        name = re.match(r"\w+", lines[line - 1][column:])
        assert name is not None
        found.append(f"{name.group()} {role}")
    assert ", ".join(found) == expected


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A corpus over one library of ours."""
    root = tmp_path / "library"
    root.mkdir()
    for number in range(40):
        (root / f"file_{number}.py").write_text(
            f"import module_{number}.part\n"
            f'value_{number} = module_{number}.make("text {number}", size={number})  # a comment\n'
            "shared = other.same(1)\n"
            "x\n"
            f"text_{number} = f'{{value}} and more'.join(parts)\n"
        )
    (root / "broken.py").write_text("def (:\n")
    monkeypatch.setattr(library_sources, "root_of_library", lambda label: root)
    monkeypatch.setattr(module, "LABELS", ["own"])

    def build(name: str) -> Any:
        return identifier_roles(tmp_path / name, report=lambda line: None)

    return build


def test_words_and_tags_of_lines(corpus: Any) -> None:
    splits = corpus("one")
    lines = {tuple(row["tokens"]): row["tags"] for rows in splits.values() for row in rows}
    words = ("value_3", "=", "module_3", ".", "make", "(", '""', ",", "size", "=", "0", ")")
    roles = [ROLES[tag] if tag != NO_ROLE else None for tag in lines[words]]
    assert roles == [
        "assigned", None, "read", None, "method", None, None, None, "argument", None, None, None,
    ]  # fmt: skip
    assert ("text_3", "=", '""', ".", "join", "(", "parts", ")") in lines, "an f-string is one text"
    assert ("x",) not in lines
    counted = [tuple(row["tokens"]) for rows in splits.values() for row in rows]
    assert len(counted) == len(set(counted)), "no line twice"


def test_all_lines_of_a_file_are_in_one_split_and_a_second_build_is_the_same(corpus: Any) -> None:
    first, second = corpus("one"), corpus("two")
    split_of_file: dict[str, set[str]] = {}
    for name, rows in first.items():
        assert rows["tokens"][:] == second[name]["tokens"][:]
        for tokens in rows["tokens"]:
            numbers = {word.split("_")[1] for word in tokens if "_" in word}
            for number in numbers:
                split_of_file.setdefault(number, set()).add(name)
    assert {len(names) for names in split_of_file.values()} == {1}
    assert {name for names in split_of_file.values() for name in names} == {"train", "validation", "test"}
