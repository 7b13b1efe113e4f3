"""Distil an encoder-decoder that writes: T5, BART and their like.

    accelerate launch recipes/distill_seq2seq.py                        # built-in docstrings, nothing to download
    accelerate launch recipes/distill_seq2seq.py --train_file e2e.csv --source_column mr --target_column ref \
        --headline bleu
    accelerate launch recipes/distill_seq2seq.py --sequence_level       # learn what the teacher writes as well
    accelerate launch recipes/distill_seq2seq.py --teacher_model_name_or_path facebook/bart-large-cnn \
        --student_encoder_layers 12 --student_decoder_layers 3 ...

Students are compared by what they write (--generation_num_beams, --generation_max_length), with metrics of the extra
'hf-distill[metrics]'. Rows of a test file with one text and several answers are one text with several references.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from hf_distill.jobs.recipe_settings import OnlineRecipeArguments, RecipeDefaultsMixin
from hf_distill.jobs.run import Defaults, run_recipe
from hf_distill.seq2seq import DistillationSeq2SeqTrainingArguments
from hf_distill.tasks.seq2seq import SequenceToSequence


@dataclass
class TrainingSettings(RecipeDefaultsMixin, DistillationSeq2SeqTrainingArguments):
    """Seq2SeqTrainingArguments with defaults for a small model from random weights."""

    output_dir: str | None = field(
        default="runs/distill_seq2seq", metadata={"help": "Where everything is put"}
    )
    num_train_epochs: float = field(default=6.0, metadata={"help": "Epochs of the student. Default: 6"})
    learning_rate: float = field(
        default=0.0, metadata={"help": "Default: 2e-3, or 1e-4 for a student with pretrained weights"}
    )
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Pairs per step and process"})
    predict_with_generate: bool = field(
        default=True, metadata={"help": "Compare students by what they write"}
    )


DEFAULTS = Defaults(
    learning_rate=2e-3,
    pretrained_learning_rate=1e-4,
    alpha=0.9,
    temperature=1.0,  # at 2 a vocabulary is nearly flat, and what is learnt of it slowly
    quick={
        "max_train_samples": 300,
        "max_eval_samples": 60,
        "teacher_layers": 1,
        "teacher_width": 64,
        "teacher_epochs": 1.0,
        "student_width": 32,
        "num_train_epochs": 1.0,
    },
    recipe=OnlineRecipeArguments,
)


def main() -> None:
    """Run the job."""
    run_recipe(SequenceToSequence, TrainingSettings, DEFAULTS, sys.argv[1:])


if __name__ == "__main__":
    main()
