"""The shards and the index of a finished cache: found by key, mapped, and checked whenever they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from hf_distill.cache.errors import CacheError
from hf_distill.cache.index import Index
from hf_distill.cache.keys import Question
from hf_distill.cache.manifest import Manifest
from hf_distill.cache.shards import Shard


class StoredAnswers:
    """What a manifest names.

    Args:
        folder: of the cache.
        manifest: of that folder.

    Raises:
        CacheError: a capture that was cut off, a shard that is missing or of another size, a damaged index.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        if manifest.index is None:
            raise CacheError(
                f"{folder}: expected a finished cache, found a capture that was cut off. Run it again: it goes on "
                "from its last whole shard."
            )
        for record in manifest.shards:
            path = folder / record.file
            size = path.stat().st_size if path.is_file() else None
            if size != record.bytes:
                found = "no such file" if size is None else f"{size:,} bytes"
                raise CacheError(
                    f"{path}: expected a shard of {record.bytes:,} bytes, found {found}. Delete what is left of it, "
                    "run `hf-distill cache verify --repair`, and capture again, which asks for its rows alone."
                )
        self._map()

    def _map(self) -> None:
        self._index = Index(self.folder / str(self.manifest.index))
        self._shards: dict[int, Shard] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files out: a worker of a data loader opens its own."""
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    def __len__(self) -> int:
        """Return how many examples there are."""
        return len(self._index)

    def find(self, questions: Sequence[Question]) -> list[tuple[int, int] | None]:
        """Return shard and row of each question, or None for one that is not there."""
        return self._index.find([question.key for question in questions])

    def read(self, question: Question, shard: int, row: int) -> dict[str, numpy.ndarray]:
        """Return what is kept of a question.

        Raises:
            CacheError: damage, or an index that points at another question.
        """
        if shard not in self._shards:
            self._shards[shard] = Shard(self.folder / self.manifest.shards[shard].file)
        held = self._shards[shard]
        answers = held.answers(row)
        if held.key(row) != question.key:
            raise CacheError(
                f"{held.path}: expected row {row} to have the key that the index says, found another. Run `hf-distill "
                "cache verify --repair`, which builds the index anew."
            )
        return answers
