"""Run by two processes and by one: writes the accumulated gradient and the evaluation of each case."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hf_distill import student_from_teacher
from tests.every_head import CASES as HEADS
from tests.every_head import rows_of
from tests.processes import leave_together
from tests.test_trainer import NAN, mean_loss, normalised_loss
from tests.tiny import classifier, distiller, examples, gradient_of, one_step, perturbed

MULTI = {"problem_type": "multi_label_classification"}
CASES = {
    "bert": ("bert", "single_label", {}, None),
    "bert_unlabelled": ("bert", "single_label", {}, None),
    "bert_multi_label": ("bert", "multi_label", MULTI, None),
    "bert_multi_label_unlabelled": ("bert", "multi_label", MULTI, None),
    "bert_mean_function": ("bert", "single_label", {}, mean_loss),
    "bert_normalised_function": ("bert", "single_label", {}, normalised_loss),
    "bert_tokens": ("bert_tokens", "tokens", {}, None),
    "gpt2_causal": ("gpt2_lm", "causal", {}, None),
    "vit": ("vit", "image", {}, None),
    "bert_scheduled": ("bert", "single_label", {}, None),
    "bert_features": ("bert", "single_label", {}, None),
    "bert_features_only": ("bert", "single_label", {}, None),
    "bert_attention_only": ("bert", "single_label", {}, None),
    "vit_features": ("vit", "image", {}, None),
}
# One term that is left out of the first step, and one whose temperature is scheduled.
SCHEDULED = {
    "label_weight": {"schedule": "constant", "value": 0.5},
    "objectives": [
        {"name": "reverse_kl", "weight": {"schedule": "warmup", "value": 1.0, "steps": 2}},
        {"name": "forward_kl", "temperature": {"schedule": "cosine", "start": 4.0, "end": 1.0}},
    ],
    "max_steps": 2,
    "logging_steps": 2,
    "learning_rate": 0.1,
}
WIDER = {"hidden_size": 24, "num_attention_heads": 4}
# Those whose rows do not depend on which examples meet; the student has one layer, the teacher two.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "bert_features": {
        "objectives": [
            {"name": "forward_kl"}, {"name": "hidden_states"}, {"name": "patient", "layers": [[1, 2]]},
        ],
    },
    # Nothing reaches the classifier, which DDP would wait for.
    "bert_features_only": {"objectives": [{"name": "hidden_states", "key": "a.b"}], "label_weight": 0.0},
    "bert_attention_only": {
        "objectives": [{"name": "attentions"}, {"name": "relations", "relation_heads": 4}], "label_weight": 0.0,
    },
    "vit_features": {"objectives": [{"name": "hidden_states", "distance": "cosine"}], "label_weight": 1.0},
}  # fmt: skip
DERIVATIVE = {"name": "derivative", "weight": 0.1}
# Terms beside the labels and the teacher's KL, or alone, for a student cut from its teacher.
TERMS = {
    "bert_vjp": [DERIVATIVE],
    "bert_tokens_vjp": [DERIVATIVE, {**DERIVATIVE, "key": "cosine", "normalized": True}],
    "bert_finite_difference": [{**DERIVATIVE, "method": "finite_difference", "epsilon": 1e-2}],
    "bert_vjp_checkpointed": [DERIVATIVE],
    "bert_vjp_alone": [DERIVATIVE],  # the head's bias moves no derivative, and DDP waits for its gradient
}
CASES |= {
    name: ("bert_tokens", "tokens", {}, None) if "tokens" in name else ("bert", "single_label", {}, None)
    for name in TERMS
}
# Starts and ends, whose counts differ: answers that lie beyond their text have no item.
SPANS = "bert_spans"
SPANS_OF_BERT = next(case for case in HEADS if str(case) == "spans-bert")
CASES[SPANS] = ("bert", "spans", {}, None)
# Several teachers: a wide one, and the one that the student is cut from.
FOLLOWING = "bert_following"
CASES[FOLLOWING] = ("bert", "single_label", {}, None)
FOLLOWED = [
    {"name": "forward_kl"},
    {"name": "hidden_states", "teacher": "average"},
    {**DERIVATIVE, "teacher": 1},
]


def share(prediction: Any) -> dict[str, float]:
    """Return the share of labelled items that are predicted as the first class."""
    if isinstance(prediction.predictions, tuple):  # starts and ends
        right = [p.argmax(-1) == y for p, y in zip(prediction.predictions, prediction.label_ids, strict=True)]
        return {"share": float((right[0] & right[1]).mean())}
    first, labels = prediction.predictions.argmax(-1) == 0, prediction.label_ids
    return {"share": float(first[labels != -100].mean() if labels.shape == first.shape else first.mean())}


def spans(count: int, seed: int) -> list[dict[str, Any]]:
    """Return texts of one length: the models' own loss has padding among its classes."""
    return rows_of(SPANS_OF_BERT, count, seed, ragged=False)


def models_of(case: str) -> tuple[Any, Any]:
    """Return a student and a teacher of other weights."""
    if case == SPANS:
        return SPANS_OF_BERT.model(0), SPANS_OF_BERT.model(5)
    architecture, _, options, _ = CASES[case]
    wider = WIDER if case in OBJECTIVES else {}
    teacher = perturbed(classifier(architecture, 2, 5, **options, **wider), 0.3)
    return classifier(architecture, 1, 0, **options), teacher


def run(folder: Path, case: str, batch_size: int, accumulation: int) -> None:
    """Train one step (with schedules, two) over the same 8 examples, evaluate 7 others, and write both."""
    _, head, _, loss = CASES[case]
    settings: dict[str, Any] = SCHEDULED if case == "bert_scheduled" else OBJECTIVES.get(case, {"alpha": 0.5})
    make = spans if case == SPANS else functools.partial(examples, head=head)
    data = make(8, seed=0)
    if case.endswith("unlabelled"):
        for row in (0, 2, 4, 6):  # every example of the first process
            data[row]["labels"] = -100 if head == "single_label" else [NAN] * 3
    student, teacher = models_of(case)
    if case in TERMS:
        student = student_from_teacher(teacher, num_hidden_layers=1)
        if "finite" in case:  # differences of float32 logits carry more rounding than the test allows
            student, teacher = student.double(), teacher.double()
        settings = {"objectives": [{"name": "forward_kl"}, *TERMS[case]]}
        if case.endswith("alone"):
            settings = {"objectives": TERMS[case], "label_weight": 0.0}
        settings["gradient_checkpointing"] = case.endswith("checkpointed")
    if case == FOLLOWING:
        student = student_from_teacher(teacher, num_hidden_layers=1)
        teacher = [perturbed(classifier("bert", 2, 6, **WIDER), 0.3), teacher]
        settings = {"objectives": FOLLOWED, "teacher_weights": [1, 3]}
    trainer = distiller(
        student,
        teacher,
        one_step(folder / "out", batch_size, accumulation, per_device_eval_batch_size=2, **settings),
        data,
        eval_dataset=make(7, seed=3),
        compute_loss_func=loss,
        compute_metrics=share,
    )
    answers = ("labels", "start_positions", "end_positions")
    unlabelled_few = [{k: v for k, v in e.items() if k not in answers} for e in make(2, seed=7)]
    evaluation = trainer.evaluate()
    evaluation |= trainer.evaluate(unlabelled_few, metric_key_prefix="eval_few")
    gradient = gradient_of(trainer)
    if trainer.is_world_process_zero():
        logs = next(entry for entry in trainer.state.log_history if "loss" in entry)
        torch.save({"gradient": gradient, "evaluation": evaluation, "logs": logs}, folder / f"{case}.pt")


if __name__ == "__main__":
    output, batch_size, accumulation, cases = (
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        sys.argv[4],
    )
    for name in json.loads(cases):
        run(output, name, batch_size, accumulation)
    leave_together()
