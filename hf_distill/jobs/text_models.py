"""The models of a classification recipe: which teacher and student, and how students are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from datasets import DatasetDict
from transformers import AutoConfig, BertConfig, BertForSequenceClassification

from hf_distill.jobs.label_names import follow_label_names
from hf_distill.jobs.named_models import load_student, load_tokenizer
from hf_distill.students import student_from_teacher


@dataclass
class TextModelArguments:
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
    student_model_name_or_path: str | None = field(
        default=None, metadata={"help": "A pretrained student: Hub id or folder. Default: random weights"}
    )
    student_num_hidden_layers: int | None = field(
        default=None,
        metadata={"help": "Cut the student out of the (first) teacher's layers instead, keeping this many"},
    )
    vocabulary_size: int = field(default=8000, metadata={"help": "Vocabulary of a tokenizer trained here"})
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
        default=64, metadata={"help": "Texts per step and process of a teacher trained here"}
    )
    teacher_learning_rate: float = field(
        default=5e-4, metadata={"help": "Learning rate of a teacher trained here"}
    )
    teacher_dropout: float = field(default=0.1, metadata={"help": "Dropout of a teacher trained here"})
    teacher_word_dropout: float = field(
        default=0.5,
        metadata={
            "help": "Share of tokens left out of the texts of a teacher trained here, drawn anew each epoch"
        },
    )
    student_layers: int = field(default=2, metadata={"help": "Layers of a student from random weights"})
    student_width: int = field(default=128, metadata={"help": "Width of a student from random weights"})


def number_of_teachers(settings: TextModelArguments) -> int:
    """Return how many teachers there are or will be.

    Example:
        >>> number_of_teachers(TextModelArguments(teachers_from_seeds=3)), number_of_teachers(TextModelArguments())
        (3, 1)
    """
    return len(settings.teacher_model_name_or_path or ()) or settings.teachers_from_seeds or 1


def last_epoch(settings: TextModelArguments) -> int:
    """Return the epoch, from 1, after which a teacher trained here stops; a part of an epoch counts as one.

    Example:
        >>> last_epoch(TextModelArguments(teacher_epochs=2.5)), last_epoch(TextModelArguments(teacher_stop_epoch=1))
        (3, 1)
    """
    return settings.teacher_stop_epoch or math.ceil(settings.teacher_epochs)


def check_models(settings: TextModelArguments) -> None:
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
    layers, name = settings.student_num_hidden_layers, settings.student_model_name_or_path
    if layers is not None and name is not None:
        raise ValueError(
            "expected --student_num_hidden_layers or --student_model_name_or_path, received both. Drop one."
        )
    if (
        layers is not None
        and settings.teacher_model_name_or_path is None
        and layers > settings.teacher_layers
    ):
        raise ValueError(
            f"--student_num_hidden_layers: expected at most the teacher's {settings.teacher_layers} layers, received "
            f"{layers}. Give fewer, or raise --teacher_layers."
        )
    teachers = [("teacher", model) for model in settings.teacher_model_name_or_path or ()]
    for flag, model in (*teachers, ("student", name)):
        if model is not None:
            try:
                AutoConfig.from_pretrained(model)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"--{flag}_model_name_or_path: expected a Hub id or a folder with a saved model, received "
                    f"{model!r}: {str(error).splitlines()[0]}"
                ) from error


def label_names(splits: DatasetDict) -> list[str]:
    """Return the names of the classes, in the order of their numbers."""
    return [str(name) for name in splits["train"].features["label"].names]


def attention_heads(width: int) -> int:
    """Return how many attention heads a model made here has: 64 wide each, two at least.

    Example:
        >>> attention_heads(512), attention_heads(16)
        (8, 2)
    """
    return max(width // 64, 2)


def new_bert(
    layers: int, width: int, splits: DatasetDict, tokenizer: Any, length: int, dropout: float = 0.1
) -> Any:
    """Return a BERT classifier with random weights, drawn from the global seed.

    BERT's standard deviation of 0.02 is for a width of 768. Narrower layers take larger weights, by the square root,
    for outputs as large; with 0.02 they hardly learn in their first hundreds of steps.
    """
    names = label_names(splits)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=attention_heads(width),
        intermediate_size=4 * width,
        max_position_embeddings=length,
        initializer_range=0.02 * math.sqrt(768 / width),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    return BertForSequenceClassification(config)


def make_student(
    settings: TextModelArguments, teacher: Any, splits: DatasetDict, tokenizer: Any, length: int
) -> Any:
    """Return a student: pretrained, cut out of the teacher, or of random weights from the global seed.

    Its classes are in the data's order, whatever the teacher's is.

    Raises:
        ValueError: a student cut out of a teacher of other classes, or a named one that can't be loaded for these.
    """
    if settings.student_num_hidden_layers is not None:
        student = student_from_teacher(teacher, num_hidden_layers=settings.student_num_hidden_layers)
        follow_label_names(student, label_names(splits))
        return student
    if settings.student_model_name_or_path is None:
        return new_bert(settings.student_layers, settings.student_width, splits, tokenizer, length)
    return load_student(settings.student_model_name_or_path, label_names(splits))


def tokenizers_of(
    settings: TextModelArguments, teacher_folders: list[str], revision: str | None = None
) -> tuple[Any, list[Any]]:
    """Return the student's tokenizer, and of each teacher its own where it differs, else None.

    Args:
        settings: the recipe's arguments.
        teacher_folders: folders or Hub ids.
        revision: branch, tag or commit of the teachers.
    """
    teachers = [load_tokenizer(folder, revision) for folder in teacher_folders]
    name = settings.student_model_name_or_path
    student = teachers[0] if name is None else load_tokenizer(name)
    return student, [None if _reads_alike(own, student) else own for own in teachers]


def _reads_alike(one: Any, other: Any) -> bool:
    """Whether two tokenizers make the same of a text and of a pair, segments and special tokens included."""
    if one.get_vocab() != other.get_vocab():
        return False
    texts = ("One text, in Two CASES.", "And another: 12 naïve words!")
    return all(dict(one(*given)) == dict(other(*given)) for given in (texts[:1], texts))
