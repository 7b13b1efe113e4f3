"""TeacherCache: a teacher that answers from disk what a model was asked once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers.utils import logging

from hf_distill.cache.capture import locked, positions_of, seal
from hf_distill.cache.errors import CacheError
from hf_distill.cache.formats import build_format
from hf_distill.cache.keys import Question, columns_read, is_packed, questions
from hf_distill.cache.manifest import MANIFEST_NAME, Manifest, ShardRecord, Source, file_hash, tokenizer_hash
from hf_distill.cache.model_at_hand import Answers, ModelAtHand
from hf_distill.cache.positions import places_of, spread
from hf_distill.cache.shards import write_shard
from hf_distill.cache.sharing import local_folder, push
from hf_distill.cache.stored import StoredAnswers
from hf_distill.compatibility import label_order
from hf_distill.features import FeatureNeeds, Features, ModelShape
from hf_distill.items import Head, batch_size
from hf_distill.spans import without_padding
from hf_distill.teachers.signals import DenseSignals, TeacherSignals

logger = logging.get_logger(__name__)

# So many answers that were asked for in training are kept in memory before they go to disk.
_ADDED_AT_ONCE = 4096


class TeacherCache:
    """A teacher's answers on disk; good as ``teacher=``, and no weights are needed then.

    Each answer is found by a hash of what the teacher read, so shuffling, subsets, several epochs, padding, the number
    of processes and the way a batch is split change nothing. An example that is not there is an error, or asked of the
    model. Files are mapped, not read: a cache may be larger than memory. Every answer has a checksum, which is looked
    at whenever it is read.

    Args:
        folder: made by :meth:`capture`, or the id of a data set on the Hub that holds one.
        teacher: the model that answered, for ``on_missing="ask"`` and to be compared with a few answers.
        on_missing: ``error``, or ``ask``: the teacher is asked, and its answer added.

    Raises:
        CacheError: no cache there, an unfinished one, or damage; another teacher than the one that answered.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> teacher = BertForSequenceClassification(BertConfig(vocab_size=10, **sizes))
        >>> rows = [{"input_ids": [1, 2], "attention_mask": [1, 1]}, {"input_ids": [3, 4], "attention_mask": [1, 1]}]
        >>> cache = TeacherCache.capture(teacher, rows, tempfile.mkdtemp(), say=lambda line: None)
        >>> batch = {"input_ids": torch.tensor([[3, 4, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
        >>> torch.allclose(cache(batch).logits, teacher(**batch).logits, atol=1e-6)
        True
    """

    # What the trainer's active objectives ask for; all that is kept is there anyway.
    feature_needs = FeatureNeeds()

    def __init__(self, folder: str | Path, teacher: Any = None, on_missing: str = "error") -> None:
        if on_missing not in ("error", "ask"):
            raise CacheError(f"on_missing: expected error or ask, received {on_missing!r}.")
        if on_missing == "ask" and teacher is None:
            raise CacheError("on_missing: expected teacher= beside 'ask', received none. Give the model.")
        self.folder = local_folder(folder)
        self.on_missing = on_missing
        self._order: list[int] | None = None
        self._added: dict[bytes, Answers] = {}
        self._compared = False
        self._open()
        self.at_hand = (
            None if teacher is None else ModelAtHand(teacher, self.source, self.signals, self.folder)
        )
        if on_missing == "ask":
            with locked(self.folder, wait=True):
                pass  # a folder that can't be written to is said now, and not when hours of training end

    def _open(self) -> None:
        self.manifest = Manifest.read(self.folder)
        self._stored = StoredAnswers(self.folder, self.manifest)
        self.signals = build_format(self.manifest.source.signals)
        # What every teacher says of itself; the columns are those it read, and those that looked_up adds.
        self.name: str = self.source.teacher
        self.provides: frozenset[str] = self.signals.provides | (
            {"features"} if self.source.hidden_states else set()
        )
        self.columns: frozenset[str] = frozenset(self.source.columns) | {
            self._column(part) for part in self._parts()
        }

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model out: a worker of a data loader looks up, and asks nobody."""
        return {**vars(self), "at_hand": None}

    # ---- what a teacher is ---------------------------------------------------------------

    @property
    def source(self) -> Source:
        """Whose answers these are."""
        return self.manifest.source

    @property
    def longest_input(self) -> int | None:
        """The most positions that the model could read, where an encoding is cut."""
        return self.source.longest

    @cached_property
    def shape(self) -> ModelShape | None:
        """The sizes of the model, where hidden states are kept."""
        shape = self.source.shape
        if shape is None:
            return None
        cut_from = shape["cut_from"]
        return ModelShape(**{**shape, "cut_from": None if cut_from is None else tuple(cut_from)})

    @cached_property
    def _mark(self) -> str:
        """What this cache's columns start with, so that two in one ensemble do not meet."""
        text = json.dumps([str(self.folder), asdict(self.source)], sort_keys=True, default=list)
        return f"cached_{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}_"

    def _column(self, part: str) -> str:
        return self._mark + part

    def _parts(self) -> list[str]:
        return [*self.signals.parts, *(["hidden", "attended"] if self.source.hidden_states else [])]

    def __len__(self) -> int:
        """Return how many examples there are."""
        return len(self._stored)

    def __call__(self, batch: dict[str, Any]) -> TeacherSignals:
        """Answer for a batch: from the columns that the collator added, or looked up now."""
        device = next((value.device for value in batch.values() if isinstance(value, torch.Tensor)), None)
        if self.at_hand is not None and not self._compared:
            self._compared = True
            read = columns_read(batch, self.source.columns)
            asked = self._questions(read)
            self.at_hand.compare(read, asked, self._answers(read, asked))
        parts: dict[str, Any] = {part: batch.get(self._column(part)) for part in self._parts()}
        if any(value is None for value in parts.values()):
            found = self.looked_up(batch)
            parts = {part: found[self._column(part)].to(device or "cpu") for part in self._parts()}
        order = None if self._order is None else torch.tensor(self._order, device=device)
        signals = self.signals.signals(parts, self.source.classes, order)
        if self.source.head["spans"]:
            assert isinstance(signals, DenseSignals), "capture keeps full logits of spans alone"
            signals = DenseSignals(without_padding(signals.logits.transpose(1, 2), batch))
        if not self.source.hidden_states:
            return signals
        assert isinstance(signals, DenseSignals), "capture keeps hidden states beside full logits alone"
        numbers = enumerate(self.source.hidden_states)
        states = {number: parts["hidden"][..., place, :] for place, number in numbers}
        assert self.shape is not None, "capture writes it beside hidden states"
        return DenseSignals(signals.logits, Features(states, {}, parts["attended"], self.shape))

    def looked_up(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return the answers to a batch as columns of it, with zeros at padding, for a collator to add.

        Args:
            batch: with the columns that the teacher read.

        Raises:
            CacheError: examples that are not there, damage, or packed rows where an answer is of a whole example.
        """
        read = columns_read(batch, self.source.columns)
        asked = self._questions(read)
        answers = self._answers(read, asked)
        raw = numpy.concatenate([answer["logits"] for answer in answers])
        parts = self.signals.decode(raw, self.source.classes)
        rows = batch_size(read)
        if self.source.head["positions"] or self.source.hidden_states:
            length = positions_of(read, self.source)
            places = places_of(asked)
        if self.source.head["positions"]:
            parts = {name: spread(values, rows, length, places) for name, values in parts.items()}
        elif len(asked) != rows:
            raise CacheError(
                f"cache: expected one answer for each of {rows} rows, received packed rows with {len(asked)} examples. "
                "Pack in training only where each position has an answer."
            )
        if self.source.hidden_states:
            states = numpy.concatenate([answer["hidden"] for answer in answers])
            kept = (
                torch.from_numpy(states)
                .view(torch.bfloat16)
                .view(len(states), len(self.source.hidden_states), -1)
            )
            parts["hidden"] = spread(kept, rows, length, places)
            parts["attended"] = spread(torch.ones(len(states), dtype=torch.bool), rows, length, places)
        return {self._column(name): values for name, values in parts.items()}

    def _questions(self, read: Mapping[str, Any]) -> list[Question]:
        """Return the examples of a batch.

        Raises:
            CacheError: packed rows, where a document's answer depends on its neighbours.
        """
        asked = questions(read, self.source.columns, self.source.counts_from_zero is not False)
        if is_packed(asked) and self.source.head["positions"] and not self.source.isolates:
            raise CacheError(
                f"cache: expected one example in each row, received packed rows with {len(asked)} examples, and "
                f"{self.source.teacher} (attention {self.source.attention}) reads a packed document together with its "
                "neighbours, so that the answers kept are not its answers there. Pack nothing, or take a teacher and "
                "an attention implementation that keep documents apart by position_ids."
            )
        return asked

    def _answers(self, batch: Mapping[str, Any], asked: Sequence[Question]) -> list[Answers]:
        """Return what is kept of each question, asking the model for what is missing where that is wanted."""
        places = self._stored.find(asked)
        missing = [
            number
            for number, (question, place) in enumerate(zip(asked, places, strict=True))
            if place is None and question.key not in self._added
        ]
        if missing:
            self._add(batch, [asked[number] for number in missing], asked)
        return [
            self._added[question.key] if place is None else self._stored.read(question, *place)
            for question, place in zip(asked, places, strict=True)
        ]

    def _add(self, batch: Mapping[str, Any], missing: Sequence[Question], asked: Sequence[Question]) -> None:
        if self.at_hand is None or self.on_missing == "error":
            rows = ", ".join(str(question.row) for question in missing[:8]) + (
                ", ..." if len(missing) > 8 else ""
            )
            raise CacheError(
                f"{self.folder}: expected the teacher's answers to {len(asked)} examples of a batch, found none to "
                f"{len(missing)} of them (rows {rows}). Was another data set, tokenizer or length captured? Capture "
                "this one into the same folder as well, or give TeacherCache(folder, teacher, on_missing='ask')."
            )
        answers = self.at_hand.ask(batch, missing, is_packed(asked))
        before = len(self._added) // _ADDED_AT_ONCE
        self._added.update({one.key: answer for one, answer in zip(missing, answers, strict=True)})
        if len(self._added) // _ADDED_AT_ONCE > before:
            self.keep_added()

    def keep_added(self) -> None:
        """Write what the model was asked for, or warn that it can't be written: a training is not lost for it."""
        try:
            self.flush()
        except CacheError as error:
            logger.warning(f"{error} Until then {len(self._added):,} answers are kept in memory.")

    def flush(self) -> None:
        """Write what the model was asked for in this process; a finished training does it.

        Raises:
            CacheError: where it can't be written.
        """
        if not self._added:
            return
        with locked(self.folder, wait=True):
            held = Manifest.read(self.folder)
            digest = hashlib.blake2b(b"".join(self._added), digest_size=6).hexdigest()
            path = self.folder / f"added-{digest}.arrow"
            write_shard(path, list(self._added), list(self._added.values()))
            records = {shard.file: shard for shard in held.shards}
            records[path.name] = ShardRecord(
                path.name, len(self._added), path.stat().st_size, file_hash(path)
            )
            seal(self.folder, held, tuple(records.values()))
        self._added = {}
        self._open()

    # ---- what must match -----------------------------------------------------------------

    def prepared(self, student: Any, head: Head) -> TeacherCache:
        """Return the cache for one student, its classes in the student's order.

        Raises:
            ValueError: another head or other labels.
        """
        own = head.meaning
        if dict(self.source.head) != own:
            raise ValueError(
                f"heads: expected a cache of the student's head ({own}), received one of {dict(self.source.head)} from "
                f"{self.folder}. Use the same kind of head and the same config.problem_type for both."
            )
        ready = object.__new__(type(self))  # copy.copy would leave out what a worker has no use for
        vars(ready).update(vars(self))
        ready._added, ready._compared = {}, False
        ready._open()  # another trainer may have added answers
        if self.source.labels is None and not head.spans:
            size = getattr(student.config, "vocab_size", None)
            if size != self.source.classes:
                raise ValueError(
                    f"vocabulary: expected a cache over the student's {size} tokens, received one over "
                    f"{self.source.classes} from {self.folder}. Resize the student's embeddings."
                )
        elif self.source.labels is not None:
            ready._order = label_order(student.config, _Labels(self.source.labels))
        return ready

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise where the batch's ids are of other tokens than those that the teacher read.

        Raises:
            CacheError: naming both hashes.
        """
        own = None if tokenizer is None else tokenizer_hash(tokenizer)
        if own is not None and self.source.tokenizer is not None and own != self.source.tokenizer:
            raise CacheError(
                f"tokenizer: expected the one that {self.folder} was captured with (hash {self.source.tokenizer}), "
                f"received another (hash {own}). Give that tokenizer, or capture with this one."
            )

    # ---- making, sharing -----------------------------------------------------------------

    @classmethod
    def capture(cls, teacher: Any, dataset: Any, folder: str | Path, **settings: Any) -> Any:
        """Ask a teacher about every example once, and return its cache; a cut-off capture goes on.

        :func:`hf_distill.cache.making.capture` documents the settings.
        """
        from hf_distill.cache.making import capture  # which imports this module

        return capture(teacher, dataset, folder, **settings)

    def push_to_hub(self, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
        """Upload the cache as a data set of the Hub, and return its address."""
        names = [MANIFEST_NAME, str(self.manifest.index), *(shard.file for shard in self.manifest.shards)]
        return push(self.folder, names, repo_id, private, token)


class _Labels:
    """Label names in the shape of a config."""

    def __init__(self, names: Sequence[str]) -> None:
        self.id2label = dict(enumerate(names))
        self.num_labels = len(names)
