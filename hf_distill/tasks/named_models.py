"""What a user names, loaded with the checks that say before any training that it can't work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from hf_distill.tasks.label_names import follow_label_names

logger = logging.get_logger(__name__)


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """Load a tokenizer that knows words, with a padding token.

    One without a padding token, like GPT-2's, pads with its end of text, as is usual for classifiers.

    Args:
        name: the Hub id or the folder of a model.
        revision: branch, tag or commit; the main one if None.

    Raises:
        ValueError: no tokenizer beside the model, or one with nothing to pad with.

    Example:
        >>> load_tokenizer("nowhere")
        Traceback (most recent call last):
            ...
        ValueError: 'nowhere': expected a tokenizer beside the model, received none ...
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main")
    except (
        Exception
    ) as error:  # a dozen kinds, plain Exception among them: one for each architecture's way to miss it
        raise ValueError(_no_tokenizer(name, f" ({str(error).strip().splitlines()[0]})")) from error
    # transformers 5 makes up a tokenizer of special tokens where a folder holds none: every word is then unknown, and
    # training goes on to no avail. T5's has one piece more.
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) <= 1:
        raise ValueError(_no_tokenizer(name, ""))
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ValueError(
            f"{name!r}: expected a tokenizer with a padding token, received one without. Set tokenizer.pad_token and "
            "save it again beside the model."
        )
    if tokenizer.pad_token is None:
        logger.warning_once(f"{name!r}: its tokenizer has no padding token, so {tokenizer.eos_token!r} pads.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _no_tokenizer(name: str, detail: str) -> str:
    return (
        f"{name!r}: expected a tokenizer beside the model, received none{detail}. Save the one it was trained with "
        "there: tokenizer.save_pretrained(folder)."
    )


def load_pretrained(
    flag: str, name: str, names: Sequence[str] | None, auto_class: Any, new_head: bool = False
) -> Any:
    """Load a pretrained model with a head for the data's classes: its own, in the data's order, or a new one.

    Args:
        flag: where the user named it, for messages: ``--student_model_name_or_path``.
        name: its Hub id or folder.
        names: the classes, in the order of their numbers; None for a head without classes.
        auto_class: the Auto class of its head.
        new_head: a head for another number of classes is replaced by one of random weights, not refused.

    Raises:
        ValueError: weights that can't be read, or a head for another number of classes.
    """
    labels: dict[str, Any] = {}
    if names is not None:
        labels = {"num_labels": len(names), "id2label": dict(enumerate(names))}
        labels["label2id"] = {label: number for number, label in enumerate(names)}
    config = AutoConfig.from_pretrained(name, **labels)
    try:
        model, loading = auto_class.from_pretrained(
            name, config=config, ignore_mismatched_sizes=names is not None, output_loading_info=True
        )
    except SafetensorError as error:
        raise ValueError(
            f"{flag}: expected a saved model, received {name!r}, whose weights can't be read ({error}). Save or "
            "download it again."
        ) from error
    if names is None:
        return model
    if loading["mismatched_keys"]:
        if new_head:
            return model
        key, received, expected = sorted(loading["mismatched_keys"])[0]
        raise ValueError(
            f"{flag}: expected a model for the data's {len(names)} classes, or one without a trained head, received "
            f"{name!r}, whose {key} is {tuple(received)}, not {tuple(expected)}. Name the pretrained model that it was "
            "fine-tuned from, or give it a new head with --ignore_mismatched_sizes."
        )
    # Of other classes, its head is a start like any other, and keeps its order.
    own = AutoConfig.from_pretrained(name).id2label
    if sorted(map(str, own.values())) == sorted(names):
        model.config.id2label = own
        follow_label_names(model, names)
    return model
