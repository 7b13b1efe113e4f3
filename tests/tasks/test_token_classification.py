"""Words of one class each: what is hidden from a teacher trained here, and from nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DataCollatorForTokenClassification, set_seed

from hf_distill.tasks.bert_models import WordModelArguments
from hf_distill.tasks.token_classification import TokenClassification, WordDataArguments
from hf_distill.tasks.word_dropout import WordHiding
from hf_distill.tasks.wordpiece import train_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    return train_tokenizer(["one two three four five six"] * 3, 60)


def rows(tokenizer: Any, count: int) -> list[dict[str, Any]]:
    encoded = dict(tokenizer("one two three four five six"))
    length = len(encoded["input_ids"])
    return [{**encoded, "labels": [-100, *range(length - 2), -100]} for _ in range(count)]


def test_a_share_of_words_is_hidden_and_keeps_its_tags(tokenizer: Any) -> None:
    set_seed(0)
    given = rows(tokenizer, 500)
    pad = DataCollatorForTokenClassification(tokenizer)
    plain, hidden = WordHiding(tokenizer, 0.0, pad)(given), WordHiding(tokenizer, 0.3, pad)(given)
    changed = plain["input_ids"] != hidden["input_ids"]
    assert torch.equal(hidden["input_ids"][changed].unique(), torch.tensor([tokenizer.mask_token_id]))
    words = plain["labels"] != -100
    assert not changed[~words].any(), "special tokens and padding are never hidden"
    # 3,000 words or more: a standard error of 0.8 points.
    assert float(changed[words].float().mean()) == pytest.approx(0.3, abs=0.04)
    for name in ("labels", "attention_mask"):
        assert torch.equal(plain[name], hidden[name])


def test_what_has_no_mask_hides_by_the_unknown_token(tokenizer: Any) -> None:
    tokenizer.mask_token = None
    pad = DataCollatorForTokenClassification(tokenizer)
    hidden = WordHiding(tokenizer, 0.999, pad)(rows(tokenizer, 2))
    assert (hidden["input_ids"][:, 1:-1] == tokenizer.unk_token_id).all()


def test_words_are_hidden_from_a_teacher_trained_here_alone(tokenizer: Any) -> None:
    task = TokenClassification(WordDataArguments(), WordModelArguments(teacher_word_dropout=0.999))
    given = rows(tokenizer, 2)
    assert (task.teacher_collator(tokenizer)(given)["input_ids"][:, 1:-1] == tokenizer.mask_token_id).all()
    assert not (task.collator(tokenizer)(given)["input_ids"] == tokenizer.mask_token_id).any()
