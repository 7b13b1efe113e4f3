"""Asks a teacher about every example once, longest first, and writes its answers shard by shard."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from tqdm import tqdm

from hf_distill.cache.errors import CacheError
from hf_distill.cache.formats import SignalFormat
from hf_distill.cache.index import write_index
from hf_distill.cache.keys import KEY_BYTES, Question
from hf_distill.cache.manifest import MANIFEST_NAME, Manifest, ShardRecord, Source, file_hash
from hf_distill.cache.plan import Examples, Plan
from hf_distill.cache.shards import Shard, write_shard
from hf_distill.teachers.online import OnlineTeacher


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
        asked = self.examples.questions(batch)
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
    length = positions_of(batch, source)
    by_position = [by_position_first(logits, source).shape[1]] if source.head["positions"] else []
    by_position += [answer.features.hidden_states[number].shape[1] for number in source.hidden_states]
    if any(found != length for found in by_position):
        raise CacheError(
            f"teacher: expected an answer for each of {length} positions, received {by_position[0]}: its outputs "
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
    logits = by_position_first(logits.cpu(), source)
    found = []
    for question in asked:
        place = slice(question.start, question.stop)
        own = logits[question.row, place] if source.head["positions"] else logits[question.row].unsqueeze(0)
        kept = {"logits": signals.encode(own, question.key)}
        if source.hidden_states:
            states = [answer.features.hidden_states[n][question.row, place] for n in source.hidden_states]
            raw = torch.stack(states, 1).detach().to("cpu", torch.bfloat16).contiguous()
            kept["hidden"] = raw.view(torch.uint8).numpy().reshape(len(raw), _width(source))
        found.append(kept)
    return found


def by_position_first(logits: torch.Tensor, source: Source) -> torch.Tensor:
    """Return logits with positions before classes: of spans ``(examples, positions, 2)``."""
    return logits.transpose(1, 2) if source.head["spans"] else logits


def positions_of(batch: Mapping[str, Any], source: Source) -> int:
    """Return how many positions a batch is answered at: those of its text, or of its decoder."""
    names: Any = batch
    if "labels" in source.columns:
        names = [name for name in ("decoder_input_ids", "labels") if batch.get(name) is not None][:1]
    wide = [batch[name] for name in names]
    return max(value.shape[1] for value in wide if isinstance(value, torch.Tensor) and value.dim() > 1)


def _width(source: Source) -> int:
    """Return the bytes that hidden states take at one position."""
    return 0 if source.shape is None else len(source.hidden_states) * int(source.shape["width"]) * 2


def bytes_of(source: Source, signals: SignalFormat, length: int) -> int:
    """Return how many bytes are kept of an example of some positions, its key and checksum included."""
    rows = length if source.head["positions"] else 1
    hidden = length * _width(source)
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
        except BlockingIOError as error:
            raise CacheError(
                f"{folder}: expected no other capture into this folder, found one at work. Wait for it, or give "
                "another folder and merge both."
            ) from error
        except OSError as error:
            raise CacheError(
                f"{folder}: expected a file system that can lock a file, but: {error.strerror or error}. Give a folder "
                "on another one."
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
