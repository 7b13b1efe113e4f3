"""Language models that fill masks: pre-training by distillation, for any task after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoModelForMaskedLM

from hf_distill.corpora.docstrings import docstring_corpus
from hf_distill.corpora.files import DataError
from hf_distill.corpora.plain_text import enough_for, read_plain_text
from hf_distill.evaluation.language_modelling import PerplexityMeasure
from hf_distill.evaluation.measures import Measure
from hf_distill.masking import ROW, RowKeyedMasking, TellEpoch
from hf_distill.tasks.bert_models import KIND_HELP, MODERN, check_widths, encoder_config
from hf_distill.tasks.data_arguments import DataArguments, check_sources, complete, given_files, hub_splits
from hf_distill.tasks.model_arguments import ModelArguments, pretrained_models, sizes_of
from hf_distill.tasks.task import Role, Task
from hf_distill.tasks.wordpiece import train_tokenizer

# Masks of what models are measured on are drawn once, as of no training epoch.
_EVALUATION = -1
# Tokens that a model made here can be fine-tuned on, whatever the blocks it was pre-trained on.
_ROOM = 512


@dataclass
class MaskedDataArguments(DataArguments):
    """Which text to train and report on; without any of them the docstrings of the installed libraries."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Your training text: .txt, .md, a folder of these, CSV, JSON lines, Parquet. Default: built-in text"
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Your validation text. Default: a part of the training text"}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "Text to report on. Default: another part of it"}
    )
    text_column: str = field(default="text", metadata={"help": "The column of tables with the text"})
    block_size: int = field(default=64, metadata={"help": "Tokens of a block"})
    masked_share: float = field(
        default=0.3,
        metadata={"help": "Share of tokens to predict: 0.15 is BERT's; from more, small models learn sooner"},
    )


@dataclass
class MaskedModelArguments(ModelArguments):
    """Which teacher and student; the student is cut out of the teacher unless its size or its name is given."""

    model_kind: str = field(default=MODERN, metadata=KIND_HELP)
    vocabulary_size: int = field(default=2000, metadata={"help": "Vocabulary of a tokenizer trained here"})
    student_num_hidden_layers: int | None = field(
        default=None,
        metadata={"help": "Layers of a student cut out of the (first) teacher. Default: half of them"},
    )
    teacher_layers: int = field(default=4, metadata={"help": "Layers of a teacher trained here"})
    teacher_width: int = field(default=128, metadata={"help": "Width of a teacher trained here"})
    teacher_epochs: float = field(default=6.0, metadata={"help": "Epochs of a teacher trained here"})
    teacher_batch_size: int = field(
        default=32, metadata={"help": "Blocks per step and process of a teacher trained here"}
    )
    teacher_learning_rate: float = field(
        default=4e-3, metadata={"help": "Learning rate of a teacher trained here"}
    )
    teacher_dropout: float = field(
        default=0.0,
        metadata={
            "help": "Dropout of a teacher trained here; none by default, since masks differ in each epoch"
        },
    )
    student_layers: int | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Layers of a student from random weights. Default: it is cut out instead"},
    )


class MaskedLanguageModelling(Task):
    """BERT-like models before any task."""

    name = "masked_lm"
    auto_class = AutoModelForMaskedLM
    data_arguments = MaskedDataArguments
    model_arguments = MaskedModelArguments
    metrics = ("perplexity", "cross_entropy", "accuracy")
    counted = "blocks"
    loaded = "texts"
    remove_unused_columns = False

    @property
    def uncached_because(self) -> str:
        """Masked texts are others in each epoch."""
        return "masks are drawn anew each epoch"

    def fill_in(self) -> None:
        """Cut the student out of every other layer of the teacher, unless it is said what it is."""
        models = self.models
        if models.student_layers or models.student_num_hidden_layers or models.student_model_name_or_path:
            return
        layers, named = models.teacher_layers, pretrained_models(models)
        if named:
            layers = getattr(AutoConfig.from_pretrained(named[0]), "num_hidden_layers", 2)
        models.student_num_hidden_layers = max(layers // 2, 1)

    def check(self, args: Any) -> None:
        """Raise for two kinds of student at once, and for sizes that can't be."""
        models = self.models
        if models.student_layers and models.student_num_hidden_layers:
            raise ValueError(
                "expected --student_layers (random weights) or --student_num_hidden_layers (the teacher's), received "
                "both. Drop one."
            )
        if not 0 < self.data.masked_share < 1:
            raise ValueError(
                f"--masked_share: expected a number above 0 and below 1, received {self.data.masked_share}."
            )
        if self.data.block_size < 4:
            raise ValueError(
                f"--block_size: expected a whole number of at least 4, received {self.data.block_size}."
            )
        check_widths(models)

    def load(self) -> DatasetDict:
        """Return text: built in, the user's files or a Hub data set."""
        data = self.data
        check_sources(data)
        if data.train_file:
            splits = read_plain_text(given_files(data), data.text_column)
        elif data.dataset_name:
            found = hub_splits(data)
            if data.text_column not in found["train"].column_names:
                raise DataError(
                    f"--dataset_name {data.dataset_name}: expected a column {data.text_column!r}; it has "
                    f"{', '.join(map(repr, found['train'].column_names))}. Name the right one with --text_column."
                )
            splits = DatasetDict(
                {name: Dataset.from_dict({"text": rows[data.text_column][:]}) for name, rows in found.items()}
            )
        else:
            splits = docstring_corpus().remove_columns("label")
        return complete(splits, data)

    @property
    def encoding(self) -> dict[str, Any]:
        """How long blocks are, and how much of them is masked."""
        return {"block_size": self.data.block_size, "masked_share": self.data.masked_share}

    def few(self, rows: Dataset) -> Dataset:
        """Return enough text for some blocks."""
        return enough_for(rows, self.data.block_size)

    def encode(
        self, rows: Dataset, processor: Any, keep_raw: bool = False, training: bool = False
    ) -> Dataset:
        """Cut the text into blocks; those to report on are masked once, training ones by their number."""
        before, behind = special_tokens_around(processor)
        inner = self.data.block_size - len(before) - len(behind)

        def blocks(batch: dict[str, list[Any]]) -> dict[str, Any]:
            found = processor(list(batch["text"]), add_special_tokens=False, verbose=False)["input_ids"]
            stream = list(chain.from_iterable(found))
            starts = range(0, len(stream) - inner + 1, inner)
            whole = [before + stream[at : at + inner] + behind for at in starts]
            return {"input_ids": whole}

        encoded = rows.map(
            blocks, batched=True, batch_size=len(rows), remove_columns=rows.column_names, desc="Tokenizing"
        )
        if len(encoded) == 0:
            raise ValueError(
                f"--block_size: expected text of at least {inner} tokens in each split, received less in one of "
                f"{sum(map(len, rows['text'])):,} characters. Give a smaller one, or more text."
            )
        if training:
            return encoded.add_column(ROW, list(range(len(encoded))))
        masking = self.collator(processor)
        return encoded.map(
            lambda row, place: masking.masked(row["input_ids"], place, _EVALUATION),
            with_indices=True,
            desc="Masking",
        )

    def collator(
        self, processor: Any, teacher_processors: Sequence[Any] = (), labelled: bool = True
    ) -> RowKeyedMasking:
        """Mask by seed, epoch and row."""
        return RowKeyedMasking(processor, self.data.masked_share)

    def teacher_collator(self, processor: Any) -> Callable[[list[Any]], Any]:
        """Mask a teacher's texts in the same way."""
        return self.collator(processor)

    def prepare(self, trainer: Any) -> None:
        """Tell the collator the epoch, and the seed that students have."""
        collator = trainer.data_collator
        while not isinstance(collator, RowKeyedMasking):
            collator = collator.collator
        collator.seed = trainer.args.seed
        trainer.add_callback(TellEpoch(collator))

    def new_processor(self, splits: DatasetDict) -> Any:
        """Train a tokenizer on the training text."""
        models = self.models
        texts = splits["train"]["text"][:]
        modern = models.model_kind == MODERN
        return train_tokenizer(texts, models.vocabulary_size, token_types=not modern, longest=self._longest)

    @property
    def _longest(self) -> int:
        # Rotary positions have no weights: longer texts than the blocks may come after pre-training.
        size = self.data.block_size
        return max(size, _ROOM) if self.models.model_kind == MODERN else size

    def new_model(self, role: Role, splits: DatasetDict, processor: Any) -> Any:
        """Return a ModernBERT or a BERT that fills masks."""
        layers, width, dropout = sizes_of(self.models, role)
        config = encoder_config(self.models.model_kind, layers, width, processor, self._longest, dropout)
        return self.auto_class.from_config(config)

    def measure(self, rows: Dataset, encoded: Dataset, processor: Any) -> Measure:
        """Perplexity over masked tokens."""
        return PerplexityMeasure(shift=False)


def special_tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts before a text and behind it.

    Example:
        >>> tokenizer = train_tokenizer(["a small text"], 60)
        >>> [tokenizer.convert_ids_to_tokens(ids) for ids in special_tokens_around(tokenizer)]
        [['[CLS]'], ['[SEP]']]
    """
    whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]
