"""What a comparison found: the teacher, the student alone and the student distilled, in one table and one file."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
from transformers import AutoModelForSequenceClassification, EvalPrediction

from hf_distill.evaluation.agreement import teacher_scores
from hf_distill.evaluation.cost import ModelCost, measure_cost, total_cost
from hf_distill.evaluation.metrics import classification_metrics
from hf_distill.reporting.results import (
    ModelResults,
    paired_bootstrap,
    results_table,
    summarise,
    write_results,
)
from hf_distill.teachers.signals import label_free
from hf_distill.trainer import DistillationTrainer

if TYPE_CHECKING:
    from hf_distill.jobs.comparison import TextComparison


@dataclass
class ComparisonReport:
    """The end of a comparison.

    Args:
        job: the comparison.
        predictions: ``(texts, classes)`` logits of each seed's student, ``alone`` and ``distilled``.
        firsts: the trainers of the first seed, by the same names.
        seeds: all of them.
    """

    job: TextComparison
    predictions: dict[str, list[numpy.ndarray]]
    firsts: dict[str, Any]
    seeds: list[int]

    def publish(self) -> dict[str, Any]:
        """Print the table, write the results, push where that is wanted, and return the results."""
        trainer, job = self.firsts["distilled"], self.job
        teachers = teacher_logits(trainer, len(job.teachers))  # on every process: it gathers
        summary: dict[str, Any] = {}
        if trainer.is_world_process_zero():
            summary = self._summary(teachers)
            path = write_results(summary, str(job.args.output_dir))
            write_results(summary, trainer.args.output_dir)
            job.say("\n" + results_table(summary))
            job.say(f"Results: {path}")
            job.say(
                f"Student: {trainer.args.output_dir} (AutoModelForSequenceClassification.from_pretrained)"
            )
        if job.args.push_to_hub:
            trainer.push_to_hub()
        return summary

    def _summary(self, teachers: list[numpy.ndarray]) -> dict[str, Any]:
        """Return the results of all models, on process 0 alone."""
        labels, teacher = numpy.asarray(self._rows["labels"]), teachers[0]
        measure = classification_metrics()

        def results(logits: list[numpy.ndarray], cost: Any, agreement: bool = True) -> ModelResults:
            same = [float((one.argmax(-1) == teacher.argmax(-1)).mean()) for one in logits]
            return ModelResults(
                [measure(EvalPrediction(one, labels)) for one in logits], cost, same if agreement else ()
            )

        # Measured one after another at the end, so that all three see the same machine; as a user loads them, since the
        # trainer's own copy computes in its precision, and rounds its outputs back.
        costs = {kind: self._student_cost(first.args) for kind, first in self.firsts.items()}
        singles = self._teacher_costs(self.firsts["distilled"].args.device)
        rows = {"teacher": results([teacher], total_cost(singles), agreement=False)}
        each = [results([one], cost) for one, cost in zip(teachers[1:], singles, strict=True)]
        difference = None
        if self.predictions["alone"]:
            rows["student_alone"] = results(self.predictions["alone"], costs["alone"])
            right = {
                kind: [one.argmax(-1) == labels for one in found] for kind, found in self.predictions.items()
            }
            difference = paired_bootstrap(right["distilled"], right["alone"])
        rows["student_distilled"] = results(self.predictions["distilled"], costs["distilled"])
        named = list(zip(self.job.teacher_folders, each, strict=True))
        return summarise(rows, self._settings(), difference, named)

    @property
    def _rows(self) -> Any:
        return self.job.encoded[self.job.data.report_on]

    def _cost(self, model: Any, folder: Any) -> ModelCost:
        lengths = sorted(len(ids) for ids in self._rows["input_ids"])
        middle = [lengths[int(len(lengths) * share)] for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
        return measure_cost(model, folder, middle)

    def _student_cost(self, args: Any) -> ModelCost:
        model = AutoModelForSequenceClassification.from_pretrained(args.output_dir)
        return self._cost(model.to(args.device), args.output_dir)

    def _teacher_costs(self, device: Any) -> list[ModelCost]:
        """Measure each teacher; one that is not in a folder is saved for it."""
        costs = []
        for index, (teacher, name) in enumerate(
            zip(self.job.teachers, self.job.teacher_folders, strict=True)
        ):
            folder = Path(name)
            if not folder.is_dir():
                folder = Path(self.job.args.output_dir) / f"_teacher-copy-{index}"
                teacher.save_pretrained(str(folder))
            waits = teacher.device  # offloaded, it would be measured on the CPU
            costs.append(self._cost(teacher.to(device), folder))
            teacher.to(waits)
        return costs

    def _settings(self) -> dict[str, Any]:
        trainer, job = self.firsts["distilled"], self.job
        return {
            **trainer.distillation_settings(),
            "seeds": self.seeds,
            "reported_on": job.data.report_on,
            "test_texts": len(self._rows),
            "train_texts": len(job.encoded["train"]),
            "mean_tokens": round(statistics.fmean(map(len, job.encoded["train"]["input_ids"])), 1),
            "processes": trainer.args.world_size,
            "num_train_epochs": trainer.args.num_train_epochs,
            "learning_rate": trainer.args.learning_rate,
            "per_device_train_batch_size": trainer.args.per_device_train_batch_size,
            "bf16": trainer.args.bf16,
            **({"tuned": job.tuned} if job.tuned else {}),
        }


def teacher_logits(trainer: DistillationTrainer, teachers: int) -> list[numpy.ndarray]:
    """Ask the teachers about the texts reported on, as the trainer does, without help from the labels.

    Args:
        trainer: of a distilled student.
        teachers: how many it has.

    Returns:
        What stands for the logits of all together, and those of each.
    """
    logits: list[list[numpy.ndarray]] = [[] for _ in range(1 + teachers)]
    for batch in trainer.get_eval_dataloader():
        batch = trainer._prepare_inputs(batch)
        signals = label_free(trainer.teacher_signals(batch))
        for kept, one in zip(logits, (signals, *getattr(signals, "members", (signals,))), strict=True):
            scores = teacher_scores(one, trainer.head)
            kept.append(trainer.accelerator.gather_for_metrics(scores).float().cpu().numpy())
    return [numpy.concatenate(kept) for kept in logits]
