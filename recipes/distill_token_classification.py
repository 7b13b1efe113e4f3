"""Distil a tagger of words: entities, parts of speech, or whatever has a class for each word.

    accelerate launch recipes/distill_token_classification.py       # built-in lines of Python, nothing to download
    accelerate launch recipes/distill_token_classification.py --train_file train.conll --test_file test.conll
    accelerate launch recipes/distill_token_classification.py --dataset_name user/data --tags_column ner_tags

CoNLL, CoNLL-U, JSON lines and Parquet are read. Where tags are of entities (B-, I-, O), F1 is seqeval's
(pip install 'hf-distill[metrics]').
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from hf_distill.jobs.recipe_settings import RecipeTrainingArguments
from hf_distill.jobs.run import Defaults, run_recipe
from hf_distill.tasks.token_classification import TokenClassification


@dataclass
class TrainingSettings(RecipeTrainingArguments):
    """TrainingArguments with defaults for a small model from random weights."""

    output_dir: str | None = field(
        default="runs/distill_token_classification", metadata={"help": "Where everything is put"}
    )
    num_train_epochs: float = field(default=5.0, metadata={"help": "Epochs of the student. Default: 5"})
    learning_rate: float = field(
        default=0.0, metadata={"help": "Default: 1e-3, or 5e-5 for a student with pretrained weights"}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Sentences per step and process"})


DEFAULTS = Defaults(
    learning_rate=1e-3,
    pretrained_learning_rate=5e-5,
    alpha=0.5,
    temperature=1.0,
    quick={
        "max_train_samples": 400,
        "max_eval_samples": 300,
        "teacher_width": 64,
        "teacher_epochs": 1.0,
        "student_layers": 1,
        "student_width": 64,
        "num_train_epochs": 1.0,
    },
)


def main() -> None:
    """Run the job."""
    run_recipe(TokenClassification, TrainingSettings, DEFAULTS, sys.argv[1:])


if __name__ == "__main__":
    main()
