"""Every head over several architectures: items, counts and the label loss are right, and no other position counts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertForPreTraining,
    Trainer,
    TrainingArguments,
    XLNetConfig,
    XLNetForQuestionAnswering,
    XLNetForQuestionAnsweringSimple,
    default_data_collator,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from hf_distill.cache.errors import CacheError
from hf_distill.cache.source import source_of
from hf_distill.items import head_of, select_rows
from hf_distill.spans import without_padding
from hf_distill.teachers.online import OnlineTeacher, logits_of
from hf_distill.teachers.signals import DenseSignals
from tests.every_head import BY_POSITION, CASES, Case, collate, rows_of
from tests.tiny import gradient_of, one_step

every_case = pytest.mark.parametrize("case", CASES, ids=str)
pytestmark = pytest.mark.filterwarnings(
    "ignore:The student .* seems to start from random", "ignore:The teacher is nearly"
)
TEMPERATURE = 2.0


def trainer_of(
    case: Case, folder: Path, size: int = 8, steps: int = 1, rows: Any = None, **options: Any
) -> Any:
    options = {"alpha": 0.5, "temperature": TEMPERATURE, **options}
    args = one_step(folder, size, steps, DistillationTrainingArguments, **options)
    rows = rows_of(case) if rows is None else rows
    return DistillationTrainer(
        case.model(), case.model(7), args, data_collator=collate, train_dataset=rows, eval_dataset=rows
    )


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 2e-5) -> bool:
    return bool((one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1e-8))


@every_case
def test_alpha_0_is_plain_trainer(tmp_path: Path, case: Case) -> None:
    rows = rows_of(case)
    args = one_step(tmp_path, 8, 1, TrainingArguments)
    plain = gradient_of(Trainer(case.model(), args, data_collator=collate, train_dataset=rows))
    ours = gradient_of(trainer_of(case, tmp_path, alpha=0.0, temperature=None))
    assert plain.abs().max() > 0
    assert close(ours, plain, 1e-6)


@every_case
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_one_batch_has_one_gradient_however_it_is_split(tmp_path: Path, case: Case, alpha: float) -> None:
    rows = rows_of(case, ragged=case.head != "spans" or alpha == 1.0)
    whole = gradient_of(trainer_of(case, tmp_path, alpha=alpha, rows=rows))
    for size, steps in ((4, 2), (1, 8)) if alpha else ((2, 4),):
        split = gradient_of(trainer_of(case, tmp_path, size, steps, rows, alpha=alpha))
        assert close(split, whole), (size, steps)


def naive_kl(case: Case, student: Any, teacher: Any) -> float:
    """Return T^2 KL(teacher ‖ student) as a mean over items, one example at a time, in float64."""
    values = []
    for row in rows_of(case, ragged=case.head != "spans"):
        batch = {k: v for k, v in collate([row]).items() if k not in ("start_positions", "end_positions")}
        labels = batch.pop("labels", None)
        answers = []
        for model in (student, teacher):
            given = dict(batch)
            if case.head == "written":
                given["labels"] = labels
            with torch.no_grad():
                out = model.eval()(**given)
            logits = out.logits if "logits" in out else torch.stack([out.start_logits, out.end_logits], 1)
            logits = logits.double()[0] / TEMPERATURE
            answers.append(logits.reshape(-1, logits.shape[-1]).log_softmax(-1))
        places = range(len(answers[0]))
        if case.head in BY_POSITION:
            assert labels is not None
            told = labels[0].tolist()
            if case.shifts:
                places = [at for at in range(len(told) - 1) if told[at + 1] != -100]
            else:
                places = [at for at in range(len(told)) if told[at] != -100]
        for at in places:
            student_at, teacher_at = answers[0][at], answers[1][at]
            values.append(float((teacher_at.exp() * (teacher_at - student_at)).sum()) * TEMPERATURE**2)
    return sum(values) / len(values)


@every_case
def test_the_distance_is_the_definitions_and_no_batch_changes_it(tmp_path: Path, case: Case) -> None:
    trainer = trainer_of(case, tmp_path, rows=rows_of(case, ragged=case.head != "spans"))
    expected = naive_kl(case, trainer.model, trainer.teacher.model)
    found = []
    for size in (8, 3, 1):
        trainer.args.per_device_eval_batch_size = size
        metrics = trainer.evaluate()
        found.append(metrics)
        assert metrics["eval_loss/forward_kl"] == pytest.approx(expected, rel=2e-4)
    for name in ("eval_loss", "eval_loss/label", "eval_agreement"):
        values = [metrics[name] for metrics in found]
        assert values == pytest.approx([values[0]] * 3, rel=1e-4), name


def label_loss_by_hand(case: Case, model: Any) -> float:
    """Return the mean over labelled items; of spans the mean of starts' and ends' means."""
    sums: dict[str, list[float]] = {"one": [], "start": [], "end": []}
    for row in rows_of(case, ragged=case.head != "spans"):
        batch = collate([row])
        labels = batch.get("labels")
        given = {k: v for k, v in batch.items() if k not in ("labels", "start_positions", "end_positions")}
        if case.head == "written":
            given["labels"] = labels
        with torch.no_grad():
            out = model.eval()(**given)
        if case.head == "spans":
            for name, logits in (("start", out.start_logits), ("end", out.end_logits)):
                at = int(batch[f"{name}_positions"])
                if at < logits.shape[1]:
                    sums[name].append(-float(logits[0].double().log_softmax(-1)[at]))
            continue
        log_probs = out.logits.double().log_softmax(-1).reshape(-1, out.logits.shape[-1])
        assert labels is not None
        told = labels.flatten().tolist()
        pairs = (
            zip(log_probs[:-1], told[1:], strict=True) if case.shifts else zip(log_probs, told, strict=True)
        )
        sums["one"] += [-float(at[label]) for at, label in pairs if label != -100]
    means = [sum(values) / len(values) for values in sums.values() if values]
    return sum(means) / len(means)


@every_case
def test_the_label_loss_is_over_labelled_items(tmp_path: Path, case: Case) -> None:
    trainer = trainer_of(case, tmp_path, rows=rows_of(case, ragged=case.head != "spans"))
    trainer.args.per_device_eval_batch_size = 3
    expected = label_loss_by_hand(case, trainer.model)
    assert trainer.evaluate()["eval_loss/label"] == pytest.approx(expected, rel=2e-4)


@every_case
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_what_is_no_item_reaches_nothing(tmp_path: Path, case: Case, who: str) -> None:
    trainer = trainer_of(case, tmp_path)
    batch = trainer._prepare_inputs(trainer.data_collator(rows_of(case)))
    model = trainer.model.eval()
    with torch.no_grad():
        outputs = trainer.student_outputs(model, batch)
        teacher = trainer.teacher_signals(batch).logits
        student = logits_of(outputs, "student")

    def value(student: torch.Tensor, teacher: torch.Tensor) -> float:
        if case.head == "spans":
            student = without_padding(student, batch)
        rows = select_rows(student, DenseSignals(teacher), batch, trainer.head)
        return float(trainer.plan.terms[0].objective(rows).double().sum())

    items = torch.ones(student.shape[:-1], dtype=torch.bool)
    if case.head in BY_POSITION:
        items = batch["labels"] != -100
        if case.shifts:
            items = torch.cat([items[:, 1:], torch.zeros_like(items[:, :1])], 1)
    shown = {"student": student, "teacher": teacher}
    before = value(student, teacher)
    if case.head == "spans":  # classes that are no positions of the text
        padding = (batch["attention_mask"] == 0).unsqueeze(1).expand(student.shape)
        assert bool((teacher == -torch.inf).equal(padding))
        changed = shown[who].masked_fill(padding, 7.0) if who == "student" else shown[who]
    else:
        changed = torch.where(items.unsqueeze(-1), shown[who], torch.full_like(shown[who], float("nan")))
    assert value(**{**shown, who: changed}) == before
    for place in items.nonzero().tolist():
        one = shown[who].clone()
        seen = without_padding(one, batch) if case.head == "spans" else one
        one[(*place, int(seen[tuple(place)].argmax()))] -= 20.0
        assert value(**{**shown, who: one}) != before


# ---- all attended positions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.head in ("tokens", "masked", "causal")], ids=str
)
def test_all_attended_positions_but_special_tokens(tmp_path: Path, case: Case) -> None:
    rows = copy.deepcopy(rows_of(case))
    special = [2 if place == 0 else 0 for place in range(len(rows[0]["input_ids"]))]
    for row in rows:
        row["special_tokens_mask"] = [1, *[0] * (len(row["input_ids"]) - 1)]
    del special

    def padded(features: list[dict[str, Any]]) -> Any:
        masks = [feature["special_tokens_mask"] for feature in features]
        batch = collate([{k: v for k, v in f.items() if k != "special_tokens_mask"} for f in features])
        longest = batch["input_ids"].shape[1]
        batch["special_tokens_mask"] = torch.tensor([mask + [1] * (longest - len(mask)) for mask in masks])
        return batch

    def make(size: int, steps: int, alpha: float) -> Any:
        args = one_step(
            tmp_path, size, steps, DistillationTrainingArguments, alpha=alpha, temperature=1.0, distill_on="attended"
        )  # fmt: skip
        return DistillationTrainer(
            case.model(), case.model(7), args, data_collator=padded, train_dataset=rows, eval_dataset=rows
        )

    trainer = make(8, 1, 0.5)
    batch = trainer._prepare_inputs(padded(rows))
    expected = sum(len(row["input_ids"]) - 1 - (1 if case.shifts else 0) for row in rows)
    with torch.no_grad():
        outputs = trainer.student_outputs(trainer.model.eval(), batch)
        found = select_rows(
            logits_of(outputs, "student"), trainer.teacher_signals(batch), batch, trainer.head
        )
    assert len(found.student_logits) == expected
    assert trainer.evaluate()["eval_loss/label"] == pytest.approx(
        label_loss_by_hand(case, trainer.model), rel=2e-4
    )
    for alpha in (0.5, 1.0):
        whole = gradient_of(make(8, 1, alpha))
        assert close(gradient_of(make(2, 4, alpha)), whole)
    # Rows without one label teach too.
    for row in rows[:5]:
        row["labels"] = [-100] * len(row["labels"])
    assert make(8, 1, 1.0).evaluate()["eval_loss/forward_kl"] == pytest.approx(
        trainer.evaluate()["eval_loss/forward_kl"], rel=1e-5
    )


def test_an_unknown_choice_of_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="distill_on: expected labels or attended, received 'all'"):
        trainer_of(CASES[0], tmp_path, distill_on="all")
    with pytest.raises(ValueError, match="expected a head with a prediction per position for 'attended'"):
        trainer_of(CASES[0], tmp_path, distill_on="attended")


# ---- spans ------------------------------------------------------------------------------------------


def test_predictions_and_labels_of_spans_are_those_of_plain_trainer(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.head == "spans")
    seen: list[Any] = []

    def compute(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        right = [p.argmax(-1) == y for p, y in zip(prediction.predictions, prediction.label_ids, strict=True)]
        return {"exact": float((right[0] & right[1]).mean())}

    args = one_step(tmp_path, 8, 1, DistillationTrainingArguments, alpha=0.5)
    trainer = DistillationTrainer(
        case.model(), case.model(7), args, data_collator=collate, train_dataset=rows_of(case),
        eval_dataset=rows_of(case), compute_metrics=compute,
    )  # fmt: skip
    metrics = trainer.evaluate()
    assert {"eval_exact", "eval_teacher_exact", "eval_agreement"} <= set(metrics)
    plain = Trainer(case.model(), one_step(tmp_path, 8, 1, TrainingArguments), data_collator=collate)
    expected = plain.predict(rows_of(case))
    for ours, theirs in zip(seen[0].predictions, expected.predictions, strict=True):
        assert ours.shape == theirs.shape
        assert abs(ours - theirs).max() < 1e-5
    assert len(seen[0].label_ids) == len(seen[1].predictions) == 2


def test_heads_that_search_for_ends_are_refused(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16, "vocab_size": 24}
    with pytest.raises(ValueError, match="Use XLNetForQuestionAnsweringSimple"):
        head_of(XLNetForQuestionAnswering(XLNetConfig(**sizes)))
    assert head_of(XLNetForQuestionAnsweringSimple(XLNetConfig(**sizes))).spans


def test_a_head_of_two_outputs_names_another(tmp_path: Path) -> None:
    case = CASES[0]
    student = BertForPreTraining(case.model().config)
    args = one_step(tmp_path, 8, 1, DistillationTrainingArguments, alpha=1.0)
    trainer = DistillationTrainer(
        student, copy.deepcopy(student), args, data_collator=collate, train_dataset=rows_of(case)
    )
    with pytest.raises(ValueError, match="expected an output with one tensor of logits"):
        trainer.train()


def test_the_table_of_heads_is_what_is_walked(repository: Path) -> None:
    page = (repository / "docs" / "compatibility.md").read_text(encoding="utf-8").split("\n## Heads")[1]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:2] == "| "
    ]
    told = {(row[0], row[1].strip("`"), name) for row in rows[2:] for name in row[2].split(", ")}
    assert told == {(case.head, case.auto_class, case.architecture) for case in CASES}


def test_a_cache_of_choices_is_refused() -> None:
    case = next(case for case in CASES if case.head == "choices")
    with pytest.raises(CacheError, match="expected a head with the same classes for every example"):
        source_of(OnlineTeacher(case.model()))


def test_labels_of_choices_are_as_many_as_the_example_has(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.head == "choices")
    rows = [{**row, "labels": 3} for row in rows_of(case)]
    args = one_step(tmp_path, 8, 1, DistillationTrainingArguments, alpha=0.5)
    given = {"data_collator": default_data_collator, "train_dataset": rows}
    assert DistillationTrainer(case.model(), case.model(7), args, **given).head.kind == "single_label"
    rows[2]["labels"] = -1
    with pytest.raises(ValueError, match="expected classes from 0, or -100 for none"):
        DistillationTrainer(case.model(), case.model(7), args, **given)
