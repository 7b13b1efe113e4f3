"""Which examples a capture asks a teacher about, in which batches and shards: the same whenever it is planned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from hf_distill.cache.errors import CacheError
from hf_distill.cache.index import Index
from hf_distill.cache.keys import Question, columns_read, questions

# A shard is lost whole where a capture is killed, and each is opened and hashed on its own.
SHARD_BYTES = 64 << 20
_SCAN = 256


@dataclass(frozen=True)
class Examples:
    """A data set as a teacher is shown it.

    Args:
        rows: anything with a length and an index.
        collator: makes a batch of some rows, as training does.
        columns: what the teacher reads of a batch.
        device: where it reads it.
        counts_from_zero: whether its own positions are 0, 1, 2, ...
    """

    rows: Any
    collator: Callable[[list[Any]], Mapping[str, Any]]
    columns: frozenset[str]
    device: torch.device
    counts_from_zero: bool = True

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the teacher's part of a batch, on the CPU."""
        return columns_read(self.collator([self.rows[int(index)] for index in indices]), self.columns)

    def questions(self, batch: Mapping[str, Any]) -> list[Question]:
        """Return the questions of a batch."""
        return questions(batch, self.columns, self.counts_from_zero)

    def asked(self, indices: Sequence[int]) -> list[Question]:
        """Return the questions of some rows.

        Raises:
            CacheError: rows that are packed into fewer, or split into more.
        """
        found = self.questions(self.batch(indices))
        if len(found) != len(indices):
            raise CacheError(
                f"data_collator: expected one example per row, received {len(found)} for {len(indices)} rows. Capture "
                "documents one by one, and pack them in training alone."
            )
        return found


@dataclass(frozen=True)
class Plan:
    """Which examples are asked about, in which batches and shards: the same whenever it is made.

    Args:
        name: a hash of all of it, which starts the shards' names.
        indices: of the rows, the longest first, each content once.
        keys: theirs.
        lengths: their positions.
        per_shard: examples of a shard, a multiple of the batch.
        batch_size: examples of a batch.
    """

    name: str
    indices: list[int]
    keys: list[bytes]
    lengths: list[int]
    per_shard: int
    batch_size: int

    @property
    def shards(self) -> int:
        """How many shards there will be."""
        return -(-len(self.indices) // self.per_shard)

    def shard(self, number: int) -> slice:
        """Return the places of one shard's examples."""
        return slice(number * self.per_shard, min((number + 1) * self.per_shard, len(self.indices)))

    def file(self, number: int) -> str:
        """Return the name of one shard."""
        return f"{self.name}-{number:05d}-of-{self.shards:05d}.arrow"


def make_plan(
    examples: Examples, known: Index | None, row_bytes: Callable[[int], int], batch_size: int
) -> Plan:
    """Look at every row once, and plan what is asked of those that the cache does not have.

    Args:
        examples: the data set.
        known: what is there.
        row_bytes: the bytes of an example by its length.
        batch_size: examples of a batch.

    Raises:
        CacheError: rows that are another content each time they are read.
    """
    seen: dict[bytes, tuple[int, int]] = {}
    total = len(examples.rows)
    for start in tqdm(range(0, total, _SCAN), desc="Looking at the texts", disable=total < 100 * _SCAN):
        indices = range(start, min(start + _SCAN, total))
        found = examples.asked(indices)
        if start == 0:
            _check_repeatable(found, examples.asked(indices))
        for index, question in zip(indices, found, strict=True):
            seen.setdefault(question.key, (index, question.stop - question.start))
    keys = list(seen)
    if known is not None and len(known):
        there = known.find(keys)
        keys = [key for key, place in zip(keys, there, strict=True) if place is None]
    keys.sort(key=lambda key: (-seen[key][1], seen[key][0]))
    lengths = [seen[key][1] for key in keys]
    middle = row_bytes(lengths[len(lengths) // 2]) if lengths else 1
    per_shard = max(SHARD_BYTES // max(middle, 1) // batch_size, 1) * batch_size
    digest = hashlib.blake2b(b"".join(keys) + f"{per_shard} {batch_size}".encode(), digest_size=6)
    return Plan(digest.hexdigest(), [seen[key][0] for key in keys], keys, lengths, per_shard, batch_size)


def _check_repeatable(first: list[Question], second: list[Question]) -> None:
    """Raise where the same rows are other inputs when they are read again."""
    changed = [i for i, (one, other) in enumerate(zip(first, second, strict=True)) if one.key != other.key]
    if changed:
        raise CacheError(
            f"dataset and data_collator: expected the same inputs whenever a row is read, received others for "
            f"{len(changed)} of the first {len(first)} rows, of which row {changed[0]} is the first: random "
            "augmentation, or masks drawn anew. A teacher's answer is to one view alone, so it can't be kept. Draw "
            "the view from a seed and the row's number, so that it is the same each time, or ask the teacher online."
        )
