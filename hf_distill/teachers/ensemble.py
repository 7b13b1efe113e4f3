"""Several teachers as one: the mixture of what they say, with weights that are fixed or set per row."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_distill.columns import LABEL_COLUMNS, columns_for
from hf_distill.items import Head
from hf_distill.objectives.base import at_least_float32
from hf_distill.teachers.signals import Teacher, TeacherSignals, label_free
from hf_distill.teachers.weighting import (
    Combine,
    check_combine,
    check_weights,
    confidence_weights,
    label_loss_weights,
)


@dataclass(frozen=True)
class MixtureSignals:
    """What several teachers say of the same rows, mixed when asked.

    Formula: with ``combine="probabilities"`` ``log_probs(T) = log sum_k w_k softmax(z_k / T)``, which
    no logits can be re-tempered to; with ``"logits"`` ``log softmax((sum_k w_k z_k) / T)``. In both
    cases ``logits`` is ``sum_k w_k z_k``, for objectives on raw logits.

    Shapes: members with ``(..., classes)``; a weight is a number, or ``(..., 1)`` with one per row.

    Args:
        members: each teacher's own signals: of a model they hold its logits, its features where an
            objective follows it, and nothing else.
        weights: one per member, at least 0, of sum 1 in each row.
        combine: what is averaged, ``probabilities`` or ``logits``.
        weights_from_labels: whether the weights know the labels.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531,
        section 1 (arithmetic or geometric mean of the teachers' predictions).

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> yes, no = DenseSignals(torch.tensor([[0.0, 9.0]])), DenseSignals(torch.tensor([[9.0, 0.0]]))
        >>> MixtureSignals((yes, no), (0.75, 0.25)).log_probs(1.0).exp()
        tensor([[0.2501, 0.7499]])
        >>> MixtureSignals((yes, no), (0.75, 0.25), "logits").log_probs(1.0).exp()
        tensor([[0.0110, 0.9890]])
    """

    members: tuple[TeacherSignals, ...]
    weights: tuple[float | torch.Tensor, ...]
    combine: Combine = "probabilities"
    weights_from_labels: bool = False

    @property
    def retemperable(self) -> bool:
        """Whether ``log_probs(T)`` is the log-softmax of ``logits / T``."""
        return self.combine == "logits"

    @cached_property
    def logits(self) -> torch.Tensor | None:
        """The weighted mean of the members' logits, in float32 or better; None where one has none."""
        total: torch.Tensor | None = None
        for member, weight in zip(self.members, self.weights, strict=True):
            if member.logits is None:
                return None
            logits = at_least_float32(member.logits)
            if isinstance(weight, torch.Tensor):
                weight = weight.to(logits.dtype)
                part = (weight * logits).masked_fill(weight == 0, 0.0)  # 0 * -inf is NaN
            elif weight == 0:
                continue
            else:
                part = weight * logits
            total = part if total is None else total + part
        return total

    def log_probs(self, temperature: float) -> torch.Tensor:
        """Return the mixture's log-probabilities at this temperature, in float32 or better."""
        if self.retemperable:
            assert self.logits is not None, "TeacherEnsemble refuses members without logits here"
            return torch.log_softmax(self.logits / temperature, dim=-1)
        total: torch.Tensor | None = None
        # One member after another, so that no stack of all their log-probabilities is held.
        for member, weight in zip(self.members, self.weights, strict=True):
            part = member.log_probs(temperature)
            if isinstance(weight, torch.Tensor):
                part = part + weight.to(part.dtype).log()
            elif weight == 0:
                continue
            else:
                part = part + math.log(weight)
            total = part if total is None else torch.logaddexp(total, part)
        assert total is not None, "weights sum to 1"
        return total

    def select(self, index: Any) -> MixtureSignals:
        """Return the signals of the rows under a boolean mask or a slice."""
        return MixtureSignals(
            tuple(member.select(index) for member in self.members),
            tuple(w[index] if isinstance(w, torch.Tensor) else w for w in self.weights),
            self.combine,
            self.weights_from_labels,
        )

    @property
    def label_free(self) -> MixtureSignals:
        """The same teachers with equal weights, where the labels had set them."""
        count = len(self.members)
        return MixtureSignals(
            tuple(label_free(member) for member in self.members),
            (1 / count,) * count if self.weights_from_labels else self.weights,
            self.combine,
        )


class TeacherEnsemble:
    """Several teachers that answer as one; ``teacher=[a, b]`` is short for it.

    They run one after another on the same batch, and of each only its signals are kept, so that the
    activations are those of one. They may have different architectures, tokenizers and label orders:
    the trainer checks and prepares each as it does a single one. Losses are taken against the
    mixture, and so are agreement, the teacher's metric and retention. On multi-label and regression
    heads, whose objectives are on raw logits, both ways to combine are the weighted mean of logits.
    A mixture has no features and no input, so objectives on those say which ``teacher`` they follow.

    Formula: ``p(T) = sum_k w_k softmax(z_k / T)``, or the softmax of ``(sum_k w_k z_k) / T``, which
    is sharper. Weights sum to 1: numbers are divided by their sum, those per row are
    ``(1 - H_k / log C)`` normalised (``confidence``) or ``softmax_k(-label loss_k)`` (``label_loss``).

    Args:
        teachers: at least one of: model, Hub id, folder, or anything that answers ``teacher(batch)``.
        weights: None for equal ones, a number of at least 0 for each teacher, ``"confidence"``
            (needs no label; not for regression heads) or ``"label_loss"``. Rows without a label get
            equal weights under ``label_loss``, and so does all that is measured in evaluation but
            the loss: weights that know the label make an ensemble look better than it is.
        combine: what is averaged, ``"probabilities"`` or ``"logits"``.
        offload: keep the weights of the teachers that are not at work in the CPU's memory.

    Raises:
        ValueError: no teacher, a number of weights that is not that of the teachers, a weight that is
            not a finite number of at least 0, an unknown name, or members that can't be combined.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531,
        section 1; the weights per row as in :mod:`hf_distill.teachers.weighting`.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_distill.teachers.online import OnlineTeacher
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> def teacher():
        ...     return OnlineTeacher(BertForSequenceClassification(BertConfig(vocab_size=10, **sizes)))
        >>> ensemble = TeacherEnsemble([teacher(), teacher()], weights=[3, 1])
        >>> ensemble.weights
        (0.75, 0.25)
        >>> ensemble({"input_ids": torch.tensor([[1, 2]])}).log_probs(2.0).shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        teachers: Sequence[str | Path | nn.Module | Teacher],
        weights: Sequence[float] | str | None = None,
        combine: str = "probabilities",
        offload: bool = False,
    ) -> None:
        if not isinstance(teachers, (list, tuple)) or not teachers:
            raise ValueError(
                "teachers: expected a list with at least one model, Hub id, folder or Teacher, received "
                f"{teachers if teachers == [] else type(teachers).__name__}."
            )
        self.weights = check_weights(weights, len(teachers))
        self.combine = check_combine(combine)
        self.offload = offload
        self.head = Head("single_label")
        self.device: torch.device | None = None
        self._set_members(tuple(teachers), ("",) * len(teachers))

    def prepared(
        self, members: Sequence[Teacher], head: Head, device: torch.device, prefixes: Sequence[str]
    ) -> TeacherEnsemble:
        """Return this ensemble over members that a trainer has made ready for its student.

        Args:
            members: one for each teacher given.
            head: what the student's outputs mean.
            device: where a member is when at work.
            prefixes: what each member's columns start with in a batch, or "" for the student's own.

        Raises:
            ValueError: confidence on a regression head, or members without logits to average.
        """
        if self.weights == "confidence" and head.kind == "regression":
            raise ValueError(
                "teacher_weights: expected numbers, label_loss or nothing for a regression head, received "
                "confidence; a predicted number has no entropy."
            )
        ready = copy.copy(self)
        ready.head, ready.device = head, device
        ready._set_members(tuple(members), tuple(prefixes))
        return ready

    def _set_members(self, members: tuple[Any, ...], prefixes: tuple[str, ...]) -> None:
        self.members, self.prefixes = members, prefixes
        self.name = "an ensemble without its teachers"
        self.provides, self.columns = frozenset[str](), frozenset[str]()
        if not all(isinstance(member, Teacher) for member in members):
            return  # models and names: the trainer makes teachers of them
        self.name = ", ".join(member.name for member in members)
        given = [member.provides for member in members]
        self.provides = frozenset({"logits", "log_probs"}).intersection(*given)
        for index, provides in enumerate(given):
            if self.combine == "logits" and "logits" not in provides:
                raise ValueError(
                    f"teacher[{index}]: expected a teacher that gives logits, because teacher_combine is logits, "
                    f"received {members[index].name}, which gives {', '.join(sorted(provides))}. Use probabilities."
                )
        self.columns = frozenset(
            prefix + column
            for member, prefix in zip(members, prefixes, strict=True)
            for column in (member.columns - LABEL_COLUMNS if prefix else member.columns)
        )

    @property
    def fixed_weights(self) -> tuple[float, ...]:
        """The weights that are numbers; equal ones where weights are set per row."""
        equal = (1 / len(self.members),) * len(self.members)
        return self.weights if isinstance(self.weights, tuple) else equal

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain values, for the model card and the results file."""
        weights = list(self.weights) if isinstance(self.weights, tuple) else self.weights
        return {"teacher_combine": self.combine, "teacher_weights": weights}

    def __call__(self, batch: dict[str, Any]) -> MixtureSignals:
        """Answer for a batch: each member sees its own columns of it; labels only set weights."""
        labels = batch.get("labels")
        answers: list[TeacherSignals] = []
        for index, member in enumerate(self.members):
            if not isinstance(member, Teacher):
                raise ValueError(
                    f"teachers: expected teachers that answer a batch, received {type(member).__name__}. Give the "
                    "ensemble to a DistillationTrainer, or wrap models in hf_distill.teachers.online.OnlineTeacher."
                )
            with self.at_work(member):
                answers.append(member(self.columns_of(index, batch)))
        return self._mix(tuple(answers), labels)

    def columns_of(self, index: int, batch: dict[str, Any]) -> dict[str, Any]:
        """Return what one member is given of a batch: its own columns, without their prefix."""
        columns = columns_for(batch, self.members[index].columns, self.prefixes[index])
        if batch.get("labels") is not None:  # read by no forward: a decoder's inputs are made from them
            columns["labels"] = batch["labels"]
        return columns

    def _mix(self, answers: tuple[TeacherSignals, ...], labels: torch.Tensor | None) -> MixtureSignals:
        per_row: torch.Tensor | None = None
        if self.weights == "confidence":
            per_row = confidence_weights(answers, self.head)
        elif self.weights == "label_loss":
            per_row = label_loss_weights(answers, labels, self.head)
        if per_row is not None:
            return MixtureSignals(answers, per_row.unbind(0), self.combine, self.weights == "label_loss")
        return MixtureSignals(answers, self.fixed_weights, self.combine)

    @contextmanager
    def at_work(self, member: Any) -> Iterator[None]:
        """Bring a member's weights to the device, and take them away when it has done its work."""
        moves = (
            self.offload and self.device is not None and self.device.type != "cpu" and hasattr(member, "to")
        )
        if not moves:
            yield
            return
        member.to(self.device)
        try:
            yield
        finally:
            member.to(torch.device("cpu"))
