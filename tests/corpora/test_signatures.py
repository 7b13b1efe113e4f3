"""Docstrings and signatures: what a pair is, and that no split shares a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_distill.corpora import library_sources, signatures
from hf_distill.corpora.signatures import docstring_signatures


def function(signature: str, summary: str, parameter: str) -> str:
    return f'def {signature}:\n    """{summary}\n\n    Args:\n        {parameter}.\n    """\n'


def test_pairs_of_a_library_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "library"
    root.mkdir()
    for number in range(30):
        (root / f"file_{number}.py").write_text(
            function(f"read_{number}(path, mode='r')", f"Read the file {number}.", "path: where")
            + function("__init__(self, x)", f"Not one of these {number}.", "x: a number")
            + function("same(x)", "Said in every single file.", "x: a number")
            + f'def bare_{number}(x):\n    """Names no parameter {number}."""\n'
            + function(f"told_{number}(x)", f"told_{number}(x) is said.", "x: a number")
            + function(f"{'long' * 30}{number}(x)", f"Too long {number}.", "x: a number")
            + f'class A:\n    async def write(self, *, to: str):\n        """Write number {number}.\n\n'
            "        Parameters\n        ----------\n        to : str\n            Whereto.\n\n"
            '        Returns\n        -------\n        int : no parameter.\n        """\n'
        )
    monkeypatch.setattr(library_sources, "root_of_library", lambda label: root)
    monkeypatch.setattr(signatures, "LABELS", ["own"])
    splits = docstring_signatures(tmp_path / "kept", report=lambda line: None)
    pairs = {row["prompt"]: row["completion"] for rows in splits.values() for row in rows}
    assert len(pairs) == 30 + 30 + 1
    assert pairs["Read the file 7. Parameters: path"] == "read_7(path, mode=)"
    assert pairs["Write number 7. Parameters: to (str)"] == "write(*, to)"
    split_of = {row["prompt"]: name for name, rows in splits.items() for row in rows}
    for number in range(30):
        assert (
            split_of[f"Read the file {number}. Parameters: path"]
            == split_of[f"Write number {number}. Parameters: to (str)"]
        )
    assert set(split_of.values()) == {"train", "validation", "test"}
