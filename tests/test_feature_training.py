"""Objectives on features in the trainer: they train, count, evaluate, and refuse what can't be compared."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from hf_distill import DistillationTrainer
from hf_distill.features import FeatureNeeds
from hf_distill.objectives import objective_classes
from hf_distill.objectives.hidden_states import HiddenStates
from hf_distill.objectives.relations import Relations
from hf_distill.teachers.online import OnlineTeacher
from hf_distill.teachers.signals import DenseSignals
from tests.tiny import (
    NO_DROPOUT,
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

CLASSES = {name: found for name, found in objective_classes().items() if "features" in found.needs}
INDEPENDENT = sorted(name for name, found in CLASSES.items() if not found.batch_relational)
TOKENS = sorted(name for name, found in CLASSES.items() if found.level == "token")

every_objective = pytest.mark.parametrize("name", sorted(CLASSES))


def objectives(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, **({"relation_heads": 4} if name == "relations" else {})} for name in names]


def alone(*names: str) -> dict[str, Any]:
    """Return arguments for these objectives and no label loss."""
    return {"objectives": objectives(*names), "label_weight": 0.0}


def wide_teacher(dtype: torch.dtype = torch.float32) -> Any:
    """Return a teacher with other layers, width and number of heads than the student's."""
    return perturbed(bert(3, seed=5, hidden_size=24, num_attention_heads=4), 0.1).to(dtype)


# ---- training ----------------------------------------------------------------------------------


@every_objective
def test_every_objective_trains(tmp_path: Any, name: str) -> None:
    args = arguments(tmp_path, max_steps=30, per_device_train_batch_size=8, learning_rate=3e-3, **alone(name))
    trainer = distiller(bert(2), wide_teacher(), args, examples(8))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_parts_are_weighted_into_the_loss(tmp_path: Any) -> None:
    given = [{"name": "hidden_states", "weight": 0.5}, {"name": "rkd", "weight": 2.0, "key": "angles"}]
    args = arguments(tmp_path, objectives=[*given, {"name": "forward_kl"}], label_weight=0.25, max_steps=1)
    trainer = distiller(bert(2), wide_teacher(), args, examples(8))
    trainer.train()
    entry = trainer.state.log_history[0]
    expected = 0.25 * entry["loss/label"] + 0.5 * entry["loss/hidden_states"] + 2 * entry["loss/angles"]
    assert entry["loss"] == pytest.approx(expected + entry["loss/forward_kl"], rel=1e-5)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_one_batch_has_one_gradient_however_it_is_split(tmp_path: Any, name: str) -> None:
    gradients = []
    for size in (8, 1):
        args = one_step(tmp_path, size, 8 // size, **alone(name))
        gradients.append(
            gradient_of(distiller(bert(2).double(), wide_teacher(torch.float64), args, examples(8)))
        )
    assert gradients[0].abs().max() > 0
    # In float32 the order of summing alone comes to 3e-6 for relations of a teacher with large weights.
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-12 * gradients[0].abs().max()


def test_a_split_batch_is_close_in_float32(tmp_path: Any) -> None:
    gradients = [
        gradient_of(
            distiller(
                bert(2),
                wide_teacher(),
                one_step(tmp_path, size, 8 // size, **alone(*INDEPENDENT)),
                examples(8),
            )
        )
        for size in (8, 1)
    ]
    assert (gradients[0] - gradients[1]).abs().max() <= 3e-6 * gradients[0].abs().max()


@pytest.mark.parametrize("name", ["hidden_states", "relations", "contrastive"])
def test_gradient_checkpointing_changes_nothing(tmp_path: Any, name: str) -> None:
    gradients = [
        gradient_of(
            distiller(
                bert(2),
                wide_teacher(),
                one_step(tmp_path, 8, 1, gradient_checkpointing=on, **alone(name)),
                examples(8),
            )
        )
        for on in (False, True)
    ]
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["attentions", "relations"])
def test_grouped_heads_train_under_gradient_checkpointing(tmp_path: Any, name: str) -> None:
    grouped = {"num_attention_heads": 4, "num_key_value_heads": 2}
    teacher, gradients = perturbed(classifier("llama", 2, 5, **grouped), 0.1), []
    for on in (False, True):
        args = one_step(tmp_path, 8, 1, gradient_checkpointing=on, **alone(name))
        gradients.append(
            gradient_of(distiller(classifier("llama", 1, **grouped), teacher, args, examples(8)))
        )
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


def test_reentrant_checkpointing_is_refused_where_it_would_learn_nothing(tmp_path: Any) -> None:
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = distiller(
        bert(2), wide_teacher(), one_step(tmp_path, 8, 1, **checkpointing, **alone("attentions")), examples(8)
    )
    with pytest.raises(ValueError, match="gradient_checkpointing: expected use_reentrant=False"):
        trainer.train()
    args = one_step(tmp_path, 8, 1, **checkpointing, **alone("hidden_states"))
    assert gradient_of(distiller(bert(2), wide_teacher(), args, examples(8))).abs().max() > 0


def test_mixed_precision_projects_and_multiplies_in_float32(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for cls in (HiddenStates, Relations):
        call = cls.__call__

        def noted(self: Any, rows: Any, call: Any = call) -> Any:
            values = call(self, rows)
            seen.append((torch.is_autocast_enabled("cpu"), values.dtype))
            return values

        monkeypatch.setattr(cls, "__call__", noted)
    args = arguments(tmp_path, bf16=True, max_steps=2, **alone("hidden_states", "relations"))
    trainer = distiller(bert(2), wide_teacher(), args, examples(8))
    trainer.train()
    trainer.evaluate(examples(4))
    with torch.autocast("cpu", torch.bfloat16):  # as in a loop of the user's own
        trainer.compute_loss(trainer.model, collate(examples(4)))
    assert set(seen) == {(False, torch.float32)}
    assert {p.dtype for p in trainer.projections.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_adapters_are_trained_beside_a_projection(tmp_path: Any) -> None:
    peft = pytest.importorskip("peft")

    def with_adapter(model: Any) -> Any:
        return peft.get_peft_model(
            model, peft.LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS")
        )

    args = arguments(tmp_path, max_steps=3, **alone("hidden_states", "attentions"))
    trainer = distiller(with_adapter(bert(2)), with_adapter(wide_teacher()), args, examples(8))
    plain = distiller(bert(2), wide_teacher(), args, examples(8))
    # A fresh adapter adds nothing, so both see the same.
    assert trainer.evaluate(examples(4))["eval_loss"] == pytest.approx(
        plain.evaluate(examples(4))["eval_loss"]
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_compiled_student_shows_the_same(tmp_path: Any) -> None:
    losses = []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        args = arguments(tmp_path, max_steps=2, **alone("hidden_states", "relations"), **options)
        trainer = distiller(bert(2), wide_teacher(), args, examples(8))
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_only_what_is_needed_is_computed(tmp_path: Any) -> None:
    outputs: dict[str, list[Any]] = {"student": [], "teacher": []}

    def run(**options: Any) -> DistillationTrainer:
        student, teacher = bert(2), wide_teacher()
        for who, model in (("student", student), ("teacher", teacher)):
            outputs[who].clear()
            model.register_forward_hook(lambda m, a, out, who=who: outputs[who].append(out) and None)
        trainer = distiller(student, teacher, arguments(tmp_path, max_steps=1, **options), examples(8))
        trainer.train()
        return trainer

    trainer = run()
    assert trainer._student_needs == trainer.teacher.feature_needs == FeatureNeeds()  # type: ignore[attr-defined]
    for name, states in (("forward_kl", False), ("attentions", False), ("patient", True)):
        run(**alone(name))
        for who in outputs.values():
            assert who
            assert all((out.hidden_states is not None) == states and out.attentions is None for out in who)


def test_a_weight_of_0_asks_for_nothing(tmp_path: Any) -> None:
    given = [{"name": "hidden_states", "weight": 0.0}]
    trainer = distiller(bert(2), wide_teacher(), arguments(tmp_path, objectives=given), examples(8))
    assert not trainer._student_needs
    assert len(trainer.projections) == 0


# ---- evaluation --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INDEPENDENT)
def test_evaluation_does_not_depend_on_the_batch_size(tmp_path: Any, name: str) -> None:
    values = []
    for size in (1, 3, 8):
        args = arguments(tmp_path, per_device_eval_batch_size=size, **alone(name))
        trainer = distiller(bert(2), wide_teacher(), args, examples(8))
        values.append(trainer.evaluate(examples(8, seed=4))[f"eval_loss/{name}"])
    assert values[1:] == pytest.approx(values[:1] * 2, rel=1e-5)


def test_evaluation_is_the_mean_over_attended_positions(tmp_path: Any) -> None:
    student, teacher = bert(2).eval(), teacher_of()
    args = arguments(tmp_path, per_device_eval_batch_size=3, **alone("hidden_states"))
    trainer = distiller(student, teacher, args, examples(8))
    got = trainer.evaluate(examples(8))["eval_loss/hidden_states"]
    total, tokens = 0.0, 0
    for example in examples(8):
        ids = torch.tensor([example["input_ids"]])
        with torch.no_grad():
            ours, theirs = (m(ids, output_hidden_states=True).hidden_states for m in (student, teacher))
        total += sum(((ours[i] - theirs[i]) ** 2).mean(-1).sum().item() for i in (1, 2))
        tokens += ids.shape[1]
    assert got == pytest.approx(total / tokens, rel=1e-4)


@every_objective
def test_every_objective_is_evaluated_beside_agreement(tmp_path: Any, name: str) -> None:
    trainer = distiller(bert(2), wide_teacher(), arguments(tmp_path, **alone(name)), examples(8))
    metrics = trainer.evaluate(examples(6))
    assert metrics["eval_loss"] == pytest.approx(metrics[f"eval_loss/{name}"])
    assert 0 <= metrics["eval_agreement"] <= 1


# ---- other inputs and heads ----------------------------------------------------------------------


@pytest.mark.parametrize("names", [("hidden_states", "attentions", "relations"), ("patient", "similarity")])
def test_images_count_as_examples(tmp_path: Any, names: tuple[str, ...]) -> None:
    student, teacher = classifier("vit", 2), perturbed(classifier("vit", 3, 5), 0.1)
    args = one_step(tmp_path, 4, 1, max_steps=1, **alone(*names))
    data = examples(4, "image")
    trainer = distiller(student.eval(), teacher, args, data)
    metrics = trainer.evaluate(data)
    if "hidden_states" in names:
        pixels = torch.tensor([example["pixel_values"] for example in data])
        with torch.no_grad():
            ours, theirs = (m(pixels, output_hidden_states=True).hidden_states for m in (student, teacher))
        # All positions of an image weigh as much as one text token would: 1 together.
        expected = sum(((ours[i] - theirs[j]) ** 2).mean().item() for i, j in ((1, 1), (2, 3)))
        assert metrics["eval_loss/hidden_states"] == pytest.approx(expected, rel=1e-4)
    whole = gradient_of(trainer)
    split = gradient_of(
        distiller(classifier("vit", 2), teacher, one_step(tmp_path, 1, 4, **alone(*names)), data)
    )
    if "similarity" not in names:
        assert (whole - split).abs().max() <= 3e-6 * whole.abs().max()


@pytest.mark.parametrize(("architecture", "head"), [("gpt2_lm", "causal"), ("bert_tokens", "tokens")])
def test_heads_with_positions(tmp_path: Any, architecture: str, head: str) -> None:
    student, teacher = classifier(architecture, 1), perturbed(classifier(architecture, 2, 5), 0.1)
    args = arguments(tmp_path, objectives=objectives(*CLASSES), label_weight=1.0, max_steps=2)
    args.objectives = [given for given in args.objectives if given["name"] != "patient"]  # needs two layers
    trainer = distiller(student, teacher, args, examples(8, head))
    trainer.train()
    metrics = trainer.evaluate(examples(5, head))
    assert all(metrics[f"eval_loss/{given['name']}"] > 0 for given in args.objectives)


@pytest.mark.parametrize("head", ["multi_label", "regression"])
def test_other_heads(tmp_path: Any, head: str) -> None:
    args = arguments(tmp_path, max_steps=2, **alone(*CLASSES))
    trainer = distiller(bert(2, head=head), teacher_of(head), args, examples(8, head))
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0


def test_settings_go_into_the_card_as_plain_values(tmp_path: Any) -> None:
    given = [{"name": "hidden_states", "layers": [[1, 2]]}]
    trainer = distiller(bert(2), wide_teacher(), arguments(tmp_path, objectives=given), examples(8))
    assert '"layers": [[1, 2]]' in json.dumps(trainer.distillation_settings())


# ---- what can't be compared ------------------------------------------------------------------------


class LogitsOnly:
    """A teacher that is no model."""

    name, provides, columns = "table", frozenset({"logits", "log_probs"}), frozenset({"input_ids"})

    def __call__(self, batch: dict[str, Any]) -> DenseSignals:
        return DenseSignals(torch.zeros(batch["input_ids"].shape[0], 3))


class Claims(LogitsOnly):
    """One that says it gives features, and has no model."""

    provides = frozenset({"logits", "log_probs", "features"})


@every_objective
def test_a_teacher_without_features_is_refused_at_construction(tmp_path: Any, name: str) -> None:
    with pytest.raises(ValueError, match="expected a teacher that gives features, received table"):
        distiller(bert(2), LogitsOnly(), arguments(tmp_path, **alone(name)), examples(8))


def test_a_teacher_that_claims_features_needs_a_model(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"gives features to have a model.*received table"):
        distiller(bert(2), Claims(), arguments(tmp_path, **alone("rkd")), examples(8))


def test_a_teacher_that_gives_none_after_all_is_named(tmp_path: Any) -> None:
    class Silent(OnlineTeacher):
        def __call__(self, batch: dict[str, Any]) -> Any:
            return DenseSignals(super().__call__(batch).logits)

    trainer = distiller(bert(2), Silent(teacher_of()), arguments(tmp_path, **alone("rkd")), examples(8))
    with pytest.raises(
        ValueError, match="'rkd': expected features of student and teacher, received none from Bert"
    ):
        trainer.train()


def own_encoding(folder: Any, name: str) -> DistillationTrainer:
    """Return a trainer whose teacher has a tokenizer of its own."""
    import datasets
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

    def tokenizer(words: list[str]) -> Any:
        inner = Tokenizer(
            models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", *words])}, unk_token="[UNK]")
        )
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")

    students, teachers = tokenizer(["a", "b", "c d"]), tokenizer(["b", "a"])
    data = datasets.Dataset.from_dict({"text": ["a b", "b", "a b a", "b b"], "labels": [0, 1, 2, 0]})
    data = data.map(lambda row: dict(students(row["text"])))
    return DistillationTrainer(
        bert(2), wide_teacher(), arguments(folder, max_steps=2, **alone(name)), train_dataset=data,
        data_collator=DataCollatorWithPadding(students), processing_class=students,
        teacher_processing_class=teachers,
    )  # fmt: skip


@pytest.mark.parametrize("name", TOKENS)
def test_positions_of_two_encodings_are_refused_at_construction(tmp_path: Any, name: str) -> None:
    with pytest.raises(
        ValueError, match=f"objective '{name}': expected student and teacher to read the same tokens"
    ):
        own_encoding(tmp_path, name)


@pytest.mark.parametrize("name", sorted(set(CLASSES) - set(TOKENS)))
def test_vectors_of_two_encodings_are_compared(tmp_path: Any, name: str) -> None:
    trainer = own_encoding(tmp_path, name)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0


def test_other_positions_are_refused_and_vectors_are_not(tmp_path: Any) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 2}
    finer = ViTForImageClassification(
        ViTConfig(image_size=8, patch_size=2, num_labels=3, **sizes, **NO_DROPOUT)
    )
    data = examples(4, "image")
    trainer = distiller(classifier("vit", 2), finer, arguments(tmp_path, **alone("hidden_states")), data)
    with pytest.raises(ValueError, match=r"to have the same positions, received \(4, 5\) and \(4, 17\)"):
        trainer.train()
    distiller(classifier("vit", 2), finer, arguments(tmp_path, max_steps=1, **alone("patient")), data).train()


def test_layers_that_a_model_lacks_are_refused_at_construction(tmp_path: Any) -> None:
    given = [{"name": "hidden_states", "layers": [[3, 1]]}]
    with pytest.raises(ValueError, match="expected at most the student's 2 layers, received 3"):
        distiller(bert(2), wide_teacher(), arguments(tmp_path, objectives=given), examples(8))
    with pytest.raises(
        ValueError, match="relation_heads: expected a divisor of the student's width 16, received 12"
    ):
        distiller(
            bert(2), wide_teacher(), arguments(tmp_path, objectives=[{"name": "relations"}]), examples(8)
        )


def test_collated_batches_have_positions_of_their_own() -> None:
    lengths = collate(examples(4))["attention_mask"].sum(-1)
    assert len(set(lengths.tolist())) > 1, "the tests above want ragged texts"
