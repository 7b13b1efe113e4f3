"""The benchmarks of the teacher cache run through, in sizes whose numbers mean nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import enable_progress_bars
from transformers.utils import logging

from benchmarks import cache_memory, cache_quality, cache_speed
from hf_distill import TeacherCache


@pytest.fixture(autouse=True)
def _loud_again() -> Iterator[None]:
    """Undo what a benchmark silences for its whole process."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)
    logging.enable_progress_bar()
    enable_progress_bars()


SHARED = Path(__file__).parents[2] / "../shared/data"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["step", "--steps", "2"], "cached / plain: "),
        (["epochs", "--steps", "1", "--epochs", "1"], "break-even after "),
        (["capture", "--steps", "1"], "throughput of a capture / bare loop sorted by length: "),
    ],
    ids=["step", "epochs", "capture"],
)
def test_speed(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_speed, "PAIRS", (cache_speed.Pair(2, 64, 1, 64),) * 2)
    cache_speed.main([*words, "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "2 x 64 into 1 x 64" in printed
    assert printed.count(said) == (2 if words[0] == "epochs" else 1)


def test_memory_texts_are_all_different_and_all_found(tmp_path: Path) -> None:
    cache_memory.capture(1500, tmp_path)
    assert len(TeacherCache(tmp_path)) == 1500
    found = cache_memory.read(1500, tmp_path)
    assert found["rows"] == 1500
    assert found["open_seconds"] > 0
    assert found["RssAnon_more_MB"] < 500


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("kind", ["banking77", "shakespeare"])
def test_quality(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_quality, "DATA", SHARED)
    words = [kind, "--tiny", "--seeds", "0", "--folder", str(tmp_path)]
    cache_quality.main(words)
    table = capsys.readouterr().out.split("| Teacher's answers")[1]
    rows = [json.loads(line) for line in (tmp_path / f"cache_quality_{kind}.jsonl").read_text().splitlines()]
    assert {row["setting"] for row in rows} == {"teacher", *cache_quality.settings(kind)}
    named: dict[str, Any] = {row["setting"]: row for row in rows}
    online, cached = (
        next(row for name, row in named.items() if name.startswith(start)) for start in ("online", "float32")
    )
    assert cached["perplexity"] == pytest.approx(online["perplexity"], rel=1e-4)
    cache_quality.main(words)
    again = capsys.readouterr().out
    assert "{" not in again, "what is there is not run again"
    assert again.split("| Teacher's answers")[1] == table


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cache_quality, "DATA", SHARED)
    cache_quality.main(["parity", "--tiny", "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    worst = float(printed.split("largest relative difference of a loss: ")[1].split()[0])
    assert worst < 1e-5
    assert "2 steps" in printed
