"""The benchmark of pre-trained students: each start is what its name says, and a stopped run goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import BertForMaskedLM

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


def test_starts_are_what_their_names_say(folder: Path) -> None:
    models = {start: pretraining.model_of(start, folder, 3, 0) for start in pretraining.STARTS}
    bodies = {start: model.bert.encoder.layer[0].output.dense.weight for start, model in models.items()}
    for start, kind in (("MLM alone", "alone"), ("distilled", "distilled")):
        student = BertForMaskedLM.from_pretrained(folder / "seed_0" / kind)
        assert torch.equal(bodies[start], student.bert.encoder.layer[0].output.dense.weight)
    assert not torch.equal(bodies["random weights"], bodies["MLM alone"])
    assert {model.config.num_labels for model in models.values()} == {3}


def test_a_run_ends_in_a_table_and_a_second_one_trains_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["cat", "dog"])})
    rows = Dataset.from_dict({"text": TEXTS * 2, "label": [0, 1, 0, 1] * 2}, features=features)
    monkeypatch.setattr(pretraining, "docstring_corpus", lambda: DatasetDict(train=rows, test=rows))
    results = ["--results", str(tmp_path / "results.jsonl"), "--use_cpu"]
    monkeypatch.setattr(
        sys, "argv", ["pretraining.py", str(folder), "--max_train_samples", "4", "--epochs", "1", *results]
    )
    pretraining.main()
    table = capsys.readouterr().out.splitlines()[-1]
    assert table.startswith("| 4 |")
    assert table.count("%") == 3
    monkeypatch.setattr(pretraining, "right_answers", lambda *given: pytest.fail("trained again"))
    pretraining.main()
    assert capsys.readouterr().out.splitlines()[-1] == table
