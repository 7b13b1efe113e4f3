"""What a comparison found: the teacher, the student alone and the student distilled, in one table and one file."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
from transformers.trainer_utils import PredictionOutput

from hf_distill.evaluation.cost import ModelCost, measure_cost, total_cost
from hf_distill.evaluation.measures import Measure
from hf_distill.reporting.results import (
    ModelResults,
    paired_bootstrap,
    results_table,
    summarise,
    write_results,
)
from hf_distill.tasks.teacher_answers import TeacherAnswers

if TYPE_CHECKING:
    from hf_distill.jobs.comparison import Comparison


def shown(metrics: dict[str, float], measure: Measure) -> str:
    """Return what is said of a student as soon as it is measured.

    Args:
        metrics: of its evaluation, with the prefix ``eval_``.
        measure: says what is a share, and what a plain number.
    """
    headline = measure.headline
    shares = {column.name: column.percent for column in measure.columns}
    percent = shares.get(headline, False)
    names = {
        headline: percent,
        "agreement": True,
        f"teacher_{headline}": percent,
        f"retention_{headline}": True,
    }
    said = [
        f"{name} {100 * metrics[f'eval_{name}']:.2f} %" if share else f"{name} {metrics[f'eval_{name}']:.3f}"
        for name, share in names.items()
        if f"eval_{name}" in metrics
    ]
    return ", ".join(said)


@dataclass
class ComparisonReport:
    """The end of a comparison.

    Args:
        job: the comparison.
        measured: what each seed's student predicted, ``alone`` and ``distilled``.
        firsts: the trainers of the first seed, by the same names.
        seeds: all of them.
    """

    job: Comparison
    measured: dict[str, list[PredictionOutput]]
    firsts: dict[str, Any]
    seeds: list[int]

    def publish(self) -> dict[str, Any]:
        """Print the table, write the results, push where that is wanted, and return the results."""
        trainer, job = self.firsts["distilled"], self.job
        teachers = job.task.teacher_answers(trainer, job.teachers)  # on every process: it gathers
        summary: dict[str, Any] = {}
        if trainer.is_world_process_zero():
            summary = self._summary(teachers)
            path = write_results(summary, str(job.args.output_dir))
            write_results(summary, trainer.args.output_dir)
            job.say("\n" + results_table(summary))
            job.say(f"Results: {path}")
            job.say(f"Student: {trainer.args.output_dir} ({job.task.auto_class.__name__}.from_pretrained)")
        if job.args.push_to_hub:
            trainer.push_to_hub()
        return summary

    def _summary(self, teachers: Sequence[TeacherAnswers]) -> dict[str, Any]:
        """Return the results of all models, on process 0 alone."""
        labels, measure = self.measured["distilled"][0].label_ids, self.job.measure
        # Measured one after another at the end, so that all three see the same machine; as a user loads them, since the
        # trainer's own copy computes in its precision, and rounds its outputs back.
        costs = {kind: self._student_cost(first.args) for kind, first in self.firsts.items()}
        singles = self._teacher_costs(self.firsts["distilled"].args.device)

        def of_teacher(answers: TeacherAnswers, cost: ModelCost) -> ModelResults:
            agreement = () if answers.agreement is None else (answers.agreement,)
            return ModelResults([measure.metrics(answers.predictions, labels)], cost, agreement)

        def of_students(kind: str) -> ModelResults:
            found = self.measured[kind]
            agreements = [one.metrics["eval_agreement"] for one in found if one.metrics]
            return ModelResults(
                [measure.metrics(one.predictions, labels) for one in found], costs[kind], agreements
            )

        rows = {"teacher": of_teacher(teachers[0], total_cost(singles))}
        each = [of_teacher(one, cost) for one, cost in zip(teachers[1:], singles, strict=True)]
        difference = None
        if self.measured["alone"]:
            rows["student_alone"] = of_students("alone")
            sums = {
                kind: numpy.stack([measure.statistics(one.predictions, labels) for one in found])
                for kind, found in self.measured.items()
            }
            difference = paired_bootstrap(sums["distilled"], sums["alone"], measure=measure)
        rows["student_distilled"] = of_students("distilled")
        examples = len(measure.statistics(teachers[0].predictions, labels))
        named = list(zip(self.job.teacher_folders, each, strict=True))
        return summarise(rows, self._settings(examples), difference, named, measure)

    @property
    def _rows(self) -> Any:
        return self.job.encoded[self.job.report_on]

    def _cost(self, model: Any, folder: Any, processor: Any) -> ModelCost:
        return measure_cost(model, folder, self.job.task.timed_inputs(self._rows, processor))

    def _student_cost(self, args: Any) -> ModelCost:
        model = self.job.task.auto_class.from_pretrained(args.output_dir)
        return self._cost(model.to(args.device), args.output_dir, self.job.processor)

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
            processor = self.job.teacher_processors[index] or self.job.processor
            costs.append(self._cost(teacher.to(device), folder, processor))
            teacher.to(waits)
        return costs

    def _settings(self, examples: int) -> dict[str, Any]:
        trainer, job = self.firsts["distilled"], self.job
        lengths = job.task.lengths(job.encoded["train"])
        return {
            **trainer.distillation_settings(),
            "seeds": self.seeds,
            "reported_on": job.report_on,
            "counted": job.task.counted,
            "test_texts": examples,
            "train_texts": len(job.encoded["train"]),
            **({"mean_tokens": round(statistics.fmean(lengths), 1)} if lengths else {}),
            "processes": trainer.args.world_size,
            "num_train_epochs": trainer.args.num_train_epochs,
            "learning_rate": trainer.args.learning_rate,
            "per_device_train_batch_size": trainer.args.per_device_train_batch_size,
            "bf16": trainer.args.bf16,
            **({"tuned": job.tuned} if job.tuned else {}),
        }
