"""Asks a teacher about every example once, longest first, and writes its answers shard by shard."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from tqdm import tqdm

from hf_distill.cache.errors import CacheError
from hf_distill.cache.formats import SignalFormat
from hf_distill.cache.index import Index, write_index
from hf_distill.cache.keys import KEY_BYTES, Question, questions
from hf_distill.cache.manifest import MANIFEST_NAME, Manifest, ShardRecord, Source, file_hash
from hf_distill.cache.shards import Shard, write_shard
from hf_distill.columns import columns_for
from hf_distill.teachers.online import OnlineTeacher

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
    """

    rows: Any
    collator: Callable[[list[Any]], Mapping[str, Any]]
    columns: frozenset[str]
    device: torch.device

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the teacher's part of a batch, on the CPU."""
        return columns_for(self.collator([self.rows[int(index)] for index in indices]), self.columns)

    def asked(self, indices: Sequence[int]) -> list[Question]:
        """Return the questions of some rows.

        Raises:
            CacheError: rows that are packed into fewer, or split into more.
        """
        found = questions(self.batch(indices), self.columns)
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


@dataclass
class Capture:
    """One capture into a folder, by one process of several.

    Args:
        folder: of the cache.
        teacher: prepared, on its device.
        examples: what is asked.
        source: what the manifest says of the answers.
        signals: how logits are kept.
        plan: from :func:`make_plan`.
        rank, processes: this one's part: every ``processes``-th shard.
    """

    folder: Path
    teacher: OnlineTeacher
    examples: Examples
    source: Source
    signals: SignalFormat
    plan: Plan
    rank: int = 0
    processes: int = 1

    def missing(self) -> list[int]:
        """Return this process's shards that are not there whole.

        Raises:
            CacheError: one that is there and damaged.
        """
        own = range(self.rank, self.plan.shards, self.processes)
        return [number for number in own if not self._is_there(number)]

    def _is_there(self, number: int) -> bool:
        path = self.folder / self.plan.file(number)
        if not path.is_file():
            return False
        shard = Shard(path)
        expected = numpy.frombuffer(b"".join(self.plan.keys[self.plan.shard(number)]), numpy.uint8)
        damaged = shard.damaged_rows()
        if damaged or not numpy.array_equal(shard.keys(), expected.reshape(-1, KEY_BYTES)):
            raise CacheError(
                f"{path}: expected the shard as it was written, found damage in {len(damaged)} of {shard.rows} rows. "
                "Delete the file and start again."
            )
        return True

    def bytes(self) -> int:
        """Return how many bytes the answers of the whole plan take."""
        return sum(self.example_bytes(length) for length in self.plan.lengths)

    def example_bytes(self, length: int) -> int:
        """Return how many bytes the answers to an example of some positions take."""
        return bytes_of(self.source, self.signals, length)

    def seconds(self) -> float:
        """Return about how long the missing shards take, by asking about one batch of middle length."""
        missing = self.missing()
        if not missing:
            return 0.0
        middle = len(self.plan.indices) // 2 // self.plan.batch_size * self.plan.batch_size
        places = slice(middle, middle + self.plan.batch_size)
        taken = []
        for _ in range(2):  # the first warms up
            start = time.perf_counter()
            self._answers(places)
            taken.append(time.perf_counter() - start)
        positions = sum(self.plan.lengths[places])
        left = sum(sum(self.plan.lengths[self.plan.shard(number)]) for number in missing)
        return min(taken) * left / max(positions, 1)

    def run(self) -> None:
        """Ask about what is missing, and write each shard as soon as it is answered."""
        missing = self.missing()
        total = sum(len(self.plan.indices[self.plan.shard(number)]) for number in missing)
        with tqdm(
            total=total, desc="Asking the teacher", unit=" examples", disable=not total or self.rank > 0
        ) as bar:
            for number in missing:
                places = self.plan.shard(number)
                answers: list[dict[str, numpy.ndarray]] = []
                for start in range(places.start, places.stop, self.plan.batch_size):
                    part = slice(start, min(start + self.plan.batch_size, places.stop))
                    answers += self._answers(part)
                    bar.update(part.stop - part.start)
                write_shard(self.folder / self.plan.file(number), self.plan.keys[places], answers)

    def _answers(self, places: slice) -> list[dict[str, numpy.ndarray]]:
        """Return the teacher's answers to one batch, as bytes."""
        batch = self.examples.batch(self.plan.indices[places])
        asked = questions(batch, self.examples.columns)
        for question, key in zip(asked, self.plan.keys[places], strict=True):
            if question.key != key:
                raise CacheError(
                    f"dataset: expected row {self.plan.indices[places][question.row]} as it was when the capture "
                    "started, received other inputs. Is it augmented at random, or written to?"
                )
        moved = {name: value.to(self.examples.device) for name, value in batch.items()}
        return encoded_answers(self.teacher, moved, asked, self.source, self.signals)


def encoded_answers(
    teacher: OnlineTeacher,
    batch: dict[str, Any],
    asked: Sequence[Question],
    source: Source,
    signals: SignalFormat,
) -> list[dict[str, numpy.ndarray]]:
    """Ask a teacher about a batch, and return what is kept of each answer.

    Raises:
        CacheError: logits that are not finite, or of another shape than the head's.
    """
    answer: Any = teacher(batch)
    logits = answer.logits if answer.logits.dim() > 1 else answer.logits.unsqueeze(-1)
    longest = max(question.stop for question in asked)
    if source.head["positions"] and logits.shape[1] < longest:
        raise CacheError(
            f"teacher: expected an answer for each of {longest} positions, received {logits.shape[1]}: its outputs "
            "are of other positions than its inputs. Ask it online."
        )
    top = logits.detach().float().amax(-1)
    if not bool(torch.isfinite(top).all()):
        row = int(
            (~torch.isfinite(top.flatten(1) if top.dim() > 1 else top.unsqueeze(-1))).any(-1).nonzero()[0]
        )
        raise CacheError(
            f"teacher: expected finite logits, received NaN, +inf or a row without one finite class in row {row} of "
            "a batch. Look at that input, or run the teacher in float32."
        )
    logits = logits.cpu()
    found = []
    for question in asked:
        place = slice(question.start, question.stop)
        own = logits[question.row, place] if source.head["positions"] else logits[question.row].unsqueeze(0)
        kept = {"logits": signals.encode(own, question.key)}
        if source.hidden_states:
            states = [answer.features.hidden_states[n][question.row, place] for n in source.hidden_states]
            raw = torch.stack(states, 1).detach().to("cpu", torch.bfloat16).contiguous()
            kept["hidden"] = raw.view(torch.uint8).numpy().reshape(len(raw), -1)
        found.append(kept)
    return found


def bytes_of(source: Source, signals: SignalFormat, length: int) -> int:
    """Return how many bytes are kept of an example of some positions, its key and checksum included."""
    rows = length if source.head["positions"] else 1
    hidden = 0
    if source.shape is not None:
        hidden = length * len(source.hidden_states) * int(source.shape["width"]) * 2
    fields = 2 if source.hidden_states else 1
    return rows * signals.row_bytes(source.classes) + hidden + KEY_BYTES + 4 + 8 * fields


def finish(folder: Path, manifest: Manifest, plan: Plan) -> Manifest:
    """Put the shards of a capture that is done into the manifest, and return it."""
    records = {shard.file: shard for shard in manifest.shards}
    for number in range(plan.shards):
        path = folder / plan.file(number)
        records[path.name] = ShardRecord(path.name, Shard(path).rows, path.stat().st_size, file_hash(path))
    return seal(folder, manifest, tuple(records.values()))


def seal(folder: Path, manifest: Manifest, records: tuple[ShardRecord, ...]) -> Manifest:
    """Write an index over some shards and the manifest that names both; what was sealed before holds until then."""
    index = write_index(folder, [Shard(folder / record.file) for record in records])
    sealed = manifest.with_shards(records, index)
    sealed.write(folder)
    if manifest.index not in (None, index):
        (folder / str(manifest.index)).unlink(missing_ok=True)
    return sealed


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing into a folder; a killed one's lock goes with it.

    Args:
        folder: made where it is missing.
        wait: for another process to end, instead of raising.

    Raises:
        CacheError: another capture is at work there, or the folder can't be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise CacheError(
            f"{folder}: expected a folder to write the cache into, but: {error.strerror or error}. Give another one."
        ) from error
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except ImportError:  # not on Windows
            pass
        except OSError as error:
            raise CacheError(
                f"{folder}: expected no other capture into this folder, found one at work. Wait for it, or give "
                "another folder and merge both."
            ) from error
        for unfinished in folder.glob(".*.arrow-*"):  # of a process that was killed in the middle of a file
            unfinished.unlink(missing_ok=True)
        yield


def manifest_for(folder: Path, source: Source, versions: Mapping[str, str]) -> Manifest:
    """Return the folder's manifest, made where there is none.

    Raises:
        CacheError: a cache of another teacher, or of other settings.
    """
    if (folder / MANIFEST_NAME).is_file():
        held = Manifest.read(folder)
        source.check_same(held.source, "this capture", str(folder))
        return held
    manifest = Manifest(source, versions=dict(versions))
    manifest.write(folder)
    return manifest
