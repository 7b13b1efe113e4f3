"""Distil a language model that writes: GPT-2, Llama and their like.

    accelerate launch recipes/distill_causal_lm.py                        # built-in text, nothing to download
    accelerate launch recipes/distill_causal_lm.py --train_file novel.txt
    accelerate launch recipes/distill_causal_lm.py --train_file qa.jsonl --prompt_column question \
        --completion_column answer --teacher_model_name_or_path big/model --student_num_hidden_layers 6

Of a prompt nothing is learnt: labels are those of its completion alone. Texts are packed into blocks unless
--no_packing. A teacher's answers have a number for each token of the vocabulary, so they are kept only where
--cache_teacher says so.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from hf_distill.jobs.recipe_settings import OnlineRecipeArguments, RecipeTrainingArguments
from hf_distill.jobs.run import Defaults, run_recipe
from hf_distill.tasks.causal_lm import CausalLanguageModelling


@dataclass
class TrainingSettings(RecipeTrainingArguments):
    """TrainingArguments with defaults for a small model from random weights."""

    output_dir: str | None = field(
        default="runs/distill_causal_lm", metadata={"help": "Where everything is put"}
    )
    num_train_epochs: float = field(default=3.0, metadata={"help": "Epochs of the student. Default: 3"})
    learning_rate: float = field(
        default=0.0, metadata={"help": "Default: 4e-3, or 1e-4 for a student with pretrained weights"}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Examples per step and process"})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Examples per evaluation step"})


DEFAULTS = Defaults(
    learning_rate=4e-3,
    pretrained_learning_rate=1e-4,
    alpha=0.5,
    temperature=1.0,
    quick={
        "max_train_samples": 600,
        "max_eval_samples": 200,
        "teacher_layers": 1,
        "teacher_width": 64,
        "teacher_epochs": 1.0,
        "student_layers": 1,
        "student_width": 32,
        "num_train_epochs": 1.0,
    },
    recipe=OnlineRecipeArguments,
)


def main() -> None:
    """Run the job."""
    run_recipe(CausalLanguageModelling, TrainingSettings, DEFAULTS, sys.argv[1:])


if __name__ == "__main__":
    main()
