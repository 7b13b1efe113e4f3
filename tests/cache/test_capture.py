"""Capturing: killed anywhere it goes on to the same bytes, and what would make a cache wrong is refused."""

import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DataCollatorWithPadding

from hf_distill import CacheError, TeacherCache
from hf_distill.cache import capture as capture_module
from hf_distill.cache import plan as plan_module
from hf_distill.cache.capture import locked
from tests.test_compatibility import tokenizer_of
from tests.tiny import bert, classifier, collate, examples, perturbed, teacher_of

# Small shards, and a pause around each, so that a kill falls between, before and into them. One process imports
# everything, and forks each capture.
WORKER = """
import os, random, signal, sys, time, torch
from hf_distill import TeacherCache
from hf_distill.cache import plan, shards
from tests.tiny import collate, examples, teacher_of

torch.set_num_threads(1)
plan.SHARD_BYTES = 400
write = shards._write_batch

def slowly(file, batch):
    file.write(b"")
    time.sleep(0.01)
    write(file, batch)
    time.sleep(0.01)

shards._write_batch = slowly
teacher, rows = teacher_of(), examples(96)

def started(folder):
    child = os.fork()
    if child == 0:
        TeacherCache.capture(teacher, rows, folder, data_collator=collate, batch_size=4, say=lambda line: None)
        os._exit(0)
    return child

start = time.perf_counter()
assert os.waitpid(started(sys.argv[1]), 0)[1] == 0
takes = time.perf_counter() - start
draw, killed = random.Random(0), 0
for _ in range(20):
    child = started(sys.argv[2])
    time.sleep(draw.uniform(0, takes / 4))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
assert os.waitpid(started(sys.argv[2]), 0)[1] == 0
print("killed", killed)
"""

# Two processes share the shards of one capture.
SHARED = """
import sys, torch
from pathlib import Path
from accelerate import PartialState
from hf_distill import TeacherCache
from hf_distill.cache import capture, plan
from tests.processes import leave_together
from tests.tiny import collate, examples, teacher_of

torch.set_num_threads(1)
plan.SHARD_BYTES = 400
state = PartialState(cpu=True)
whole, written = capture.write_shard, []
capture.write_shard = lambda path, keys, answers: (written.append(path.name), whole(path, keys, answers))
cache = TeacherCache.capture(teacher_of(), examples(96), sys.argv[1], data_collator=collate, batch_size=4)
said = f"{len(written)} shards, {len(cache)} answers, {state.num_processes} processes"
Path(sys.argv[1] + f"-{state.process_index}.txt").write_text(said)  # lines of two processes may mix when printed
leave_together()
"""


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def test_killed_at_twenty_moments_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path / "whole"), str(tmp_path / "killed")],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert int(ended.stdout.split()[-1]) > 10
    whole, killed = bytes_of(tmp_path / "whole"), bytes_of(tmp_path / "killed")
    assert len(whole) > 10
    assert killed == whole


def test_two_processes_share_a_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "SHARD_BYTES", 400)
    quick(tmp_path / "one", examples(96))
    worker = tmp_path / "worker.py"
    worker.write_text(SHARED)
    words = ["--nproc_per_node", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", str(worker)]
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, str(tmp_path / "two")],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("asking the teacher about 96 of 96 examples") == 1
    said = [(tmp_path / f"two-{rank}.txt").read_text() for rank in range(2)]
    assert min(int(line.split()[0]) for line in said) > 3
    assert all(line.endswith("96 answers, 2 processes") for line in said)
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


@pytest.mark.parametrize("room", [1000, 3000], ids=["no room for a shard", "no room for the index"])
def test_a_full_disk_is_named_and_the_capture_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(plan_module, "SHARD_BYTES", 400)
    quick(tmp_path / "whole", examples(96))
    sizes = {name: len(data) for name, data in bytes_of(tmp_path / "whole").items()}
    assert all(
        (size > room) == (room < 2000 or name.startswith("index"))
        for name, size in sizes.items()
        if name.endswith("arrow")
    )
    quick(tmp_path / "full", examples(8, seed=9))
    before = bytes_of(tmp_path / "full")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(CacheError, match="make room or give another folder"):
            quick(tmp_path / "full", examples(96))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    left = bytes_of(tmp_path / "full")
    assert {name: left.get(name) for name in before} == before
    assert len(TeacherCache(tmp_path / "full")) == 8
    assert len(quick(tmp_path / "full", examples(96))) == 104


def quick(folder: Path, rows: Any, teacher: Any = None, **options: Any) -> Any:
    options = {"data_collator": collate, "say": lambda line: None, "batch_size": 4, **options}
    return TeacherCache.capture(teacher_of() if teacher is None else teacher, rows, folder, **options)


def test_cut_off_between_shards_it_asks_for_the_rest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "SHARD_BYTES", 400)
    quick(tmp_path / "whole", examples(40))
    asked = []
    write = capture_module.write_shard

    def cut_off(path: Path, keys: Any, answers: Any) -> None:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(keys))
        write(path, keys, answers)

    monkeypatch.setattr(capture_module, "write_shard", cut_off)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "cut", examples(40))
    with pytest.raises(CacheError, match="found a capture that was cut off"):
        TeacherCache(tmp_path / "cut")
    again: list[int] = []
    monkeypatch.setattr(
        capture_module, "write_shard", lambda path, keys, a: (again.append(len(keys)), write(path, keys, a))
    )
    quick(tmp_path / "cut", examples(40))
    assert sum(again) == 40 - sum(asked)
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


def test_a_second_capture_asks_nothing_and_another_set_is_added(tmp_path: Path) -> None:
    said: list[str] = []
    quick(tmp_path, examples(20))
    before = bytes_of(tmp_path)
    quick(tmp_path, examples(20), say=said.append)
    assert bytes_of(tmp_path) == before
    assert "the teacher's answers to all 20 examples are in" in said[0]
    cache = quick(tmp_path, {"train": examples(20), "test": examples(6, seed=5)}, say=said.append)
    assert len(cache) == 26
    assert said[2].startswith("test: asking the teacher about 6 of 6 examples")


def test_the_same_content_is_asked_once(tmp_path: Path) -> None:
    said: list[str] = []
    cache = quick(tmp_path, examples(8) + examples(8), say=said.append)
    assert len(cache) == 8
    assert "asking the teacher about 8 of 16 examples" in said[0]


def test_the_estimate_is_what_it_takes(tmp_path: Path) -> None:
    rows = examples(600)
    said: list[str] = []
    kept = len(quick(tmp_path, rows, say=said.append))
    amount, unit = said[0].split("; ")[1].split(" ")[:2]
    estimated = float(amount) * {"bytes": 1, "kB": 1e3}[unit]
    taken = sum(path.stat().st_size for path in tmp_path.glob("*-of-*.arrow"))
    assert estimated == pytest.approx(taken, rel=0.05, abs=2000)
    assert said[1].startswith(f"dataset: kept {kept} answers in ")
    each, promised = said[1].split(", ")[1].removesuffix(" estimated)").split(" bytes each (")
    assert float(each) == pytest.approx(taken / kept, abs=0.06)
    assert float(promised) == pytest.approx(estimated / kept, rel=0.01)


def test_inputs_drawn_anew_are_refused(tmp_path: Path) -> None:
    def masked(rows: list[Any]) -> Any:
        batch = collate(rows)
        hidden = torch.rand(batch["input_ids"].shape) < 0.5
        return {**batch, "input_ids": batch["input_ids"].masked_fill(hidden, 2)}

    with pytest.raises(CacheError, match=r"random augmentation, or masks drawn anew.*from a seed"):
        quick(tmp_path, examples(20), data_collator=masked)

    class Seeded(list):  # type: ignore[type-arg]
        """The view of each row is drawn from its number."""

        def __getitem__(self, index: Any) -> Any:
            row = dict(super().__getitem__(index))
            draw = random.Random(index)
            return {**row, "input_ids": [2 if draw.random() < 0.5 else i for i in row["input_ids"]]}

    assert len(quick(tmp_path, Seeded(examples(20)))) == 20


def test_two_captures_at_once_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(CacheError, match="no other capture into this folder"):
        quick(tmp_path, examples(4))
    quick(tmp_path, examples(4))


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CacheError, match=r"file: expected a folder to write the cache into"):
        quick(tmp_path / "file", examples(4))


def test_logits_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    teacher = teacher_of()
    with torch.no_grad():
        teacher.classifier.bias[0] = float("nan")
    with pytest.raises(CacheError, match="expected finite logits"):
        quick(tmp_path, examples(4), teacher)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_states": [3]}, "numbers from 0 to 2, received"),
        ({"teacher": torch.nn.Linear(1, 1)}, "expected a transformers model, a Hub id or a folder"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CacheError, match=message):
        quick(tmp_path, examples(4), **options)


def test_text_is_encoded_with_the_teachers_tokenizer(tmp_path: Path) -> None:
    from hf_distill.tasks.wordpiece import train_tokenizer

    texts = ["one short text", "another text that is somewhat longer", "one"]
    tokenizer = train_tokenizer(texts, 50)
    teacher = bert(2, vocab_size=len(tokenizer))
    cache = quick(
        tmp_path, [{"text": text} for text in texts], teacher, data_collator=None, processing_class=tokenizer
    )
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.allclose(cache(dict(batch)).logits, teacher(**batch).logits, atol=1e-6)
    with pytest.raises(CacheError, match="tokenizer: expected the one that"):
        cache.check_tokenizer(train_tokenizer(["other words"], 50))


def test_hidden_states_of_other_positions_than_the_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="expected an answer for each of 3 positions, received 5"):
        TeacherCache.capture(
            classifier("vit"), examples(4, "image"), tmp_path, data_collator=collate, hidden_states=[1],
            say=lambda line: None,
        )  # fmt: skip


def test_padding_that_the_teacher_does_not_know_is_the_collators(tmp_path: Path) -> None:
    """A GPT-2 classifier reads the last token that is no padding, by its config's id."""
    teacher = perturbed(classifier("gpt2", 2), 0.1)
    teacher.config.pad_token_id = 1
    tokenizer = tokenizer_of(["[CLS]", "[SEP]", *[f"w{n}" for n in range(40)]])
    rows = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in examples(12)]
    padding = DataCollatorWithPadding(tokenizer)
    cache = TeacherCache.capture(teacher, rows, tmp_path, data_collator=padding, say=lambda line: None)
    for row in rows[:4]:
        alone = {name: torch.tensor([values]) for name, values in row.items()}
        assert torch.allclose(cache(alone).logits, teacher(**alone).logits, atol=1e-5)
