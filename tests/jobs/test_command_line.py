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
    strategy: str = field(default="no", metadata={"choices": ["no", "epoch"]})
    path: str | None = None
    alpha: float | str | dict[str, Any] | None = None
    weights: list[float] | str | None = field(default=None, metadata={"nargs": "+"})


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
        ("strategy: never", "strategy: expected one of no, epoch, received 'never'."),
        (
            "strategy: no",
            "received False. YAML reads no, off, yes and on as true and false: put it into quotes.",
        ),
        ("path: 7", "path: expected text, received 7. Put it into quotes."),
        ("path: [a.csv]", "path: expected text, received ['a.csv']."),
        ("layers: 3.0", "layers: expected a whole number, received 3.0."),
        ("layers: true", "layers: expected a whole number, received True."),
        ("rate: quick", "rate: expected a number, received 'quick'."),
        ("rate: [1]", "rate: expected a number, received [1]."),
        ("names: [a, 1]", "names: expected text, received 1. Put it into quotes."),
        ("names: null", "names: expected a list, received None."),
        ("fast: maybe", "fast: expected true or false, received 'maybe'."),
        ("alpha: [1]", "alpha: expected a number or text or a mapping, received [1]."),
    ],
)
def test_mistakes_in_the_file_name_it(settings: Path, text: str, message: str, capsys: Any) -> None:
    settings.write_text(text)
    with pytest.raises(SystemExit):
        parse([Settings], [str(settings)])
    said = capsys.readouterr().err
    assert message in said
    assert "settings.yaml" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "rate: 2\nnames: b\nfast: 'no'\nlayers: '4'",
            {"rate": 2.0, "names": ["b"], "fast": False, "layers": 4},
        ),
        ("strategy: 'no'\npath: null", {"strategy": "no", "path": None}),
        ("path: true", {"path": "true"}),  # --resume_from_checkpoint
        ("alpha: 1e-1", {"alpha": "1e-1"}),  # which the arguments read
        ("alpha: {schedule: linear}", {"alpha": {"schedule": "linear"}}),
        ("weights: [2, 1.5]", {"weights": [2.0, 1.5]}),
        ("weights: confidence", {"weights": ["confidence"]}),
    ],
)
def test_values_of_the_file_are_read_as_flags_are(
    settings: Path, text: str, expected: dict[str, Any]
) -> None:
    settings.write_text(text)
    read = vars(parse([Settings], [str(settings)])[0])
    assert {name: read[name] for name in expected} == expected


def test_a_file_in_another_encoding(settings: Path, capsys: Any) -> None:
    settings.write_bytes("path: café".encode("latin-1"))
    with pytest.raises(SystemExit):
        parse([Settings], [str(settings)])
    assert "settings.yaml: expected YAML in UTF-8" in capsys.readouterr().err


def test_what_is_no_users_mistake_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), short_errors():
        1 / 0  # noqa: B018
