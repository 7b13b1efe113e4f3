"""Caches of encoder-decoders, images and sound: keyed by all that the teacher reads, and equal to asking it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    DataCollatorForSeq2Seq,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from hf_distill import CacheError, DistillationTrainer, TeacherCache
from hf_distill.cache.formats import TopKLogits
from tests.cache.test_teacher_cache import captured
from tests.every_head import CASES, rows_of
from tests.every_head import collate as collate_any
from tests.tiny import arguments, classifier, examples, perturbed

CLASSES = 40


def t5(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=CLASSES, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def bart(seed: int = 0, kind: Any = BartForConditionalGeneration) -> Any:
    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=CLASSES, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
        dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        decoder_start_token_id=2, num_labels=3,
    )  # fmt: skip
    return kind(config)


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return ragged inputs and outputs; one of the inner labels is none."""
    draw = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=draw))
        return torch.randint(3, CLASSES, (length,), generator=draw).tolist()

    rows = []
    for number in range(count):
        source, target = ids(3, 8), ids(2, 7)
        if number % 3 == 0 and len(target) > 2:
            target[1] = -100
        rows.append({"input_ids": source, "attention_mask": [1] * len(source), "labels": target})
    return rows


def padded(rows: list[dict[str, Any]], pad: int, more: int = 0) -> dict[str, torch.Tensor]:
    """Make a batch, with some positions of padding beyond what is needed."""

    def stack(name: str, value: int) -> torch.Tensor:
        longest = max(len(row[name]) for row in rows) + more
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    return {
        "input_ids": stack("input_ids", pad),
        "attention_mask": stack("attention_mask", 0),
        "labels": stack("labels", -100),
    }


ROWS = pairs(12)
both = pytest.mark.parametrize(("make", "pad"), [(t5, 0), (bart, 1)], ids=["t5", "bart"])


def expected(teacher: Any, row: dict[str, Any]) -> torch.Tensor:
    """Return the teacher's logits for one pair alone."""
    labels = torch.tensor([row["labels"]])
    with torch.no_grad():
        return teacher(input_ids=torch.tensor([row["input_ids"]]), labels=labels).logits[0]


@both
def test_an_encoder_decoders_answers_are_of_its_decoders_positions(
    tmp_path: Path, make: Any, pad: int
) -> None:
    teacher = perturbed(make()).eval()
    cache = captured(tmp_path / "cache", teacher, ROWS, data_collator=lambda rows: padded(rows, pad))
    alone = TeacherCache(cache.folder)
    for more, order in ((0, [3, 1, 2]), (4, [2, 9, 0, 3])):
        rows = [ROWS[place] for place in order]
        found = alone(padded(rows, pad, more)).logits
        assert found.shape[:2] == (len(order), max(len(row["labels"]) for row in rows) + more)
        for answer, row in zip(found, rows, strict=True):
            length = len(row["labels"])
            assert torch.allclose(answer[:length], expected(teacher, row), atol=1e-5)
            assert (answer[length:] == 0).all()


@both
def test_another_input_or_another_output_is_another_question(tmp_path: Path, make: Any, pad: int) -> None:
    cache = captured(tmp_path / "cache", make().eval(), ROWS, data_collator=lambda rows: padded(rows, pad))
    alone = TeacherCache(cache.folder)
    row = ROWS[1]
    for changed in (
        {**row, "input_ids": [*row["input_ids"][:-1], 2]},
        {**row, "labels": [2, *row["labels"][1:]]},
        {**row, "labels": [*row["labels"], 7]},
        {**row, "attention_mask": [1] * (len(row["attention_mask"]) - 1) + [0]},
    ):
        with pytest.raises(CacheError, match="found none to 1 of them"):
            alone(padded([changed], pad))
    with pytest.raises(ValueError, match="expected labels or decoder_input_ids"):
        alone({name: value for name, value in padded([row], pad).items() if name != "labels"})


@both
def test_the_run_is_that_with_the_encoder_decoder(tmp_path: Path, make: Any, pad: int) -> None:
    teacher = perturbed(make()).eval()

    def collate(rows: list[dict[str, Any]]) -> Any:
        return padded(rows, pad)

    cache = captured(tmp_path / "cache", teacher, ROWS, data_collator=collate)
    found = []
    for one in (teacher, cache, str(tmp_path / "cache")):
        args = arguments(tmp_path, max_steps=6, per_device_train_batch_size=4, alpha=0.7)
        trainer = DistillationTrainer(
            make(seed=3), one, args, data_collator=collate, train_dataset=ROWS, eval_dataset=ROWS[:5]
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((losses, trainer.evaluate()["eval_loss/forward_kl"]))
    assert len(found[0][0]) == 6
    for losses, evaluated in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-5)
        assert evaluated == pytest.approx(found[0][1], rel=1e-5)


def test_a_collator_that_makes_the_decoders_input(tmp_path: Path) -> None:
    from hf_distill.tasks.wordpiece import train_tokenizer

    tokenizer = train_tokenizer(["a b c"], 20)
    teacher = perturbed(t5()).eval()
    collate = DataCollatorForSeq2Seq(tokenizer, model=teacher)
    cache = captured(tmp_path / "cache", teacher, ROWS, data_collator=collate)
    batch = dict(collate(ROWS[4:7]))
    assert "decoder_input_ids" in batch
    found = TeacherCache(cache.folder)(batch).logits
    for answer, row in zip(found, ROWS[4:7], strict=True):
        assert torch.allclose(answer[: len(row["labels"])], expected(teacher, row), atol=1e-5)
    changed = {**batch, "decoder_input_ids": batch["decoder_input_ids"].clone()}
    changed["decoder_input_ids"][0, 1] = 17
    with pytest.raises(CacheError, match="found none to 1 of them"):
        TeacherCache(cache.folder)(changed)


def test_sparse_answers_of_an_encoder_decoder(tmp_path: Path) -> None:
    teacher = perturbed(t5()).eval()
    cache = captured(
        tmp_path / "cache", teacher, ROWS, data_collator=lambda rows: padded(rows, 0), signals=TopKLogits(CLASSES)
    )  # fmt: skip
    found = TeacherCache(cache.folder)(padded(ROWS[:1], 0)).log_probs(2.0)
    wanted = (expected(teacher, ROWS[0]) / 2.0).log_softmax(-1)
    assert torch.allclose(found[0].to_dense() if found.is_sparse else found[0], wanted, atol=1e-5)


def test_an_encoder_decoder_with_an_answer_for_each_example(tmp_path: Path) -> None:
    teacher = perturbed(bart(kind=BartForSequenceClassification)).eval()
    rows = [
        {"input_ids": [*row["input_ids"], 2], "attention_mask": [1, *row["attention_mask"]], "labels": 0}
        for row in ROWS
    ]

    def collate(given: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = padded([{**row, "labels": [row["labels"]]} for row in given], 1)
        return {**batch, "labels": batch["labels"][:, 0]}

    cache = captured(tmp_path / "cache", teacher, rows, data_collator=collate)
    found = TeacherCache(cache.folder)(collate([rows[2], rows[5]])).logits
    for answer, row in zip(found, (rows[2], rows[5]), strict=True):
        with torch.no_grad():
            alone = teacher(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        assert torch.allclose(answer, alone, atol=1e-5)


# ---- images and sound ------------------------------------------------------------------------------


def images(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.tensor([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def test_images_are_keyed_by_their_pixels(tmp_path: Path) -> None:
    teacher = perturbed(classifier("vit")).eval()
    rows = examples(10, "image")
    cache = captured(tmp_path / "cache", teacher, rows, data_collator=images)
    batch = images([rows[7], rows[2]])
    with torch.no_grad():
        wanted = teacher(pixel_values=batch["pixel_values"]).logits
    alone = TeacherCache(cache.folder)
    assert torch.allclose(alone(batch).logits, wanted, atol=1e-5)
    batch["pixel_values"][0, 0, 0, 0] += 1e-3
    with pytest.raises(CacheError, match=r"found none to 1 of them \(rows 0\)"):
        alone(batch)


def test_images_augmented_at_random_are_refused(tmp_path: Path) -> None:
    class Flipped(list):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            return (self[index] for index in range(len(self)))

        def __getitem__(self, index: Any) -> Any:
            row = super().__getitem__(index)
            noise = torch.rand(3, 8, 8)
            return {**row, "pixel_values": (torch.tensor(row["pixel_values"]) + noise).tolist()}

    with pytest.raises(CacheError, match=r"expected the same inputs whenever a row is read.*augmentation"):
        captured(tmp_path / "cache", classifier("vit"), Flipped(examples(6, "image")), data_collator=images)


def wav2vec2() -> Any:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_stride=(4, 2), conv_kernel=(8, 4), num_feat_extract_layers=2, feat_extract_norm="layer",
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8, num_labels=3,
        do_stable_layer_norm=True, hidden_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0,
        mask_time_prob=0.0,
    )  # fmt: skip
    return perturbed(Wav2Vec2ForSequenceClassification(config), 0.1).eval()


def test_sound_is_keyed_by_its_samples_without_padding(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = [
        {"input_values": torch.randn(length, generator=draw), "labels": 0} for length in (200, 260, 200, 320)
    ]

    def collate(given: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_values"]) for row in given)
        values, mask = torch.zeros(len(given), longest), torch.zeros(len(given), longest, dtype=torch.long)
        for place, row in enumerate(given):
            values[place, : len(row["input_values"])] = row["input_values"]
            mask[place, : len(row["input_values"])] = 1
        return {
            "input_values": values,
            "attention_mask": mask,
            "labels": torch.tensor([row["labels"] for row in given]),
        }

    teacher = wav2vec2()
    cache = captured(tmp_path / "cache", teacher, rows, data_collator=collate, batch_size=2)
    assert len(cache) == 4
    alone = TeacherCache(cache.folder)
    for order in ([0], [0, 3], [2, 1, 3]):
        found = alone(collate([rows[place] for place in order])).logits
        for answer, place in zip(found, order, strict=True):
            with torch.no_grad():
                wanted = teacher(**{k: v for k, v in collate([rows[place]]).items() if k != "labels"}).logits[
                    0
                ]
            assert torch.allclose(answer, wanted, atol=1e-4)


# ---- spans -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if case.head == "spans"], ids=str)
def test_starts_and_ends_are_kept_for_each_position(tmp_path: Path, case: Any) -> None:
    teacher, rows = case.model(7).eval(), rows_of(case)
    cache = captured(tmp_path / "cache", teacher, rows, data_collator=collate_any)
    alone = TeacherCache(cache.folder)
    batch = collate_any([rows[place] for place in (5, 0, 2)])
    read = {name: batch[name] for name in ("input_ids", "attention_mask")}
    found = alone(batch).logits
    with torch.no_grad():
        out = teacher(**read)
    wanted = torch.stack([out.start_logits, out.end_logits], 1)
    padding = (read["attention_mask"] == 0).unsqueeze(1).expand(found.shape)
    assert (found == -torch.inf).equal(padding)
    assert torch.allclose(found[~padding], wanted[~padding], atol=1e-4)
    losses = []
    for one in (teacher, cache, str(tmp_path / "cache")):
        trainer = DistillationTrainer(
            case.model(), one, arguments(tmp_path, max_steps=3), data_collator=collate_any, train_dataset=rows
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == losses[2] == pytest.approx(losses[0], rel=1e-4)
    with pytest.raises(CacheError, match="expected FullLogits of a head that points at spans"):
        captured(tmp_path / "other", teacher, rows, data_collator=collate_any, signals=TopKLogits(4))
