"""The measurement of when distillation helps: its augmentations, its points, its tables, and a tiny run of it all."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from benchmarks import when_it_helps
from benchmarks.augmentation import AUGMENTATIONS, augmented, masking, mixing, ngram_sampling
from benchmarks.when_it_helps import TASKS, main, read, settings_of, tiny
from benchmarks.when_it_helps_figures import differences, draw, tables

TEXTS = [" ".join(f"{letter}{place}" for place in range(12)) for letter in "abcdefghij"] + ["one"]


def test_masking_hides_a_tenth_of_the_words_and_at_least_one() -> None:
    masked = masking(TEXTS * 100, Random(0), "[MASK]")
    words = [text.split() for text in masked]
    assert all(len(new) == len(old.split()) for new, old in zip(words, TEXTS * 100, strict=True))
    hidden = [new.count("[MASK]") for new in words]
    assert min(hidden) == 1
    long = [count for count, text in zip(hidden, TEXTS * 100, strict=True) if " " in text]
    assert sum(long) / len(long) == pytest.approx(1 + 11 * 0.1, abs=0.15)


def test_ngram_sampling_keeps_one_to_five_words_that_stand_together() -> None:
    sampled = ngram_sampling(TEXTS * 50, Random(0), "[MASK]")
    assert all(new in old for new, old in zip(sampled, TEXTS * 50, strict=True))
    lengths = Counter(len(new.split()) for new, old in zip(sampled, TEXTS * 50, strict=True) if " " in old)
    assert sorted(lengths) == [1, 2, 3, 4, 5]


def test_mixing_joins_the_halves_of_two_texts() -> None:
    mixed = mixing(TEXTS, Random(0), "[MASK]")
    firsts = [" ".join(text.split()[: (len(text.split()) + 1) // 2]) for text in TEXTS]
    seconds = [" ".join(text.split()[(len(text.split()) + 1) // 2 :]) for text in TEXTS]
    assert all(new.startswith(first) for new, first in zip(mixed, firsts, strict=True))
    rest = [new.removeprefix(first).strip() for new, first in zip(mixed, firsts, strict=True)]
    assert sorted(rest) == sorted(seconds)
    assert rest != seconds, "each text would be itself"


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmented_texts_are_those_of_their_seed(name: str) -> None:
    first = augmented(TEXTS, name, 2, 0, "[MASK]")
    assert len(first) == 2 * len(TEXTS)
    assert first == augmented(TEXTS, name, 2, 0, "[MASK]")
    assert first != augmented(TEXTS, name, 2, 1, "[MASK]")
    assert first[: len(TEXTS)] != first[len(TEXTS) :]


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_factor_passes_through_the_base_and_moves_one_thing(name: str) -> None:
    task = TASKS[name]
    for factor, points in task.factors().items():
        settings = [asdict(setting) for _, setting in points]
        moved = {key for key in settings[0] if len({setting[key] for setting in settings}) > 1}
        assert len(moved) == 1, factor
        assert (task.base in [setting for _, setting in points]) == ("," not in factor)
    assert len(list(settings_of(task))) == len(set(settings_of(task)))


def results_of(task: Any, seeds: int, gain: float) -> list[dict[str, Any]]:
    """Return made-up results: alone 0.5, distilled better by the gain and a hundredth a seed."""
    return [
        {
            "seed": seed,
            "setting": asdict(setting),
            "accuracy": 0.5 + (gain + 0.01 * seed if setting.alpha else 0.0),
            "teacher_accuracy": 0.7,
            "agreement": 0.6,
            "entropy": 1.0,
            "near_one_hot": 0.25,
        }
        for seed in range(seeds)
        for setting in settings_of(task)
    ]


def test_tables_hold_means_and_deviations_of_paired_differences() -> None:
    task = TASKS["builtin"]
    results = results_of(task, 3, 0.02)
    assert differences(results, task.base) == pytest.approx([2.0, 3.0, 4.0])
    row = next(line for line in tables(task, results).splitlines() if line.startswith("| alpha | **0.7** |"))
    assert row == "| alpha | **0.7** | 3 | 70.0 ± 0.0 | 1.00 | 50.0 ± 0.0 | 53.0 ± 1.0 | +3.0 ± 1.0 |"
    assert tables(task, results[:-1]).count("\n") == tables(task, results).count("\n"), "unfinished is shown"
    assert "| 0 |" in tables(task, []), "nothing is shown as nothing"


def test_the_plot_is_the_same_file_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the docs extra")
    task = TASKS["builtin"]
    path = draw(task, results_of(task, 3, 0.02), tmp_path / "plot.svg")
    first = path.read_bytes()
    assert b"points over the student alone" in first
    assert draw(task, results_of(task, 3, 0.02), path).read_bytes() == first
    assert len(first) < 200_000
    draw(task, results_of(task, 1, 0.02)[:5], path)  # unfinished


@pytest.mark.slow
def test_a_tiny_run_stops_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["cat", "dog", "cow"])})
    rows = {"text": [f"{'meow' if i % 3 else 'bark'} {i % 7} times {i}" for i in range(160)]}
    rows["label"] = [i % 3 for i in range(160)]
    split = Dataset.from_dict(rows, features=features)
    splits = DatasetDict({"train": split, "validation": split.select(range(24))})
    monkeypatch.setattr(when_it_helps, "load_texts", lambda _: DatasetDict(splits))
    words = ["--tiny", "--output", str(tmp_path), "--seeds", "0"]
    main(words)
    path = tmp_path / "builtin_tiny.jsonl"
    done, count = read(path), len(list(settings_of(tiny(TASKS["builtin"]))))
    assert len(done) == count
    assert len({row["steps"] for row in done if row["setting"]["epochs"] == 1}) == 1, "equal steps"
    assert all(("entropy" in row) == (row["setting"]["alpha"] > 0) for row in done)
    alone, base = (
        next(row for row in done if row["setting"] == asdict(setting))
        for setting in (tiny(TASKS["builtin"]).base.alone, tiny(TASKS["builtin"]).base)
    )
    assert alone["teacher_accuracy"] == base["teacher_accuracy"], "the same teacher measures both"
    path.write_text("".join(json.dumps(row) + "\n" for row in done[:-1]))
    capsys.readouterr()
    main(words)
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("seed 0")]) == 1
    again = read(path)[-1]
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in done[-1].items() if k != "seconds"
    }
