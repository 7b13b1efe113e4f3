"""The benchmark of pre-trained students: each start is what its name says, and a stopped run goes on."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoModelForSequenceClassification, BertForMaskedLM

from benchmarks import pretraining
from hf_distill.tasks.bert_models import bert_config
from hf_distill.tasks.wordpiece import train_tokenizer
from tests.tiny import perturbed

TEXTS = ["a meow", "the bark", "meow meow", "a bark"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(TEXTS, 60)
    for kind in ("alone", "distilled"):
        student = perturbed(BertForMaskedLM(bert_config(1, 16, tokenizer, 16)))
        for part in (student, tokenizer):
            part.save_pretrained(str(tmp_path / "masked" / "seed_0" / kind))
    return tmp_path / "masked"


def settings(folder: Path, *more: str) -> list[str]:
    return ["pretraining.py", str(folder), "--max_train_samples", "4", "--epochs", "1", "--use_cpu", *more]


def test_starts_are_what_their_names_say(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder / "seed_0" / "alone", other / "seed_0" / "distilled")
    student = perturbed(BertForMaskedLM.from_pretrained(other / "seed_0" / "distilled"), seed=4)
    student.save_pretrained(other / "seed_0" / "distilled")
    args = SimpleNamespace(folder=folder, other=other, other_student="distilled")
    assert pretraining.starts_of(args) == ["random weights", "MLM alone", pretraining.OTHER, "distilled"]
    task: Any = SimpleNamespace(auto_class=AutoModelForSequenceClassification, labels=3)
    models = {
        start: pretraining.model_of(task, start, pretraining.folder_of(args, start, 0), 0)
        for start in pretraining.starts_of(args)
    }
    bodies = {start: model.bert.encoder.layer[0].output.dense.weight for start, model in models.items()}
    paths = {
        "MLM alone": folder / "seed_0" / "alone",
        "distilled": folder / "seed_0" / "distilled",
        pretraining.OTHER: other / "seed_0" / "distilled",
    }
    for start, path in paths.items():
        expected = BertForMaskedLM.from_pretrained(path).bert.encoder.layer[0].output.dense.weight
        assert torch.equal(bodies[start], expected)
    for start in pretraining.starts_of(args)[1:]:
        assert not torch.equal(bodies["random weights"], bodies[start])
    assert {model.config.num_labels for model in models.values()} == {3}


def test_words_are_counted_by_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file = tmp_path / "tags.conll"
    file.write_text("a\tO\nmeow\tN\n\nthe\tO\n\na\tO\nbark\tN\n\nmeow\tN\n\n")
    results = tmp_path / "results.jsonl"
    files = ["--train_file", str(file), "--test_file", str(file), "--results", str(results)]
    monkeypatch.setattr(sys, "argv", settings(folder, *files))
    pretraining.main()
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert [one["start"] for one in found] == list(pretraining.STARTS)
    for one in found:
        assert one["asked"] == [2, 1, 2, 1]
        assert all(0 <= right <= asked for right, asked in zip(one["right"], one["asked"], strict=True))
    cell = capsys.readouterr().out.splitlines()[-1].split("|")[2]
    assert float(cell.split()[0]) == pytest.approx(100 * sum(found[0]["right"]) / 6, abs=0.05)


def test_a_run_ends_in_a_table_and_a_second_one_trains_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["cat", "dog"])})
    rows = Dataset.from_dict({"text": TEXTS * 2, "label": [0, 1, 0, 1] * 2}, features=features)
    monkeypatch.setattr(pretraining, "docstring_corpus", lambda: DatasetDict(train=rows, test=rows))
    monkeypatch.setattr(sys, "argv", settings(folder, "--results", str(tmp_path / "results.jsonl")))
    pretraining.main()
    table = capsys.readouterr().out.splitlines()[-1]
    assert table.startswith("| 4 |")
    assert table.count("%") == 3
    monkeypatch.setattr(pretraining, "right_answers", lambda *given: pytest.fail("trained again"))
    pretraining.main()
    assert capsys.readouterr().out.splitlines()[-1] == table
