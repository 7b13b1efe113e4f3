"""Distil a BERT classifier: the teacher, the student alone and the student distilled, in one table.

    accelerate launch recipes/distill_bert.py                      # built-in text, nothing to download
    accelerate launch recipes/distill_bert.py --train_file train.csv --validation_file test.csv
    accelerate launch recipes/distill_bert.py settings.yaml --alpha 0.7
    accelerate launch recipes/distill_bert.py --tune               # alpha, T and the teacher's epoch first

Without a teacher's name one is trained on the same texts and kept for the next run. Several names, or
--teachers_from_seeds 3, make an ensemble.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from hf_distill.jobs.recipe_settings import RecipeTrainingArguments
from hf_distill.jobs.run import Defaults, run_recipe
from hf_distill.tasks.text_classification import TextClassification


@dataclass
class TrainingSettings(RecipeTrainingArguments):
    """TrainingArguments with defaults for a small model from random weights."""

    output_dir: str | None = field(default="runs/distill_bert", metadata={"help": "Where everything is put"})
    num_train_epochs: float = field(default=5.0, metadata={"help": "Epochs of the student. Default: 5"})
    learning_rate: float = field(
        default=0.0, metadata={"help": "Default: 7e-4, or 5e-5 for a student with pretrained weights"}
    )


DEFAULTS = Defaults(
    learning_rate=7e-4,
    pretrained_learning_rate=5e-5,
    alpha=0.7,  # tuned with T on the validation split of the built-in text
    temperature=4.0,
    quick={
        "max_train_samples": 600,
        "max_eval_samples": 600,
        "max_unlabeled_samples": 600,
        "teacher_width": 64,
        "teacher_epochs": 1.0,
        "student_layers": 1,
        "student_width": 64,
        "num_train_epochs": 1.0,
    },
    tunes=True,
)


def main() -> None:
    """Run the job."""
    run_recipe(TextClassification, TrainingSettings, DEFAULTS, sys.argv[1:])


if __name__ == "__main__":
    main()
