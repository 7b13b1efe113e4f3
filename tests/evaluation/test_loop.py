"""evaluate() and predict(): with and without labels, the teacher's own metric, agreement and retention."""

from __future__ import annotations

from typing import Any

import datasets
import numpy
import pytest
import torch
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
)

from hf_distill.arguments import DistillationArgumentsMixin, DistillationTrainingArguments
from hf_distill.trainer import DistillationMixin
from tests.tiny import HEADS, arguments, bert, collate, distiller, examples, perturbed, teacher_of


def accuracy(prediction: Any) -> dict[str, float]:
    """Return the share of examples whose argmax is the label."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def rmse(prediction: Any) -> dict[str, float]:
    """Return the root mean squared error."""
    return {"rmse": float(numpy.sqrt(((prediction.predictions[:, 0] - prediction.label_ids) ** 2).mean()))}


def logits(model: Any, data: list[dict[str, Any]]) -> torch.Tensor:
    """Return a model's logits over the data in one batch."""
    batch = collate(data)
    with torch.no_grad():
        return model.eval()(batch["input_ids"], batch["attention_mask"]).logits


def test_every_number_by_hand(tmp_path: Any) -> None:
    data = examples(11)
    student, teacher = bert(), teacher_of()
    trainer = distiller(
        student, teacher, arguments(tmp_path), data, eval_dataset=data, compute_metrics=accuracy
    )
    result = trainer.evaluate()
    ours, theirs = logits(student, data).double(), logits(teacher, data).double()
    labels = torch.tensor([example["labels"] for example in data])
    label_loss = torch.nn.functional.cross_entropy(ours, labels).item()

    def kl(temperature: float) -> float:
        p, q = (theirs / temperature).softmax(-1), (ours / temperature).softmax(-1)
        return float((p * (p / q).log()).sum(-1).mean())

    assert result["eval_loss/label"] == pytest.approx(label_loss, rel=1e-5)
    assert result["eval_loss/forward_kl"] == pytest.approx(4 * kl(2.0), rel=1e-4)
    assert result["eval_loss"] == pytest.approx(0.5 * label_loss + 0.5 * 4 * kl(2.0), rel=1e-4)
    assert result["eval_mean_kl"] == pytest.approx(kl(1.0), rel=1e-4)
    assert result["eval_agreement"] == pytest.approx(
        (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    )
    right = (theirs.argmax(-1) == labels).double().mean().item()
    assert 0 < right < 1
    assert result["eval_teacher_accuracy"] == pytest.approx(right)
    assert result["eval_retention_accuracy"] == pytest.approx(result["eval_accuracy"] / right)


def test_a_schedule_is_evaluated_as_it_is_at_the_step(tmp_path: Any) -> None:
    data = examples(11)
    schedules = {
        "alpha": {"schedule": "linear", "start": 0, "end": 1},
        "temperature": {"schedule": "linear", "start": 4, "end": 2},
    }
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=1, eval_on_start=True, **schedules)
    trainer = distiller(bert(), teacher_of(), args, data, eval_dataset=data)
    trainer.train()
    found = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(found) == 5
    for step, entry in enumerate(found):
        # Both parts at every step: a metric that chooses the best model must not come and go.
        blend = (1 - step / 4) * entry["eval_loss/label"] + step / 4 * entry["eval_loss/forward_kl"]
        assert entry["eval_loss"] == pytest.approx(blend, rel=1e-6)
    constant = {"alpha": 1.0, "temperature": 2.0}
    fixed = distiller(trainer.model, teacher_of(), arguments(tmp_path, **constant), data, eval_dataset=data)
    for key, value in fixed.evaluate().items():
        if key.startswith("eval_loss"):
            assert found[-1][key] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_batch_size_changes_nothing(tmp_path: Any, head: str, alpha: float) -> None:
    data = examples(11, head)
    for row in (0, 7, 8):
        data[row]["labels"] = {"single_label": -100, "multi_label": [float("nan")] * 3}.get(
            head, float("nan")
        )
    results = []
    for size in (3, 11):
        args = arguments(tmp_path, alpha=alpha, per_device_eval_batch_size=size)
        results.append(distiller(bert(head=head), teacher_of(head), args, data, eval_dataset=data).evaluate())
    for key in (key for key in results[0] if "loss" in key or "agreement" in key or "kl" in key):
        assert results[0][key] == pytest.approx(results[1][key], rel=1e-5), key
    assert "eval_loss/label" in results[0]


@pytest.mark.parametrize("head", HEADS)
def test_without_labels(tmp_path: Any, head: str) -> None:
    data = [{k: v for k, v in example.items() if k != "labels"} for example in examples(11, head)]
    trainer = distiller(
        bert(head=head), teacher_of(head), arguments(tmp_path, alpha=1), data, eval_dataset=data,
        compute_metrics=accuracy,
    )  # fmt: skip
    result = trainer.evaluate()
    assert "eval_loss/label" not in result
    assert "eval_accuracy" not in result
    assert result["eval_loss"] > 0
    assert result["eval_agreement"] >= 0
    prediction = trainer.predict(data)
    assert prediction.predictions.shape == (11, HEADS[head]["num_labels"])
    assert prediction.label_ids is None
    assert prediction.metrics["test_loss"] == pytest.approx(result["eval_loss"])


def test_only_the_students_logits_are_kept(tmp_path: Any) -> None:
    data = examples(11)
    trainer = distiller(bert(), teacher_of(), arguments(tmp_path), data)
    trainer.model.config.output_hidden_states = True
    prediction = trainer.predict(data)
    assert isinstance(prediction.predictions, numpy.ndarray)
    assert torch.allclose(torch.tensor(prediction.predictions), logits(trainer.model, data), atol=1e-6)


def test_the_teachers_metric_is_computed_once_per_evaluation_set(tmp_path: Any) -> None:
    calls: list[numpy.ndarray] = []

    def counting(prediction: Any) -> dict[str, float]:
        calls.append(prediction.predictions)
        return accuracy(prediction)

    first, second = examples(8), examples(8, seed=4)
    trainer = distiller(bert(), teacher_of(), arguments(tmp_path), first, compute_metrics=counting)
    as_table = datasets.Dataset.from_list
    for data, computed in [(first, 2), (first, 1), (second, 2), (second, 1), (first, 1)]:
        for convert in (list, as_table):
            before = len(calls)
            result = trainer.evaluate(convert(data))
            assert len(calls) - before == computed
            expected = logits(trainer.teacher.model, data).argmax(-1).numpy()
            labels = numpy.array([example["labels"] for example in data])
            assert result["eval_teacher_accuracy"] == pytest.approx((expected == labels).mean())


def test_retention_of_an_error_is_teacher_over_student(tmp_path: Any) -> None:
    data = examples(11, "regression")
    trainer = distiller(
        bert(head="regression"), teacher_of("regression"), arguments(tmp_path), data, eval_dataset=data,
        compute_metrics=rmse,
    )  # fmt: skip
    result = trainer.evaluate()
    assert result["eval_retention_rmse"] == pytest.approx(result["eval_teacher_rmse"] / result["eval_rmse"])
    difference = logits(trainer.model, data) - logits(trainer.teacher.model, data)
    assert result["eval_agreement"] == pytest.approx(difference.square().mean().sqrt().item(), rel=1e-5)
    assert "eval_mean_kl" not in result


def test_several_evaluation_sets_keep_their_names(tmp_path: Any) -> None:
    sets = {"first": examples(8), "second": examples(8, seed=4)}
    trainer = distiller(bert(), teacher_of(), arguments(tmp_path), examples(8), eval_dataset=sets)
    result = trainer.evaluate()
    assert {"eval_first_loss", "eval_first_agreement", "eval_second_loss/label"} <= set(result)
    assert result["eval_first_loss"] != result["eval_second_loss"]


def test_preprocessed_logits_serve_the_teacher_too(tmp_path: Any) -> None:
    data = examples(8)

    def argmax_metric(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}

    trainer = distiller(
        bert(), teacher_of(), arguments(tmp_path), data, eval_dataset=data, compute_metrics=argmax_metric,
        preprocess_logits_for_metrics=lambda values, labels: values.argmax(-1),
    )  # fmt: skip
    plain = distiller(
        bert(), teacher_of(), arguments(tmp_path), data, eval_dataset=data, compute_metrics=accuracy
    )
    a, b = trainer.evaluate(), plain.evaluate()
    assert a["eval_teacher_accuracy"] == b["eval_teacher_accuracy"]
    assert a["eval_accuracy"] == b["eval_accuracy"]


def test_evaluating_in_training_changes_nothing(tmp_path: Any) -> None:
    weights = []
    for strategy in ("no", "steps"):
        args = arguments(tmp_path, eval_strategy=strategy, eval_steps=1, gradient_accumulation_steps=2)
        trainer = distiller(bert(), teacher_of(), args, examples(40), eval_dataset=examples(5, seed=2))
        trainer.train()
        weights.append(list(trainer.model.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_broken_teacher_stops_an_evaluation(tmp_path: Any) -> None:
    teacher = teacher_of()
    with torch.no_grad():
        teacher.classifier.bias.fill_(float("nan"))
    trainer = distiller(bert(), teacher, arguments(tmp_path), examples(8), eval_dataset=examples(8))
    with pytest.raises(FloatingPointError, match="teacher: expected finite logits"):
        trainer.evaluate()


# ---- encoder-decoders --------------------------------------------------------------------------


class Pair(DistillationMixin, Seq2SeqTrainer):
    """The Seq2Seq pair's trainer."""


class PairArguments(DistillationArgumentsMixin, Seq2SeqTrainingArguments):
    """The Seq2Seq pair's arguments."""


def translator(seed: int) -> T5ForConditionalGeneration:
    """Return a tiny encoder-decoder."""
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 16, "num_layers": 1, "vocab_size": 50}
    config = T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    return T5ForConditionalGeneration(config)


def translations(count: int) -> list[dict[str, Any]]:
    """Return sentences and what they should become, all of one length."""
    rows = torch.randint(2, 50, (count, 8), generator=torch.Generator().manual_seed(1)).tolist()
    return [{"input_ids": row, "attention_mask": [1] * 8, "labels": row[:4]} for row in rows]


@pytest.mark.parametrize("labelled", [True, False])
def test_predict_with_generate(tmp_path: Any, labelled: bool) -> None:
    data = translations(4)
    student = translator(1)
    args = arguments(tmp_path, PairArguments, predict_with_generate=True, generation_max_length=6)
    trainer = Pair(student, perturbed(translator(2)), args, train_dataset=data, data_collator=collate)
    asked = data if labelled else [{k: v for k, v in row.items() if k != "labels"} for row in data]
    found = trainer.predict(asked)
    inputs = collate([{k: v for k, v in row.items() if k != "labels"} for row in data])
    written = student.eval().generate(**inputs, max_length=6)
    assert torch.equal(torch.tensor(found.predictions)[:, : written.shape[1]], written)
    assert ("test_loss/forward_kl" in found.metrics) == labelled
    assert ("test_loss" in found.metrics) == labelled


def test_an_encoder_decoder_without_anything_to_decode(tmp_path: Any) -> None:
    data = translations(2)
    args = arguments(tmp_path, PairArguments)
    trainer = Pair(translator(1), perturbed(translator(2)), args, train_dataset=data, data_collator=collate)
    unlabelled = [{k: v for k, v in row.items() if k != "labels"} for row in data]
    with pytest.raises(ValueError, match=r"expected labels or decoder_input_ids.*predict_with_generate=True"):
        trainer.predict(unlabelled)


def test_batches_that_are_not_joined_give_the_same_numbers(tmp_path: Any) -> None:
    data = examples(11)

    def joined_accuracy(prediction: Any) -> dict[str, float]:
        whole = (
            prediction.predictions if isinstance(prediction.predictions, list) else [prediction.predictions]
        )
        labels = prediction.label_ids if isinstance(prediction.label_ids, list) else [prediction.label_ids]
        hits = [(p.argmax(-1) == one).tolist() for p, one in zip(whole, labels, strict=True)]
        return {"accuracy": float(numpy.mean([hit for batch in hits for hit in batch]))}

    found = []
    for join in (True, False):
        args = arguments(tmp_path, eval_do_concat_batches=join)
        trainer = distiller(
            bert(), teacher_of(), args, data, eval_dataset=data, compute_metrics=joined_accuracy
        )
        found.append(
            {
                k: v
                for k, v in trainer.evaluate().items()
                if k.split("_")[-1] not in ("runtime", "second", "time")
            }
        )
    assert found[0] == pytest.approx(found[1])
    assert "eval_teacher_accuracy" in found[1]


def test_another_metric_is_computed_of_the_teacher_too(tmp_path: Any) -> None:
    data = examples(8)
    trainer = distiller(
        bert(), teacher_of(), arguments(tmp_path), data, eval_dataset=data, compute_metrics=accuracy
    )
    first = trainer.evaluate()

    def other(prediction: Any) -> dict[str, Any]:
        return {"errors": 1 - accuracy(prediction)["accuracy"], "names": ["a", "b"]}

    trainer.compute_metrics = other
    second = trainer.evaluate()
    assert second["eval_teacher_errors"] == pytest.approx(1 - first["eval_teacher_accuracy"])
    assert "eval_teacher_names" not in second


@pytest.mark.parametrize(
    ("head", "metric", "kind", "expected"),
    [
        ("regression", "agreement", DistillationTrainingArguments, False),
        ("single_label", "agreement", DistillationTrainingArguments, True),
        ("single_label", "mean_kl", TrainingArguments, False),
        ("single_label", "eval_loss/label", TrainingArguments, False),
    ],
)
def test_the_best_checkpoint_is_the_one_with_less_of_an_error(
    tmp_path: Any, head: str, metric: str, kind: Any, expected: bool
) -> None:
    steps = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1}
    args = arguments(tmp_path, kind, metric_for_best_model=metric, load_best_model_at_end=True, **steps)
    data = examples(8, head)
    trainer = distiller(bert(head=head), teacher_of(head), args, data, eval_dataset=data)
    assert trainer.args.greater_is_better is expected
    trainer.train()
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    seen = [entry[name] for entry in trainer.state.log_history if name in entry]
    assert len(seen) == 4
    assert trainer.state.best_metric == (max(seen) if expected else min(seen))


# ---- searching over several sets, and what is left out -----------------------------------------


def searched(folder: Any, eval_dataset: Any, **options: Any) -> Any:
    """Search alpha over two trials, and return the best."""
    trainer = distiller(
        None, teacher_of(), arguments(folder, max_steps=1, eval_strategy="steps", eval_steps=1), examples(8),
        eval_dataset=eval_dataset, model_init=lambda: bert(), **options,
    )  # fmt: skip
    return trainer.hyperparameter_search(
        lambda trial: {"alpha": trial.suggest_float("alpha", 0, 1)},
        backend="optuna",
        n_trials=2,
        direction="maximize",
    )


def right(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.mark.parametrize("options", [{"compute_metrics": right}, {}])
def test_a_search_sums_over_several_evaluation_sets(tmp_path: Any, options: Any) -> None:
    pytest.importorskip("optuna")
    sets = {"one": examples(4, seed=1), "other": examples(4, seed=2)}
    best = searched(tmp_path, sets, **options)
    assert 0 <= best.objective <= 2 if options else best.objective > 0


def test_a_search_without_anything_to_go_by_is_an_error_that_helps(tmp_path: Any) -> None:
    trainer = distiller(bert(), teacher_of(), arguments(tmp_path), examples(8))
    with pytest.raises(
        ValueError, match="expected labels or compute_metrics, which does not move with alpha"
    ):
        trainer._search_objective({"eval_loss": 1.0})
    trainer.args.metric_for_best_model = "f1"
    with pytest.raises(ValueError, match=r"expected eval_f1, .* received the metrics \['eval_loss'\]"):
        trainer._search_objective({"eval_loss": 1.0})


def test_what_leaves_the_teachers_metric_out_is_said(tmp_path: Any, caplog: Any) -> None:
    import logging

    logging.getLogger("hf_distill").propagate = True
    args = arguments(tmp_path, include_for_metrics=["inputs"])
    trainer = distiller(bert(), teacher_of(), args, examples(8), compute_metrics=right)
    metrics = trainer.evaluate(examples(4, seed=1))
    assert "eval_accuracy" in metrics
    assert "eval_teacher_accuracy" not in metrics
    assert "The teacher's metric and retention are left out" in caplog.text
