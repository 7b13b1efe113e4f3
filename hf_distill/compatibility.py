"""What must match before training starts, with errors that say expected, received and the remedy."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging

from hf_distill.items import Head, chooses, head_of

logger = logging.get_logger(__name__)

_UNNAMED = re.compile(r"LABEL_\d+")
# Tokenizers without a limit carry a huge number.
_NO_LIMIT = 10**9


def label_order(student_config: Any, teacher_config: Any) -> list[int] | None:
    """Return how to permute the teacher's classes into the student's order, or None if they agree.

    Names like ``LABEL_0`` count as unnamed: the order can't be checked, which is warned about
    where one model has names and the other has not.

    Raises:
        ValueError: another number of labels, or other names.

    Example:
        >>> from transformers import BertConfig
        >>> student = BertConfig(id2label={0: "no", 1: "yes"})
        >>> label_order(student, BertConfig(id2label={0: "yes", 1: "no"}))
        [1, 0]
    """
    expected, received = student_config.num_labels, teacher_config.num_labels
    if expected != received:
        raise ValueError(
            f"labels: expected a teacher with the student's {expected} labels, received one with {received}. Load "
            f"the student with num_labels={received}, or use a teacher trained on the same labels."
        )
    student_names, teacher_names = _names(student_config), _names(teacher_config)
    if student_names == teacher_names or expected == 1:  # one label has no order
        return None
    if _unnamed(student_names) or _unnamed(teacher_names):
        warnings.warn(
            "labels: the order of the labels can't be checked, because the "
            f"{'student' if _unnamed(student_names) else 'teacher'} has no label names (LABEL_0, ...): student "
            f"{_short(student_names)}, teacher {_short(teacher_names)}. Set id2label and label2id in its config "
            "to have it checked.",
            UserWarning,
            stacklevel=2,
        )
        return None
    if len(set(student_names)) == len(student_names) and set(student_names) == set(teacher_names):
        return [teacher_names.index(name) for name in student_names]
    raise ValueError(
        f"labels: expected the student's label names {_short(student_names)}, received {_short(teacher_names)} from "
        "the teacher. Give both configs the same id2label, if the classes really are the same."
    )


def predicts_tokens(model: Any) -> bool:
    """Return whether a model's classes are its vocabulary, which ``id2label`` says nothing of.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> predicts_tokens(BertForMaskedLM(BertConfig(**sizes)))
        True
    """
    name = type(model).__name__
    kinds = ("ForCausalLM", "ForMaskedLM", "ForConditionalGeneration", "LMHeadModel", "ForPreTraining")
    return name.endswith(kinds)


def has_named_classes(model: Any) -> bool:
    """Return whether a model's classes are those of ``id2label``: not tokens, nor the choices that an example has.

    Example:
        >>> from transformers import BertConfig, BertForMultipleChoice
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> has_named_classes(BertForMultipleChoice(BertConfig(**sizes)))
        False
    """
    return not predicts_tokens(model) and not chooses(model)


def _names(config: Any) -> list[str]:
    return [str(config.id2label[index]) for index in range(config.num_labels)]


def _unnamed(names: Iterable[str]) -> bool:
    return all(_UNNAMED.fullmatch(name) for name in names)


def _short(names: list[str]) -> str:
    return str(names) if len(names) <= 6 else f"{names[:6]}... ({len(names)})"


def check_heads(student: Any, teacher: Any, student_head: Head) -> None:
    """Raise unless both heads mean the same: kind, and positions.

    Raises:
        ValueError: a regression teacher for a classifier, token logits for an example's, and so on.
    """
    example = [0.0] if student_head.kind == "multi_label" else None
    teacher_head = head_of(teacher, example)
    if (
        getattr(getattr(teacher, "config", None), "problem_type", None) is None
        and teacher.config.num_labels > 1
    ):
        teacher_head = replace(teacher_head, kind=student_head.kind)
    if teacher_head.meaning != student_head.meaning:
        raise ValueError(
            f"heads: expected a teacher whose head is the student's ({_describe(student_head)}), received "
            f"{type(teacher).__name__} ({_describe(teacher_head)}). Use the same kind of head and the same "
            "config.problem_type for both."
        )


def _describe(head: Head) -> str:
    if head.spans:
        return "the start and the end of a span"
    where = "per position, shifted" if head.shift else "per position" if head.positions else "per example"
    return f"{head.kind}, {where}"


def check_has_config(student: Any) -> None:
    """Raise for a student without a config, which tells its labels and what it is saved as.

    Raises:
        ValueError: naming the class that came.
    """
    if getattr(student, "config", None) is None:
        raise ValueError(
            f"model: expected a transformers model, whose config tells its labels, received {type(student).__name__} "
            "without a config. Set model.config, for instance to PretrainedConfig(num_labels=3)."
        )


def align_padding(tokenizer: Any, teacher: Any) -> None:
    """Give a teacher the padding token of what it reads, as Trainer gives it to the student.

    A classifier of the last token finds it by ``config.pad_token_id``, and with another one reads the
    padding: its answer then depends on the batch.
    """
    padding = getattr(tokenizer, "pad_token_id", None)
    find = getattr(teacher.config, "get_text_config", None)
    config = teacher.config if find is None else find()
    if padding is None or getattr(config, "pad_token_id", None) == padding:
        return
    if getattr(config, "pad_token_id", None) is not None:
        logger.warning(
            f"The tokenizer pads with {padding}, and the teacher's config.pad_token_id was {config.pad_token_id}: the "
            "teacher's was set to the tokenizer's."
        )
    config.pad_token_id = padding


def check_outputs(student: Any, teacher: Any) -> None:
    """Raise unless two language models predict the same number of tokens.

    Raises:
        ValueError: naming both numbers.
    """
    sizes = []
    for model in (student, teacher):
        found = getattr(model, "get_output_embeddings", lambda: None)()
        weight = getattr(found, "weight", None)
        if weight is None:
            return
        sizes.append(int(weight.shape[0]))
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"vocabulary: expected a teacher that predicts the student's {sizes[0]} tokens, received one with "
            f"{sizes[1]}. Where only rows that no token uses differ, resize one: "
            f"{'student' if sizes[0] < sizes[1] else 'teacher'}.resize_token_embeddings({max(sizes)})."
        )


def check_vocabulary(student_tokenizer: Any, teacher: Any) -> None:
    """Raise unless a teacher that reads the student's ``input_ids`` means the same tokens by them.

    Compared token by token where the teacher's tokenizer lies in its folder or is cached; never
    downloads one. Else by the size of the embedding, which can only find the grossest mistakes.

    Raises:
        ValueError: an id that is another token for the teacher, or lies outside its embedding.
    """
    if not isinstance(student_tokenizer, PreTrainedTokenizerBase):
        return
    student_vocabulary = student_tokenizer.get_vocab()
    remedy = (
        "Give teacher_processing_class=, the teacher's own tokenizer, so that it reads the text in its own way, "
        "or train the student with the teacher's tokenizer."
    )
    teacher_tokenizer = _local_tokenizer(teacher)
    if teacher_tokenizer is not None:
        teacher_vocabulary = teacher_tokenizer.get_vocab()
        differing = [
            (token, index, teacher_vocabulary.get(token))
            for token, index in student_vocabulary.items()
            if teacher_vocabulary.get(token) != index
        ]
        if differing:
            token, expected, received = min(differing, key=lambda entry: entry[1])
            raise ValueError(
                f"vocabulary: expected the teacher to read the student's input_ids, but {len(differing)} of "
                f"{len(student_vocabulary)} tokens differ: {token!r} is {expected} for the student and {received} "
                f"for the teacher. {remedy}"
            )
    size = _embedding_size(teacher)
    largest = max(student_vocabulary.values(), default=-1)
    if size is not None and largest >= size:
        raise ValueError(
            f"vocabulary: expected ids below the teacher's {size} embeddings, received a student's tokenizer with "
            f"ids up to {largest}. {remedy}"
        )


def _local_tokenizer(model: Any) -> Any:
    """Return the tokenizer stored beside a model on this machine, or None."""
    name = getattr(model, "name_or_path", "")
    if not name:
        return None
    try:
        # transformers 5 makes up a tokenizer of special tokens where a folder holds none.
        if not get_tokenizer_config(name, local_files_only=True):
            return None
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError):  # no tokenizer there: nothing to compare with
        return None


def _embedding_size(model: Any) -> int | None:
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):  # no token embedding: an image or audio model
        return None


def longest_input(model: Any) -> int | None:
    """Return the most positions a model can read, or None without a limit.

    RoBERTa-like models lose the first ``padding_idx + 1`` positions of their table.

    Example:
        >>> from transformers import RobertaConfig, RobertaModel
        >>> config = RobertaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> longest_input(RobertaModel(config))
        510
    """
    config = getattr(model, "config", None)
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    for module in getattr(model, "modules", list)():
        table = getattr(module, "position_embeddings", None)
        offset = getattr(module, "padding_idx", None)
        if table is not None and isinstance(offset, int) and getattr(table, "padding_idx", None) == offset:
            return limit - offset - 1
    return limit


def check_lengths(student: Any, teacher: Any, student_tokenizer: Any, datasets: Iterable[Any]) -> None:
    """Raise if an input may be longer than the teacher can read.

    The data decides where its ``input_ids`` are there to be measured, else what the tokenizer and
    the student would let through.

    Raises:
        ValueError: naming both lengths.
    """
    limit = longest_input(teacher)
    if limit is None:
        return
    measured = [length for length in map(_longest_row, datasets) if length is not None]
    if measured:
        longest, source = max(measured), "the data's longest input"
    else:
        limits = [longest_input(student), getattr(student_tokenizer, "model_max_length", None)]
        allowed = [length for length in limits if isinstance(length, int) and length < _NO_LIMIT]
        if not allowed:
            return
        longest, source = min(allowed), "what the student accepts"
    if longest > limit:
        raise ValueError(
            f"lengths: expected inputs of at most {limit} tokens, which is what the teacher can read, received "
            f"{longest} ({source}). Truncate at {limit} (tokenizer.model_max_length={limit})."
        )


def _longest_row(dataset: Any) -> int | None:
    """Return the longest ``input_ids`` of a ``datasets.Dataset``, read from Arrow without a copy."""
    if isinstance(dataset, list) and dataset and isinstance(dataset[0], dict) and "input_ids" in dataset[0]:
        return max(len(example["input_ids"]) for example in dataset)
    table = getattr(dataset, "data", None)
    if table is None or "input_ids" not in getattr(dataset, "column_names", ()) or len(dataset) == 0:
        return None
    if getattr(dataset, "_indices", None) is not None:  # a view of some rows: the table holds others too
        batches = dataset.select_columns("input_ids").with_format("arrow").iter(10_000)
        return max(_longest_list(table.column("input_ids")) for table in batches)
    return _longest_list(table.column("input_ids"))


def _longest_list(column: Any) -> int:
    import pyarrow.compute

    return int(pyarrow.compute.max(pyarrow.compute.list_value_length(column)).as_py())
