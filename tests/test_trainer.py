"""The trainer beside plain Trainer: alpha 0 and 1, unlabelled rows, heads, the teacher's life, columns, logs."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_distill import (
    DistillationArgumentsMixin,
    DistillationMixin,
    DistillationTrainer,
    DistillationTrainingArguments,
)
from tests.tiny import (
    HEADS,
    arguments,
    bert,
    classifier,
    collate,
    distiller,
    examples,
    gradient_of,
    one_step,
    teacher_of,
)

NAN = float("nan")


def mean_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """A user's own loss that ignores the count."""
    return torch.nn.functional.cross_entropy(outputs["logits"], labels)


def normalised_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """A user's own loss that divides by the count, where there is one."""
    total = torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum")
    return total / (labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch)


def unlabelled(head: str) -> Any:
    """Return what marks a row as unlabelled."""
    return {"single_label": -100, "multi_label": [NAN] * 3, "regression": NAN}[head]


def weights(trainer: Any) -> list[torch.Tensor]:
    return list(trainer.model.state_dict().values())


# ---- alpha 0 ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("single_label", {}),
        ("single_label", {"label_smoothing_factor": 0.1}),
        ("single_label", {"loss": mean_loss}),
        ("single_label", {"loss": normalised_loss}),
        ("multi_label", {}),
        ("regression", {}),
    ],
)
def test_alpha_0_is_plain_trainer_bit_for_bit(tmp_path: Any, head: str, options: dict[str, Any]) -> None:
    options = dict(options)
    loss = options.pop("loss", None)
    data = examples(40, head)
    plain = Trainer(
        bert(head=head, dropout=True), arguments(tmp_path, TrainingArguments, **options), collate, data,
        compute_loss_func=loss,
    )  # fmt: skip
    plain.train()
    teacher = teacher_of(head)
    calls = itertools.count()
    teacher.register_forward_pre_hook(lambda *_: next(calls) and None)
    ours = distiller(
        bert(head=head, dropout=True),
        teacher,
        arguments(tmp_path, alpha=0, **options),
        data,
        compute_loss_func=loss,
    )
    ours.train()
    assert next(calls) == 0, "the teacher ran in training"
    for expected, received in zip(weights(plain), weights(ours), strict=True):
        assert torch.equal(expected, received)
    for expected, received in zip(plain.state.log_history[:-1], ours.state.log_history[:-1], strict=True):
        assert expected["loss"] == received["loss"]
        assert expected["grad_norm"] == received["grad_norm"]


def test_the_teacher_changes_the_student(tmp_path: Any) -> None:
    data = examples(40)
    alone = distiller(bert(), teacher_of(), arguments(tmp_path, alpha=0), data)
    taught = distiller(bert(), teacher_of(), arguments(tmp_path, alpha=0.5), data)
    alone.train(), taught.train()
    assert any(not torch.equal(a, b) for a, b in zip(weights(alone), weights(taught), strict=True))


# ---- alpha 1 and unlabelled rows ---------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_alpha_1_needs_no_labels(tmp_path: Any, head: str) -> None:
    data = [{k: v for k, v in example.items() if k != "labels"} for example in examples(40, head)]
    trainer = distiller(bert(head=head), teacher_of(head), arguments(tmp_path, alpha=1, max_steps=30), data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert not any("loss/label" in entry for entry in trainer.state.log_history)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("loss", [None, "own"])
def test_unlabelled_rows_count_for_the_teacher_only(tmp_path: Any, head: str, loss: str | None) -> None:
    if loss and head != "single_label":
        pytest.skip("one user's loss is enough")
    data = examples(8, head)
    mixed = [dict(example) for example in data]
    for row in (1, 4, 5):
        mixed[row]["labels"] = unlabelled(head)
    labelled = [example for row, example in enumerate(mixed) if row not in (1, 4, 5)]
    func = mean_loss if loss else None

    def gradient(rows: list[Any], alpha: float) -> torch.Tensor:
        args = one_step(tmp_path, 8, 1, alpha=alpha)
        return gradient_of(distiller(bert(head=head), teacher_of(head), args, rows, compute_loss_func=func))

    label_term, teacher_term = gradient(labelled, 0.0), gradient(data, 1.0)
    both = gradient(mixed, 0.5)
    expected = 0.5 * label_term + 0.5 * teacher_term
    assert (both - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_without_a_label_is_zero_with_a_live_graph(tmp_path: Any, head: str) -> None:
    data = [{**example, "labels": unlabelled(head)} for example in examples(8, head)]
    trainer = distiller(bert(head=head), teacher_of(head), one_step(tmp_path, 8, 1, alpha=0), data)
    assert torch.equal(gradient_of(trainer), torch.zeros_like(gradient_of(trainer)))
    assert trainer.state.log_history[0]["loss"] == 0.0
    mixed = distiller(bert(head=head), teacher_of(head), one_step(tmp_path, 2, 4, alpha=0.5), data)
    gradient = gradient_of(mixed)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_no_item_at_all_gives_zero_with_a_live_graph(tmp_path: Any) -> None:
    data = [{**example, "labels": [-100] * len(example["labels"])} for example in examples(8, "tokens")]
    trainer = distiller(classifier("bert_tokens"), classifier("bert_tokens", 2, 5), arguments(tmp_path), data)
    batch = collate(data)
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())
    assert any(p.grad is not None for p in trainer.model.parameters())


def test_half_a_row_of_nan_is_refused(tmp_path: Any) -> None:
    data = examples(8, "multi_label")
    data[3]["labels"] = [0.0, NAN, 1.0]
    trainer = distiller(bert(head="multi_label"), teacher_of("multi_label"), arguments(tmp_path), data)
    with pytest.raises(ValueError, match="row of labels or a row of NaN"):
        trainer.train()


# ---- heads ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "key"),
    [("single_label", "forward_kl"), ("multi_label", "binary_kl"), ("regression", "regression")],
)
def test_the_short_form_takes_the_objective_of_the_head(tmp_path: Any, head: str, key: str) -> None:
    trainer = distiller(bert(head=head), teacher_of(head), arguments(tmp_path), examples(8, head))
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(0.5 * entry["loss/label"] + 0.5 * entry[f"loss/{key}"], rel=1e-5)


def test_problem_type_is_read_from_the_labels_where_the_config_is_silent(tmp_path: Any) -> None:
    student, teacher = bert(num_labels=3), teacher_of()
    trainer = distiller(student, teacher, arguments(tmp_path), examples(8, "multi_label"))
    assert [term.key for term in trainer.plan.terms] == ["binary_kl"]


def test_the_objective_can_be_overridden(tmp_path: Any) -> None:
    args = arguments(
        tmp_path, objectives=[{"name": "logit_mse", "weight": 2.0, "key": "mse"}], label_weight=0.25
    )
    trainer = distiller(bert(head="multi_label"), teacher_of("multi_label"), args, examples(8, "multi_label"))
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(0.25 * entry["loss/label"] + 2.0 * entry["loss/mse"], rel=1e-5)


# ---- objectives that read labels ---------------------------------------------------------------

DECOUPLED = [{"name": "decoupled_kl", "weight": 2.0}]


def test_an_objective_that_reads_labels_needs_no_label_loss(tmp_path: Any) -> None:
    args = arguments(tmp_path, objectives=DECOUPLED, label_weight=0)
    trainer = distiller(bert(), teacher_of(), args, examples(8), eval_dataset=examples(8))
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(2.0 * entry["loss/decoupled_kl"], rel=1e-5)
    assert entry["loss"] > 0
    assert "eval_loss/decoupled_kl" in trainer.evaluate()


def test_unlabelled_rows_have_no_part_in_an_objective_that_reads_labels(tmp_path: Any) -> None:
    data = examples(8)
    mixed = [
        {**example, "labels": -100 if row in (1, 4) else example["labels"]}
        for row, example in enumerate(data)
    ]
    labelled = [example for example in mixed if example["labels"] != -100]

    def gradient(rows: list[Any]) -> torch.Tensor:
        args = one_step(tmp_path, 8, 1, objectives=DECOUPLED, label_weight=0)
        return gradient_of(distiller(bert(), teacher_of(), args, rows))

    # Their sum is the same; the mean is over all 8 items, or over the 6 that are left.
    torch.testing.assert_close(8 * gradient(mixed), 6 * gradient(labelled), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("label_weight", "reason"), [(0, "'decoupled_kl' reads them"), (1, "the label loss has")]
)
def test_an_objective_that_reads_labels_refuses_data_without(
    tmp_path: Any, label_weight: float, reason: str
) -> None:
    import datasets

    rows = [{key: value for key, value in example.items() if key != "labels"} for example in examples(8)]
    args = arguments(tmp_path, objectives=DECOUPLED, label_weight=label_weight)
    with pytest.raises(
        ValueError, match=rf"labels: expected a column named labels, because .*{reason}.*received"
    ):
        distiller(bert(), teacher_of(), args, datasets.Dataset.from_list(rows))
    late = distiller(bert(), teacher_of(), arguments(tmp_path, objectives=DECOUPLED, label_weight=0), rows)
    with pytest.raises(ValueError, match="decoupled_kl: expected labels"):
        late.train()


def test_an_objective_that_reads_labels_is_left_out_of_a_prediction_without(tmp_path: Any) -> None:
    args = arguments(tmp_path, objectives=[*DECOUPLED, {"name": "forward_kl"}], label_weight=0)
    trainer = distiller(bert(), teacher_of(), args, examples(8))
    rows = [{key: value for key, value in example.items() if key != "labels"} for example in examples(8)]
    metrics = trainer.predict(rows).metrics
    assert "test_loss/forward_kl" in metrics
    assert "test_loss/decoupled_kl" not in metrics


# ---- the teacher -----------------------------------------------------------------------------


def test_the_teacher_is_frozen_in_eval_without_gradients_labels_or_cache(tmp_path: Any) -> None:
    teacher = classifier("gpt2", 2, 5)
    seen: dict[str, Any] = {}

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs, training=module.training, grad=torch.is_grad_enabled())

    teacher.register_forward_pre_hook(look, with_kwargs=True)
    trainer = distiller(classifier("gpt2"), teacher, arguments(tmp_path), examples(8))
    teacher.train()  # someone's callback
    before = [p.clone() for p in teacher.parameters()]
    trainer.train()
    assert seen["training"] is False
    assert seen["grad"] is False
    assert seen["use_cache"] is False
    assert "labels" not in seen
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in teacher.parameters()}


def test_a_decoder_gets_inputs_made_from_labels_but_never_the_labels(tmp_path: Any) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    def t5(seed: int) -> Any:
        torch.manual_seed(seed)
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 50}
        return T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, dropout_rate=0.0, **sizes))

    teacher, seen = t5(5), {}
    teacher.register_forward_pre_hook(lambda m, a, k: seen.update(k), with_kwargs=True)
    data = [{**example, "labels": example["input_ids"]} for example in examples(8)]
    trainer = distiller(t5(0), teacher, arguments(tmp_path, alpha=1), data)
    trainer.train()
    assert "labels" not in seen
    assert "decoder_input_ids" in seen
    assert trainer.state.log_history[0]["loss"] > 0


@pytest.mark.parametrize("bad", [NAN, float("inf"), "row"])
def test_a_teacher_that_is_not_finite_stops_the_run_and_names_the_row(tmp_path: Any, bad: Any) -> None:
    teacher = teacher_of()

    def spoil(module: Any, args: Any, output: Any) -> Any:
        output.logits[1, 0] = float("nan") if bad == "row" else bad
        if bad == "row":
            output.logits[1] = -float("inf")
        return output

    teacher.register_forward_hook(spoil)
    args = arguments(tmp_path, logging_steps=2, save_strategy="steps", save_steps=1)
    trainer = distiller(bert(), teacher, args, examples(40))
    with pytest.raises(FloatingPointError, match=r"row 1 of its batch after step 0 on process 0"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*")), "a checkpoint was written of a student taught by NaN"


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "skew_kl", "total_variation"])
def test_a_class_at_minus_infinity_in_one_model_stops_the_run(
    tmp_path: Any, who: str, objective: str
) -> None:
    def forbid(module: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits + torch.tensor(
            [[0.0, 0.0, 0.0], [0.0, -float("inf"), 0.0]] + [[0.0] * 3] * 2
        )
        return output

    models = {"student": bert(), "teacher": teacher_of()}
    models[who].register_forward_hook(forbid)
    args = arguments(
        tmp_path, objectives=[{"name": objective}], label_weight=0, save_strategy="steps", save_steps=1
    )
    trainer = distiller(models["student"], models["teacher"], args, examples(40))
    message = rf"received class 1 at -inf in the {who} alone, in row 1 of its batch after step 0 on process 0"
    with pytest.raises(FloatingPointError, match=message):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_class_at_minus_infinity_in_one_model_stops_an_evaluation(tmp_path: Any) -> None:
    def forbid(module: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits + torch.tensor([0.0, -float("inf"), 0.0])
        return output

    student = bert()
    student.register_forward_hook(forbid)
    trainer = distiller(student, teacher_of(), arguments(tmp_path), examples(8), eval_dataset=examples(8))
    with pytest.raises(FloatingPointError, match="received class 1 at -inf in the student alone, in row 0"):
        trainer.evaluate()


def test_a_class_at_minus_infinity_in_both_models_leaves_every_sum(tmp_path: Any) -> None:
    def forbid(module: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits + torch.tensor([0.0, -float("inf"), 0.0])
        return output

    student, teacher = bert(), teacher_of()
    student.register_forward_hook(forbid)
    teacher.register_forward_hook(forbid)
    trainer = distiller(student, teacher, arguments(tmp_path, alpha=1), examples(8))
    trainer.train()
    assert all(p.isfinite().all() for p in student.parameters())
    assert trainer.state.log_history[0]["loss"] > 0


def test_nothing_of_the_teacher_is_saved(tmp_path: Any) -> None:
    trainer = distiller(
        bert(), teacher_of(), arguments(tmp_path, save_strategy="steps", save_steps=2), examples(8)
    )
    trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    import safetensors.torch

    saved = safetensors.torch.load_file(checkpoint / "model.safetensors")
    assert set(saved) == set(trainer.model.state_dict())
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert len(state["state"]) == len(list(trainer.model.parameters()))


def test_the_saved_student_loads_without_hf_distill(tmp_path: Any) -> None:
    trainer = distiller(bert(), teacher_of(), arguments(tmp_path), examples(8))
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    torch.save(trainer.model(input_ids=torch.tensor([[3, 4, 5]])).logits, tmp_path / "expected.pt")
    code = f"""
import sys
sys.modules["hf_distill"] = None  # importing it would fail, as where it is not installed
import torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained({str(tmp_path / "student")!r}).eval()
expected = torch.load({str(tmp_path / "expected.pt")!r})
assert torch.equal(model(input_ids=torch.tensor([[3, 4, 5]])).logits, expected)
print(type(model).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout.strip() == "BertForSequenceClassification", done.stderr


def test_a_teacher_is_loaded_from_a_folder(tmp_path: Any) -> None:
    teacher = teacher_of()
    teacher.save_pretrained(tmp_path / "teacher")
    args = arguments(tmp_path, teacher_dtype="float64", teacher_attn_implementation="eager")
    trainer = distiller(bert(), str(tmp_path / "teacher"), args, examples(8))
    assert trainer.teacher.model.dtype == torch.float64
    assert trainer.teacher.model.config._attn_implementation == "eager"
    trainer.train()
    assert trainer.state.log_history[0]["loss/forward_kl"] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "expected a model, a Hub id, a folder or a Teacher, received None"),
        (lambda folder: 3, "received int"),
        (lambda folder: str(folder / "nowhere"), "expected the id of a Hub model or a folder"),
        (
            lambda folder: bert(num_labels=4),
            "expected a teacher with the student's 3 labels, received one with 4",
        ),
        (lambda folder: teacher_of("regression"), "heads: expected a teacher whose head is the student's"),
    ],
)
def test_a_wrong_teacher_is_refused_at_construction(tmp_path: Any, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distiller(bert(), make(tmp_path), arguments(tmp_path), examples(8))


def test_a_teacher_without_a_trained_head_is_refused(tmp_path: Any) -> None:
    bert().bert.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match="no trained weights for classifier"):
        distiller(bert(), tmp_path / "headless", arguments(tmp_path), examples(8))


def test_a_shared_backbone_is_refused(tmp_path: Any) -> None:
    student, teacher = bert(), bert()
    teacher.bert = student.bert
    with pytest.raises(ValueError, match="shares parameters with the student"):
        distiller(student, teacher, arguments(tmp_path), examples(8))


def test_permuted_label_names_give_the_same_gradient_as_permuted_weights(tmp_path: Any) -> None:
    names, order = ["red", "green", "blue"], [2, 0, 1]

    def named(model: Any, labels: list[str]) -> Any:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
        return model

    straight, permuted = named(teacher_of(), names), named(teacher_of(), [names[i] for i in order])
    with torch.no_grad():
        permuted.classifier.weight.copy_(straight.classifier.weight[order])
        permuted.classifier.bias.copy_(straight.classifier.bias[order])
    gradients = [
        gradient_of(distiller(named(bert(), names), teacher, one_step(tmp_path, 8, 1, alpha=1), examples(8)))
        for teacher in (straight, permuted)
    ]
    assert torch.equal(*gradients)


# ---- columns ---------------------------------------------------------------------------------


def test_a_distilbert_student_keeps_token_type_ids_for_its_bert_teacher(tmp_path: Any) -> None:
    import datasets

    rows = [
        {**e, "token_type_ids": [i % 2 for i in range(len(e["input_ids"]))], "junk": 1} for e in examples(8)
    ]
    student, teacher, seen = classifier("distilbert"), teacher_of(), {}
    for name, model in (("student", student), ("teacher", teacher)):
        model.register_forward_pre_hook(
            lambda m, a, k, name=name: seen.update({name: dict(k)}), with_kwargs=True
        )
    data = datasets.Dataset.from_list(rows)
    trainer = distiller(student, teacher, arguments(tmp_path, max_steps=1), data)
    trainer.train()
    assert "token_type_ids" not in seen["student"]
    assert seen["teacher"]["token_type_ids"].any()
    assert "junk" not in seen["teacher"]


def test_another_tokenizer_gives_the_teacher_its_own_encoding(tmp_path: Any) -> None:
    import datasets
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

    def tokenizer(words: list[str]) -> Any:
        vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *words])}
        inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")

    words = ["a", "b", "c", "d"]
    students, teachers = tokenizer(words), tokenizer(words[::-1])
    texts = ["a b", "c d a", "d", "b b c a", "a", "c", "d d", "b a"]
    data = datasets.Dataset.from_dict({"text": texts, "labels": [0, 1, 2, 0, 1, 2, 0, 1]})
    data = data.map(lambda row: dict(students(row["text"])))
    teacher, seen = teacher_of(), {}
    teacher.register_forward_pre_hook(lambda m, a, k: seen.update(k), with_kwargs=True)
    trainer = DistillationTrainer(
        bert(), teacher, one_step(tmp_path, 8, 1), train_dataset=data, processing_class=students,
        data_collator=DataCollatorWithPadding(students), teacher_processing_class=teachers,
    )  # fmt: skip
    trainer.train()
    expected = teachers(texts, padding=True, return_tensors="pt")
    assert torch.equal(seen["input_ids"], expected["input_ids"])
    assert torch.equal(seen["attention_mask"], expected["attention_mask"])
    assert trainer.state.log_history[0]["loss/forward_kl"] > 0
    assert trainer.evaluate(data)["eval_agreement"] >= 0


# ---- arguments -------------------------------------------------------------------------------


def test_plain_training_arguments_take_the_defaults(tmp_path: Any) -> None:
    trainer = distiller(bert(), teacher_of(), arguments(tmp_path, TrainingArguments), examples(8))
    assert trainer.distillation_settings()["alpha"] == 0.5
    assert trainer.distillation_settings()["temperature"] == 2.0


def test_the_seq2seq_pair_is_two_lines(tmp_path: Any) -> None:
    class Arguments(DistillationArgumentsMixin, Seq2SeqTrainingArguments): ...

    class Pair(DistillationMixin, Seq2SeqTrainer): ...

    args = arguments(tmp_path, Arguments, alpha=0.3)
    trainer = Pair(bert(), teacher_of(), args, data_collator=collate, train_dataset=examples(8))
    trainer.train()
    assert trainer.distillation_settings()["alpha"] == pytest.approx(0.3)


def test_model_init_makes_the_student(tmp_path: Any) -> None:
    trainer = DistillationTrainer(
        None,
        teacher_of(),
        arguments(tmp_path),
        model_init=lambda: bert(),
        data_collator=collate,
        train_dataset=examples(8),
    )
    trainer.train()
    assert trainer.state.global_step == 4


def test_labels_missing_from_the_data_are_found_before_training(tmp_path: Any) -> None:
    import datasets

    data = datasets.Dataset.from_list([{"input_ids": e["input_ids"]} for e in examples(8)])
    with pytest.raises(ValueError, match="Add the labels, or set alpha=1"):
        distiller(bert(), teacher_of(), arguments(tmp_path), data)


# ---- logging -----------------------------------------------------------------------------------


def test_parts_are_averaged_over_the_logging_window(tmp_path: Any) -> None:
    logs = {}
    for every in (1, 4):
        args = arguments(tmp_path, logging_steps=every, gradient_accumulation_steps=2)
        trainer = distiller(bert(), teacher_of(), args, examples(40))
        trainer.train()
        logs[every] = [entry for entry in trainer.state.log_history if "loss" in entry]
    for key in ("loss", "loss/label", "loss/forward_kl"):
        mean = sum(entry[key] for entry in logs[1]) / 4
        assert logs[4][0][key] == pytest.approx(mean, rel=1e-5)


def test_tensorboard_shows_the_parts(tmp_path: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = arguments(tmp_path, report_to="tensorboard", logging_steps=2)
    trainer = distiller(bert(), teacher_of(), args, examples(8), eval_dataset=examples(8))
    trainer.train()
    trainer.evaluate()
    folder = next(tmp_path.rglob("events.out.tfevents*")).parent
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/loss/label", "train/loss/forward_kl", "eval/agreement"} <= tags
    logged = [e["loss/forward_kl"] for e in trainer.state.log_history if "loss/forward_kl" in e]
    assert [e.value for e in events.Scalars("train/loss/forward_kl")] == pytest.approx(logged, rel=1e-6)


def test_search_over_alpha_and_temperature(tmp_path: Any) -> None:
    pytest.importorskip("optuna")
    seen = []

    class Recording(DistillationTrainer):
        def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
            result = super()._inner_training_loop(*args, **kwargs)
            seen.append((self.plan.label_weight, self.plan.terms))
            return result

    trainer = Recording(
        None, teacher_of(), arguments(tmp_path, alpha=0, max_steps=2, eval_strategy="epoch"), model_init=lambda: bert(),
        data_collator=collate, train_dataset=examples(8), eval_dataset=examples(8),
    )  # fmt: skip
    best = trainer.hyperparameter_search(
        lambda trial: {
            "alpha": trial.suggest_categorical("alpha", [0.25, 1]),
            "temperature": trial.suggest_int("temperature", 3, 4),
        },
        n_trials=4, backend="optuna", direction="minimize",
    )  # fmt: skip
    assert {weight for weight, _ in seen} <= {0.75, 0.0}
    assert all(terms[0].objective.temperature in (3.0, 4.0) for _, terms in seen)
    assert best.objective == pytest.approx(
        min(t.value for t in best.run_summary.trials) if best.run_summary else best.objective
    )


def test_the_search_objective_does_not_move_with_alpha(tmp_path: Any) -> None:
    values = []
    for alpha in (0.1, 0.9):
        trainer = distiller(
            bert(), teacher_of(), arguments(tmp_path, alpha=alpha), examples(8), eval_dataset=examples(8)
        )
        values.append(trainer._search_objective(trainer.evaluate()))
    assert values[0] == values[1]


def test_arguments_are_kept_as_given(tmp_path: Any) -> None:
    args = DistillationTrainingArguments(output_dir=str(tmp_path), alpha=1, temperature=3, report_to="none")
    assert (args.alpha, args.temperature) == (1.0, 3.0)
    assert isinstance(args.alpha, float)


# ---- schedules ---------------------------------------------------------------------------------

RISING = {"schedule": "linear", "start": 0.0, "end": 1.0}


class Weights(TrainerCallback):
    """Keeps the student's weights after every step."""

    def __init__(self) -> None:
        self.kept: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.kept.append({name: value.clone() for name, value in model.state_dict().items()})


def logged(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("scheduled", "constants"),
    [
        ({"alpha": RISING}, [{"alpha": alpha} for alpha in (0.0, 0.25, 0.5, 0.75)]),
        (
            {"alpha": {"schedule": "linear", "start": 1, "end": 0.2, "steps": 2}},
            [{"alpha": alpha} for alpha in (1.0, 0.6, 0.2, 0.2)],
        ),
        (
            {"temperature": {"schedule": "linear", "start": 4, "end": 2}},
            [{"temperature": temperature} for temperature in (4.0, 3.5, 3.0, 2.5)],
        ),
        (
            {
                "label_weight": {"schedule": "constant", "value": 0.5},
                "objectives": [
                    {"name": "reverse_kl", "weight": {"schedule": "warmup", "value": 2.0, "steps": 2}}
                ],
            },
            [
                {"label_weight": 0.5, "objectives": [{"name": "reverse_kl", "weight": weight}]}
                for weight in (0.0, 1.0, 2.0, 2.0)
            ],
        ),
    ],
)
def test_each_step_is_bit_for_bit_that_of_the_constants(
    tmp_path: Any, scheduled: dict[str, Any], constants: list[dict[str, Any]]
) -> None:
    data, after = examples(32), Weights()
    options = {"max_steps": 4, "learning_rate": 0.1}
    trainer = distiller(
        bert(), teacher_of(), one_step(tmp_path, 8, 1, **options, **scheduled), data, callbacks=[after]
    )
    before = [{k: v.clone() for k, v in trainer.model.state_dict().items()}]
    trainer.train()
    for step, (start, constant) in enumerate(zip(before + after.kept, constants, strict=False)):
        student = bert()
        student.load_state_dict(start)
        args = one_step(tmp_path, 8, 1, learning_rate=0.1, **constant)
        alone = distiller(student, teacher_of(), args, data[8 * step : 8 * step + 8])
        alone.train()
        for name, value in student.state_dict().items():
            assert torch.equal(value, after.kept[step][name]), (step, name)
        for key in [key for key in logged(alone)[0] if key.startswith("loss")]:
            assert logged(trainer)[step][key] == logged(alone)[0][key]


def test_a_constant_schedule_is_the_number_bit_for_bit_and_logged(tmp_path: Any) -> None:
    number = distiller(bert(), teacher_of(), arguments(tmp_path, alpha=0.3), examples(16))
    alpha = {"schedule": "constant", "value": 0.3}
    schedule = distiller(bert(), teacher_of(), arguments(tmp_path, alpha=alpha), examples(16))
    number.train(), schedule.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(number), weights(schedule), strict=True))
    assert logged(schedule)[0]["schedule/forward_kl/weight"] == 0.3
    assert not any("schedule" in key for key in logged(number)[0])


def test_the_teacher_does_not_run_at_steps_of_weight_0(tmp_path: Any) -> None:
    teacher, at = teacher_of(), []
    alpha = {**RISING, "delay_steps": 2}
    trainer = distiller(bert(), teacher, arguments(tmp_path, alpha=alpha, max_steps=5), examples(40))
    teacher.register_forward_pre_hook(lambda *_: at.append(trainer.state.global_step))
    trainer.train()
    assert at == [3, 4]
    assert ["loss/forward_kl" in entry for entry in logged(trainer)] == [False] * 3 + [True] * 2


def test_the_label_loss_is_left_out_at_steps_of_weight_0(tmp_path: Any) -> None:
    alpha = {"schedule": "linear", "start": 0, "end": 1, "steps": 2}
    trainer = distiller(bert(), teacher_of(), arguments(tmp_path, alpha=alpha), examples(40))
    trainer.train()
    assert ["loss/label" in entry for entry in logged(trainer)] == [True, True, False, False]


@pytest.mark.parametrize("alpha", [RISING, {"schedule": "linear", "start": 1, "end": 0}])
def test_labels_that_any_step_needs_are_missed_before_training(tmp_path: Any, alpha: Any) -> None:
    import datasets

    data = datasets.Dataset.from_list([{"input_ids": e["input_ids"]} for e in examples(8)])
    with pytest.raises(ValueError, match=r"label loss has the weight \{'schedule'.*Add the labels"):
        distiller(bert(), teacher_of(), arguments(tmp_path, alpha=alpha), data)
    always = {"schedule": "constant", "value": 1}
    distiller(bert(), teacher_of(), arguments(tmp_path, alpha=always), data)


def test_a_step_without_any_weight_leaves_the_student_as_it_is(tmp_path: Any) -> None:
    after = Weights()
    warmup = [{"name": "forward_kl", "weight": {"schedule": "warmup", "value": 1, "steps": 2}}]
    args = one_step(tmp_path, 8, 1, max_steps=2, objectives=warmup, label_weight=0)
    trainer = distiller(bert(), teacher_of(), args, examples(16), callbacks=[after])
    start = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    assert all(torch.equal(value, after.kept[0][name]) for name, value in start.items())
    assert any(not torch.equal(value, after.kept[1][name]) for name, value in start.items())
    assert [entry["loss"] > 0 for entry in logged(trainer)] == [False, True]


def test_logs_show_the_values_that_the_last_step_had(tmp_path: Any) -> None:
    temperature = {"schedule": "linear", "start": 4, "end": 2}
    args = arguments(tmp_path, alpha=RISING, temperature=temperature)
    trainer = distiller(bert(), teacher_of(), args, examples(40))
    trainer.train()
    for step, entry in enumerate(logged(trainer)):
        assert entry["schedule/label/weight"] == 1 - step / 4
        assert entry["schedule/forward_kl/weight"] == step / 4
        assert entry["schedule/forward_kl/temperature"] == 4 - step / 2
        blend = (1 - step / 4) * entry["loss/label"] + step / 4 * entry.get("loss/forward_kl", 0.0)
        assert entry["loss"] == pytest.approx(blend, rel=1e-5)


def test_a_part_is_averaged_over_the_steps_it_was_active_in(tmp_path: Any) -> None:
    alpha = {"schedule": "linear", "start": 0, "end": 1, "delay_steps": 2, "steps": 2}
    logs = {}
    for every in (1, 3, 6):
        args = arguments(
            tmp_path, alpha=alpha, logging_steps=every, max_steps=6, gradient_accumulation_steps=2
        )
        trainer = distiller(bert(), teacher_of(), args, examples(40))
        trainer.train()
        logs[every] = logged(trainer)
    # alpha is 0, 0, 0, .5, 1, 1: labels in the first four steps, the teacher in the last three.
    for key, active in (("loss/label", 4), ("loss/forward_kl", 3)):
        mean = sum(entry.get(key, 0.0) for entry in logs[1]) / active
        assert logs[6][0][key] == pytest.approx(mean, rel=1e-5)
    assert "loss/forward_kl" not in logs[3][0]
    assert [entry["schedule/forward_kl/weight"] for entry in logs[3]] == [0.0, 1.0]


def test_accumulation_does_not_change_a_scheduled_step(tmp_path: Any) -> None:
    temperature = {"schedule": "cosine", "start": 4, "end": 1}
    seen: list[Any] = []

    class Recording(DistillationTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(self.step_plan().weights["forward_kl"])
            return super().compute_loss(*args, **kwargs)

    moved = []
    alpha = {"schedule": "linear", "start": 0.2, "end": 1}
    for size, accumulation in ((8, 1), (1, 8)):
        options = {"max_steps": 2, "learning_rate": 0.1}
        args = one_step(tmp_path, size, accumulation, alpha=alpha, temperature=temperature, **options)
        trainer = Recording(bert(), teacher_of(), args, data_collator=collate, train_dataset=examples(16))
        moved.append(gradient_of(trainer))
    assert seen == pytest.approx([0.2, 0.6, *[0.2] * 8, *[0.6] * 8])
    assert (moved[0] - moved[1]).abs().max() <= 1e-6 * moved[0].abs().max()


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped(tmp_path: Any) -> None:
    settings = {
        "alpha": RISING,
        "temperature": {"schedule": "cosine", "start": 4, "end": 1, "steps": 0.8},
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 2,
    }

    def trainer(folder: str) -> Any:
        return distiller(
            bert(dropout=True), teacher_of(), arguments(tmp_path / folder, **settings), examples(24)
        )

    whole, resumed = trainer("whole"), trainer("resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    values = [key for key in logged(whole)[-1] if key.startswith("schedule/")]
    assert len(values) == 3
    assert all(logged(whole)[-1][key] == logged(resumed)[-1][key] for key in values)


def test_settings_show_the_schedule_as_plain_values(tmp_path: Any) -> None:
    import json

    from hf_distill.reporting.model_card import create_card

    trainer = distiller(bert(), teacher_of(), arguments(tmp_path, alpha=RISING), examples(8))
    settings = json.loads(json.dumps(trainer.distillation_settings()))
    assert settings["alpha"] == settings["objectives"][0]["weight"] == RISING
    assert settings["temperature"] == 2.0
    assert settings["label_weight"] == {"schedule": "linear", "start": 1.0, "end": 0.0}
    assert '| alpha | {"schedule": "linear", "start": 0.0, "end": 1.0} |' in create_card(trainer).content
