"""Pre-train a small BERT by distillation, as DistilBERT was: half of the teacher's layers, and three losses.

    accelerate launch recipes/distill_masked_lm.py                        # built-in text, nothing to download
    accelerate launch recipes/distill_masked_lm.py --train_file books/ --teacher_model_name_or_path bert-base-uncased
    accelerate launch recipes/distill_bert.py --student_model_name_or_path runs/distill_masked_lm/seed_0/distilled
    python benchmarks/pretraining.py runs/distill_masked_lm               # what that is worth, with few labels

The student starts from every other layer of the teacher, and learns masked words, the teacher's probabilities for
them, and the direction of its last hidden state. The last line fine-tunes it. "Student alone" has the same start and
the words alone. Masks are drawn by seed, epoch and row, so that a run that goes on draws what it would have.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from hf_distill.jobs.recipe_settings import RecipeTrainingArguments
from hf_distill.jobs.run import Defaults, run_recipe
from hf_distill.tasks.masked_lm import MaskedLanguageModelling


@dataclass
class TrainingSettings(RecipeTrainingArguments):
    """TrainingArguments with defaults for a small model cut out of its teacher."""

    output_dir: str | None = field(
        default="runs/distill_masked_lm", metadata={"help": "Where everything is put"}
    )
    num_train_epochs: float = field(default=3.0, metadata={"help": "Epochs of the student. Default: 3"})
    learning_rate: float = field(
        default=0.0, metadata={"help": "Default: 2e-3, or 5e-4 for a student with pretrained weights"}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Blocks per step and process"})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Blocks per evaluation step"})


# DistilBERT's triple loss (arXiv 1910.01108, section 2) with the weights of its code: 5, 2 and 1.
TRIPLE_LOSS: dict[str, Any] = {
    "label_weight": 2.0,
    "objectives": [
        {"name": "forward_kl", "weight": 5.0, "temperature": 2.0},
        {"name": "hidden_states", "weight": 1.0, "layers": "last", "distance": "cosine"},
    ],
}
DEFAULTS = Defaults(
    learning_rate=2e-3,
    pretrained_learning_rate=5e-4,
    loss=TRIPLE_LOSS,
    quick={
        "max_train_samples": 600,
        "max_eval_samples": 200,
        "teacher_layers": 2,
        "teacher_width": 64,
        "teacher_epochs": 1.0,
        "num_train_epochs": 1.0,
    },
)


def main() -> None:
    """Run the job."""
    run_recipe(MaskedLanguageModelling, TrainingSettings, DEFAULTS, sys.argv[1:])


if __name__ == "__main__":
    main()
