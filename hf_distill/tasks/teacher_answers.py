"""What teachers say of the examples reported on, asked as a trainer asks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers.trainer_pt_utils import EvalLoopContainer

from hf_distill.evaluation.agreement import agreement_sums, teacher_scores
from hf_distill.items import select_rows
from hf_distill.teachers.signals import label_free
from hf_distill.trainer import DistillationTrainer


@dataclass(frozen=True)
class TeacherAnswers:
    """What a teacher says of the examples reported on, as a measure takes it.

    Args:
        predictions: its logits, or what the measure makes of them.
        agreement: the share of items where its class is that of all teachers together; None for those.
    """

    predictions: Any
    agreement: float | None = None


def answers_by_logits(trainer: DistillationTrainer, teachers: int) -> list[TeacherAnswers]:
    """Ask the teachers about the examples reported on, as the trainer does, without help from the labels.

    Args:
        trainer: of a distilled student.
        teachers: how many it has.

    Returns:
        What stands for the answers of all together, and those of each.
    """
    kept = [EvalLoopContainer(True, padding_index=-100) for _ in range(1 + teachers)]
    same = [[0.0, 0.0] for _ in kept]
    for batch in trainer.get_eval_dataloader():
        batch = trainer._prepare_inputs(batch)
        signals = label_free(trainer.teacher_signals(batch))
        for place, one in enumerate((signals, *getattr(signals, "members", (signals,)))):
            scores = teacher_scores(one, trainer.head)
            kept[place].add(gathered(trainer, scores, batch.get("labels")))
            kept[place].to_cpu_and_numpy()
            if teachers > 1 and scores is not None:
                rows = select_rows(scores, signals, batch, trainer.head)
                total, count = agreement_sums(rows, trainer.head)["agreement"]
                same[place] = [same[place][0] + float(total), same[place][1] + float(count)]
    return [
        TeacherAnswers(one.get_arrays(), None if place == 0 else total / count if count else 1.0)
        for place, (one, (total, count)) in enumerate(zip(kept, same, strict=True))
    ]


def gathered(trainer: DistillationTrainer, scores: Any, labels: Any) -> Any:
    """Return a batch's logits of all processes, as a trainer gathers its student's: shrunk by its measure."""
    scores = trainer.accelerator.pad_across_processes(trainer._shown(scores), dim=1, pad_index=-100)
    if trainer.preprocess_logits_for_metrics is not None:
        scores = trainer.preprocess_logits_for_metrics(scores, labels)
    return trainer.accelerator.gather_for_metrics(scores)
