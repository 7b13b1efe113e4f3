"""Distil a classifier of images into a MobileNetV2, or into any student you name.

    accelerate launch recipes/distill_image_classification.py           # built-in digits, nothing to download
    accelerate launch recipes/distill_image_classification.py --train_file photos/train --test_file photos/test
    accelerate launch recipes/distill_image_classification.py --alpha 1 --augmentation crop --mixup 1

Student and teacher each see the same crop in their own size and normalisation. The last line is function matching, as
in "A good teacher is patient and consistent": no labels, mixed images; give it a long schedule (--num_train_epochs).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from hf_distill.jobs.recipe_settings import RecipeTrainingArguments
from hf_distill.jobs.run import Defaults, run_recipe
from hf_distill.tasks.image_classification import ImageClassification


@dataclass
class TrainingSettings(RecipeTrainingArguments):
    """TrainingArguments with defaults for a small model from random weights."""

    output_dir: str | None = field(
        default="runs/distill_image_classification", metadata={"help": "Where everything is put"}
    )
    num_train_epochs: float = field(default=20.0, metadata={"help": "Epochs of the student. Default: 20"})
    learning_rate: float = field(
        default=0.0, metadata={"help": "Default: 2e-3, or 1e-4 for a student with pretrained weights"}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Images per step and process"})
    train_sampling_strategy: str = field(
        default="random",
        metadata={"help": "The order of the images", "choices": ["random", "sequential"]},
    )


DEFAULTS = Defaults(
    learning_rate=2e-3,
    pretrained_learning_rate=1e-4,
    alpha=0.5,
    temperature=1.0,
    quick={
        "max_train_samples": 200,
        "max_eval_samples": 100,
        "teacher_width": 8,
        "teacher_epochs": 2.0,
        "num_train_epochs": 1.0,
    },
)


def main() -> None:
    """Run the job."""
    run_recipe(ImageClassification, TrainingSettings, DEFAULTS, sys.argv[1:])


if __name__ == "__main__":
    main()
