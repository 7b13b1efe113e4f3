"""Which teacher and which student a recipe has: the flags that all recipes share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers import AutoConfig


@dataclass
class ModelArguments:
    """Which teacher and student; sizes are those of models trained from random weights."""

    teacher_model_name_or_path: list[str] | None = field(
        default=None,
        metadata={
            "help": "A fine-tuned teacher: Hub id or folder; several are an ensemble. Default: one is trained and kept"
        },
    )
    teachers_from_seeds: int | None = field(
        default=None,
        metadata={"help": "Train an ensemble of this many teachers here, with the seeds 0, 1, 2, ..."},
    )
    teacher_pretrained_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A pretrained model that a teacher is fine-tuned from here, once, and kept; give its "
            "--teacher_learning_rate too. Default: random weights"
        },
    )
    student_model_name_or_path: str | None = field(
        default=None, metadata={"help": "A pretrained student: Hub id or folder. Default: random weights"}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Give a pretrained model of other classes a new head"}
    )
    student_num_hidden_layers: int | None = field(
        default=None,
        metadata={"help": "Cut the student out of the (first) teacher's layers instead, keeping this many"},
    )
    teacher_layers: int = field(default=2, metadata={"help": "Layers of a teacher trained here"})
    teacher_width: int = field(default=320, metadata={"help": "Width of a teacher trained here"})
    teacher_epochs: float = field(default=5.0, metadata={"help": "Epochs of a teacher trained here"})
    teacher_stop_epoch: int | None = field(
        default=None,
        metadata={
            "help": "Stop a teacher trained here after this one of its epochs; its learning rate falls as if it went "
            "on. Default: the last"
        },
    )
    teacher_batch_size: int = field(
        default=64, metadata={"help": "Examples per step and process of a teacher trained here"}
    )
    teacher_learning_rate: float = field(
        default=5e-4, metadata={"help": "Learning rate of a teacher trained here"}
    )
    teacher_dropout: float = field(default=0.1, metadata={"help": "Dropout of a teacher trained here"})
    student_layers: int = field(default=2, metadata={"help": "Layers of a student from random weights"})
    student_width: int = field(default=128, metadata={"help": "Width of a student from random weights"})
    student_dropout: float = field(default=0.1, metadata={"help": "Dropout of a student from random weights"})


def number_of_teachers(settings: ModelArguments) -> int:
    """Return how many teachers there are or will be.

    Example:
        >>> number_of_teachers(ModelArguments(teachers_from_seeds=3)), number_of_teachers(ModelArguments())
        (3, 1)
    """
    return len(settings.teacher_model_name_or_path or ()) or settings.teachers_from_seeds or 1


def pretrained_models(settings: ModelArguments) -> list[str]:
    """Return what is named of teachers: fine-tuned ones, or the one that is fine-tuned here.

    Example:
        >>> pretrained_models(ModelArguments(teacher_pretrained_name_or_path="bert-base-uncased"))
        ['bert-base-uncased']
    """
    base = settings.teacher_pretrained_name_or_path
    return settings.teacher_model_name_or_path or ([] if base is None else [base])


def sizes_of(settings: ModelArguments, role: str) -> tuple[int, int, float]:
    """Return layers, width and dropout of a teacher or a student made here.

    Example:
        >>> sizes_of(ModelArguments(teacher_layers=4, teacher_dropout=0.2), "teacher")
        (4, 320, 0.2)
        >>> sizes_of(ModelArguments(student_dropout=0.0), "student")
        (2, 128, 0.0)
    """
    layers, width, dropout = (getattr(settings, f"{role}_{size}") for size in ("layers", "width", "dropout"))
    return layers, width, dropout


def last_epoch(settings: ModelArguments) -> int:
    """Return the epoch, from 1, after which a teacher trained here stops; a part of an epoch counts as one.

    Example:
        >>> last_epoch(ModelArguments(teacher_epochs=2.5)), last_epoch(ModelArguments(teacher_stop_epoch=1))
        (3, 1)
    """
    return settings.teacher_stop_epoch or math.ceil(settings.teacher_epochs)


def check_models(settings: ModelArguments) -> None:
    """Raise before a teacher is trained for a student that can't be made.

    Raises:
        ValueError: two kinds of student or of teachers at once, more layers than the teacher has, an epoch
            that its training does not reach, or an unknown name.
    """
    stop = settings.teacher_stop_epoch
    if stop is not None and not 1 <= stop <= math.ceil(settings.teacher_epochs):
        raise ValueError(
            f"--teacher_stop_epoch: expected an epoch from 1 to {math.ceil(settings.teacher_epochs)} "
            f"(--teacher_epochs {settings.teacher_epochs:g}), received {stop}."
        )
    count = settings.teachers_from_seeds
    if count is not None and settings.teacher_model_name_or_path is not None:
        raise ValueError(
            "expected --teachers_from_seeds or --teacher_model_name_or_path, received both. Drop one."
        )
    if count is not None and count < 1:
        raise ValueError(f"--teachers_from_seeds: expected a number of at least 1, received {count}.")
    pretrained = settings.teacher_pretrained_name_or_path
    if pretrained is not None and settings.teacher_model_name_or_path is not None:
        raise ValueError(
            "expected --teacher_model_name_or_path, which is fine-tuned already, or --teacher_pretrained_name_or_path, "
            "which is fine-tuned here, received both. Drop one."
        )
    layers, name = settings.student_num_hidden_layers, settings.student_model_name_or_path
    if layers is not None and name is not None:
        raise ValueError(
            "expected --student_num_hidden_layers or --student_model_name_or_path, received both. Drop one."
        )
    if layers is not None and settings.teacher_model_name_or_path is None and pretrained is None:
        # An encoder-decoder's halves are cut separately.
        for flag in ("student_encoder_layers", "student_decoder_layers", "student_num_hidden_layers"):
            asked = getattr(settings, flag, None) or 0
            if asked > settings.teacher_layers:
                raise ValueError(
                    f"--{flag}: expected at most the teacher's {settings.teacher_layers} layers, received {asked}. "
                    "Give fewer, or raise --teacher_layers."
                )
    teachers = [("teacher_model", model) for model in settings.teacher_model_name_or_path or ()]
    for flag, model in (*teachers, ("teacher_pretrained", pretrained), ("student_model", name)):
        if model is not None:
            try:
                AutoConfig.from_pretrained(model)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"--{flag}_name_or_path: expected a Hub id or a folder with a saved model, received "
                    f"{model!r}: {str(error).splitlines()[0]}"
                ) from error
