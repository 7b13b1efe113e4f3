"""The models of a classification recipe: tokenizers, a teacher that is trained once and kept, students."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import DatasetDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_distill.jobs.text_data import encode
from hf_distill.students import student_from_teacher
from hf_distill.whole_checkpoints import last_whole_checkpoint

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass
class TextModelArguments:
    """Which teacher and student; sizes are those of models trained from random weights."""

    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A fine-tuned teacher: Hub id or folder. Default: one is trained and kept"},
    )
    student_model_name_or_path: str | None = field(
        default=None, metadata={"help": "A pretrained student: Hub id or folder. Default: random weights"}
    )
    student_num_hidden_layers: int | None = field(
        default=None,
        metadata={"help": "Cut the student out of the teacher's layers instead, keeping this many"},
    )
    vocabulary_size: int = field(default=8000, metadata={"help": "Vocabulary of a tokenizer trained here"})
    teacher_layers: int = field(default=4, metadata={"help": "Layers of a teacher trained here"})
    teacher_width: int = field(default=256, metadata={"help": "Width of a teacher trained here"})
    teacher_epochs: float = field(default=4.0, metadata={"help": "Epochs of a teacher trained here"})
    teacher_learning_rate: float = field(
        default=3e-4, metadata={"help": "Learning rate of a teacher trained here"}
    )
    teacher_dropout: float = field(default=0.3, metadata={"help": "Dropout of a teacher trained here"})
    student_layers: int = field(default=2, metadata={"help": "Layers of a student from random weights"})
    student_width: int = field(default=128, metadata={"help": "Width of a student from random weights"})


def check_models(settings: TextModelArguments) -> None:
    """Raise before a teacher is trained for a student that can't be made.

    Raises:
        ValueError: two kinds of student at once, more layers than the teacher has, or an unknown name.
    """
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
    for flag, model in (("teacher", settings.teacher_model_name_or_path), ("student", name)):
        if model is not None:
            try:
                AutoConfig.from_pretrained(model)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"--{flag}_model_name_or_path: expected a Hub id or a folder with a saved model, received "
                    f"{model!r}: {str(error).splitlines()[0]}"
                ) from error


def first_on_main(state: PartialState) -> AbstractContextManager[Any]:
    """Let process 0 build what it keeps on disk, and the others read it after."""
    return state.main_process_first()


def train_tokenizer(texts: list[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing WordPiece tokenizer with BERT's special tokens.

    Example:
        >>> tokenizer = train_tokenizer(["a small text", "another text"], 60)
        >>> tokenizer.decode(tokenizer("A text")["input_ids"])
        '[CLS] a text [SEP]'
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size, special_tokens=_SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in _SPECIAL}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


def label_names(splits: DatasetDict) -> list[str]:
    """Return the names of the classes, in the order of their numbers."""
    return [str(name) for name in splits["train"].features["label"].names]


def new_bert(
    layers: int, width: int, splits: DatasetDict, tokenizer: Any, length: int, dropout: float = 0.1
) -> Any:
    """Return a BERT classifier with random weights, drawn from the global seed."""
    names = label_names(splits)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 64, 2),
        intermediate_size=4 * width,
        max_position_embeddings=length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    return BertForSequenceClassification(config)


def kept_teacher(
    settings: TextModelArguments,
    splits: DatasetDict,
    args: TrainingArguments,
    length: int,
    say: Callable[[str], None],
) -> Path:
    """Return the folder of a teacher trained on these texts with these settings; train it if it is not there.

    The folder's name is a hash of the texts and the settings, so another task gets another teacher.
    It is filled beside and renamed when whole; a run that was killed goes on from its last checkpoint.
    """
    names = ("vocabulary_size", *(name for name in asdict(settings) if name.startswith("teacher_")))
    wanted = {name: getattr(settings, name) for name in names}
    wanted |= {"length": length, "batch": args.per_device_train_batch_size * args.world_size}
    wanted |= {name: getattr(args, name) for name in ("seed", "bf16", "fp16", "warmup_steps", "weight_decay")}
    wanted["labels"] = label_names(splits)
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode())
    train = splits["train"]
    for column in train.column_names:
        digest.update(json.dumps(train[column][:]).encode())
    folder = Path(str(args.output_dir)) / f"teacher-{digest.hexdigest()[:12]}"
    if folder.is_dir():
        say(f"Teacher: kept from an earlier run in {folder}")
        return folder
    say(
        f"Teacher: training {settings.teacher_layers} layers of width {settings.teacher_width} into {folder} ..."
    )
    _train_teacher(settings, splits, args, length, folder)
    return folder


def summed_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """Return the cross-entropy divided by the count that plain Trainer believes every model divides by.

    With BERT's own mean the teacher's gradient would be too large by the number of processes.

    Example:
        >>> import torch
        >>> summed_loss({"logits": torch.zeros(2, 4)}, torch.tensor([0, 1]), 2)
        tensor(1.3863)
    """
    total = cross_entropy(outputs["logits"].float(), labels, reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def _train_teacher(
    settings: TextModelArguments, splits: DatasetDict, args: TrainingArguments, length: int, folder: Path
) -> None:
    state = PartialState()
    unfinished = folder.with_name(f"_{folder.name}-unfinished")
    with first_on_main(state):
        if not (unfinished / "tokenizer_config.json").is_file():
            texts = [text for name in ("text", "text_pair") if name in splits["train"].column_names
                     for text in splits["train"][name]]  # fmt: skip
            train_tokenizer(texts, settings.vocabulary_size).save_pretrained(str(unfinished))
        tokenizer = AutoTokenizer.from_pretrained(str(unfinished))
        train = encode(splits["train"], tokenizer, length)
    set_seed(args.seed)
    model = new_bert(
        settings.teacher_layers, settings.teacher_width, splits, tokenizer, length, settings.teacher_dropout
    )
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(unfinished / "checkpoints"),
            num_train_epochs=settings.teacher_epochs,
            learning_rate=settings.teacher_learning_rate,
            per_device_train_batch_size=args.per_device_train_batch_size,
            train_sampling_strategy=args.train_sampling_strategy,
            warmup_steps=args.warmup_steps,
            weight_decay=args.weight_decay,
            bf16=args.bf16,
            fp16=args.fp16,
            use_cpu=args.use_cpu,
            seed=args.seed,
            save_total_limit=1,
            save_strategy="epoch",
            logging_strategy="epoch",
            report_to="none",
            disable_tqdm=args.disable_tqdm,
        ),
        train_dataset=train,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_loss_func=summed_loss,
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(str(unfinished / "checkpoints")))
    trainer.save_model(str(unfinished))
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(unfinished / "checkpoints", ignore_errors=True)
        (unfinished / "training_args.bin").unlink(missing_ok=True)
        os.replace(unfinished, folder)
    state.wait_for_everyone()


def make_student(
    settings: TextModelArguments, teacher: Any, splits: DatasetDict, tokenizer: Any, length: int
) -> Any:
    """Return a student: pretrained, cut out of the teacher, or of random weights from the global seed."""
    if settings.student_num_hidden_layers is not None:
        return student_from_teacher(teacher, num_hidden_layers=settings.student_num_hidden_layers)
    if settings.student_model_name_or_path is None:
        return new_bert(settings.student_layers, settings.student_width, splits, tokenizer, length)
    names = label_names(splits)
    config = AutoConfig.from_pretrained(
        settings.student_model_name_or_path,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    return AutoModelForSequenceClassification.from_pretrained(
        settings.student_model_name_or_path, config=config
    )


def tokenizers_of(settings: TextModelArguments, teacher_folder: str) -> tuple[Any, Any]:
    """Return the student's tokenizer, and the teacher's own where it differs, else None."""
    teachers = AutoTokenizer.from_pretrained(teacher_folder)
    if settings.student_model_name_or_path is None:
        return teachers, None
    students = AutoTokenizer.from_pretrained(settings.student_model_name_or_path)
    return students, None if students.get_vocab() == teachers.get_vocab() else teachers
