"""The derivative term in the trainer: splits, steps it is left out of, evaluation, resuming, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_distill import student_from_teacher
from hf_distill.input_space import check_input_space, embedding_layer
from hf_distill.teachers.following import Followed
from hf_distill.teachers.signals import DenseSignals
from tests.tiny import (
    SIZES,
    arguments,
    bert,
    classifier,
    distiller,
    examples,
    gradient_of,
    one_step,
    perturbed,
    teacher_of,
)

VJP = {"name": "derivative", "weight": 0.1}
FINITE_DIFFERENCE = {**VJP, "method": "finite_difference", "epsilon": 1e-4}
HEADS = {
    "bert": "single_label",
    "bert_tokens": "tokens",
    "gpt2_lm": "causal",
    "gpt2": "single_label",
    "vit": "image",
}


def pair(architecture: str = "bert", **options: Any) -> tuple[Any, Any]:
    """Return a student cut from a teacher, in float64."""
    teacher = perturbed(classifier(architecture, 2, 5, **options), 0.3).double()
    return student_from_teacher(teacher, num_hidden_layers=1), teacher


def losses(trainer: Any, key: str = "loss/derivative") -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


# ---- one batch, one gradient ---------------------------------------------------------------------


@pytest.mark.parametrize("term", [VJP, FINITE_DIFFERENCE], ids=["vjp", "finite_difference"])
@pytest.mark.parametrize("architecture", HEADS)
def test_one_batch_has_one_gradient_however_it_is_split(
    tmp_path: Any, architecture: str, term: dict[str, Any]
) -> None:
    gradients, logged = [], []
    for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
        student, teacher = pair(architecture)
        args = one_step(tmp_path, batch_size, accumulation, objectives=[{"name": "forward_kl"}, term])
        trainer = distiller(student, teacher, args, examples(8, HEADS[architecture]))
        gradients.append(gradient_of(trainer))
        logged.append(losses(trainer)[0])
        assert all(p.grad is None for p in teacher.parameters())
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).abs().max() <= 1e-6 * gradients[0].abs().max()
    assert logged == [pytest.approx(logged[0], rel=1e-6)] * 3
    assert logged[0] > 0


@pytest.mark.parametrize("head", ["multi_label", "regression"])
def test_other_heads(tmp_path: Any, head: str) -> None:
    teacher = teacher_of(head)
    student = student_from_teacher(teacher, num_hidden_layers=1)
    trainer = distiller(student, teacher, arguments(tmp_path, objectives=[VJP]), examples(8, head))
    trainer.train()
    assert losses(trainer)[-1] > 0


def test_the_derivative_alone_teaches_without_labels(tmp_path: Any) -> None:
    student, teacher = pair()
    data = [{k: v for k, v in example.items() if k != "labels"} for example in examples(8)]
    args = arguments(tmp_path, objectives=[VJP], label_weight=0, max_steps=40, per_device_train_batch_size=8)
    trainer = distiller(student, teacher, args, data)
    before = trainer.evaluate(data)["eval_loss/derivative"]
    trainer.train()
    assert trainer.evaluate(data)["eval_loss/derivative"] < 0.5 * before


def test_the_student_runs_through_its_wrapper(tmp_path: Any) -> None:
    student, teacher = pair()
    trainer = distiller(student, teacher, arguments(tmp_path, objectives=[VJP], label_weight=0), examples(8))

    class Wrapper(torch.nn.Module):
        calls = 0

        def forward(self, **inputs: Any) -> Any:
            type(self).calls += 1
            return student(**inputs)

    trainer.compute_loss(Wrapper(), trainer.data_collator(examples(4)))
    assert Wrapper.calls == 2


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing_kwargs": {"use_reentrant": True}}])
def test_gradient_checkpointing_changes_nothing(tmp_path: Any, options: dict[str, Any]) -> None:
    gradients = []
    for checkpointing in ({}, {"gradient_checkpointing": True, **options}):
        student, teacher = pair()
        args = one_step(tmp_path, 8, 1, objectives=[VJP], **checkpointing)
        gradients.append(gradient_of(distiller(student, teacher, args, examples(8))))
    assert (gradients[1] - gradients[0]).abs().max() <= 1e-6 * gradients[0].abs().max()


def test_bf16_autocast(tmp_path: Any) -> None:
    found = []
    for bf16 in (False, True):
        teacher = teacher_of()
        student = student_from_teacher(teacher, num_hidden_layers=1)
        args = arguments(tmp_path, objectives=[VJP], bf16=bf16)
        trainer = distiller(student, teacher, args, examples(16))
        trainer.train()
        found.append(losses(trainer)[0])
    assert found[1] == pytest.approx(found[0], rel=0.1)


def test_a_teacher_in_another_order_of_labels(tmp_path: Any) -> None:
    gradients = []
    for order in ([0, 1, 2], [2, 0, 1]):
        student, teacher = pair()
        names = ["red", "green", "blue"]
        for model, labels in ((student, names), (teacher, [names[i] for i in order])):
            model.config.id2label = dict(enumerate(labels))
            model.config.label2id = {label: index for index, label in enumerate(labels)}
        with torch.no_grad():
            teacher.classifier.weight.copy_(teacher.classifier.weight[order].clone())
        args = one_step(tmp_path, 8, 1, objectives=[VJP], label_weight=0)
        gradients.append(gradient_of(distiller(student, teacher, args, examples(8))))
    torch.testing.assert_close(*gradients)


# ---- randomness ------------------------------------------------------------------------------------


def test_the_stream_of_the_training_is_left_as_it_was(tmp_path: Any) -> None:
    states = []
    for objectives in (
        [{"name": "forward_kl"}],
        [{"name": "forward_kl"}, VJP, {**FINITE_DIFFERENCE, "key": "fd"}],
    ):
        teacher = teacher_of(dropout=True)
        student = student_from_teacher(teacher, num_hidden_layers=1)
        distiller(student, teacher, arguments(tmp_path, objectives=objectives), examples(16)).train()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("term", [VJP, FINITE_DIFFERENCE], ids=["vjp", "finite_difference"])
def test_a_resumed_run_is_bit_equal(tmp_path: Any, term: dict[str, Any]) -> None:
    def trainer(folder: str, **options: Any) -> Any:
        teacher = teacher_of(dropout=True)
        student = student_from_teacher(teacher, num_hidden_layers=1)
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5, **options}
        args = arguments(tmp_path / folder, objectives=[{"name": "forward_kl"}, term], **options)
        return distiller(student, teacher, args, examples(16))

    whole = trainer("whole")
    whole.train()
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for expected, received in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(expected, received)
    assert losses(whole) == losses(resumed)


# ---- steps ------------------------------------------------------------------------------------------


def test_every_n_steps_takes_the_first_of_each_n(tmp_path: Any) -> None:
    student, teacher = pair()
    calls: list[int] = []
    terms = [{"name": "forward_kl"}, {**VJP, "every_n_steps": 3}]
    args = arguments(tmp_path, objectives=terms, max_steps=7, gradient_accumulation_steps=2)
    trainer = distiller(student, teacher, args, examples(64))
    embedding_layer(teacher).register_forward_hook(lambda *_: calls.append(trainer.state.global_step))
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries if "loss/derivative" in entry] == [1, 4, 7]
    ran = {step: calls.count(step) for step in range(7)}
    # Once per micro-batch for its logits; where the term is taken, once for the point and once for its function.
    assert ran == {step: 6 if step % 3 == 0 else 2 for step in range(7)}
    for entry in entries:
        parts = entry["loss/label"] + entry["loss/forward_kl"] + 0.1 * entry.get("loss/derivative", 0.0)
        assert entry["loss"] == pytest.approx(parts, rel=1e-5)


def test_the_log_averages_over_the_steps_that_had_the_term(tmp_path: Any) -> None:
    logs = {}
    for every in (1, 3):
        student, teacher = pair()
        args = arguments(tmp_path, objectives=[{**VJP, "every_n_steps": 2}], max_steps=6, logging_steps=every)
        trainer = distiller(student, teacher, args, examples(64))
        trainer.train()
        logs[every] = losses(trainer)
    assert len(logs[1]) == 3  # steps 0, 2 and 4
    assert logs[3] == pytest.approx([(logs[1][0] + logs[1][1]) / 2, logs[1][2]], rel=1e-5)


def test_a_step_without_any_term_moves_nothing(tmp_path: Any) -> None:
    student, teacher = pair()
    args = arguments(
        tmp_path, objectives=[{**VJP, "every_n_steps": 2}], label_weight=0, max_steps=2, optim="sgd"
    )
    trainer = distiller(student, teacher, args, examples(64))
    trainer.train()
    assert [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][1] == 0.0


# ---- evaluation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", HEADS)
@pytest.mark.parametrize("term", [VJP, FINITE_DIFFERENCE], ids=["vjp", "finite_difference"])
def test_evaluation_does_not_depend_on_the_batch_size_or_the_step(
    tmp_path: Any, architecture: str, term: dict[str, Any]
) -> None:
    found = []
    student, teacher = pair(architecture)
    for size in (7, 2):
        args = arguments(tmp_path, objectives=[term], per_device_eval_batch_size=size)
        trainer = distiller(student, teacher, args, examples(8, HEADS[architecture]))
        trainer.state.global_step = size
        found.append(trainer.evaluate(examples(7, HEADS[architecture], seed=3))["eval_loss/derivative"])
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[0] > 0
    assert all(p.grad is None for p in student.parameters())


# ---- what is refused ----------------------------------------------------------------------------------------


class Signals:
    """A teacher that is no model."""

    name, provides, columns = "signals", frozenset({"logits", "log_probs"}), frozenset({"input_ids"})

    def __call__(self, batch: dict[str, Any]) -> DenseSignals:
        return DenseSignals(torch.zeros(batch["input_ids"].shape[0], 3))


class Claiming(Signals):
    """One that claims to have an input."""

    provides = Signals.provides | {"input_gradient"}


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (
            bert,
            lambda: BertForSequenceClassification(BertConfig(**{**SIZES, "hidden_size": 8, "num_labels": 3})),
            r"teacher's width 8, received a student of width 16.*student_from_teacher",
        ),
        (bert, teacher_of, r"about the teacher's .* received tables .* apart.*student_from_teacher"),
        (bert, Signals, "expected a teacher that gives input_gradient, received signals"),
        (bert, Claiming, "expected a teacher that is one model, received signals"),
        (lambda: classifier("vit"), teacher_of, "expected a teacher that reads pixel_values"),
    ],
)
def test_a_teacher_without_a_shared_input_is_refused(
    tmp_path: Any, student: Any, teacher: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        distiller(student(), teacher(), arguments(tmp_path, objectives=[VJP]), examples(8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"torch_compile": True}, "Set torch_compile=False"),
        (
            {"use_liger_kernel": True, "liger_kernel_config": {"fused_linear_cross_entropy": False}},
            "which use_liger_kernel does not allow.*finite_difference",
        ),
    ],
)
def test_a_run_that_cannot_differentiate_is_refused(
    tmp_path: Any, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = pair()
    args = arguments(tmp_path, objectives=[VJP])
    for name, value in options.items():  # set afterwards, for neither is needed to build the trainer
        monkeypatch.setattr(args, name, value)
    trainer = distiller(student, teacher, arguments(tmp_path), examples(8))
    trainer.args = args
    with pytest.raises(ValueError, match=message):
        trainer._resolve()


def test_rounding_that_a_finite_difference_cannot_bear_is_warned_about(tmp_path: Any) -> None:
    teacher = teacher_of()
    student = student_from_teacher(teacher, num_hidden_layers=1)
    args = arguments(tmp_path, objectives=[FINITE_DIFFERENCE], bf16=True)
    with pytest.warns(UserWarning, match="Use method 'vjp'"):
        distiller(student, teacher, args, examples(8))


def test_a_student_that_was_trained_further_still_shares_the_space(tmp_path: Any) -> None:
    student, teacher = pair()
    table = student.get_input_embeddings().weight
    with torch.no_grad():
        table += 0.1 * table.norm() / table.numel() ** 0.5 * torch.randn_like(table)
    check_input_space(student, teacher)


def test_an_encoder_decoder_is_differentiated_to_its_encoders_input(tmp_path: Any) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
    teacher = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, dropout_rate=0.0, **sizes))
    student = student_from_teacher(teacher, num_hidden_layers=1)
    data = [{**example, "labels": example["input_ids"]} for example in examples(8)]
    trainer = distiller(student, teacher, arguments(tmp_path, objectives=[VJP]), data)
    trainer.train()
    assert losses(trainer)[0] > 0


def test_audio_is_differentiated_to_its_values_and_padding_contributes_nothing(tmp_path: Any) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    torch.manual_seed(0)
    convolutions = {
        "conv_dim": (8, 8),
        "conv_stride": (4, 2),
        "conv_kernel": (8, 4),
        "feat_extract_norm": "layer",
    }
    convolutions |= {
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "num_feat_extract_layers": 2,
    }
    sizes = {**SIZES, "num_hidden_layers": 2, "classifier_proj_size": 8, "num_labels": 3}
    teacher = Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(**sizes, **convolutions, mask_time_prob=0.2, mask_time_length=2)
    )
    student = student_from_teacher(teacher, num_hidden_layers=1).train()
    generator = torch.Generator().manual_seed(0)
    lengths = [200 + 25 * row for row in range(8)]
    data = [
        {
            "input_values": torch.randn(400, generator=generator),
            "attention_mask": (torch.arange(400) < length).long(),
            "labels": length % 3,
        }
        for length in lengths
    ]
    terms = [VJP, {**FINITE_DIFFERENCE, "epsilon": 1e-2, "key": "finite_difference"}]

    def stacked(rows: list[Any]) -> dict[str, Any]:
        return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}

    args = arguments(tmp_path, objectives=terms, per_device_train_batch_size=8, max_steps=2)
    trainer = distiller(student, teacher, args, data)
    trainer.data_collator = stacked
    functions = trainer._functions(student, stacked(data), 0, 0, Followed(trainer.teacher))
    assert not functions.input_directions()[~stacked(data)["attention_mask"].bool()].any()
    # The masking of spans is drawn by numpy, and is the same in both forwards.
    assert torch.equal(functions.student(functions.inputs), functions.student(functions.inputs))
    trainer.train()
    for key in ("loss/derivative", "loss/finite_difference"):
        assert losses(trainer, key)[0] > 0
    assert student.wav2vec2.feature_extractor._requires_grad


def test_a_peft_student_learns_from_derivatives(tmp_path: Any) -> None:
    peft = pytest.importorskip("peft")
    teacher = teacher_of()
    student = student_from_teacher(teacher, num_hidden_layers=1)
    student = peft.get_peft_model(
        student, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"])
    )
    trainer = distiller(student, teacher, arguments(tmp_path, objectives=[VJP]), examples(8))
    before = [p.detach().clone() for p in student.parameters() if p.requires_grad]
    trainer.train()
    after = [p for p in student.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert losses(trainer)[0] > 0


def test_a_model_that_embeds_texts_length_first_is_refused_by_name() -> None:
    from transformers import XLNetConfig, XLNetForSequenceClassification

    def xlnet() -> Any:
        return XLNetForSequenceClassification(
            XLNetConfig(vocab_size=20, d_model=8, n_layer=1, n_head=2, d_inner=8)
        )

    student = xlnet()
    with pytest.raises(ValueError, match="received XLNetForSequenceClassification, which embeds them as"):
        check_input_space(student, copy.deepcopy(student))
