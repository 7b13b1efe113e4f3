"""Words of one class each: entities, parts of speech, roles of identifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from hf_distill.corpora.identifier_roles import identifier_roles
from hf_distill.corpora.tagged_words import checked_words, read_tagged_words
from hf_distill.evaluation.measures import Measure
from hf_distill.evaluation.token_classification import token_measure
from hf_distill.items import IGNORED
from hf_distill.tasks.bert_models import MODERN, WordModelArguments, check_widths, encoder_config
from hf_distill.tasks.data_arguments import DataArguments, check_sources, complete, given_files, hub_splits
from hf_distill.tasks.model_arguments import sizes_of
from hf_distill.tasks.task import Role, Task
from hf_distill.tasks.text_classification import summed_loss
from hf_distill.tasks.word_dropout import WordHiding
from hf_distill.tasks.wordpiece import train_tokenizer


@dataclass
class WordDataArguments(DataArguments):
    """Which sentences to train and report on.

    Without any of them the built-in task is used: the role of each identifier in lines of the installed libraries.
    """

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Your training sentences: CoNLL, CoNLL-U, JSON lines or Parquet. Default: built-in lines of Python"
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Your validation sentences. Default: a tenth of the training file"}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "Sentences to report on. Default: the validation sentences"}
    )
    tokens_column: str = field(default="tokens", metadata={"help": "The column with the words"})
    tags_column: str = field(default="tags", metadata={"help": "The column with the class of each word"})
    max_seq_length: int = field(default=96, metadata={"help": "Sentences are cut at this many tokens"})
    label_all_pieces: bool = field(
        default=False,
        metadata={"help": "Every piece of a word has its class, not the first alone"},
    )
    lowercase: bool = field(
        default=False, metadata={"help": "A tokenizer trained here reads capitals as small letters"}
    )


@dataclass
class TaggerModelArguments(WordModelArguments):
    """Which teacher and student of tagged words; sizes are those of models trained from random weights."""

    student_width: int = field(default=32, metadata={"help": "Width of a student from random weights"})


class TokenClassification(Task):
    """BERT-like taggers of words."""

    name = "token_classification"
    limits = {"input_ids": "max_seq_length"}  # noqa: RUF012
    auto_class = AutoModelForTokenClassification
    data_arguments = WordDataArguments
    model_arguments = TaggerModelArguments
    metrics = ("accuracy", "f1", "precision", "recall")
    counted = "sentences"
    teacher_loss = staticmethod(summed_loss)

    def load(self) -> DatasetDict:
        """Return sentences: built in, the user's files or a Hub data set."""
        data = self.data
        check_sources(data)
        if data.train_file:
            splits = read_tagged_words(given_files(data), data.tokens_column, data.tags_column)
        elif data.dataset_name:
            found = hub_splits(data)
            sources = {name: f"{data.dataset_name} ({name})" for name in found}
            splits = checked_words(found, sources, data.tokens_column, data.tags_column)
        else:
            splits = identifier_roles()
        return complete(splits, data)

    def label_names(self, splits: DatasetDict) -> list[str]:
        """Return the names of the tags."""
        return [str(name) for name in splits["train"].features["tags"].feature.names]

    @property
    def encoding(self) -> dict[str, Any]:
        """Length, capitals and which pieces have a label."""
        data = self.data
        return {
            "max_seq_length": data.max_seq_length,
            "label_all_pieces": data.label_all_pieces,
            "lowercase": data.lowercase,
        }

    def encode(
        self, rows: Dataset, processor: Any, keep_raw: bool = False, training: bool = False
    ) -> Dataset:
        """Tokenize words; the first piece of each has its label, and all else -100."""
        every = self.data.label_all_pieces

        def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
            encoded = processor(
                batch["tokens"],
                is_split_into_words=True,
                truncation=True,
                max_length=self.data.max_seq_length,
            )
            labels = [
                piece_labels(encoded.word_ids(index), tags, every) for index, tags in enumerate(batch["tags"])
            ]
            return {**encoded, "labels": labels}

        return rows.map(tokenize, batched=True, remove_columns=rows.column_names, desc="Tokenizing")

    def collator(
        self, processor: Any, teacher_processors: Sequence[Any] = (), labelled: bool = True
    ) -> Callable[[list[Any]], Any]:
        """Pad, the labels with -100."""
        return DataCollatorForTokenClassification(processor)

    def teacher_collator(self, processor: Any) -> Callable[[list[Any]], Any]:
        """Pad, and hide words."""
        return WordHiding(processor, self.models.teacher_word_dropout, self.collator(processor))

    def new_processor(self, splits: DatasetDict) -> Any:
        """Train a tokenizer on the words of the training sentences."""
        texts = [" ".join(words) for words in splits["train"]["tokens"]]
        models = self.models
        return train_tokenizer(
            texts,
            models.vocabulary_size,
            self.data.lowercase,
            token_types=models.model_kind != MODERN,
            longest=self.data.max_seq_length,
        )

    def read_alike(self, one: Any, other: Any) -> bool:
        """Whether two tokenizers make the same pieces of the same words."""
        words = ["One", "text", "in", "snake_case", "naïve", "12"]
        pieces = [dict(tokenizer(words, is_split_into_words=True)) for tokenizer in (one, other)]
        return bool(one.get_vocab() == other.get_vocab() and pieces[0] == pieces[1])

    def new_model(self, role: Role, splits: DatasetDict, processor: Any) -> Any:
        """Return a ModernBERT or a BERT with a class for each position."""
        layers, width, dropout = sizes_of(self.models, role)
        length, names = self.data.max_seq_length, self.label_names(splits)
        config = encoder_config(self.models.model_kind, layers, width, processor, length, dropout, names)
        return self.auto_class.from_config(config)

    def check(self, args: Any) -> None:
        """Raise for widths that are no BERT's."""
        check_widths(self.models)

    def measure(self, rows: Dataset, encoded: Dataset, processor: Any) -> Measure:
        """Accuracy over words, and F1 over entities where the tags are of the form B-, I- and O."""
        return token_measure(rows.features["tags"].feature.names)


def piece_labels(word_of_piece: list[int | None], tags: list[int], every: bool = False) -> list[int]:
    """Return the label of each piece of a sentence: its word's, or -100.

    Special tokens have none, and of a word's pieces only the first has one, unless ``every`` is set. A word whose tag
    is below 0 has none.

    Example:
        >>> piece_labels([None, 0, 0, 1, None], [7, 8])
        [-100, 7, -100, 8, -100]
        >>> piece_labels([None, 0, 0, 1, None], [7, 8], every=True)
        [-100, 7, 7, 8, -100]
    """
    labels, before = [], None
    for word in word_of_piece:
        untold = word is None or (word == before and not every) or tags[word] < 0
        labels.append(IGNORED if word is None or untold else tags[word])
        before = word
    return labels
