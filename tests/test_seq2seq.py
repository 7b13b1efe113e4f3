"""The pair over Seq2SeqTrainer: losses at the labels, metrics of what is written, and all that belongs to a student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, DataCollatorForSeq2Seq

from hf_distill import DistillationSeq2SeqTrainer, DistillationSeq2SeqTrainingArguments
from hf_distill.tasks.byte_pairs import train_byte_pairs
from tests.every_head import CASES, rows_of

pytestmark = pytest.mark.filterwarnings("ignore:The student .* seems to start from random")
WRITTEN = [case for case in CASES if case.head == "written"]


@pytest.mark.parametrize("case", WRITTEN, ids=str)
def test_an_evaluation_has_losses_and_metrics_of_written_text(tmp_path: Path, case: Any) -> None:
    tokenizer = train_byte_pairs(["a small text"], 300)
    student, teacher = case.model(), case.model(7)
    for model in (student, teacher):
        model.resize_token_embeddings(len(tokenizer))
        model.config.vocab_size = len(tokenizer)
    seen: list[Any] = []

    def compute(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"length": float((prediction.predictions >= 0).sum())}

    args = DistillationSeq2SeqTrainingArguments(
        str(tmp_path), alpha=0.5, temperature=2.0, max_steps=2, predict_with_generate=True, generation_max_length=6,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", per_device_eval_batch_size=3,
    )  # fmt: skip
    rows = rows_of(case)
    trainer = DistillationSeq2SeqTrainer(
        student, teacher, args, data_collator=DataCollatorForSeq2Seq(tokenizer), train_dataset=rows,
        eval_dataset=rows, processing_class=tokenizer, compute_metrics=compute,
    )  # fmt: skip
    trainer.train()
    metrics = trainer.evaluate()
    assert {"eval_loss/label", "eval_loss/forward_kl", "eval_agreement", "eval_length"} <= set(metrics)
    assert "eval_teacher_length" not in metrics, "the teacher has written nothing"
    (prediction,) = seen
    assert prediction.predictions.dtype.kind == "i"
    assert set(prediction.predictions[:, 6:].flatten().tolist()) <= {tokenizer.pad_token_id}, "padding alone"
    batch = {"input_ids": torch.tensor([rows[4]["input_ids"]])}
    own = trainer.model.eval().generate(**batch, max_length=6)[0].tolist()
    assert prediction.predictions[4].tolist()[: len(own)] == own
    trainer.save_model(str(tmp_path / "saved"))
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"generation_config.json", "config.json", "model.safetensors", "tokenizer.json"} <= names
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "saved").decode(tokenizer("small")["input_ids"]) == "small"
    )
