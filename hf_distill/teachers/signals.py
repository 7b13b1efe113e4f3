"""What a teacher answers: signals that give log-probabilities at any temperature they can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from hf_distill.features import Features


@runtime_checkable
class TeacherSignals(Protocol):
    """A teacher's answer for a batch, or for some of its rows.

    A mixture of teachers and a sparse cache can't be re-tempered, so the common question is
    ``log_probs(temperature)``; ``logits`` is None where there are none. Signals whose ``logits`` are
    not behind their ``log_probs``, as the mean logits of a mixture of probabilities, say so with
    ``retemperable = False``; without that attribute they are.
    """

    @property
    def logits(self) -> torch.Tensor | None:
        """Raw logits ``(..., classes)``, or None where there are none."""

    def log_probs(self, temperature: float) -> torch.Tensor:
        """Return ``(..., classes)`` log-probabilities at this temperature, in float32 or better."""

    def select(self, index: Any) -> TeacherSignals:
        """Return the signals of some rows: a boolean mask over the leading dimensions, or a slice."""


@runtime_checkable
class Teacher(Protocol):
    """Anything that answers ``teacher(batch) -> TeacherSignals``: one model, an ensemble, a cache.

    Attributes:
        name: where it came from, for messages and the model card.
        provides: what its signals hold, e.g. ``{"logits", "log_probs"}``.
        columns: the batch columns it reads, so that the trainer keeps them.
    """

    name: str
    provides: frozenset[str]
    columns: frozenset[str]

    def __call__(self, batch: dict[str, Any]) -> TeacherSignals:
        """Answer for a batch that is already on the teacher's device."""


@dataclass(frozen=True)
class DenseSignals:
    """Full logits of one teacher.

    Shapes: ``logits`` is ``(..., classes)``. ``features`` are there where an objective asked for them.

    Example:
        >>> signals = DenseSignals(torch.tensor([[0.0, 0.0]]))
        >>> signals.log_probs(2.0).exp()
        tensor([[0.5000, 0.5000]])
    """

    logits: torch.Tensor
    features: Features | None = None

    def log_probs(self, temperature: float) -> torch.Tensor:
        """Return ``log softmax(logits / temperature)`` over the last dimension, float32 or better."""
        logits = self.logits if self.logits.dtype == torch.float64 else self.logits.float()
        return torch.log_softmax(logits / temperature, dim=-1)

    def select(self, index: Any) -> DenseSignals:
        """Return the signals of the rows under a boolean mask or a slice."""
        # Examples have features; rows under a mask are items, and have none of their own.
        features = self.features.select(index) if self.features and isinstance(index, slice) else None
        return DenseSignals(self.logits[index], features)


def retemperable_logits(signals: TeacherSignals) -> torch.Tensor | None:
    """Return logits whose softmax at any temperature is the teacher's, or None where there are none.

    Example:
        >>> retemperable_logits(DenseSignals(torch.tensor([[2.0, 0.0]])))
        tensor([[2., 0.]])
    """
    return signals.logits if getattr(signals, "retemperable", True) else None


def member_signals(signals: TeacherSignals) -> tuple[TeacherSignals, ...]:
    """Return the signals of each teacher behind them: of one, or of a mixture's members.

    Example:
        >>> signals = DenseSignals(torch.tensor([[2.0, 0.0]]))
        >>> member_signals(signals)[0] is signals
        True
    """
    members: tuple[TeacherSignals, ...] = getattr(signals, "members", (signals,))
    return members


def member_logits(signals: TeacherSignals) -> list[torch.Tensor | None]:
    """Return the raw logits of each teacher behind the signals: of one, or of a mixture's members.

    Example:
        >>> member_logits(DenseSignals(torch.tensor([[2.0, 0.0]])))
        [tensor([[2., 0.]])]
    """
    return [member.logits for member in member_signals(signals)]


def label_free(signals: TeacherSignals) -> TeacherSignals:
    """Return what the teacher would have said without knowing a label, for measuring it.

    A mixture weighted by the label loss leans to whoever is right, which no one could know who has
    no label: measured like that it would look better than it is.

    Example:
        >>> signals = DenseSignals(torch.tensor([[2.0, 0.0]]))
        >>> label_free(signals) is signals
        True
    """
    unaided: TeacherSignals = getattr(signals, "label_free", signals)
    return unaided
