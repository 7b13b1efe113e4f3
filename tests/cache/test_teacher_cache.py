"""A cache as a teacher: the losses of the model it was captured from, whatever the order, split and padding."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding

from hf_distill import CacheError, DistillationTrainer, TeacherCache, TeacherEnsemble
from hf_distill.cache import model_at_hand
from hf_distill.cache.formats import FullLogits, TopKLogits
from hf_distill.cache.model_at_hand import tolerance_of
from hf_distill.items import Head
from hf_distill.teachers.online import OnlineTeacher
from tests.test_compatibility import tokenizer_of
from tests.test_ensemble_training import named
from tests.tiny import (
    arguments,
    bert,
    classifier,
    collate,
    distiller,
    examples,
    gradient_of,
    one_step,
    perturbed,
    teacher_of,
)

ROWS, HELD_OUT = examples(24), examples(9, seed=8)


def captured(folder: Path, teacher: Any = None, rows: Any = None, **options: Any) -> Any:
    rows = {"train": ROWS, "test": HELD_OUT} if rows is None else rows
    options = {"data_collator": collate, "say": lambda line: None, "batch_size": 4, **options}
    return TeacherCache.capture(teacher_of() if teacher is None else teacher, rows, folder, **options)


def run(folder: Path, teacher: Any, **options: Any) -> tuple[list[float], dict[str, float]]:
    """Train six shuffled steps, and return the losses and what evaluation says."""
    trainer = distiller(
        bert(), teacher, arguments(folder, max_steps=6, **options), ROWS, eval_dataset=HELD_OUT
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    metrics = trainer.evaluate()
    return losses, {k: v for k, v in metrics.items() if "loss" in k or "agreement" in k or "kl" in k}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dataloader_num_workers": 2},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"train_sampling_strategy": "group_by_length"},
        {"num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 8},
    ],
)
def test_the_run_is_that_with_the_model(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"max_steps": 6, **options}
    cache = captured(tmp_path / "cache")
    found = []
    for teacher in (teacher_of(), cache, str(tmp_path / "cache")):
        trainer = distiller(bert(), teacher, arguments(tmp_path, **options), ROWS, eval_dataset=HELD_OUT)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        predicted = trainer.predict(HELD_OUT).predictions.argmax(-1).tolist()
        found.append((losses, trainer.evaluate()["eval_loss"], predicted))
    online, *cached = found
    assert len(online[0]) > 1
    for losses, evaluated, predicted in cached:
        assert losses == pytest.approx(online[0], rel=1e-5)
        assert evaluated == pytest.approx(online[1], rel=1e-5)
        assert predicted == online[2]


def test_no_weights_are_needed(tmp_path: Path) -> None:
    captured(tmp_path / "cache")
    trainer = distiller(bert(), tmp_path / "cache", arguments(tmp_path), ROWS)
    assert not hasattr(trainer.teacher, "model")
    trainer.train()


def test_the_split_of_a_batch_changes_no_gradient(tmp_path: Path) -> None:
    cache = captured(tmp_path / "cache")
    whole, *others = (
        gradient_of(distiller(bert(), cache, one_step(tmp_path, size, 8 // size, alpha=1), ROWS[:8]))
        for size in (8, 2, 1)
    )
    for other in others:
        assert (whole - other).abs().max() <= 1e-6 * whole.abs().max()


@pytest.mark.parametrize("architecture", ["bert_tokens", "gpt2_lm"])
def test_answers_per_position_stand_where_their_tokens_do(tmp_path: Path, architecture: str) -> None:
    rows = examples(12, "tokens" if architecture == "bert_tokens" else "causal")
    teacher = perturbed(classifier(architecture, 2, 5), 0.3)
    cache = captured(tmp_path / "cache", teacher, rows)
    batch = collate(rows[:5])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    kept, now = cache(inputs).logits, teacher(**inputs).logits
    attended = batch["attention_mask"].bool()
    assert torch.allclose(kept[attended], now[attended], atol=1e-5)
    assert (kept[~attended] == 0).all()
    found = [
        gradient_of(distiller(classifier(architecture, 1), one, one_step(tmp_path, 4, 2, alpha=1), rows[:8]))
        for one in (teacher, cache)
    ]
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[0].abs().max()


@pytest.mark.parametrize("head", ["multi_label", "regression"])
def test_other_heads(tmp_path: Path, head: str) -> None:
    rows = examples(8, head)
    teacher = teacher_of(head)
    cache = captured(tmp_path / "cache", teacher, rows)
    found = [
        gradient_of(distiller(bert(head=head), one, one_step(tmp_path, 4, 2), rows))
        for one in (teacher, cache)
    ]
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[0].abs().max()


def test_labels_in_another_order_are_permuted(tmp_path: Path) -> None:
    teacher, student = teacher_of(), bert()
    teacher.config.id2label, teacher.config.label2id = {0: "a", 1: "b", 2: "c"}, {"a": 0, "b": 1, "c": 2}
    student.config.id2label, student.config.label2id = {0: "c", 1: "a", 2: "b"}, {"c": 0, "a": 1, "b": 2}
    for number, signals in enumerate((FullLogits(), TopKLogits(k=2, temperatures=(2.0,)))):
        cache = captured(tmp_path / str(number), teacher, signals=signals)
        prepared = distiller(student, cache, arguments(tmp_path), ROWS).teacher
        batch = {name: value for name, value in collate(ROWS[:4]).items() if name != "labels"}
        expected = teacher(**batch).logits[:, [2, 0, 1]]
        assert torch.allclose(prepared(batch).log_probs(2.0), torch.log_softmax(expected / 2, -1), atol=1e-5)


def test_hidden_states_feed_feature_objectives(tmp_path: Path) -> None:
    cache = captured(tmp_path / "cache", hidden_states=[0, 1, 2])
    objectives = [{"name": "hidden_states"}, {"name": "forward_kl"}]
    found = [
        gradient_of(
            distiller(bert(2), one, one_step(tmp_path, 8, 1, objectives=objectives, label_weight=0), ROWS[:8])
        )
        for one in (teacher_of(), cache)
    ]
    # Kept in bfloat16, which has 3 digits.
    assert (found[0] - found[1]).abs().max() <= 2e-2 * found[0].abs().max()
    bare = captured(tmp_path / "bare")
    with pytest.raises(ValueError, match="expected a teacher that gives features"):
        distiller(bert(2), bare, arguments(tmp_path, objectives=objectives), ROWS)


def test_several_teachers_are_kept_apart_and_weighed_anew(tmp_path: Path) -> None:
    models = [perturbed(bert(2, seed=5), seed=seed) for seed in (1, 2)]
    both = captured(tmp_path / "cache", models)
    assert isinstance(both, TeacherEnsemble)
    for weights in ([1, 1], [3, 1], "confidence"):
        found = [
            gradient_of(
                distiller(
                    bert(), list(given), one_step(tmp_path, 8, 1, alpha=1, teacher_weights=weights), ROWS[:8]
                )
            )
            for given in (models, both.members)
        ]
        assert (found[0] - found[1]).abs().max() <= 1e-5 * found[0].abs().max()


def test_an_example_that_is_not_there_is_an_error_before_training(tmp_path: Path) -> None:
    cache = captured(tmp_path / "cache", rows=ROWS)
    with pytest.raises(CacheError, match=r"examples of a batch, found none to \d of them \(rows 0"):
        distiller(bert(), cache, arguments(tmp_path), examples(8, seed=77))


def test_what_is_missing_is_asked_where_that_is_wanted(tmp_path: Path) -> None:
    captured(tmp_path / "cache", rows=ROWS[:10])
    cache = TeacherCache(tmp_path / "cache", teacher_of(), on_missing="ask")
    losses, _ = run(tmp_path, cache)
    assert losses == pytest.approx(run(tmp_path, teacher_of())[0], rel=1e-5)
    assert len(TeacherCache(tmp_path / "cache")) == len(ROWS) + len(HELD_OUT), "the answers were added"
    assert run(tmp_path, TeacherCache(tmp_path / "cache"))[0] == pytest.approx(losses, rel=1e-5)


def test_answers_asked_for_are_kept_once_whoever_asked(tmp_path: Path) -> None:
    captured(tmp_path / "cache", rows=ROWS[:10])
    cache = TeacherCache(tmp_path / "cache", teacher_of(), on_missing="ask")
    for _ in range(3):
        run(tmp_path, cache)
    whole = TeacherCache(tmp_path / "cache")
    assert sum(shard.rows for shard in whole.manifest.shards) == len(whole) == len(ROWS) + len(HELD_OUT)


@pytest.mark.parametrize("limit", [None, 6])
def test_a_cached_teacher_may_read_the_text_its_own_way(tmp_path: Path, limit: int | None) -> None:
    """The text stays in the data for it, and is cut where it was cut when it was asked."""
    words = [[f"w{n}" for n in range(40)], [f"w{n}" for n in reversed(range(40))]]
    students, teachers = (tokenizer_of(["[CLS]", "[SEP]", *own]) for own in words)
    texts = Dataset.from_dict(
        {"text": [" ".join(f"w{(i * k) % 40}" for k in range(1, 9)) for i in range(1, 13)]}
    )
    texts = texts.add_column("labels", [i % 3 for i in range(12)])
    encoded = texts.map(lambda row: students(row["text"]))
    teacher = teacher_of(max_position_embeddings=limit or 512)
    cache = TeacherCache.capture(
        teacher, texts, tmp_path / "cache", processing_class=teachers, say=lambda line: None
    )
    found = []
    for answering in (teacher_of(max_position_embeddings=limit or 512), cache):
        trainer = DistillationTrainer(
            bert(), answering, arguments(tmp_path, max_steps=6), train_dataset=encoded,
            data_collator=DataCollatorWithPadding(students), teacher_processing_class=teachers,
        )  # fmt: skip
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_teacher_in_the_students_order_is_kept_in_its_own(tmp_path: Path) -> None:
    teacher, student = named(teacher_of(), ["a", "b", "c"]), named(bert(), ["c", "a", "b"])
    cache = captured(tmp_path / "cache", OnlineTeacher(teacher, label_order=[2, 0, 1]))
    batch = {name: values for name, values in collate(ROWS[:4]).items() if name != "labels"}
    expected = teacher(**batch).logits
    assert torch.allclose(cache(batch).logits, expected, atol=1e-6)
    ready = cache.prepared(student, Head("single_label"))
    assert torch.allclose(ready(batch).logits, expected[:, [2, 0, 1]], atol=1e-6)


def test_another_teacher_is_found_by_its_weights(tmp_path: Path) -> None:
    captured(tmp_path / "cache")
    with pytest.raises(CacheError, match=r"teacher: expected the one that .* \(weights \w{32}\)"):
        TeacherCache(tmp_path / "cache", bert(2, seed=1))
    with pytest.raises(CacheError, match=r"weights: expected this capture and .* to have the same"):
        captured(tmp_path / "cache", bert(2, seed=1))


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (lambda: bert(head="multi_label"), "heads: expected a cache of the student's head"),
        (
            lambda: bert(num_labels=4),
            "labels: expected a teacher with the student's 4 labels, received one with 3",
        ),
    ],
)
def test_another_head_is_refused(tmp_path: Path, student: Any, message: str) -> None:
    cache = captured(tmp_path / "cache")
    with pytest.raises(ValueError, match=message):
        distiller(student(), cache, arguments(tmp_path), ROWS)


def test_a_worker_opens_its_own_files(tmp_path: Path) -> None:
    cache = captured(tmp_path / "cache")
    batch = collate(ROWS[:3])
    assert torch.equal(pickle.loads(pickle.dumps(cache))(batch).logits, cache(batch).logits)


def test_sparse_answers_teach_what_can_be_taught_with_them(tmp_path: Path) -> None:
    cache = captured(tmp_path / "cache", signals=TopKLogits(k=1, temperatures=(2.0,)))
    losses, metrics = run(tmp_path, cache, temperature=2.0)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert {"eval_agreement", "eval_mean_kl"} <= set(metrics)
    for objectives, message in (
        ([{"name": "adaptive_kl"}], "Use one of forward_kl, .*, or capture full logits"),
        ([{"name": "forward_kl", "temperature": 3.0}], r"captured for \(1, 2\), received 3"),
        ([{"name": "logit_mse"}], "expected a teacher that gives logits"),
    ):
        with pytest.raises(ValueError, match=message):
            distiller(bert(), cache, arguments(tmp_path, objectives=objectives), ROWS)


def test_packed_rows_take_their_documents_answers(tmp_path: Path) -> None:
    rows = examples(6, "causal")
    cache = captured(tmp_path / "cache", classifier("llama_lm", 1, 3), rows)
    packed = {
        "input_ids": torch.tensor([rows[0]["input_ids"] + rows[1]["input_ids"]]),
        "position_ids": torch.tensor(
            [[*range(len(rows[0]["input_ids"])), *range(len(rows[1]["input_ids"]))]]
        ),
    }
    alone = [
        cache({name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")}).logits
        for row in rows[:2]
    ]
    assert torch.equal(cache(packed).logits, torch.cat(alone, 1))


def test_packed_rows_have_no_answer_of_one_example(tmp_path: Path) -> None:
    rows = [{"input_ids": ids, "attention_mask": [1, 1, 1], "labels": 0} for ids in ([5, 6, 7], [8, 9, 10])]
    cache = captured(tmp_path / "cache", classifier("llama"), rows)
    packed = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]),
    }
    with pytest.raises(CacheError, match="answer for each of 1 rows, received packed rows with 2 examples"):
        cache(packed)


def test_a_gpu_may_answer_less_exactly_than_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image model in float32, on a GPU, was refused: TF32 of its convolutions differs by the batch."""
    captured(tmp_path / "cache")
    teacher = teacher_of()
    cache = TeacherCache(tmp_path / "cache", teacher)
    batch = {name: value for name, value in collate(ROWS[:4]).items() if name != "labels"}
    cache(batch)
    with torch.no_grad():
        teacher.classifier.bias += 0.01
    later = TeacherCache(tmp_path / "cache")
    later.at_hand = cache.at_hand
    with pytest.raises(CacheError, match="expected the teacher to answer as it did, received"):
        later(batch)
    on_a_gpu = tolerance_of(later.at_hand.source, torch.device("cuda"))
    monkeypatch.setattr(model_at_hand, "tolerance_of", lambda source, device: on_a_gpu)
    later(batch)


def test_the_model_at_hand_is_asked_about_a_few_rows_again(tmp_path: Path) -> None:
    captured(tmp_path / "cache")
    teacher = teacher_of()
    cache = TeacherCache(tmp_path / "cache", teacher)
    batch = {name: value for name, value in collate(ROWS[:4]).items() if name != "labels"}
    cache(batch)
    teacher.config.problem_type = None
    with torch.no_grad():
        teacher.classifier.bias += 1  # after its weights were looked at
    later = TeacherCache(tmp_path / "cache")
    later.at_hand = cache.at_hand
    with pytest.raises(CacheError, match="expected the teacher to answer as it did, received"):
        later(batch)
