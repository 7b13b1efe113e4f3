"""Causal and masked language models in recipes: labels, blocks, completions, masks, and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict

from hf_distill.corpora.plain_text import completions
from hf_distill.jobs.comparison import prepare_comparison
from hf_distill.jobs.rehearsal import rehearse
from hf_distill.tasks.byte_pairs import train_byte_pairs
from hf_distill.tasks.causal_lm import (
    CausalLanguageModelling,
    LanguageDataArguments,
    LanguageModelArguments,
)
from hf_distill.tasks.masked_lm import MaskedDataArguments, MaskedLanguageModelling, MaskedModelArguments
from tests.jobs.test_comparison import arguments

pytestmark = pytest.mark.filterwarnings(
    "ignore:The student .* seems to start from random", "ignore:The teacher is nearly uniform"
)
TEXTS = [f"number {i} is one more than {i - 1} and here ends text {i % 3}" for i in range(60)]
TINY = {"vocabulary_size": 300, "teacher_layers": 2, "teacher_width": 16, "teacher_epochs": 1}


@pytest.fixture
def splits() -> DatasetDict:
    rows = Dataset.from_dict({"text": TEXTS})
    return DatasetDict(train=rows.select(range(48)), validation=rows.select(range(48, 60)))


def causal(**data: Any) -> CausalLanguageModelling:
    settings = LanguageDataArguments(**{"report_on": "validation", "block_size": 16, **data})
    return CausalLanguageModelling(
        settings, LanguageModelArguments(**TINY, student_layers=1, student_width=8)
    )


def test_blocks_hold_the_whole_text_once(splits: DatasetDict) -> None:
    task = causal()
    tokenizer = task.new_processor(splits)
    encoded = task.encode(splits["train"], tokenizer)
    stream = [token for row in encoded["input_ids"] for token in row]
    joined = "<|endoftext|>".join(splits["train"]["text"]) + "<|endoftext|>"
    assert joined.startswith(tokenizer.decode(stream))
    assert len(tokenizer(joined)["input_ids"]) - len(stream) < 16
    assert all(len(row) == 16 for row in encoded["input_ids"])
    assert encoded["labels"][:] == encoded["input_ids"][:]
    assert task.counted == "blocks"


def test_texts_of_their_own_are_padded_behind_with_minus_100(splits: DatasetDict) -> None:
    task = causal(packing=False, block_size=64)
    tokenizer = task.new_processor(splits)
    encoded = task.encode(splits["train"], tokenizer)
    assert tokenizer.decode(encoded[3]["input_ids"]) == TEXTS[3] + "<|endoftext|>"
    batch = task.collator(tokenizer)([encoded[0], encoded[10]])
    assert (batch["labels"] == -100).equal(batch["attention_mask"] == 0)
    assert task.counted == "texts"


def test_of_a_prompt_nothing_is_learnt() -> None:
    rows = Dataset.from_dict({"q": ["how much is 1+1?", "and " * 40], "a": ["two", "very " * 3 + "much"]})
    task = causal(prompt_column="q", completion_column="a", block_size=24, train_file="here")
    task.check(None)
    splits = DatasetDict(train=completions(rows, "here", "q", "a"))
    tokenizer = task.new_processor(splits)
    encoded = task.encode(splits["train"], tokenizer)
    for row, completion in zip(encoded, rows["a"], strict=True):
        told = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        assert [label for label in row["labels"] if label != -100] == told
        assert tokenizer.decode(told) == completion + "<|endoftext|>"
        assert row["labels"][0] == -100
        assert len(row["input_ids"]) <= 24
    assert tokenizer.decode(encoded[0]["input_ids"]) == "how much is 1+1?\ntwo<|endoftext|>"
    with pytest.raises(ValueError, match="expected --prompt_column and --completion_column, received one"):
        causal(prompt_column="q").check(None)


def test_prompts_need_data_of_the_users() -> None:
    with pytest.raises(ValueError, match="--prompt_column, --completion_column: expected --train_file or"):
        causal(prompt_column="q", completion_column="a").check(None)


def test_the_same_text_gives_the_same_tokenizer() -> None:
    one, other = (train_byte_pairs(TEXTS, 300) for _ in range(2))
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    assert one.decode(one("naïve 数")["input_ids"]) == "naïve 数"


@pytest.mark.parametrize("cached", [False, True])
def test_a_causal_run(tmp_path: Path, splits: DatasetDict, cached: bool) -> None:
    task = causal()
    args = arguments(tmp_path, max_steps=-1, num_train_epochs=1, alpha=0.5, temperature=1.0)
    rehearse(task, splits, args)
    job = prepare_comparison(task, splits, args, lambda line: None)
    if cached:
        job.cache_teachers(1)
        assert job.caches is not None
    results = job.run([0], baseline=True)
    assert results["measure"]["headline"] == "perplexity"
    # What the table says of the teacher, by a loop of its own.
    (teacher,) = job.teachers
    nats, count = 0.0, 0
    for row in job.encoded["validation"]:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            log_probs = teacher(input_ids=ids).logits.double().log_softmax(-1)
        nats -= float(log_probs[0, :-1].gather(-1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    assert results["teacher"]["cross_entropy"] == pytest.approx(nats / count, rel=1e-5)
    saved = json.loads((tmp_path / "distillation_results.json").read_text())
    assert saved["settings"]["counted"] == "blocks"
    assert saved["retention"] == pytest.approx(
        results["teacher"]["perplexity"] / results["student_distilled"]["perplexity"]
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_both_kinds_of_model_fit(tmp_path: Path, splits: DatasetDict, kind: str) -> None:
    task = causal()
    task.models.model_kind = kind
    rehearse(task, splits, arguments(tmp_path))
    assert not list(tmp_path.iterdir()), (
        "a rehearsal that goes well leaves nothing, and did not end the process"
    )


@pytest.mark.parametrize("kind", [CausalLanguageModelling, MaskedLanguageModelling])
def test_short_texts_that_fill_blocks_together_are_not_refused(tmp_path: Path, kind: Any) -> None:
    """The first eight were tried out, and had less than a block."""
    rows = Dataset.from_dict({"text": [f"words {i} here" for i in range(400)]})
    splits = DatasetDict(train=rows, validation=rows.select(range(80)))
    task = causal(block_size=64) if kind is CausalLanguageModelling else masked()
    task.data.block_size = 64
    rehearse(task, splits, arguments(tmp_path))
    splits["validation"] = rows.select(range(3))
    with pytest.raises(SystemExit):
        rehearse(task, splits, arguments(tmp_path))


def test_the_tokenizer_that_is_saved_pads_as_it_did(splits: DatasetDict) -> None:
    task = causal(packing=False)
    tokenizer = task.new_processor(splits)
    tokenizer.padding_side = "left"
    encoded = task.encode(splits["train"], tokenizer)
    batch = task.collator(tokenizer)([encoded[0], encoded[10]])
    assert batch["attention_mask"][:, 0].tolist() == [1, 1]
    assert tokenizer.padding_side == "left"
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="tokenizer: expected one with an end of text"):
        task.encode(splits["train"], tokenizer)


# ---- masks ---------------------------------------------------------------------------------------


def masked(**models: Any) -> MaskedLanguageModelling:
    data = MaskedDataArguments(report_on="validation", block_size=16, masked_share=0.3)
    task = MaskedLanguageModelling(data, MaskedModelArguments(**{**TINY, **models}))
    task.fill_in()
    return task


def test_the_student_starts_as_half_of_the_teacher_unless_it_is_named() -> None:
    assert masked().models.student_num_hidden_layers == 1
    assert masked(teacher_layers=6).models.student_num_hidden_layers == 3
    assert masked(student_num_hidden_layers=2).models.student_num_hidden_layers == 2
    assert masked(student_layers=1).models.student_num_hidden_layers is None
    with pytest.raises(ValueError, match="received both"):
        masked(student_layers=1, student_num_hidden_layers=1).check(None)


@pytest.mark.parametrize(("kind", "longest"), [("modernbert", 512), ("bert", 16)])
def test_a_model_with_rotary_positions_can_be_fine_tuned_on_longer_texts(
    splits: DatasetDict, kind: str, longest: int
) -> None:
    task = masked(model_kind=kind)
    model = task.new_model("teacher", splits, task.new_processor(splits))
    assert model.config.max_position_embeddings == longest
    weights = sum(weight.numel() for name, weight in model.named_parameters() if "position" in name)
    assert weights == (0 if kind == "modernbert" else 16 * 16)


def test_what_is_reported_on_is_masked_once_and_training_text_anew(splits: DatasetDict) -> None:
    task = masked()
    tokenizer = task.new_processor(splits)
    held = task.encode(splits["validation"], tokenizer)
    assert held["labels"][:] == task.encode(splits["validation"], tokenizer)["labels"][:]
    shares = [sum(label != -100 for label in row) / 14 for row in held["labels"]]
    assert 0.15 < sum(shares) / len(shares) < 0.45
    train = task.encode(splits["train"], tokenizer, training=True)
    assert set(train.column_names) == {"input_ids", "row"}
    assert all(
        row[0] == tokenizer.cls_token_id and row[-1] == tokenizer.sep_token_id for row in train["input_ids"]
    )
    collate = task.collator(tokenizer)
    first = collate([train[0]])["labels"]
    collate.epoch = 1
    assert not torch.equal(collate([train[0]])["labels"], first)


def test_a_masked_run_with_the_triple_loss(tmp_path: Path, splits: DatasetDict) -> None:
    task = masked()
    objectives = [
        {"name": "forward_kl", "weight": 5.0, "temperature": 2.0},
        {"name": "hidden_states", "weight": 1.0, "layers": "last", "distance": "cosine"},
    ]
    args = arguments(
        tmp_path, max_steps=-1, num_train_epochs=2, alpha=None, temperature=None, objectives=objectives,
        label_weight=2.0,
    )  # fmt: skip
    task.check(args)
    rehearse(task, splits, args)
    said: list[str] = []
    job = prepare_comparison(task, splits, args, said.append)
    job.cache_teachers(1)
    assert "Teacher: its answers are not kept, since masks are drawn anew each epoch" in said
    results = job.run([3], baseline=True)
    assert results["student_distilled"]["perplexity"] > 1
    for kind in ("alone", "distilled"):
        assert (tmp_path / "seed_3" / kind / "model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "modernbert"])
def test_a_saved_tokenizer_says_how_much_its_model_reads(splits: DatasetDict, kind: str) -> None:
    """Without it a pipeline gives a model more positions than it has."""
    task = masked() if kind == "modernbert" else causal()
    if kind != "modernbert":
        task.models.model_kind = kind
    tokenizer = task.new_processor(splits)
    model = task.new_model("teacher", splits, tokenizer)
    assert tokenizer.model_max_length == model.config.max_position_embeddings
