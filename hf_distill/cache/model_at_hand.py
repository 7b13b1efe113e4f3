"""The model whose answers a cache holds, where it is at hand: compared with what is kept, and asked for what is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy
import torch

from hf_distill.cache.capture import by_position_first, encoded_answers
from hf_distill.cache.errors import CacheError
from hf_distill.cache.formats import SignalFormat
from hf_distill.cache.keys import Question, is_packed
from hf_distill.cache.manifest import Source
from hf_distill.cache.source import AUTOCAST, check_same_teacher
from hf_distill.teachers.online import OnlineTeacher

# How far two runs of the same teacher may differ, relative to the largest logit.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 5e-2
_COMPARED_ROWS = 8

Answers = dict[str, numpy.ndarray]


class ModelAtHand:
    """A model that answers as the cache was answered: in the same precision, and in its own order of classes.

    Args:
        teacher: the model, or a teacher that holds it.
        source: of the cache.
        signals: its format.
        folder: its place, for messages.

    Raises:
        CacheError: another model, other settings or another precision.
    """

    def __init__(self, teacher: Any, source: Source, signals: SignalFormat, folder: Path) -> None:
        held = isinstance(teacher, OnlineTeacher)
        self.online = OnlineTeacher(
            teacher.model if held else teacher, teacher.name if held else None, autocast=self._precision
        )
        self.source, self.signals, self.folder = source, signals, folder
        check_same_teacher(source, self.online, folder)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.online.model.parameters()).device
        return device

    def _precision(self) -> AbstractContextManager[Any]:
        # Switched off where the cache was made without it, though a training that asks may be under it.
        enabled = self.source.dtype == AUTOCAST
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def ask(self, batch: Mapping[str, Any], missing: Sequence[Question], packed: bool) -> list[Answers]:
        """Return what is to be kept of some answers.

        Documents of packed rows are asked about one by one, as a capture does, so that no answer depends on its
        neighbours.
        """
        moved = {name: value.to(self.device) for name, value in batch.items()}
        if not packed:
            return encoded_answers(self.online, moved, missing, self.source, self.signals)
        answers: list[Answers] = []
        for one in missing:
            document = {
                name: value[one.row : one.row + 1, one.start : one.stop] for name, value in moved.items()
            }
            alone = Question(one.key, 0, 0, one.stop - one.start)
            answers += encoded_answers(self.online, document, [alone], self.source, self.signals)
        return answers

    def compare(self, batch: Mapping[str, Any], asked: Sequence[Question], kept: Sequence[Answers]) -> None:
        """Raise where the model answers the first examples of a batch otherwise than it did.

        Raises:
            CacheError: naming the row.
        """
        if is_packed(asked):
            return  # the next batch that is not, or the capture itself, has been compared
        few = {name: value[:_COMPARED_ROWS].to(self.device) for name, value in batch.items()}
        with torch.no_grad():
            logits = by_position_first(self.online.raw_logits(few).float().cpu(), self.source)
        logits = logits if logits.dim() > 1 else logits.unsqueeze(-1)
        for question, answer in zip(asked, kept, strict=True):
            if question.row >= _COMPARED_ROWS:
                continue
            now = logits[question.row]
            now = (
                now[question.start : question.stop]
                if self.source.head["positions"]
                else now.reshape(1, logits.shape[-1])
            )
            if self.signals.differs(
                answer["logits"], now, question.key, tolerance_of(self.source, self.device)
            ):
                raise CacheError(
                    f"{self.folder}: expected the teacher to answer as it did, received another answer in row "
                    f"{question.row} ({now.flatten()[:4].tolist()}, ...): other inputs or another precision. Capture "
                    "anew."
                )


def tolerance_of(source: Source, device: torch.device) -> float:
    """Return how far an answer may be from the one kept, which was given in another batch."""
    exact = source.dtype in ("float32", "float64") and source.signals.get("dtype") == "float32"
    # A GPU's convolutions take TF32 for float32, with the ten bits of half precision.
    return _TOLERANCE if exact and device.type == "cpu" else _HALF_TOLERANCE
