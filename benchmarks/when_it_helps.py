"""When distillation helps: one factor at a time around a base setting, each beside the student alone.

    python -m benchmarks.when_it_helps --data builtin
    python -m benchmarks.when_it_helps --data banking77
    python -m benchmarks.when_it_helps --data builtin --plot      # the tables, and docs/images/when_it_helps_*.svg

Each result is appended to runs/when_it_helps/<data>.jsonl as soon as it is there, and what is there is not run again:
stop it at any time, start it again, or start one process for each seed. Everything is measured on validation texts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset, DatasetDict, concatenate_datasets
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from benchmarks.augmentation import AUGMENTATIONS, augmented
from hf_distill import DistillationTrainer, DistillationTrainingArguments, TeacherCache
from hf_distill.evaluation.metrics import classification_metrics
from hf_distill.jobs.command_line import bf16_is_fast, has_accelerator
from hf_distill.tasks.bert_models import new_bert
from hf_distill.tasks.text_data import TextDataArguments, encode, load_texts, with_unlabelled
from hf_distill.tasks.word_dropout import WordDropout
from hf_distill.tasks.wordpiece import train_tokenizer

LENGTH, BATCH, VOCABULARY = 32, 32, 8000
# A student of Banking77 alone (seed 0) had 51 % of the validation texts right after 8 epochs at 1e-3, 33 % at 2e-3, and
# 46 % after 10 epochs at 5e-4.
TEACHER_RATE, STUDENT_RATE = 5e-4, 1e-3
COPIES = 2  # of each text in an augmentation: with the original three times as many texts, as with all unlabelled ones
BANKING77 = Path("../shared/data/banking77")


@dataclass(frozen=True)
class Setting:
    """One training of a student.

    Args:
        stop: epochs after which the teacher was stopped; 0 for a student alone.
        word_dropout: share of words hidden from the teacher in its training.
        temperature: T.
        alpha: weight of the teacher's term; 0 for a student alone.
        epochs: the student's budget, in epochs of the labelled texts.
        unlabelled: other texts, without labels and unknown to the teacher.
        augmentation: how ``COPIES`` texts without labels are made of each labelled one.
    """

    stop: int
    word_dropout: float
    temperature: float
    alpha: float
    epochs: int
    unlabelled: int = 0
    augmentation: str = "none"

    @property
    def alone(self) -> Setting:
        """The student of this budget on its own: the labelled texts alone serve it."""
        return Setting(0, 0.0, 1.0, 0.0, self.epochs)


@dataclass(frozen=True)
class Task:
    """Texts and sizes, and the base setting that one factor at a time departs from."""

    texts: TextDataArguments
    base: Setting
    stops: tuple[int, ...]
    budgets: tuple[int, ...]
    labelled: int
    unlabelled: tuple[int, ...]
    teacher_width: int = 256
    student_width: int = 128

    def factors(self) -> dict[str, list[tuple[Any, Setting]]]:
        """Return each factor's points: the value on the axis, and the setting."""
        base = self.base
        plain, longer = replace(base, word_dropout=0.0), replace(base, epochs=3 * base.epochs)
        unlabelled, augmentations = (0, *self.unlabelled), ("none", *AUGMENTATIONS)
        return {
            "stopping point, teacher without word dropout": [(s, replace(plain, stop=s)) for s in self.stops],
            "stopping point": [(stop, replace(base, stop=stop)) for stop in self.stops],
            "temperature": [(t, replace(base, temperature=t)) for t in (1.0, 2.0, 4.0, 8.0)],
            "alpha": [(alpha, replace(base, alpha=alpha)) for alpha in (0.5, 0.7, 1.0)],
            "budget": [(epochs, replace(base, epochs=epochs)) for epochs in self.budgets],
            "unlabelled texts": [(n, replace(base, unlabelled=n)) for n in unlabelled],
            "unlabelled texts, three times the steps": [
                (n, replace(longer, unlabelled=n)) for n in unlabelled
            ],
            "augmentation": [(n, replace(base, augmentation=n)) for n in augmentations],
            "augmentation, three times the steps": [
                (n, replace(longer, augmentation=n)) for n in augmentations
            ],
        }


TASKS = {
    "builtin": Task(
        TextDataArguments(),
        Setting(stop=8, word_dropout=0.5, temperature=4.0, alpha=0.7, epochs=8),
        stops=(2, 4, 8),
        budgets=(4, 8, 16),
        labelled=2000,
        unlabelled=(2000, 4000),
    ),
    "banking77": Task(
        TextDataArguments(train_file=str(BANKING77 / "train.csv"), label_column="category"),
        Setting(stop=12, word_dropout=0.2, temperature=4.0, alpha=0.7, epochs=6),
        stops=(3, 6, 12),
        budgets=(3, 6, 12),
        labelled=3000,
        unlabelled=(3000, 6000),
    ),
}


FACTORS = tuple(TASKS["builtin"].factors())


def tiny(task: Task) -> Task:
    """Return the task in a size whose numbers mean nothing, for a test of the way."""
    base = replace(task.base, stop=1, epochs=1)
    sizes = {"labelled": 64, "unlabelled": (64,), "teacher_width": 32, "student_width": 32}
    return replace(task, base=base, stops=(1, 2), budgets=(1, 2), **sizes)


class SaveAt(TrainerCallback):
    """Saves the model after some epochs."""

    def __init__(self, folders: dict[int, Path]) -> None:
        self.folders = folders

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = self.folders.get(round(state.epoch))
        if folder is not None:
            unfinished = folder.with_name(f"_{folder.name}-{os.getpid()}")
            kwargs["model"].save_pretrained(unfinished)
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)


class SoftnessTrainer(DistillationTrainer):
    """Keeps how soft its teacher was."""

    softness: Any = None

    def _report_softness(self) -> None:
        if self._softness is not None:
            self.softness = self._softness.result()
        super()._report_softness()


class Measurement:
    """The texts of a task, and the training of its teachers and students."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.folder = task, folder
        self.splits: DatasetDict = load_texts(task.texts)
        most = max(task.unlabelled)
        train = self.splits["train"].shuffle(seed=0)
        if len(train) < task.labelled + most:
            raise SystemExit(f"expected {task.labelled + most} training texts, found {len(train)}.")
        self.labelled = train.select(range(task.labelled))
        self.unlabelled = train.select(range(task.labelled, task.labelled + most)).remove_columns("label")
        self.tokenizer = train_tokenizer(self.labelled["text"][:], VOCABULARY)
        self.train = self._encode(self.labelled)
        self.validation = self._encode(self.splits["validation"])
        self.metrics = classification_metrics()

    def _encode(self, rows: Dataset) -> Dataset:
        return encode(rows, self.tokenizer, LENGTH)

    def _arguments(self, **options: Any) -> dict[str, Any]:
        return {
            "output_dir": str(self.folder / f"trainer-{os.getpid()}"),
            "per_device_train_batch_size": BATCH,
            "per_device_eval_batch_size": 128,
            "weight_decay": 0.01,
            "train_sampling_strategy": "group_by_length",
            "bf16": bf16_is_fast(),
            "use_cpu": not has_accelerator(),
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            **options,
        }

    def teacher(self, seed: int, word_dropout: float, stop: int) -> Path:
        """Return a teacher as it was after some epochs; one training, of a constant rate, serves all stops."""
        name = f"teacher_{self.task.teacher_width}_seed_{seed}_dropout_{word_dropout}"
        folders = {s: self.folder / name / f"epoch_{s}" for s in self.task.stops}
        if not all(folder.is_dir() for folder in folders.values()):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            set_seed(seed)
            options = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.06, "seed": seed}
            options |= {"learning_rate": TEACHER_RATE, "num_train_epochs": max(self.task.stops)}
            Trainer(
                new_bert(2, self.task.teacher_width, self.splits, self.tokenizer, LENGTH),
                TrainingArguments(**self._arguments(**options)),
                train_dataset=self.train,
                data_collator=WordDropout(self.tokenizer, word_dropout),
                callbacks=[SaveAt(folders)],
            ).train()
        return folders[stop]

    def answers(self, teacher: Path, texts: Dataset) -> TeacherCache:
        """Return what a teacher says of some texts and of the validation texts: each is asked about once in all."""
        cache: TeacherCache = TeacherCache.capture(
            AutoModelForSequenceClassification.from_pretrained(teacher),
            {"train": texts, "validation": self.validation},
            teacher / "answers",
            data_collator=DataCollatorWithPadding(self.tokenizer),
            processing_class=self.tokenizer,
            batch_size=128,
            bf16=bf16_is_fast(),
            say=lambda line: None,
        )
        return cache

    def texts_for(self, setting: Setting, seed: int) -> Dataset:
        """Return the student's training texts: the labelled ones, and perhaps others for the teacher to label."""
        others = []
        if setting.unlabelled:
            others.append(self._encode(self.unlabelled.select(range(setting.unlabelled))))
        if setting.augmentation != "none":
            texts = self.labelled["text"][:]
            made = augmented(texts, setting.augmentation, COPIES, seed, self.tokenizer.mask_token)
            others.append(self._encode(Dataset.from_dict({"text": made})))
        return with_unlabelled(self.train, concatenate_datasets(others)) if others else self.train

    def student(self, setting: Setting, seed: int) -> dict[str, Any]:
        """Train a student, and return what it is on the validation texts."""
        start = time.perf_counter()
        # A student alone is measured against the base teacher, which it never sees.
        taught_by = setting if setting.stop else self.task.base
        teacher = self.teacher(seed, taught_by.word_dropout, taught_by.stop)
        texts = self.texts_for(setting, seed)
        answers = self.answers(teacher, texts)
        set_seed(seed)  # all students of a seed start from the same weights
        student = new_bert(2, self.task.student_width, self.splits, self.tokenizer, LENGTH)
        steps = setting.epochs * -(-self.task.labelled // BATCH)  # the same for all texts
        options = {"alpha": setting.alpha, "temperature": setting.temperature, "warmup_steps": 0.06}
        options |= {"learning_rate": STUDENT_RATE, "max_steps": steps, "seed": seed}
        with warnings.catch_warnings():  # of students from random weights, and of what is measured here
            warnings.simplefilter("ignore", UserWarning)
            trainer = SoftnessTrainer(
                student,
                answers,
                DistillationTrainingArguments(**self._arguments(**options)),
                data_collator=DataCollatorWithPadding(self.tokenizer),
                train_dataset=texts,
                eval_dataset=self.validation,
                compute_metrics=self.metrics,
            )
            trainer.train()
        metrics = trainer.evaluate()
        kept = {name: metrics[f"eval_{name}"] for name in ("accuracy", "teacher_accuracy", "agreement")}
        soft = trainer.softness
        if soft is not None:
            kept |= {name: getattr(soft, name) for name in ("entropy", "near_one_hot", "repeats")}
        return {**kept, "steps": steps, "seconds": round(time.perf_counter() - start, 1)}


def read(path: Path) -> list[dict[str, Any]]:
    """Return the results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def settings_of(task: Task, factors: Sequence[str] = FACTORS) -> Iterator[Setting]:
    """Yield each setting of some factors once, students alone first."""
    points = [setting for factor in factors for _, setting in task.factors()[factor]]
    yield from dict.fromkeys([*(point.alone for point in points), *points])


def measure(task: Task, folder: Path, path: Path, seeds: list[int], factors: Sequence[str]) -> None:
    """Run what is not there yet, and append each result to the file."""
    measurement = Measurement(task, folder)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    for seed in seeds:
        for setting in settings_of(task, factors):
            key = {"seed": seed, "setting": asdict(setting)}
            if any(all(row[name] == value for name, value in key.items()) for row in read(path)):
                continue
            row = {
                **key,
                **measurement.student(setting, seed),
                **versions,
                "threads": torch.get_num_threads(),
            }
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"seed {seed}, {100 * row['accuracy']:.1f} %, {row['seconds']:.0f} s: {setting}", flush=True
            )
    shutil.rmtree(folder / f"trainer-{os.getpid()}", ignore_errors=True)


def main(words: list[str] | None = None) -> None:
    """Measure, or draw what was measured."""
    parser = argparse.ArgumentParser(description="Measures when distillation helps.")
    parser.add_argument("--data", choices=sorted(TASKS), default="builtin")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--factors", nargs="+", choices=FACTORS, default=FACTORS, help="default: all")
    parser.add_argument("--output", type=Path, default=Path("runs/when_it_helps"))
    parser.add_argument("--tiny", action="store_true", help="a test of the way, whose numbers mean nothing")
    parser.add_argument("--plot", action="store_true", help="print the tables and draw, and measure nothing")
    parser.add_argument("--images", type=Path, default=Path("docs/images"), help="where the plots go")
    options = parser.parse_args(words)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    task = tiny(TASKS[options.data]) if options.tiny else TASKS[options.data]
    folder = options.output / (f"{options.data}_tiny" if options.tiny else options.data)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".jsonl")
    if not options.plot:
        measure(task, folder, path, options.seeds, options.factors)
        return
    from benchmarks.when_it_helps_figures import draw, tables  # matplotlib is in the docs extra

    print(tables(task, read(path)))
    print(f"\nDrawn: {draw(task, read(path), options.images / f'when_it_helps_{options.data}.svg')}")


if __name__ == "__main__":
    main()
