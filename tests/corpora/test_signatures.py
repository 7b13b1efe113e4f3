"""Docstrings and signatures: what a pair is, and that no split shares a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_distill.corpora import library_sources, signatures
from hf_distill.corpora.signatures import docstring_signatures


def test_pairs_of_a_library_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "library"
    root.mkdir()
    for number in range(30):
        (root / f"file_{number}.py").write_text(
            f'def read_{number}(path, mode="r"):\n    """Read the file with the number {number}."""\n'
            f'def __init__(self):\n    """Not one of these, though it is long enough."""\n'
            'def same():\n    """Said in every single file of these."""\n'
            f"def {'long' * 30}{number}(x):\n    '''Its name is longer than what is wanted {number}.'''\n"
            f'class A:\n    async def write(self, *, to: str):\n        """Write number {number} somewhere else."""\n'
        )
    monkeypatch.setattr(library_sources, "root_of_library", lambda label: root)
    monkeypatch.setattr(signatures, "LABELS", ["own"])
    splits = docstring_signatures(tmp_path / "kept", report=lambda line: None)
    pairs = {row["prompt"]: row["completion"] for rows in splits.values() for row in rows}
    assert len(pairs) == 30 + 30 + 1
    assert pairs["Read the file with the number 7."] == "read_7(path, mode=)"
    assert pairs["Write number 7 somewhere else."] == "write(*, to)"
    split_of = {row["prompt"]: name for name, rows in splits.items() for row in rows}
    for number in range(30):
        assert (
            split_of[f"Read the file with the number {number}."]
            == split_of[f"Write number {number} somewhere else."]
        )
    assert set(split_of.values()) == {"train", "validation", "test"}
