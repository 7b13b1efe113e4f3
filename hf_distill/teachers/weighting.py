"""How much each of several teachers counts: fixed numbers, its confidence, or its loss on the label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.nn.functional import logsigmoid

from hf_distill.items import IGNORED, Head, labelled_mask, labels_of_predictions
from hf_distill.objectives.base import at_least_float32, kl_of_logits
from hf_distill.teachers.signals import TeacherSignals

Combine = Literal["probabilities", "logits"]


def check_weights(weights: Any, teachers: int) -> tuple[float, ...] | str:
    """Return numbers divided by their sum, or the name of weights per row.

    Raises:
        ValueError: see :class:`TeacherEnsemble`.

    Example:
        >>> check_weights([3, 1], 2), check_weights(None, 2), check_weights("confidence", 2)
        ((0.75, 0.25), (0.5, 0.5), 'confidence')
    """
    if weights is None:
        return (1 / teachers,) * teachers
    if isinstance(weights, str) and weights in ("confidence", "label_loss"):
        return weights
    numbers = list(weights) if isinstance(weights, (list, tuple)) else []
    valid = [isinstance(w, (int, float)) and not isinstance(w, bool) and 0 <= w < math.inf for w in numbers]
    if not numbers or not all(valid) or sum(numbers) == 0:
        raise ValueError(
            f"teacher_weights: expected confidence, label_loss, or for each of {teachers} teachers a finite number of "
            f"at least 0 with a sum above 0, received {weights!r}."
        )
    if len(numbers) != teachers:
        raise ValueError(
            f"teacher_weights: expected {teachers} numbers, one for each teacher, received {len(numbers)}: {weights!r}."
        )
    return tuple(number / sum(numbers) for number in numbers)


def check_combine(combine: Any) -> Combine:
    """Return what is averaged.

    Raises:
        ValueError: anything but ``probabilities`` or ``logits``.
    """
    if combine not in ("probabilities", "logits"):
        raise ValueError(f"teacher_combine: expected probabilities or logits, received {combine!r}.")
    return combine


def confidence_weights(members: Sequence[TeacherSignals], head: Head) -> torch.Tensor:
    """Weigh each teacher by how sure it is of a row, which needs no label.

    Formula: ``w_k = c_k / sum_j c_j`` with ``c_k = 1 - H_k / log C``, H_k the entropy of teacher k's
    softmax at T = 1 over C classes; for multi-label heads the mean over the classes of
    ``1 - H_kc / log 2``. Equal weights where every c_k is 0.

    Shapes: members with ``(..., classes)`` to ``(teachers, ..., 1)``.

    Source: entropy weights as in Kwon et al., "Adaptive Knowledge Distillation Based on Entropy",
        ICASSP 2020; that a uniform teacher counts for nothing is ours.

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> sure, unsure = DenseSignals(torch.tensor([[9.0, 0.0]])), DenseSignals(torch.zeros(1, 2))
        >>> confidence_weights([sure, unsure], Head("single_label")).squeeze()
        tensor([1., 0.])
    """
    confidences = torch.stack([_confidence(member, head) for member in members])
    total = confidences.sum(0, keepdim=True)
    equal = torch.full_like(confidences, 1 / len(members))
    return torch.where(total > 0, confidences / total.masked_fill(total <= 0, 1.0), equal)


def _confidence(signals: TeacherSignals, head: Head) -> torch.Tensor:
    if head.kind == "multi_label":
        yes = torch.sigmoid(at_least_float32(_logits(signals)))
        entropy = torch.special.entr(yes) + torch.special.entr(1 - yes)
        return (1 - entropy / math.log(2)).clamp(min=0).mean(-1, keepdim=True)
    log_probs = signals.log_probs(1.0)
    # log C - H is the KL from the uniform distribution. Taken as such, and from the largest log-probability, it is
    # 0 to the last digit where the teacher knows nothing; a difference would leave rounding, and weigh by that.
    centred = log_probs - log_probs.amax(-1, keepdim=True)
    surplus = kl_of_logits(centred, torch.zeros_like(centred), 1.0).clamp(min=0)
    return (surplus / math.log(max(log_probs.shape[-1], 2))).unsqueeze(-1)


def label_loss_weights(
    members: Sequence[TeacherSignals], labels: torch.Tensor | None, head: Head
) -> torch.Tensor | None:
    """Weigh each teacher by its own loss on the label of a row.

    Formula: ``w = softmax_k(-loss_k)``; the loss is the cross-entropy of the label at T = 1, for
    multi-label heads the mean over the classes of the binary one, for regression heads the squared
    error. Equal weights for a row without a label, and where all teachers rule the label out.

    Shapes: members with ``(..., classes)`` and ``(...)`` labels to ``(teachers, ..., 1)``; None
    without labels.

    Source: Zhang et al., "Confidence-Aware Multi-Teacher Knowledge Distillation" (CA-MKD), arXiv
        2201.00007, who weigh by ``(1 - softmax_k(loss_k)) / (K - 1)``; the softmax of the negative
        losses is ours.

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> right, wrong = DenseSignals(torch.tensor([[9.0, 0.0]])), DenseSignals(torch.tensor([[0.0, 9.0]]))
        >>> label_loss_weights([right, wrong], torch.tensor([0]), Head("single_label")).squeeze()
        tensor([9.9988e-01, 1.2339e-04])
        >>> label_loss_weights([right, wrong], torch.tensor([-100]), Head("single_label")).squeeze()
        tensor([0.5000, 0.5000])
    """
    if labels is None:
        return None
    labels = labels_of_predictions(labels, head)
    gains = -torch.stack([_label_loss(member, labels, head) for member in members])
    known = labelled_mask(labels, Head(head.kind, head.positions)).unsqueeze(-1) & gains.amax(0).isfinite()
    return torch.softmax(gains.masked_fill(~known, 0.0), 0)


def _label_loss(signals: TeacherSignals, labels: torch.Tensor, head: Head) -> torch.Tensor:
    if head.kind == "single_label":
        there = labels.ne(IGNORED)
        chosen = labels.masked_fill(~there, 0).unsqueeze(-1)
        return -signals.log_probs(1.0).gather(-1, chosen)
    logits = at_least_float32(_logits(signals))
    targets = labels.to(logits.dtype).nan_to_num(0.0).reshape(logits.shape)
    if head.kind == "multi_label":
        yes, no = logsigmoid(logits), logsigmoid(-logits)
        # A class ruled out (-inf) costs nothing where it is not there; 0 * -inf would be NaN.
        each = -(
            targets * yes.masked_fill(targets == 0, 0.0) + (1 - targets) * no.masked_fill(targets == 1, 0.0)
        )
    else:
        each = (logits - targets).square()
    return each.mean(-1, keepdim=True)


def _logits(signals: TeacherSignals) -> Any:
    """Return raw logits, which the ensemble has made sure of."""
    return signals.logits
