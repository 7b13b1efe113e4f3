"""Models and tokenizers by name: what can't work is said before any training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, GPT2Config, MPNetConfig, T5Config

from hf_distill.tasks.bert_models import TextModelArguments
from hf_distill.tasks.named_models import load_pretrained, load_tokenizer
from hf_distill.tasks.task import processors_of
from hf_distill.tasks.text_classification import TextClassification
from hf_distill.tasks.text_data import TextDataArguments
from hf_distill.tasks.wordpiece import train_tokenizer
from hf_distill.teachers.online import load_trained_model
from tests.tiny import bert, classifier

HEAD = AutoModelForSequenceClassification
FLAG = "--student_model_name_or_path"
MISSING = "expected a tokenizer beside the model, received none.*tokenizer.save_pretrained"


def saved(folder: Path, *parts: Any) -> str:
    for part in parts:
        part.save_pretrained(str(folder))
    return str(folder)


def cut_short(folder: str) -> str:
    path = Path(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return folder


@pytest.fixture
def tokenizer() -> Any:
    return train_tokenizer(["one two", "three"], 60)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "modernbert"])
def test_a_tokenizer_that_is_made_up(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=MISSING):
        load_tokenizer(saved(tmp_path, classifier(kind)))


@pytest.mark.parametrize("config", [T5Config, MPNetConfig, GPT2Config])
def test_a_tokenizer_that_is_made_up_from_a_config(tmp_path: Path, config: Any) -> None:
    with pytest.raises(ValueError, match=MISSING):
        load_tokenizer(saved(tmp_path, config()))


def test_teachers_and_student_without_a_tokenizer(tmp_path: Path, tokenizer: Any) -> None:
    whole, bare = saved(tmp_path / "whole", bert(), tokenizer), saved(tmp_path / "bare", bert())
    with pytest.raises(ValueError, match=f"bare.*{MISSING}"):
        processors_of(TextClassification(TextDataArguments(), TextModelArguments()), [whole, bare])
    named = TextModelArguments(student_model_name_or_path=bare)
    with pytest.raises(ValueError, match=f"bare.*{MISSING}"):
        processors_of(TextClassification(TextDataArguments(), named), [whole])


def test_a_tokenizer_without_a_padding_token(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.pad_token = None
    with pytest.raises(
        ValueError, match=r"expected a tokenizer with a padding token.*Set tokenizer.pad_token"
    ):
        load_tokenizer(saved(tmp_path, bert(), tokenizer))
    tokenizer.eos_token = "[SEP]"
    assert load_tokenizer(saved(tmp_path, tokenizer)).pad_token == "[SEP]"


def test_teachers_that_can_teach_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no trained weights for .*classifier.*Fine-tune the teacher"):
        load_trained_model(
            saved(tmp_path / "mlm", classifier("bert_mlm")), AutoModelForSequenceClassification
        )
    with pytest.raises(ValueError, match=r"teacher: .*cut', whose weights can't be read"):
        load_trained_model(cut_short(saved(tmp_path / "cut", bert())), AutoModelForSequenceClassification)


def test_a_student_with_its_own_head_a_new_one_or_one_that_does_not_fit(tmp_path: Path) -> None:
    names = ["cat", "dog", "hen"]
    own = bert()
    student = load_pretrained(FLAG, saved(tmp_path / "own", own), names, HEAD)
    assert torch.equal(student.classifier.weight, own.classifier.weight)
    assert student.config.id2label == dict(enumerate(names))
    assert (
        load_pretrained(
            FLAG, saved(tmp_path / "mlm", classifier("bert_mlm")), names, AutoModelForSequenceClassification
        ).config.num_labels
        == 3
    )
    with pytest.raises(
        ValueError, match=r"data's 2 classes.*own', whose classifier.bias is \(3,\), not \(2,\). Name"
    ):
        load_pretrained(FLAG, str(tmp_path / "own"), names[:2], HEAD)
    renewed = load_pretrained(FLAG, str(tmp_path / "own"), names[:2], HEAD, new_head=True)
    assert renewed.config.id2label == dict(enumerate(names[:2]))
    assert torch.equal(renewed.bert.pooler.dense.weight, own.bert.pooler.dense.weight)
    with pytest.raises(
        ValueError, match=r"--student_model_name_or_path: .*cut', whose weights can't be read"
    ):
        load_pretrained(
            FLAG,
            cut_short(shutil.copytree(tmp_path / "own", tmp_path / "cut").as_posix()),
            names,
            AutoModelForSequenceClassification,
        )


def test_a_students_own_head_follows_the_datas_order_of_its_classes(tmp_path: Path) -> None:
    own = bert()
    own.config.id2label, own.config.label2id = {0: "hen", 1: "cat", 2: "dog"}, {"hen": 0, "cat": 1, "dog": 2}
    student = load_pretrained(
        FLAG, saved(tmp_path / "own", own), ["cat", "dog", "hen"], AutoModelForSequenceClassification
    )
    assert torch.equal(student.classifier.weight, own.classifier.weight[[1, 2, 0]])
    assert student.config.id2label == {0: "cat", 1: "dog", 2: "hen"}
    other = load_pretrained(FLAG, str(tmp_path / "own"), ["fish", "dog", "hen"], HEAD)
    assert torch.equal(other.classifier.weight, own.classifier.weight)
    assert other.config.label2id == {"fish": 0, "dog": 1, "hen": 2}
