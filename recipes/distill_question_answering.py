"""Distil a model that answers questions by pointing at a part of a text.

    accelerate launch recipes/distill_question_answering.py          # built-in questions, nothing to download
    accelerate launch recipes/distill_question_answering.py --train_file train-v1.1.json --test_file dev-v1.1.json
    accelerate launch recipes/distill_question_answering.py --train_file xquad.en.json   # divided by article

Texts longer than a window are read in windows that overlap; F1 and exact match are SQuAD 1.1's, over questions.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from hf_distill.jobs.recipe_settings import RecipeTrainingArguments
from hf_distill.jobs.run import Defaults, run_recipe
from hf_distill.tasks.question_answering import QuestionAnswering


@dataclass
class TrainingSettings(RecipeTrainingArguments):
    """TrainingArguments with defaults for a small model from random weights."""

    output_dir: str | None = field(
        default="runs/distill_question_answering", metadata={"help": "Where everything is put"}
    )
    num_train_epochs: float = field(default=6.0, metadata={"help": "Epochs of the student. Default: 6"})
    learning_rate: float = field(
        default=0.0, metadata={"help": "Default: 1e-3, or 5e-5 for a student with pretrained weights"}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Windows per step and process"})


DEFAULTS = Defaults(
    learning_rate=1e-3,
    pretrained_learning_rate=5e-5,
    alpha=0.7,
    temperature=2.0,
    quick={
        "max_train_samples": 300,
        "max_eval_samples": 100,
        "teacher_width": 64,
        "teacher_epochs": 1.0,
        "student_layers": 1,
        "student_width": 64,
        "num_train_epochs": 1.0,
    },
)


def main() -> None:
    """Run the job."""
    run_recipe(QuestionAnswering, TrainingSettings, DEFAULTS, sys.argv[1:])


if __name__ == "__main__":
    main()
