"""Distil a classifier of sounds: spectrogram transformers, wav2vec2 and the like.

    accelerate launch recipes/distill_audio_classification.py           # built-in tones, nothing to download
    accelerate launch recipes/distill_audio_classification.py --train_file words/train --test_file words/test
    accelerate launch recipes/distill_audio_classification.py --train_file recordings --label_pattern '([0-9])_' \
        --test_pattern '_[0-4].wav' --max_seconds 0.8                   # the class is in the names of the files
    accelerate launch recipes/distill_audio_classification.py --dataset_name user/words

Files are read by soundfile (pip install 'hf-distill[audio]'): WAV, FLAC, Ogg, MP3; all are brought to --sampling_rate.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from hf_distill.jobs.recipe_settings import RecipeTrainingArguments
from hf_distill.jobs.run import Defaults, run_recipe
from hf_distill.tasks.audio_classification import AudioClassification


@dataclass
class TrainingSettings(RecipeTrainingArguments):
    """TrainingArguments with defaults for a small model from random weights."""

    output_dir: str | None = field(
        default="runs/distill_audio_classification", metadata={"help": "Where everything is put"}
    )
    num_train_epochs: float = field(default=60.0, metadata={"help": "Epochs of the student. Default: 60"})
    learning_rate: float = field(
        default=0.0, metadata={"help": "Default: 1e-3, or 5e-5 for a student with pretrained weights"}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Sounds per step and process"})
    train_sampling_strategy: str = field(
        default="random",
        metadata={"help": "The order of the sounds", "choices": ["random", "sequential"]},
    )


DEFAULTS = Defaults(
    learning_rate=1e-3,
    pretrained_learning_rate=5e-5,
    alpha=0.7,
    temperature=4.0,
    quick={
        "max_train_samples": 200,
        "max_eval_samples": 100,
        "teacher_layers": 1,
        "teacher_width": 64,
        "teacher_epochs": 1.0,
        "student_width": 32,
        "num_train_epochs": 1.0,
    },
)


def main() -> None:
    """Run the job."""
    run_recipe(AudioClassification, TrainingSettings, DEFAULTS, sys.argv[1:])


if __name__ == "__main__":
    main()
