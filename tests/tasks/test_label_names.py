"""A trained head in the data's order of classes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_distill.tasks.label_names import follow_label_names
from tests.tiny import classifier, perturbed

NAMES = ["cat", "dog", "hen"]
ORDER = [2, 0, 1]


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "modernbert", "gpt2", "llama"])
def test_the_same_answer_in_another_order(architecture: str, tmp_path: object) -> None:
    model = perturbed(classifier(architecture, id2label=dict(enumerate(NAMES)))).eval()
    batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]])}
    with torch.no_grad():
        before = model(**batch).logits
        follow_label_names(model, [NAMES[number] for number in ORDER])
        assert torch.equal(model(**batch).logits, before[:, ORDER])
    model.save_pretrained(tmp_path)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
    assert saved.id2label == {0: "hen", 1: "cat", 2: "dog"}
    assert saved.label2id == {"hen": 0, "cat": 1, "dog": 2}


def test_a_model_without_names_takes_the_datas() -> None:
    model = classifier("bert")
    before = model.classifier.weight.clone()
    follow_label_names(model, NAMES)
    assert torch.equal(model.classifier.weight, before)
    assert model.config.id2label == dict(enumerate(NAMES))


@pytest.mark.parametrize("names", [["cat", "dog", "cow"], ["cat", "dog"]])
def test_other_classes_are_refused(names: list[str]) -> None:
    model = classifier("bert", id2label=dict(enumerate(NAMES)))
    with pytest.raises(
        ValueError, match=rf"data's {len(names)} classes \(cat, dog.* received one of 3 \(cat, dog, hen\)"
    ):
        follow_label_names(model, names)
