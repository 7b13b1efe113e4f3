"""A student of several teachers: gradients beside naive ones, checks that name the teacher, columns, evaluation."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from transformers import DataCollatorWithPadding

from hf_distill import DistillationTrainer, TeacherEnsemble
from hf_distill.teachers.online import OnlineTeacher
from hf_distill.teachers.preparation import check_ensemble_arguments
from tests.test_columns import tokenizer_of
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

NAN = float("nan")
NAMES = ["red", "green", "blue"]
WEIGHTS = [None, [3, 1, 1], "confidence", "label_loss"]


def teachers(head: str = "single_label", count: int = 3) -> list[Any]:
    """Return teachers that say different things."""
    return [perturbed(bert(2, seed=5, head=head), seed=9 + index) for index in range(count)]


def logits_of(model: Any, data: list[dict[str, Any]]) -> torch.Tensor:
    batch = collate(data)
    with torch.no_grad():
        return model.eval()(batch["input_ids"], batch["attention_mask"]).logits.double()


def labels_of(data: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([example["labels"] for example in data])


def naive_weights(weights: Any, stacked: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return (teachers, rows, 1) weights, from the definition; stacked are (teachers, rows, classes)."""
    p = stacked.softmax(-1)
    if weights == "confidence":
        sure = 1 + (p * p.log()).sum(-1) / torch.tensor(3.0).log()
        return (sure / sure.sum(0)).unsqueeze(-1)
    if weights == "label_loss":
        true = p[:, torch.arange(len(labels)), labels.clamp(min=0)]
        return torch.where(labels >= 0, true / true.sum(0), 1 / len(p)).unsqueeze(-1)
    fixed = torch.tensor(weights or [1.0] * len(p), dtype=torch.float64)
    return (fixed / fixed.sum())[:, None, None].expand(len(p), len(labels), 1)


def naive_gradient(
    student: Any, stacked: torch.Tensor, data: list[Any], weights: Any, combine: str, alpha: float
) -> torch.Tensor:
    """Return the gradient of (1 - alpha) CE + alpha T^2 KL(mixture || student) at T = 3, in float64."""
    student, batch, labels = copy.deepcopy(student).double(), collate(data), labels_of(data)
    w = naive_weights(weights, stacked, labels)
    if combine == "logits":
        p = ((w * stacked).sum(0) / 3).softmax(-1)
    else:
        p = (w * (stacked / 3).softmax(-1)).sum(0)
    logits = student(batch["input_ids"], batch["attention_mask"]).logits
    divergence = (p * (p.log() - (logits / 3).log_softmax(-1))).sum(-1).mean()
    label_loss = torch.nn.functional.cross_entropy(logits, labels)
    ((1 - alpha) * label_loss + alpha * 9 * divergence).backward()
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in student.parameters()]
    )


def close(received: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool((received - expected).abs().max() <= tolerance * expected.abs().max())


# ---- gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_gradients_are_the_naive_ones(tmp_path: Any, weights: Any, combine: str) -> None:
    data, student = examples(8), bert()
    data[2]["labels"] = -100  # under label_loss it gets equal weights
    stacked = torch.stack([logits_of(model, data) for model in teachers()])
    expected = naive_gradient(student, stacked, data, weights, combine, alpha=0.7)
    args = one_step(
        tmp_path, 8, 1, alpha=0.7, temperature=3, teacher_weights=weights, teacher_combine=combine
    )
    assert close(gradient_of(distiller(student, teachers(), args, data)).double(), expected, 1e-5)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("combine", ["probabilities", "logits"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_accumulation_changes_nothing(
    tmp_path: Any, weights: Any, combine: str, dtype: torch.dtype, tolerance: float
) -> None:
    data = examples(8, seed=2)
    data[5]["labels"] = -100
    settings = {"teacher_weights": weights, "teacher_combine": combine}
    student, given = bert().to(dtype), [model.to(dtype) for model in teachers()]
    whole, split = (
        gradient_of(
            distiller(copy.deepcopy(student), given, one_step(tmp_path, size, steps, **settings), data)
        )
        for size, steps in ((8, 1), (1, 8))
    )
    assert whole.dtype == dtype
    assert close(split, whole, tolerance)


@pytest.mark.parametrize(
    ("head", "architecture"), [("causal", "gpt2_lm"), ("tokens", "bert_tokens"), ("multi_label", "bert")]
)
@pytest.mark.parametrize("weights", ["confidence", "label_loss"])
def test_accumulation_changes_nothing_for_other_heads(
    tmp_path: Any, head: str, architecture: str, weights: str
) -> None:
    problem = {"problem_type": "multi_label_classification"} if head == "multi_label" else {}

    def model(layers: int, seed: int) -> Any:
        return perturbed(classifier(architecture, layers, seed, **problem), seed=seed)

    data = examples(8, head)
    whole, split = (
        gradient_of(
            distiller(
                model(1, 0), [model(2, 5), model(1, 6)],
                one_step(tmp_path, size, steps, teacher_weights=weights), data,
            )
        )
        for size, steps in ((8, 1), (1, 8))
    )  # fmt: skip
    assert whole.abs().max() > 0
    assert close(split, whole, 1e-6)


def test_objectives_on_raw_logits_take_the_mean_of_logits(tmp_path: Any) -> None:
    data = examples(8, "regression")
    args = one_step(tmp_path, 8, 1, alpha=1, teacher_weights=[3, 1, 0])
    trainer = distiller(bert(head="regression"), teachers("regression"), args, data)
    mean = (torch.tensor([3.0, 1, 0])[:, None, None] / 4 * torch.stack(
        [logits_of(model, data) for model in teachers("regression")]
    )).sum(0)  # fmt: skip
    expected = (logits_of(bert(head="regression"), data) - mean).square().mean().item()
    trainer.train()
    assert trainer.state.log_history[0]["loss/regression"] == pytest.approx(expected, rel=1e-5)


def test_equal_teachers_teach_what_one_does(tmp_path: Any) -> None:
    one, three = (
        gradient_of(distiller(bert(), teacher, one_step(tmp_path, 8, 1, alpha=1), examples(8)))
        for teacher in (teacher_of(), [teacher_of() for _ in range(3)])
    )
    assert close(three, one, 1e-5)


def test_a_list_of_one_is_that_teacher(tmp_path: Any) -> None:
    alone, listed = (
        distiller(bert(), teacher, one_step(tmp_path, 8, 1), examples(8), teacher_processing_class=own)
        for teacher, own in ((teacher_of(), None), ([teacher_of()], [None]))
    )
    assert isinstance(listed.teacher, OnlineTeacher)
    assert torch.equal(gradient_of(alone), gradient_of(listed))


def test_a_list_is_short_for_the_ensemble(tmp_path: Any) -> None:
    settings = {"teacher_weights": [2, 1, 1], "teacher_combine": "logits", "offload_teachers": True}
    short = distiller(bert(), teachers(), one_step(tmp_path, 8, 1, **settings), examples(8))
    ensemble = TeacherEnsemble(teachers(), weights=[2, 1, 1], combine="logits", offload=True)
    long = distiller(bert(), ensemble, one_step(tmp_path, 8, 1), examples(8))
    said = short.distillation_settings()
    assert said == long.distillation_settings()
    assert said["teacher_weights"] == [0.5, 0.25, 0.25]
    assert said["teacher_combine"] == "logits"
    assert said["teacher"] == ", ".join(["BertForSequenceClassification"] * 3)
    assert short.teacher.offload
    assert torch.equal(gradient_of(short), gradient_of(long))
    again = distiller(bert(), ensemble, one_step(tmp_path, 8, 1), examples(8))  # another student's
    assert again.teacher is not long.teacher


def named(model: Any, labels: list[str]) -> Any:
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
    return model


def test_each_teacher_may_have_its_own_label_order(tmp_path: Any) -> None:
    names = NAMES
    orders = [[0, 1, 2], [2, 0, 1], [1, 0, 2]]

    def permuted(model: Any, order: list[int]) -> Any:
        with torch.no_grad():
            model.classifier.weight.copy_(model.classifier.weight[order].clone())
            model.classifier.bias.copy_(model.classifier.bias[order].clone())
        return named(model, [names[i] for i in order])

    straight, mixed = (
        gradient_of(distiller(named(bert(), names), given, one_step(tmp_path, 8, 1, alpha=1), examples(8)))
        for given in (
            [named(model, names) for model in teachers()],
            [permuted(model, order) for model, order in zip(teachers(), orders, strict=True)],
        )
    )
    assert torch.equal(straight, mixed)


# ---- the teachers' life ------------------------------------------------------------------------


def test_members_are_frozen_in_eval_and_never_saved(tmp_path: Any) -> None:
    import safetensors.torch

    given, seen = teachers(), []
    for index, model in enumerate(given):
        model.register_forward_pre_hook(
            lambda m, a, k, index=index: seen.append((index, m.training, torch.is_grad_enabled(), *k)),
            with_kwargs=True,
        )
    before = [parameter.clone() for model in given for parameter in model.parameters()]
    args = arguments(tmp_path, save_strategy="steps", save_steps=2, max_steps=2, teacher_weights="label_loss")
    trainer = distiller(bert(), given, args, examples(8))
    trainer.train()
    assert [entry[0] for entry in seen] == [0, 1, 2] * 2, "one after another"
    assert not any(training or grad or "labels" in columns for _, training, grad, *columns in seen)
    after = [parameter for model in given for parameter in model.parameters()]
    assert not any(parameter.requires_grad for parameter in after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    checkpoint = tmp_path / "checkpoint-2"
    saved = safetensors.torch.load_file(checkpoint / "model.safetensors")
    assert set(saved) == set(trainer.model.state_dict()) == set(bert().state_dict())
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert len(state["state"]) == len(list(trainer.model.parameters()))


def test_the_teacher_that_is_not_finite_is_named(tmp_path: Any) -> None:
    def spoil(module: Any, args: Any, output: Any) -> Any:
        output.logits[1, 0] = NAN
        return output

    given = teachers()
    given[1].register_forward_hook(spoil)
    args = arguments(tmp_path, logging_steps=2, save_strategy="steps", save_steps=1)
    trainer = distiller(bert(), given, args, examples(40))
    expected = r"^teacher\[1\] \(BertForSequenceClassification\): expected finite logits.* row 1 of its batch"
    with pytest.raises(FloatingPointError, match=expected):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    with pytest.raises(FloatingPointError, match=r"^teacher\[1\]"):
        trainer.evaluate(examples(8))


def few_words() -> Any:
    """Return a teacher with fewer words than the tokenizer has."""
    model = named(bert(), NAMES)
    model.resize_token_embeddings(5)
    return model


# ---- checks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (lambda: None, r"^teacher\[1\]: expected a model, a Hub id, a folder or a Teacher, received None"),
        (lambda: 3, r"^teacher\[1\]: expected a model, a Hub id.* received int"),
        (lambda: "./nowhere", r"^teacher\[1\]: expected the id of a Hub model or a folder"),
        (lambda: bert(num_labels=4), r"^teacher\[1\]: labels: expected a teacher with the student's 3 labels"),
        (lambda: teacher_of("regression"), r"^teacher\[1\]: heads: expected a teacher whose head"),
        (lambda: named(teacher_of(), list("xyz")), r"^teacher\[1\]: labels: expected the student's label nam"),
        (lambda: named(bert(max_position_embeddings=4), NAMES), r"^teacher\[1\]: lengths: expected inputs of at m"),
        (lambda: few_words(), r"^teacher\[1\]: vocabulary: expected ids below the teacher's 5"),
    ],
)  # fmt: skip
def test_a_teacher_that_does_not_fit_is_named(tmp_path: Any, second: Any, message: str) -> None:
    tokenizer = tokenizer_of(["a", "b", "c"])
    with pytest.raises(ValueError, match=message):
        distiller(
            named(bert(), NAMES), [named(teacher_of(), NAMES), second()], arguments(tmp_path), examples(8),
            processing_class=tokenizer,
        )  # fmt: skip


def test_a_backbone_shared_with_a_member_is_refused_and_not_frozen(tmp_path: Any) -> None:
    student, second = bert(), bert()
    second.bert = student.bert
    with pytest.raises(ValueError, match=r"^teacher\[1\]: expected a model of its own"):
        distiller(student, TeacherEnsemble([teacher_of(), second]), arguments(tmp_path), examples(8))
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize(
    "settings", [{"teacher_weights": [1.0]}, {"teacher_combine": "logits"}, {"offload_teachers": True}]
)
def test_settings_of_an_ensemble_need_one(tmp_path: Any, settings: dict[str, Any]) -> None:
    (name,) = settings
    for one in (teacher_of(), [teacher_of()], OnlineTeacher(teacher_of())):
        with pytest.raises(ValueError, match=f"^{name}: expected several teachers, received one"):
            distiller(bert(), one, arguments(tmp_path, **settings), examples(8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_weights": [1, 1]}, "teacher_weights: expected 3 numbers, one for each teacher, received 2"),
        ({"teacher_weights": ["0.5", "most"]}, "teacher_weights: expected confidence, label_loss, or"),
        ({"teacher_weights": []}, "teacher_weights: expected confidence, label_loss, or"),
        ({"teacher_combine": "both"}, "teacher_combine: expected probabilities or logits, received 'both'"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_ensemble(tmp_path: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distiller(bert(), teachers(), arguments(tmp_path, **settings), examples(8))
    with pytest.raises(ValueError, match=message):  # which a recipe asks before it trains teachers
        check_ensemble_arguments(SimpleNamespace(**settings), 3)


@pytest.mark.parametrize(
    "settings", [{"teacher_weights": [1, 2, 1]}, {"teacher_combine": "logits"}, {"offload_teachers": True}]
)
def test_two_places_that_differ_are_refused(tmp_path: Any, settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=rf"^{name}: expected one value, received .* from the ensemble and"):
        distiller(bert(), TeacherEnsemble(teachers()), arguments(tmp_path, **settings), examples(8))
    same = {"teacher_weights": [2, 2, 2], "teacher_combine": "probabilities"}
    trainer = distiller(bert(), TeacherEnsemble(teachers()), arguments(tmp_path, **same), examples(8))
    vars(trainer.args).update(settings)  # as a trial does: it would be ignored in silence
    with pytest.raises(ValueError, match=f"^{name}: .* before the trainer is made"):
        trainer.train()


# ---- columns ---------------------------------------------------------------------------------

WORDS = ["a", "b", "c", "d"]
TEXTS = ["a b", "c d a", "d", "b b c a", "a", "c", "d d", "b a"]


def texts_for(students: Any) -> Any:
    data = datasets.Dataset.from_dict({"text": TEXTS, "labels": [0, 1, 2, 0, 1, 2, 0, 1]})
    return data.map(lambda row: dict(students(row["text"])))


def spied(models: list[Any]) -> tuple[list[Any], dict[int, dict[str, Any]]]:
    seen: dict[int, dict[str, Any]] = {}
    for index, model in enumerate(models):
        model.register_forward_pre_hook(
            lambda m, a, k, index=index: seen.update({index: k}), with_kwargs=True
        )
    return models, seen


@pytest.mark.parametrize("workers", [0, 1])
def test_each_teacher_may_have_its_own_tokenizer(tmp_path: Any, workers: int) -> None:
    students, second, third = tokenizer_of(WORDS), tokenizer_of(WORDS[::-1]), tokenizer_of(["z", *WORDS])
    kinds = ("bert", "distilbert", "roberta")
    models, seen = spied([perturbed(classifier(kind, 2, seed=i)) for i, kind in enumerate(kinds)])
    trainer = DistillationTrainer(
        classifier("distilbert"), models,
        one_step(tmp_path, 8, 1, dataloader_num_workers=workers, per_device_eval_batch_size=8),
        train_dataset=texts_for(students), processing_class=students,
        data_collator=DataCollatorWithPadding(students), teacher_processing_class=[None, second, third],
    )  # fmt: skip
    trainer.train()
    assert torch.equal(seen[0]["input_ids"], students(TEXTS, padding=True, return_tensors="pt")["input_ids"])
    assert "token_type_ids" in seen[0]
    for index, tokenizer in ((1, second), (2, third)):
        expected = tokenizer(TEXTS, padding=True, return_tensors="pt")
        assert torch.equal(seen[index]["input_ids"], expected["input_ids"])
        assert torch.equal(seen[index]["attention_mask"], expected["attention_mask"])
    assert "token_type_ids" not in seen[1]
    assert trainer.state.log_history[0]["loss/forward_kl"] > 0
    assert trainer.evaluate(texts_for(students))["eval_agreement"] >= 0


def test_one_tokenizer_for_all_teachers_encodes_once(tmp_path: Any) -> None:
    students, theirs = tokenizer_of(WORDS), tokenizer_of(WORDS[::-1])
    models, seen = spied([teacher_of(), perturbed(classifier("distilbert"))])
    trainer = DistillationTrainer(
        bert(), models, one_step(tmp_path, 8, 1), train_dataset=texts_for(students), processing_class=students,
        data_collator=DataCollatorWithPadding(students), teacher_processing_class=theirs,
    )  # fmt: skip
    trainer.train()
    expected = theirs(TEXTS, padding=True, return_tensors="pt")
    for index in (0, 1):
        assert torch.equal(seen[index]["input_ids"], expected["input_ids"])
    batch = trainer.data_collator([texts_for(students)[0]])
    assert {"teacher_input_ids", "input_ids"} <= set(batch)
    assert "teacher_0_input_ids" not in batch


def test_each_teacher_needs_an_entry_for_its_tokenizer(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"teacher_processing_class: expected 3 entries, .* received 2"):
        distiller(bert(), teachers(), arguments(tmp_path), examples(8), teacher_processing_class=[None, None])


# ---- evaluation ------------------------------------------------------------------------------


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.mark.parametrize("weights", [None, [3, 1, 1], "confidence", "label_loss"])
def test_the_student_is_measured_against_the_ensemble(tmp_path: Any, weights: Any) -> None:
    """Under label_loss against equal weights: none that know the label."""
    data, student = examples(11), bert()
    stacked = torch.stack([logits_of(model, data) for model in teachers()])
    labels, ours = labels_of(data), logits_of(student, data)
    trainer = distiller(
        student, teachers(), arguments(tmp_path, teacher_weights=weights), data, eval_dataset=data,
        compute_metrics=accuracy,
    )  # fmt: skip
    result = trainer.evaluate()
    w = naive_weights(None if weights == "label_loss" else weights, stacked, labels)
    mixture, q = (w * stacked.softmax(-1)).sum(0), ours.softmax(-1)
    expected = (mixture * (mixture / q).log()).sum(-1).mean().item()
    assert result["eval_mean_kl"] == pytest.approx(expected, rel=1e-4)
    same = (mixture.argmax(-1) == ours.argmax(-1)).double().mean().item()
    assert result["eval_agreement"] == pytest.approx(same)
    right = (mixture.argmax(-1) == labels).double().mean().item()
    assert result["eval_teacher_accuracy"] == pytest.approx(right)
    assert result["eval_retention_accuracy"] == pytest.approx(result["eval_accuracy"] / right)
    trained = naive_weights(weights, stacked, labels)
    mixture = (trained * (stacked / 2).softmax(-1)).sum(0)
    expected = (mixture * (mixture.log() - (ours / 2).log_softmax(-1))).sum(-1).mean().item()
    assert result["eval_loss/forward_kl"] == pytest.approx(4 * expected, rel=1e-4)
