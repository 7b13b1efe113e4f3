"""Flags, YAML files and their mistakes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hf_distill.jobs.command_line import parse, short_errors


@dataclass
class Settings:
    """Something to fill."""

    layers: int = 2
    rate: float = 1e-3
    names: list[str] = field(default_factory=lambda: ["a"])
    fast: bool = True


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text("layers: 3\nrate: 5e-4\nnames: [b, c]\nfast: false\n")
    return path


def test_flags_override_the_file_and_the_file_the_defaults(settings: Path) -> None:
    (read,) = parse([Settings], [str(settings), "--layers", "4"])
    assert (read.layers, read.rate, read.names, read.fast) == (4, 5e-4, ["b", "c"], False)
    assert parse([Settings], [])[0] == Settings()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", "3"], "unknown flag --layer. Did you mean --layers?"),
        (["--layers", "three"], "invalid int value: 'three'"),
        (["missing.yml"], "no such file: missing.yml"),
        (["stray"], "stray"),
    ],
)
def test_mistakes_leave_with_2_and_a_line(words: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        parse([Settings], words)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layerz: 3", "unknown setting layerz. Did you mean layers?"),
        ("- 1", "expected a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_mistakes_in_the_file_name_it(settings: Path, text: str, message: str, capsys: Any) -> None:
    settings.write_text(text)
    with pytest.raises(SystemExit):
        parse([Settings], [str(settings)])
    said = capsys.readouterr().err
    assert message in said
    assert "settings.yaml" in said


def test_what_is_no_users_mistake_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), short_errors():
        1 / 0  # noqa: B018
