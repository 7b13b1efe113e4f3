"""Where each key lies: an Arrow file sorted by key, searched through a memory map."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy
import pyarrow

from hf_distill.cache.errors import CacheError
from hf_distill.cache.keys import KEY_BYTES
from hf_distill.cache.shards import Shard, write_whole

_COLUMNS = {"high": numpy.uint64, "low": numpy.uint64, "shard": numpy.uint32, "row": numpy.uint32}


def write_index(folder: Path, shards: Sequence[Shard]) -> str:
    """Write the index over some shards, and return its name, which holds its checksum.

    A key that several shards have is found in the first of them.
    """
    keys = numpy.concatenate([shard.keys() for shard in shards]) if shards else _no_keys()
    high, low = _halves(keys)
    numbers = [numpy.full(shard.rows, number, numpy.uint32) for number, shard in enumerate(shards)]
    rows = [numpy.arange(shard.rows, dtype=numpy.uint32) for shard in shards]
    order = numpy.lexsort((low, high))  # stable: the first shard's comes first
    high, low = high[order], low[order]
    kept = numpy.ones(len(order), bool)
    kept[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    columns = {
        "high": high[kept],
        "low": low[kept],
        "shard": numpy.concatenate([*numbers, _empty()])[order][kept],
        "row": numpy.concatenate([*rows, _empty()])[order][kept],
    }
    batch = pyarrow.record_batch([pyarrow.array(column) for column in columns.values()], names=list(columns))
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data = sink.getvalue()
    name = f"index-{hashlib.blake2b(data, digest_size=8).hexdigest()}.arrow"
    write_whole(folder / name, lambda file: file.write(data))
    return name


def _no_keys() -> numpy.ndarray:
    return numpy.zeros((0, KEY_BYTES), numpy.uint8)


def _empty() -> numpy.ndarray:
    return numpy.zeros(0, numpy.uint32)


def _halves(keys: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return keys ``(rows, 16)`` as two numbers each, in their order."""
    numbers = numpy.ascontiguousarray(keys).view(">u8")
    return numbers[:, 0].astype(numpy.uint64), numbers[:, 1].astype(numpy.uint64)


class Index:
    """Finds keys by bisection; its file is read once when it is opened, to check it, and mapped after.

    Raises:
        CacheError: an index that is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            mapped = pyarrow.memory_map(str(path))
            digest = hashlib.blake2b(mapped.read_buffer(), digest_size=8).hexdigest()
            if path.name != f"index-{digest}.arrow":
                raise CacheError(
                    f"{path}: expected the index as it was written, found other bytes: its checksum differs. Run "
                    "`hf-distill cache verify --repair`, which builds it anew from the shards."
                )
            mapped.seek(0)
            batch = pyarrow.ipc.open_file(mapped).get_batch(0)
        except FileNotFoundError as error:
            raise CacheError(
                f"{path}: expected the index of the cache, found no such file. Run `hf-distill cache verify --repair`, "
                "which builds it anew from the shards."
            ) from error
        self._columns = {
            name: numpy.frombuffer(batch.column(name).buffers()[1], kind)[: batch.num_rows]
            if batch.num_rows
            else numpy.zeros(0, kind)
            for name, kind in _COLUMNS.items()
        }

    def __len__(self) -> int:
        """Return how many examples there are."""
        return len(self._columns["high"])

    def find(self, keys: Sequence[bytes]) -> list[tuple[int, int] | None]:
        """Return shard and row of each key, or None for one that is not there."""
        high, low = _halves(numpy.frombuffer(b"".join(keys), numpy.uint8).reshape(-1, KEY_BYTES))
        starts = numpy.searchsorted(self._columns["high"], high)
        return [self._at(int(start), h, lo) for start, h, lo in zip(starts, high, low, strict=True)]

    def _at(self, place: int, high: numpy.uint64, low: numpy.uint64) -> tuple[int, int] | None:
        columns = self._columns
        while place < len(self) and columns["high"][place] == high:
            if columns["low"][place] == low:
                return int(columns["shard"][place]), int(columns["row"][place])
            place += 1
        return None
