"""One shard: an Arrow file of keys and fixed-size answers, whole or not there, and read through a memory map."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pyarrow

from hf_distill.cache.errors import CacheError
from hf_distill.cache.keys import KEY_BYTES

Answers = Mapping[str, numpy.ndarray]


def checksum(key: bytes, answers: Answers) -> int:
    """Return a checksum of one example: its key, and each field's bytes by name.

    Example:
        >>> answers = {"logits": numpy.zeros((1, 4), numpy.uint8)}
        >>> checksum(b"key", answers) == checksum(b"other key", answers)
        False
    """
    value = zlib.crc32(key)
    for name in sorted(answers):
        value = zlib.crc32(numpy.ascontiguousarray(answers[name]).data, value)
    return value


def write_shard(path: Path, keys: Sequence[bytes], answers: Sequence[Answers]) -> None:
    """Write some examples into a file that is there whole, or not at all.

    Args:
        path: the file.
        keys: of the examples.
        answers: of each example by field: ``(rows, bytes)``, as many bytes in every example.

    Raises:
        CacheError: a disk that is full, or a folder that can't be written to; nothing is left behind.
    """
    columns: dict[str, pyarrow.Array] = {
        "key": _fixed(b"".join(keys), KEY_BYTES),
        "checksum": pyarrow.array(
            [checksum(key, one) for key, one in zip(keys, answers, strict=True)], pyarrow.uint32()
        ),
    }
    for name in sorted(answers[0]):
        rows = [one[name] for one in answers]
        offsets = numpy.concatenate([[0], numpy.cumsum([len(values) for values in rows])])
        values = numpy.concatenate(rows)
        columns[name] = pyarrow.LargeListArray.from_arrays(
            pyarrow.array(offsets, pyarrow.int64()), _fixed(values.tobytes(), values.shape[1])
        )
    batch = pyarrow.record_batch(list(columns.values()), names=list(columns))
    write_whole(path, lambda file: _write_batch(file, batch))


def _fixed(data: bytes, width: int) -> pyarrow.Array:
    kind = pyarrow.binary(width)
    return pyarrow.FixedSizeBinaryArray.from_buffers(
        kind, len(data) // width, [None, pyarrow.py_buffer(data)]
    )


def _write_batch(file: Any, batch: pyarrow.RecordBatch) -> None:
    with pyarrow.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def write_whole(path: Path, write: Any) -> None:
    """Let something write a file beside its place, and put it there when it is whole and on the disk.

    Raises:
        CacheError: naming the file and what the system said.
    """
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CacheError(
            f"{path}: expected to write a part of the cache, but: {error.strerror or error}. What was there is as it "
            "was; make room or give another folder, and start again: it goes on from the last whole shard."
        ) from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


class Shard:
    """A shard that is there, read through a memory map: opening it reads a few hundred bytes.

    Raises:
        CacheError: a file that is missing, cut off, or no shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            batch = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).get_batch(0)
            self.rows = int(batch.num_rows)
            self._keys = _bytes(batch.column("key"), KEY_BYTES)
            self._checksums = numpy.frombuffer(batch.column("checksum").buffers()[1], numpy.uint32)[
                : self.rows
            ]
            self._fields = {
                name: _answers(batch.column(name))
                for name in batch.schema.names
                if name not in ("key", "checksum")
            }
        except FileNotFoundError as error:
            raise CacheError(f"{path}: expected a shard of the cache, found no such file.") from error
        # What Arrow says of bytes that are not as they were written depends on which they are.
        except (pyarrow.ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise CacheError(
                f"{path}: expected a whole shard of the cache, found a damaged one "
                f"({(str(error) or type(error).__name__).splitlines()[0]}). Run `hf-distill cache verify --repair`, "
                "and capture again."
            ) from error

    @property
    def fields(self) -> list[str]:
        """The names of what is kept of each example."""
        return list(self._fields)

    def key(self, row: int) -> bytes:
        """Return the key of one example."""
        return self._keys[row].tobytes()

    def keys(self) -> numpy.ndarray:
        """Return all keys, ``(rows, 16)``."""
        return self._keys

    def answers(self, row: int) -> dict[str, numpy.ndarray]:
        """Return what is kept of one example, by field, ``(rows, bytes)``; views of the file.

        Raises:
            CacheError: bytes that are not those that were written.
        """
        try:
            found = {
                name: values[offsets[row] : offsets[row + 1]]
                for name, (offsets, values) in self._fields.items()
            }
            whole = checksum(self.key(row), found) == int(self._checksums[row])
        except (IndexError, ValueError):
            whole = False
        if not whole:
            raise CacheError(
                f"{self.path}: expected row {row} as it was written, found other bytes: its checksum differs. The file "
                "is damaged: run `hf-distill cache verify --repair`, and capture again, which asks for its rows alone."
            )
        return found

    def damaged_rows(self) -> list[int]:
        """Return the examples whose bytes are not those that were written; reads the whole file."""
        damaged = []
        for row in range(self.rows):
            try:
                self.answers(row)
            except CacheError:
                damaged.append(row)
        return damaged


def _bytes(column: pyarrow.Array, width: int) -> numpy.ndarray:
    data = column.buffers()[1] or b""  # none where no example has a position
    return numpy.frombuffer(data, numpy.uint8)[: len(column) * width].reshape(len(column), width)


def _answers(column: pyarrow.Array) -> tuple[numpy.ndarray, numpy.ndarray]:
    offsets = numpy.frombuffer(column.buffers()[1], numpy.int64)[: len(column) + 1]
    return offsets, _bytes(column.values, column.type.value_type.byte_width)
