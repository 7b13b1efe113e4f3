"""Looks up answers where batches are made: in the data loader's workers, before the device would have to wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hf_distill.cache.keys import columns_read
from hf_distill.cache.teacher_cache import TeacherCache
from hf_distill.columns import TEACHER_PREFIX
from hf_distill.teachers.ensemble import TeacherEnsemble

# Rows of each data set that are looked up when a trainer is made.
FIRST_ANSWERS = 8


@dataclass
class CachedAnswersCollator:
    """Wraps a data collator, and adds the answers of caches to its batches.

    Args:
        collator: makes the batch.
        caches: each with what its teacher's columns start with in the batch.
    """

    collator: Callable[[list[Any]], Any]
    caches: tuple[tuple[TeacherCache, str], ...]

    @property
    def tokenizer(self) -> Any:
        """The wrapped collator's tokenizer, which Trainer saves when it has no processing class."""
        return getattr(self.collator, "tokenizer", None)

    def __call__(self, features: list[Any]) -> Any:
        """Make a batch."""
        batch = self.collator(features)
        for cache, prefix in self.caches:
            read = columns_read(batch, cache.columns, prefix)
            for name, values in cache.looked_up(read).items():
                batch[prefix + name] = values
        return batch


def caches_of(teacher: Any, own_encoding: bool) -> tuple[tuple[TeacherCache, str], ...]:
    """Return the caches among a teacher's members whose answers a worker can look up, and their prefixes.

    One that asks its model for what is missing is asked in the training process.

    Args:
        teacher: a prepared teacher or ensemble.
        own_encoding: whether a single teacher, or all of several, read ``teacher_`` columns.
    """
    shared = TEACHER_PREFIX if own_encoding else ""
    members: Any = [(teacher, "")]
    if isinstance(teacher, TeacherEnsemble):
        members = zip(teacher.members, teacher.prefixes, strict=True)
    return tuple(
        (member, prefix or shared)
        for member, prefix in members
        if isinstance(member, TeacherCache) and member.on_missing == "error"
    )
