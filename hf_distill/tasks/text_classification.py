"""Texts, or pairs of texts, of one class each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from hf_distill.evaluation.measures import Measure
from hf_distill.evaluation.metrics import ClassificationMeasure
from hf_distill.tasks.bert_models import TextModelArguments, check_widths, label_names, new_bert
from hf_distill.tasks.model_arguments import sizes_of
from hf_distill.tasks.task import Role, Task
from hf_distill.tasks.text_data import TextDataArguments, encode, load_texts, with_unlabelled
from hf_distill.tasks.word_dropout import WordDropout
from hf_distill.tasks.wordpiece import train_tokenizer


def summed_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """Return the cross-entropy divided by the count that plain Trainer believes every model divides by.

    Labels are one for each example, or one for each position, where -100 is none. With BERT's own mean the teacher's
    gradient would be too large by the number of processes.

    Example:
        >>> import torch
        >>> summed_loss({"logits": torch.zeros(2, 4)}, torch.tensor([0, 1]), 2)
        tensor(1.3863)
    """
    logits = outputs["logits"].float()
    total = cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")
    return total / (labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch)


class TextClassification(Task):
    """BERT-like classifiers of texts."""

    name = "text_classification"
    limits = {"input_ids": "max_seq_length"}  # noqa: RUF012
    auto_class = AutoModelForSequenceClassification
    data_arguments = TextDataArguments
    model_arguments = TextModelArguments
    metrics = ("accuracy", "macro_f1", "matthews", "calibration_error")
    raw_columns = ("text", "text_pair")
    teacher_loss = staticmethod(summed_loss)

    def load(self) -> DatasetDict:
        """Return texts: built in, the user's files or a Hub data set."""
        return load_texts(self.data)

    def label_names(self, splits: DatasetDict) -> list[str]:
        """Return the names of the classes."""
        return label_names(splits)

    def encode(
        self, rows: Dataset, processor: Any, keep_raw: bool = False, training: bool = False
    ) -> Dataset:
        """Tokenize a split."""
        return encode(rows, processor, self.data.max_seq_length, keep_raw)

    @property
    def encoding(self) -> dict[str, Any]:
        """The longest encoding, in tokens."""
        return {"max_seq_length": self.data.max_seq_length}

    def collator(
        self, processor: Any, teacher_processors: Sequence[Any] = (), labelled: bool = True
    ) -> Callable[[list[Any]], Any]:
        """Pad."""
        return DataCollatorWithPadding(processor)

    def teacher_collator(self, processor: Any) -> Callable[[list[Any]], Any]:
        """Pad, and leave words out."""
        return WordDropout(processor, self.models.teacher_word_dropout)

    def with_unlabelled(self, train: Dataset, unlabelled: Dataset) -> Dataset:
        """Append texts without labels."""
        return with_unlabelled(train, unlabelled)

    def new_processor(self, splits: DatasetDict) -> Any:
        """Train a tokenizer on the training texts, pairs included."""
        train = splits["train"]
        texts = [text for name in ("text", "text_pair") if name in train.column_names for text in train[name]]
        return train_tokenizer(texts, self.models.vocabulary_size, longest=self.data.max_seq_length)

    def new_model(self, role: Role, splits: DatasetDict, processor: Any) -> Any:
        """Return a BERT classifier."""
        layers, width, dropout = sizes_of(self.models, role)
        return new_bert(layers, width, splits, processor, self.data.max_seq_length, dropout)

    def check(self, args: Any) -> None:
        """Raise for widths that are no BERT's."""
        check_widths(self.models)

    def measure(self, rows: Dataset, encoded: Dataset, processor: Any) -> Measure:
        """Accuracy, macro F1, Matthews correlation and calibration."""
        return ClassificationMeasure()
