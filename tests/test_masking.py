"""Masks that depend on seed, epoch and row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from datasets import Dataset
from transformers import BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_distill.masking import RowKeyedMasking, TellEpoch
from hf_distill.tasks.bert_models import bert_config
from hf_distill.tasks.wordpiece import train_tokenizer

TEXTS = [f"word{i % 7} and word{i % 5} or {' '.join(['more'] * (i % 6))}" for i in range(16)]


@pytest.fixture
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 60)


def encoded(tokenizer: Any) -> Dataset:
    rows = Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in TEXTS]})
    return rows.add_column("row", list(range(len(rows))))


def of_row(batch: dict[str, torch.Tensor], place: int) -> tuple[list[int], list[int]]:
    kept = batch["attention_mask"][place].bool()
    return batch["input_ids"][place][kept].tolist(), batch["labels"][place][kept].tolist()


def test_order_and_batch_do_not_matter_and_seed_epoch_and_row_do(tokenizer: Any) -> None:
    rows = [encoded(tokenizer)[index] for index in range(16)]
    masking = RowKeyedMasking(tokenizer, 0.3, seed=3)
    whole, turned = masking(rows), masking(rows[::-1])
    for index in range(16):
        assert of_row(whole, index) == of_row(turned, 15 - index)
        assert of_row(masking([rows[index]]), 0) == of_row(whole, index)
    others = [RowKeyedMasking(tokenizer, 0.3, seed=4), RowKeyedMasking(tokenizer, 0.3, seed=3, epoch=1)]
    for other in others:
        assert not torch.equal(other(rows)["labels"], whole["labels"])
    twice = masking([{**rows[6], "row": 0}, {**rows[6], "row": 1}])
    assert not torch.equal(twice["labels"][0], twice["labels"][1]), "two rows of one text are masked apart"


def test_shares_and_what_is_never_masked(tokenizer: Any) -> None:
    ids = tokenizer(" ".join(["word1", "and", "more"] * 2000))["input_ids"]
    masked = RowKeyedMasking(tokenizer, 0.15).masked(ids, 0, 0)
    given, now, labels = (numpy.asarray(x) for x in (ids, masked["input_ids"], masked["labels"]))
    drawn = labels != -100
    assert drawn.mean() == pytest.approx(0.15, abs=0.015)
    assert (labels[drawn] == given[drawn]).all()
    assert (now[~drawn] == given[~drawn]).all()
    assert not drawn[0], "[CLS]"
    assert not drawn[-1], "[SEP]"
    assert (now[drawn] == tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.04)
    other = drawn & (now != tokenizer.mask_token_id)
    # A tenth is random; of these a few are the token itself by chance.
    assert (now[other] != given[other]).mean() == pytest.approx(0.5, abs=0.1)
    assert not set(now[other]) & set(tokenizer.all_special_ids)


def test_every_row_with_a_word_has_a_label_and_padding_none(tokenizer: Any) -> None:
    rows = [{"input_ids": tokenizer("and")["input_ids"], "row": index} for index in range(30)]
    rows.append({"input_ids": tokenizer("and or " * 9)["input_ids"], "row": 30})
    rows.append({"input_ids": tokenizer("")["input_ids"], "row": 31})
    batch = RowKeyedMasking(tokenizer, 0.05)(rows)
    assert (batch["labels"][:31] != -100).any(-1).all()
    assert (batch["labels"][31] == -100).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


def test_padding_on_the_left(tokenizer: Any) -> None:
    rows = [encoded(tokenizer)[index] for index in range(6)]
    right = RowKeyedMasking(tokenizer, 0.3)(rows)
    tokenizer.padding_side = "left"
    left = RowKeyedMasking(tokenizer, 0.3)(rows)
    assert left["attention_mask"][0, 0] == 0
    for index in range(6):
        assert of_row(left, index) == of_row(right, index)


def test_rows_that_are_masked_already_are_left_as_they_are(tokenizer: Any) -> None:
    masking = RowKeyedMasking(tokenizer, 0.3)
    ids = tokenizer(TEXTS[5])["input_ids"]
    once = masking.masked(ids, 5, -1)
    for epoch in (0, 1):
        masking.epoch = epoch
        assert of_row(masking([{**once, "row": 5}]), 0) == (once["input_ids"], once["labels"])


def test_what_can_not_be_masked(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="expected the number of each row in the column 'row'"):
        RowKeyedMasking(tokenizer)([{"input_ids": [2, 9, 3]}])
    with pytest.raises(ValueError, match=r"above 0 and below 1, received 1\.0"):
        RowKeyedMasking(tokenizer, 1.0)
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="expected a tokenizer with a mask token"):
        RowKeyedMasking(tokenizer)


class _Seen(TrainerCallback):
    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses[state.global_step] = logs["loss"]


def train(folder: Path, tokenizer: Any, workers: int = 0, resume: str | None = None) -> dict[int, float]:
    set_seed(0)
    model = BertForMaskedLM(bert_config(1, 16, tokenizer, 32))
    masking, seen = RowKeyedMasking(tokenizer, 0.3), _Seen()
    args = TrainingArguments(
        str(folder), num_train_epochs=3, per_device_train_batch_size=4, logging_steps=1, save_steps=1,
        report_to="none", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
        dataloader_num_workers=workers, logging_nan_inf_filter=False,
    )  # fmt: skip
    trainer = Trainer(
        model,
        args,
        train_dataset=encoded(tokenizer),
        data_collator=masking,
        callbacks=[TellEpoch(masking), seen],
    )
    trainer.train(resume_from_checkpoint=resume)
    return seen.losses


@pytest.mark.parametrize("step", [3, 4, 9])
def test_a_resumed_run_sees_the_same_masks(tmp_path: Path, tokenizer: Any, step: int) -> None:
    whole = train(tmp_path, tokenizer)
    assert len(whole) == 12
    resumed = train(tmp_path, tokenizer, resume=str(tmp_path / f"checkpoint-{step}"))
    assert list(resumed) == list(range(step + 1, 13))
    assert resumed == {at: loss for at, loss in whole.items() if at > step}


def test_workers_see_the_same_masks(tmp_path: Path, tokenizer: Any) -> None:
    assert train(tmp_path / "two", tokenizer, workers=2) == train(tmp_path / "none", tokenizer)


def test_workers_that_would_repeat_the_first_epoch_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    masking = RowKeyedMasking(tokenizer)
    args = TrainingArguments(
        str(tmp_path), dataloader_num_workers=1, dataloader_persistent_workers=True, report_to="none", use_cpu=True
    )  # fmt: skip
    model = BertForMaskedLM(bert_config(1, 16, tokenizer, 32))
    trainer = Trainer(
        model, args, train_dataset=encoded(tokenizer), data_collator=masking, callbacks=[TellEpoch(masking)]
    )
    with pytest.raises(ValueError, match="dataloader_persistent_workers=True"):
        trainer.train()
