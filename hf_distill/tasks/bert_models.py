"""BERT-like models from random weights, for the recipes that read text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import DatasetDict
from transformers import BertConfig, BertForSequenceClassification, ModernBertConfig

from hf_distill.tasks.model_arguments import ModelArguments

MODERN = "modernbert"
#: Where tokens stand and which belong together is learnt many times sooner with ModernBERT's rotary positions and norms
#: before each layer; BERT's own are for long pre-training.
KIND_HELP = {"help": "The architecture of models trained here", "choices": [MODERN, "bert"]}


@dataclass
class BertModelArguments(ModelArguments):
    """Which teacher and student read text; sizes are those of models trained from random weights."""

    vocabulary_size: int = field(default=8000, metadata={"help": "Vocabulary of a tokenizer trained here"})


@dataclass
class TextModelArguments(BertModelArguments):
    """Which teacher and student of whole texts; sizes are those of models trained from random weights."""

    teacher_word_dropout: float = field(
        default=0.5,
        metadata={
            "help": "Share of tokens left out of the texts of a teacher trained here, drawn anew each epoch"
        },
    )


@dataclass
class WordModelArguments(BertModelArguments):
    """Which teacher and student of words; sizes are those of models trained from random weights."""

    model_kind: str = field(default=MODERN, metadata=KIND_HELP)
    teacher_width: int = field(default=192, metadata={"help": "Width of a teacher trained here"})
    teacher_epochs: float = field(default=6.0, metadata={"help": "Epochs of a teacher trained here"})
    teacher_batch_size: int = field(
        default=32, metadata={"help": "Examples per step and process of a teacher trained here"}
    )
    teacher_learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate of a teacher trained here"}
    )
    student_width: int = field(default=64, metadata={"help": "Width of a student from random weights"})
    teacher_word_dropout: float = field(
        default=0.15,
        metadata={"help": "Share of tokens hidden from a teacher trained here, drawn anew each epoch"},
    )


def label_names(splits: DatasetDict) -> list[str]:
    """Return the names of the classes of whole examples, in the order of their numbers."""
    return [str(name) for name in splits["train"].features["label"].names]


def attention_heads(width: int) -> int:
    """Return how many attention heads a model made here has: 64 wide each, two at least.

    Example:
        >>> attention_heads(512), attention_heads(16)
        (8, 2)
    """
    return max(width // 64, 2)


def initializer_range(width: int) -> float:
    """Return the standard deviation of random weights for a width.

    BERT's 0.02 is for a width of 768. Narrower layers take larger weights, by the square root, for outputs as large;
    with 0.02 they hardly learn in their first hundreds of steps.

    Example:
        >>> initializer_range(768), initializer_range(192)
        (0.02, 0.04)
    """
    return 0.02 * math.sqrt(768 / width)


def bert_config(
    layers: int,
    width: int,
    tokenizer: Any,
    length: int,
    dropout: float = 0.1,
    names: Sequence[str] | None = None,
) -> BertConfig:
    """Return the configuration of a BERT of some size.

    Args:
        layers, width: its size.
        tokenizer: gives vocabulary and padding.
        length: most tokens that it can read.
        dropout: of hidden states and attention, in [0, 1).
        names: its classes, in the order of their numbers; None for a head without classes.
    """
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=attention_heads(width),
        intermediate_size=4 * width,
        max_position_embeddings=length,
        initializer_range=initializer_range(width),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizer.pad_token_id,
        **_labels(names),
    )


def modernbert_config(
    layers: int,
    width: int,
    tokenizer: Any,
    length: int,
    dropout: float = 0.1,
    names: Sequence[str] | None = None,
) -> ModernBertConfig:
    """Return the configuration of a ModernBERT to be trained from random weights; arguments as for a BERT.

    Texts here are shorter than its window, so that all layers see all of a text.

    Source: Warner et al., "Smarter, Better, Faster, Longer", arXiv 2412.13663.

    Example:
        >>> from hf_distill.tasks.wordpiece import train_tokenizer
        >>> modernbert_config(2, 64, train_tokenizer(["a text"], 60), 16).layer_types
        ['full_attention', 'full_attention']
    """
    return ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        layer_types=["full_attention"] * layers,
        num_attention_heads=attention_heads(width),
        intermediate_size=2 * width,  # gated, it has as many weights as three ungated quarters
        max_position_embeddings=length,
        initializer_range=initializer_range(width),
        embedding_dropout=dropout,
        mlp_dropout=dropout,
        attention_dropout=dropout,
        classifier_dropout=dropout,
        classifier_pooling="mean",
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        **_labels(names),
    )


def _labels(names: Sequence[str] | None) -> dict[str, Any]:
    if names is None:
        return {}
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


def encoder_config(kind: str, *sizes: Any, **options: Any) -> Any:
    """Return the configuration of an encoder of a kind, ``modernbert`` or ``bert``; arguments as for a BERT."""
    return (modernbert_config if kind == MODERN else bert_config)(*sizes, **options)


def new_bert(
    layers: int, width: int, splits: DatasetDict, tokenizer: Any, length: int, dropout: float = 0.1
) -> Any:
    """Return a BERT classifier of the data's classes with random weights, drawn from the global seed."""
    return BertForSequenceClassification(
        bert_config(layers, width, tokenizer, length, dropout, label_names(splits))
    )


def check_widths(models: ModelArguments) -> None:
    """Raise for a width that does not divide into its attention heads.

    Raises:
        ValueError: naming the flag.

    Example:
        >>> check_widths(ModelArguments(student_width=129))
        Traceback (most recent call last):
            ...
        ValueError: --student_width: expected a multiple of 2, the number of attention heads at this width, ...
    """
    for name in ("teacher_width", "student_width"):
        width = getattr(models, name)
        heads = attention_heads(width)
        if width % heads:
            raise ValueError(
                f"--{name}: expected a multiple of {heads}, the number of attention heads at this width, received "
                f"{width}."
            )
