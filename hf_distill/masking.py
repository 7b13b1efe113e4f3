"""Masked language modelling whose masks a resumed run draws again: keyed by seed, epoch and row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
import torch
from transformers import TrainerCallback

from hf_distill.items import IGNORED

ROW = "row"


@dataclass
class RowKeyedMasking:
    """Pads a batch, and masks a share of its tokens by a draw that depends on seed, epoch and row alone.

    A collator that draws from a global generator gives other masks after a resume, with other numbers of workers or
    processes, and in another order of rows; here all give the same. Rows that have ``labels`` already are left as
    they are: an evaluation set is masked once, with :meth:`masked`.

    Of the tokens drawn, 80 % become the mask token, 10 % a random token, and 10 % stay; all of them are labels, and
    the other positions have -100. Special tokens and padding are never drawn. Where a row of at least one word would
    have no label, one is drawn.

    Args:
        tokenizer: gives padding, the mask token and the special tokens.
        rate: the share of tokens to predict, in (0, 1).
        seed: of the draws.
        epoch: the present epoch, which :class:`TellEpoch` sets.

    Raises:
        ValueError: a tokenizer without a mask token, a rate out of range, or a row without its number in ``row``.

    Source: Devlin et al. 2018, BERT, arXiv 1810.04805, section 3.1; drawn anew each epoch as in Liu et al. 2019,
    RoBERTa, arXiv 1907.11692, section 4.1.

    Example:
        >>> from hf_distill.tasks.wordpiece import train_tokenizer
        >>> tokenizer = train_tokenizer(["a small text", "another text"], 60)
        >>> masking = RowKeyedMasking(tokenizer, rate=0.5)
        >>> rows = [{"input_ids": tokenizer("a small text")["input_ids"], "row": 7}]
        >>> torch.equal(masking(rows)["input_ids"], masking(rows)["input_ids"])
        True
    """

    #: Data without a label column will do.
    makes_labels: ClassVar[bool] = True

    tokenizer: Any
    rate: float = 0.15
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        """Check what can't be masked with."""
        if self.tokenizer.mask_token_id is None:
            raise ValueError(
                "masking: expected a tokenizer with a mask token, received one without. Use a masked language model's "
                "tokenizer, or train a causal model instead."
            )
        if not 0 < self.rate < 1:
            raise ValueError(f"masking: expected a rate above 0 and below 1, received {self.rate}.")
        self._special = numpy.asarray(sorted(self.tokenizer.all_special_ids))
        ordinary = numpy.setdiff1d(numpy.arange(len(self.tokenizer)), self._special)
        self._ordinary = ordinary if len(ordinary) else numpy.arange(len(self.tokenizer))

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch."""
        rows = [dict(feature) for feature in features]
        for row in rows:
            if "labels" not in row:
                if ROW not in row:
                    raise ValueError(
                        f"masking: expected the number of each row in the column {ROW!r}, received {sorted(row)}. Add "
                        f"it (dataset.add_column({ROW!r}, range(len(dataset)))), and set remove_unused_columns=False."
                    )
                row.update(self.masked(row["input_ids"], int(row[ROW]), self.epoch))
            row.pop(ROW, None)
        labels = [torch.as_tensor(row.pop("labels")) for row in rows]
        batch = dict(self.tokenizer.pad(rows, return_tensors="pt"))
        length = batch["input_ids"].shape[1]
        padded = torch.full((len(rows), length), IGNORED)
        right = self.tokenizer.padding_side == "right"
        for place, known in enumerate(labels):
            start = 0 if right else length - len(known)
            padded[place, start : start + len(known)] = known
        return {**batch, "labels": padded}

    def masked(self, input_ids: Sequence[int], row: int, epoch: int) -> dict[str, list[int]]:
        """Return masked ``input_ids``, and ``labels`` with -100 where nothing is predicted.

        Args:
            input_ids: of one row, without padding.
            row: its number.
            epoch: of the draw; an evaluation set takes -1, so that it is no training epoch's.
        """
        ids = numpy.asarray(input_ids)
        draw = numpy.random.default_rng([self.seed, epoch + 1, row])
        words = ~numpy.isin(ids, self._special)
        chance = draw.random(len(ids))
        drawn = words & (chance < self.rate)
        if words.any() and not drawn.any():
            drawn[numpy.where(words, chance, 2.0).argmin()] = True
        fate = draw.random(len(ids))
        changed = numpy.where(
            fate < 0.8, self.tokenizer.mask_token_id, draw.choice(self._ordinary, size=len(ids))
        )
        masked = numpy.where(drawn & (fate < 0.9), changed, ids)
        return {"input_ids": masked.tolist(), "labels": numpy.where(drawn, ids, IGNORED).tolist()}


class TellEpoch(TrainerCallback):
    """Tells a collator which epoch it is, before the epoch's data loader is made.

    Args:
        collator: with an attribute ``epoch``.

    Raises:
        ValueError: where data loader workers live on from epoch to epoch, and would not hear it.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse workers that would keep the first epoch."""
        if args.dataloader_num_workers > 0 and args.dataloader_persistent_workers:
            raise ValueError(
                "masking: expected data loader workers that are started anew each epoch, received "
                "dataloader_persistent_workers=True, which would repeat the first epoch's masks. Set it to False."
            )

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch; the trainer's own count is a float that a resumed run may have in the middle."""
        self.collator.epoch = math.floor((state.epoch or 0.0) + 1e-6)
