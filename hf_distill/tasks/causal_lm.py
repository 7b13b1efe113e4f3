"""Language models that write one token after another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_distill.corpora.docstrings import docstring_corpus
from hf_distill.corpora.files import DataError
from hf_distill.corpora.plain_text import completions, enough_for, read_completions, read_plain_text
from hf_distill.evaluation.language_modelling import PerplexityMeasure
from hf_distill.evaluation.measures import Measure
from hf_distill.items import IGNORED
from hf_distill.tasks.bert_models import attention_heads, check_widths, initializer_range
from hf_distill.tasks.byte_pairs import train_byte_pairs
from hf_distill.tasks.data_arguments import DataArguments, check_sources, complete, given_files, hub_splits
from hf_distill.tasks.model_arguments import ModelArguments, sizes_of
from hf_distill.tasks.task import Role, Task


@dataclass
class LanguageDataArguments(DataArguments):
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
    prompt_column: str | None = field(
        default=None,
        metadata={"help": "The column with a prompt, of which nothing is learnt; a line break follows it"},
    )
    completion_column: str | None = field(
        default=None, metadata={"help": "The column with what follows the prompt, which is learnt"}
    )
    block_size: int = field(default=64, metadata={"help": "Tokens of a block, and of the longest text"})
    packing: bool = field(
        default=True,
        metadata={
            "help": "Cut texts, one after another, into whole blocks; else each is padded (--no_packing)"
        },
    )


@dataclass
class LanguageModelArguments(ModelArguments):
    """Which teacher and student of language; sizes are those of models trained from random weights."""

    model_kind: str = field(
        default="llama",
        metadata={"help": "The architecture of models trained here", "choices": ["llama", "gpt2"]},
    )
    vocabulary_size: int = field(default=2000, metadata={"help": "Vocabulary of a tokenizer trained here"})
    teacher_layers: int = field(default=3, metadata={"help": "Layers of a teacher trained here"})
    teacher_width: int = field(default=192, metadata={"help": "Width of a teacher trained here"})
    teacher_epochs: float = field(default=3.0, metadata={"help": "Epochs of a teacher trained here"})
    teacher_batch_size: int = field(
        default=32, metadata={"help": "Examples per step and process of a teacher trained here"}
    )
    teacher_learning_rate: float = field(
        default=2e-3, metadata={"help": "Learning rate of a teacher trained here"}
    )
    teacher_dropout: float = field(default=0.0, metadata={"help": "Dropout of a teacher trained here (gpt2)"})
    student_layers: int = field(default=2, metadata={"help": "Layers of a student from random weights"})
    student_width: int = field(default=64, metadata={"help": "Width of a student from random weights"})
    student_dropout: float = field(
        default=0.1, metadata={"help": "Dropout of a student from random weights (gpt2)"}
    )


class CausalLanguageModelling(Task):
    """GPT-2- or Llama-like models, on text or on completions of prompts."""

    name = "causal_lm"
    auto_class = AutoModelForCausalLM
    loaded = "texts"
    data_arguments = LanguageDataArguments
    model_arguments = LanguageModelArguments
    metrics = ("perplexity", "cross_entropy", "accuracy")

    @property
    def counted(self) -> str:  # type: ignore[override]
        """What an example is."""
        return "blocks" if self._packs else "texts"

    @property
    def limits(self) -> Mapping[str, str]:  # type: ignore[override]
        """Texts of their own are cut; of packed ones nothing is lost but an end."""
        return {} if self._packs else {"input_ids": "block_size"}

    @property
    def _packs(self) -> bool:
        return bool(self.data.packing and self.data.prompt_column is None)

    def check(self, args: Any) -> None:
        """Raise for a prompt without a completion, and for widths that can't be."""
        prompt, completion = self.data.prompt_column, self.data.completion_column
        if (prompt is None) != (completion is None):
            given = "prompt_column" if completion is None else "completion_column"
            raise ValueError(
                f"--{given}: expected --prompt_column and --completion_column, received one of them. Give both, or "
                "--text_column for text without prompts."
            )
        if prompt is not None and not (self.data.train_file or self.data.dataset_name):
            raise ValueError(
                "--prompt_column, --completion_column: expected --train_file or --dataset_name beside them, received "
                "neither: the built-in text has no prompts."
            )
        if self.data.block_size < 4:
            raise ValueError(
                f"--block_size: expected a whole number of at least 4, received {self.data.block_size}."
            )
        check_widths(self.models)

    def load(self) -> DatasetDict:
        """Return text, or prompts and completions: built in, the user's files or a Hub data set."""
        data = self.data
        check_sources(data)
        if data.train_file and data.prompt_column:
            splits = read_completions(
                given_files(data), data.prompt_column, data.completion_column, group=False
            )
        elif data.train_file:
            splits = read_plain_text(given_files(data), data.text_column)
        elif data.dataset_name:
            splits = self._from_hub()
        else:
            splits = docstring_corpus().remove_columns("label")
        return complete(splits, data)

    def _from_hub(self) -> DatasetDict:
        data, found = self.data, hub_splits(self.data)
        if data.prompt_column:
            return DatasetDict(
                {
                    name: completions(
                        rows, f"{data.dataset_name} ({name})", data.prompt_column, data.completion_column
                    )
                    for name, rows in found.items()
                }
            )
        if data.text_column not in found["train"].column_names:
            raise DataError(
                f"--dataset_name {data.dataset_name}: expected a column {data.text_column!r}; it has "
                f"{', '.join(map(repr, found['train'].column_names))}. Name the right one with --text_column."
            )
        return DatasetDict(
            {
                name: rows.select_columns([data.text_column]).rename_columns(
                    {data.text_column: "text"} if data.text_column != "text" else {}
                )
                for name, rows in found.items()
            }
        )

    @property
    def encoding(self) -> dict[str, Any]:
        """Blocks or texts, and how long."""
        return {"block_size": self.data.block_size, "packs": self._packs}

    def few(self, rows: Dataset) -> Dataset:
        """Return enough text for some blocks, where it is cut into blocks."""
        return enough_for(rows, self.data.block_size) if self._packs else super().few(rows)

    def encode(
        self, rows: Dataset, processor: Any, keep_raw: bool = False, training: bool = False
    ) -> Dataset:
        """Tokenize; completions are labels and their prompts are not."""
        size, end = self.data.block_size, [processor.eos_token_id]
        if processor.eos_token_id is None:
            raise ValueError(
                "tokenizer: expected one with an end of text, which is put behind each text, received one without "
                "(eos_token). Set it, and save the tokenizer beside its model again."
            )

        def tokens(texts: Sequence[str]) -> list[list[int]]:
            # Not cut, and its length no matter: blocks are made of it.
            found: list[list[int]] = processor(list(texts), add_special_tokens=False, verbose=False)[
                "input_ids"
            ]
            return found

        def completed(batch: dict[str, list[Any]]) -> dict[str, Any]:
            starts = tokens([prompt + "\n" for prompt in batch["prompt"]])
            ends = [ids + end for ids in tokens(batch["completion"])]
            both = zip(starts, ends, strict=True)
            return prompted([(start, finish[:size]) for start, finish in both], size)

        def blocks(batch: dict[str, list[Any]]) -> dict[str, Any]:
            stream = list(chain.from_iterable(ids + end for ids in tokens(batch["text"])))
            whole = [stream[at : at + size] for at in range(0, len(stream) - size + 1, size)]
            return {"input_ids": whole, "attention_mask": [[1] * size for _ in whole], "labels": whole}

        def texts(batch: dict[str, list[Any]]) -> dict[str, Any]:
            ids = [(one + end)[:size] for one in tokens(batch["text"])]
            return {"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids], "labels": ids}

        make = completed if "prompt" in rows.column_names else blocks if self._packs else texts
        # Blocks of the whole set, so that but one end of it is lost.
        whole = {"batch_size": len(rows)} if make is blocks else {}
        encoded = rows.map(make, batched=True, remove_columns=rows.column_names, desc="Tokenizing", **whole)
        if len(encoded) == 0:
            raise ValueError(
                f"--block_size: expected text of at least {size} tokens in each split, received less in one of "
                f"{sum(map(len, rows['text'])):,} characters. Give a smaller one, or more text."
            )
        return encoded

    def collator(
        self, processor: Any, teacher_processors: Sequence[Any] = (), labelled: bool = True
    ) -> Callable[[list[Any]], Any]:
        """Pad behind the text, the labels with -100."""
        if processor.padding_side != "right":
            processor = copy.deepcopy(processor)  # what is saved with the student writes as it did
            processor.padding_side = "right"
        return DataCollatorForTokenClassification(processor)

    def new_processor(self, splits: DatasetDict) -> Any:
        """Train a byte-level tokenizer on the training text."""
        train = splits["train"]
        columns = [name for name in ("text", "prompt", "completion") if name in train.column_names]
        return train_byte_pairs(
            (text for name in columns for text in train[name]),
            self.models.vocabulary_size,
            longest=self._longest,
        )

    @property
    def _longest(self) -> int:
        return max(2 * self.data.block_size, 32)  # what is written goes on from a whole block

    def new_model(self, role: Role, splits: DatasetDict, processor: Any) -> Any:
        """Return a Llama or a GPT-2."""
        layers, width, dropout = sizes_of(self.models, role)
        ends = {
            "bos_token_id": processor.bos_token_id, "eos_token_id": processor.eos_token_id,
            "pad_token_id": processor.pad_token_id,
        }  # fmt: skip
        if self.models.model_kind == "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=len(processor), n_positions=self._longest, n_embd=width, n_layer=layers,
                    n_head=attention_heads(width), initializer_range=initializer_range(width),
                    resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, **ends,
                )
            )  # fmt: skip
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(processor), max_position_embeddings=self._longest, hidden_size=width,
                num_hidden_layers=layers, num_attention_heads=attention_heads(width), intermediate_size=3 * width,
                initializer_range=initializer_range(width), tie_word_embeddings=True, **ends,
            )
        )  # fmt: skip

    def measure(self, rows: Dataset, encoded: Dataset, processor: Any) -> Measure:
        """Perplexity over the tokens that are learnt."""
        return PerplexityMeasure(shift=True)

    def timed_inputs(self, encoded: Dataset, processor: Any) -> list[dict[str, torch.Tensor]]:
        """Return blocks or texts of typical lengths."""
        return super().timed_inputs(encoded, processor)


def prompted(pairs: Sequence[tuple[list[int], list[int]]], size: int) -> dict[str, list[list[int]]]:
    """Return prompts and completions as inputs, with labels of the completions alone.

    What does not fit is cut off the start of the prompt, so that every completion has something before it.

    Example:
        >>> prompted([([1, 2, 3], [8, 9])], size=4)["input_ids"], prompted([([1, 2, 3], [8, 9])], size=4)["labels"]
        ([[2, 3, 8, 9]], [[-100, -100, 8, 9]])
    """
    inputs, labels = [], []
    for prompt, completion in pairs:
        end = completion[: max(size - 1, 1)]
        start = prompt[max(len(prompt) + len(end) - size, 0) :]
        inputs.append(start + end)
        labels.append([IGNORED] * len(start) + end)
    return {"input_ids": inputs, "attention_mask": [[1] * len(ids) for ids in inputs], "labels": labels}
