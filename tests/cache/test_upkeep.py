"""Looking after a cache: damage is named and set aside, parts are merged, and the command says so."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_distill import CacheError, TeacherCache
from hf_distill.cache import plan as plan_module
from hf_distill.cache.command_line import main
from hf_distill.cache.manifest import MANIFEST_NAME
from hf_distill.cache.source import default_folder
from hf_distill.cache.upkeep import inspect, merge, repair, verify
from tests.tiny import bert, classifier, collate, examples, teacher_of

ROWS = examples(24)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "SHARD_BYTES", 400)


def captured(folder: Path, rows: Any = ROWS, teacher: Any = None) -> TeacherCache:
    teacher = teacher_of() if teacher is None else teacher
    cache: TeacherCache = TeacherCache.capture(
        teacher, rows, folder, data_collator=collate, batch_size=4, say=lambda line: None
    )
    return cache


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-of-*.arrow"))


def test_a_whole_cache_has_no_problem_and_says_what_it_is(tmp_path: Path) -> None:
    captured(tmp_path)
    assert verify(tmp_path) == []
    said = inspect(tmp_path)
    assert "full (dtype float32), 3 classes, one per example, single_label" in said
    assert f"24 in {len(shards(tmp_path))} shards" in said


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing, with"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "bytes instead of"),
        (flip, "holds other bytes than were written"),
    ],
)
def test_damage_is_named_set_aside_and_captured_anew(tmp_path: Path, damage: Any, message: str) -> None:
    captured(tmp_path)
    bad, *others = shards(tmp_path)
    before = {path.name: path.read_bytes() for path in others}
    damage(bad)
    (problem,) = verify(tmp_path)
    assert problem.file == bad.name
    assert message in str(problem)
    assert [one.file for one in repair(tmp_path)] == [bad.name]
    assert verify(tmp_path) == []
    assert len(TeacherCache(tmp_path)) < len(ROWS)
    cache = captured(tmp_path)
    assert len(cache) == len(ROWS)
    assert {path.name: path.read_bytes() for path in others} == before, "nothing else was touched"


def test_a_damaged_row_is_found_when_it_is_read(tmp_path: Path) -> None:
    captured(tmp_path)
    for path in shards(tmp_path):
        data = bytearray(path.read_bytes())
        for place in range(len(data) // 3, len(data) * 2 // 3):
            data[place] ^= 1
        path.write_bytes(data)
    with pytest.raises(CacheError, match=r"-of-\d+.arrow: expected"):
        TeacherCache(tmp_path)(collate(ROWS))


def test_a_lost_index_is_built_anew(tmp_path: Path) -> None:
    cache = captured(tmp_path)
    (tmp_path / str(cache.manifest.index)).unlink()
    with pytest.raises(CacheError, match="--repair"):
        TeacherCache(tmp_path)
    repair(tmp_path)
    assert len(TeacherCache(tmp_path)) == len(ROWS)


def test_parts_captured_apart_are_merged(tmp_path: Path) -> None:
    for number in range(3):
        captured(tmp_path / str(number), ROWS[number::3])
    merge([tmp_path / str(number) for number in range(3)], tmp_path / "all")
    cache = TeacherCache(tmp_path / "all")
    assert len(cache) == len(ROWS)
    assert verify(tmp_path / "all") == []
    batch = collate(ROWS)
    whole = captured(tmp_path / "whole")
    assert (cache(batch).logits - whole(batch).logits).abs().max() < 1e-5  # type: ignore[operator]


def test_the_same_weights_at_two_places_are_one_teacher(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        teacher_of().save_pretrained(str(tmp_path / name))
        captured(tmp_path / f"cache-{name}", ROWS[number::2], str(tmp_path / name))
    names = [TeacherCache(tmp_path / f"cache-{name}").source.teacher for name in "ab"]
    assert names == [str(tmp_path / "a"), str(tmp_path / "b")]
    sources = [TeacherCache(tmp_path / f"cache-{name}").source for name in "ab"]
    assert default_folder(tmp_path, sources[0]) == default_folder(tmp_path, sources[1])
    merge([tmp_path / "cache-a", tmp_path / "cache-b"], tmp_path / "all")
    assert len(TeacherCache(tmp_path / "all")) == len(ROWS)


def test_caches_of_two_teachers_are_not_merged(tmp_path: Path) -> None:
    captured(tmp_path / "a")
    captured(tmp_path / "b", teacher=bert(2, seed=3))
    with pytest.raises(CacheError, match=r"weights: expected .*b and .*a to have the same"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    with pytest.raises(CacheError, match="found one that is not empty"):
        merge([tmp_path / "a"], tmp_path / "b")


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    captured(tmp_path / "a", ROWS[:12])
    captured(tmp_path / "b", ROWS[12:])
    main(["cache", "merge", str(tmp_path / "c"), str(tmp_path / "a"), str(tmp_path / "b")])
    main(["cache", "inspect", str(tmp_path / "c")])
    main(["cache", "verify", str(tmp_path / "c")])
    printed = capsys.readouterr().out
    assert "24 examples of 2 caches" in printed
    assert "examples:      24 in" in printed
    assert f"{tmp_path / 'c'}: whole" in printed
    shards(tmp_path / "c")[0].unlink()
    with pytest.raises(SystemExit) as ended:
        main(["cache", "verify", str(tmp_path / "c")])
    assert ended.value.code == 1
    assert "is missing" in capsys.readouterr().out
    main(["cache", "verify", "--repair", str(tmp_path / "c")])
    assert "set aside" in capsys.readouterr().out
    assert len(TeacherCache(tmp_path / "a")) == 12, "what was merged is as it was"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected `hf-distill cache"),
        (["cache", "inspect", "not_there"], f"found no {MANIFEST_NAME} there"),
        (["cache", "capture", "--teacher", "x"], "--folder: expected one, received none"),
        (
            ["cache", "capture", "--teacher", "x", "--folder", "y", "--shard", "4/4"],
            "--shard: expected a number",
        ),
    ],
)
def test_a_wrong_command_is_a_line(words: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def texts_and_teacher(folder: Path) -> None:
    """Write train.csv and a teacher with its tokenizer."""
    from hf_distill.tasks.wordpiece import train_tokenizer

    texts = [f"text number {number} about {'cats' if number % 2 else 'dogs'}" for number in range(12)]
    table = "\n".join(["text,label", *(f"{text},{text[-4:]}" for text in texts)])
    (folder / "train.csv").write_text(table)
    tokenizer = train_tokenizer(texts, 60)
    tokenizer.save_pretrained(folder / "teacher")
    bert(2, vocab_size=len(tokenizer), num_labels=2).save_pretrained(folder / "teacher")


def test_a_language_models_answers_from_the_command_line(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_distill import TeacherCache
    from hf_distill.tasks.byte_pairs import train_byte_pairs

    texts = [f"number {number} and its neighbour {number + 1}" for number in range(40)]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    tokenizer = train_byte_pairs(texts, 300)
    teacher = classifier("llama_lm", vocab_size=len(tokenizer))
    for part in (teacher, tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    words = ["cache", "capture", "--task", "causal_lm", "--teacher", "teacher", "--train_file", "text.txt"]
    main([*words, "--block_size", "16", "--folder", "kept", "--format", "sampled", "--draws", "4"])
    assert "kept: " in capsys.readouterr().out
    cache = TeacherCache(tmp_path / "kept")
    assert cache.source.head["shift"] is True
    assert cache.source.signals["name"] == "sampled"
    ids = tokenizer("<|endoftext|>".join(texts[:32]))["input_ids"][:16]
    assert cache({"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, 16, dtype=torch.long)})
    for task, message in (
        ("masked_lm", "masks are drawn anew each epoch"),
        ("none", "task: expected one of"),
    ):
        with pytest.raises(SystemExit):
            main([*words[:3], task, "--teacher", "teacher", "--folder", "other"])
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_capture_from_the_command_line(tmp_path: Path, repository: Path) -> None:
    texts_and_teacher(tmp_path)
    (tmp_path / "run.py").write_text("from hf_distill.cache.command_line import main\nmain()\n")
    words = [
        "cache",
        "capture",
        "--teacher",
        "teacher",
        "--train_file",
        "train.csv",
        "--validation_file",
        "train.csv",
    ]
    two = ["--quiet", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    said = {}
    for name, launch in (
        ("two", ["-m", "accelerate.commands.launch", *two]),
        ("one", []),
        ("one", ["-m", "accelerate.commands.launch", *two]),
    ):
        done = subprocess.run(
            [sys.executable, *launch, "run.py", *words, "--folder", name], cwd=tmp_path, capture_output=True, text=True,
            check=False, timeout=300, env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        said[name] = done.stdout
    assert "the teacher's answers to all 12 examples are in one" in said["one"], (
        "two processes find one's answers"
    )
    read = [
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.arrow")}
        for name in ("one", "two")
    ]
    assert read[0] == read[1]


def test_capture_from_files(tmp_path: Path, capsys: Any) -> None:
    texts_and_teacher(tmp_path)
    given = ["--teacher", tmp_path / "teacher", "--train_file", tmp_path / "train.csv", "--validation_file"]
    given += [tmp_path / "train.csv", "--format", "top_k", "--k", 2, "--folder"]
    for number in range(2):
        main(["cache", "capture", *map(str, given), str(tmp_path / str(number)), "--shard", f"{number}/2"])
    main(["cache", "merge", str(tmp_path / "all"), str(tmp_path / "0"), str(tmp_path / "1")])
    assert "12 examples of 2 caches" in capsys.readouterr().out
    assert TeacherCache(tmp_path / "all").provides == {"top_k"}
