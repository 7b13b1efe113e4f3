"""Collators that leave words out or hide them, so that a classifier from random weights reads the others too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DataCollatorWithPadding


@dataclass
class WordDropout:
    """Pads a batch, and leaves each token out with a probability, never a special one.

    On few short texts a classifier from random weights learns single rare words by heart. Leaving some out makes it
    read the others, and reading fewer takes less time.

    Args:
        tokenizer: gives padding and the special tokens.
        rate: the probability, in [0, 1).

    Source: Iyyer et al., "Deep Unordered Composition Rivals Syntactic Methods for Text
    Classification", ACL 2015, section 3.2.

    Example:
        >>> from hf_distill.tasks.wordpiece import train_tokenizer
        >>> tokenizer = train_tokenizer(["a small text", "another text"], 60)
        >>> rows = [tokenizer("a small text"), tokenizer("text")]
        >>> WordDropout(tokenizer, 0.0)(rows)["attention_mask"].sum(-1).tolist()
        [5, 3]
    """

    tokenizer: Any
    rate: float

    def __call__(self, features: list[Any]) -> Any:
        """Make a batch, with draws from PyTorch's global generator."""
        return DataCollatorWithPadding(self.tokenizer)([self._shortened(dict(row)) for row in features])

    def _shortened(self, row: dict[str, Any]) -> dict[str, Any]:
        tokens = torch.as_tensor(row["input_ids"])
        special = torch.isin(tokens, torch.tensor(self.tokenizer.all_special_ids))
        kept = (special | (torch.rand(len(tokens)) >= self.rate)).nonzero().flatten().tolist()
        per_token = [name for name in self.tokenizer.model_input_names if name in row]
        return {**row, **{name: [row[name][place] for place in kept] for name in per_token}}


@dataclass
class WordHiding:
    """Pads a batch whose labels are at words, and hides each token with a probability, never a special one.

    From random weights a tagger learns by heart which tag each word of few sentences has, and its answers for these
    are all but certain: a student learns little from them. Hidden, a word has the tag that its neighbours tell. Left
    out, as :class:`WordDropout` does, it would have no place.

    Args:
        tokenizer: gives the special tokens, and what hides: its mask, or the unknown token where it has none.
        rate: the probability, in [0, 1).
        collator: makes the batch that is hidden in.

    Source: Kiperwasser and Goldberg, "Simple and Accurate Dependency Parsing Using Bidirectional LSTM Feature
    Representations", TACL 2016, section 4.4 (word dropout), with one probability for all words.

    Example:
        >>> from transformers import DataCollatorForTokenClassification
        >>> from hf_distill.tasks.wordpiece import train_tokenizer
        >>> tokenizer = train_tokenizer(["a small text", "another text"], 60)
        >>> rows = [{**tokenizer("a small text"), "labels": [-100, 0, 1, 2, -100]}]
        >>> batch = WordHiding(tokenizer, 0.999, DataCollatorForTokenClassification(tokenizer))(rows)
        >>> tokenizer.convert_ids_to_tokens(batch["input_ids"][0]), batch["labels"][0].tolist()
        (['[CLS]', '[MASK]', '[MASK]', '[MASK]', '[SEP]'], [-100, 0, 1, 2, -100])
    """

    tokenizer: Any
    rate: float
    collator: Callable[[list[Any]], Any]

    def __call__(self, features: list[Any]) -> Any:
        """Make a batch, with draws from PyTorch's global generator."""
        batch = self.collator(features)
        ids = batch["input_ids"]
        special = torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids))
        mask = self.tokenizer.mask_token_id
        hiding = self.tokenizer.unk_token_id if mask is None else mask
        hidden = ~special & (torch.rand(ids.shape) < self.rate)
        batch["input_ids"] = ids.masked_fill(hidden, hiding) if hiding is not None else ids
        return batch
