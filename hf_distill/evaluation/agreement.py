"""How far a student says what its teacher says: agreement, and the mean divergence."""

from __future__ import annotations

from typing import Any

import torch

from hf_distill.items import Head
from hf_distill.objectives.base import Rows, at_least_float32
from hf_distill.objectives.binary_kl import BinaryKL
from hf_distill.objectives.forward_kl import ForwardKL
from hf_distill.teachers.signals import TeacherSignals, retemperable_logits
from hf_distill.teachers.sparse import coarsened


def agreement_sums(rows: Rows, head: Head) -> dict[str, tuple[torch.Tensor, int]]:
    """Return sums and counts behind ``agreement`` and ``mean_kl``, to be added up over batches.

    Formula:
        single-label: the share of items where both argmaxes are equal;
        multi-label: the share of (item, class) decisions, logit above 0 or not, that are equal;
        regression: the root mean squared difference of the predictions, lower being better.
        ``mean_kl`` is KL(teacher ‖ student) at T = 1 in nats per item (per item and class for
        multi-label heads, none for regression).

    Shapes: ``(items, classes)`` rows to scalars.

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> teacher = DenseSignals(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        >>> rows = Rows(torch.tensor([[1.0, 0.0], [3.0, 1.0]]), teacher)
        >>> total, count = agreement_sums(rows, Head("single_label"))["agreement"]
        >>> (total / count).item()
        0.5
    """
    student, items = rows.student_logits, rows.student_logits.shape[0]
    if head.kind == "single_label":
        scores: Any = teacher_scores(rows.teacher, head)
        same = student.argmax(-1) == scores.argmax(-1)
        return {
            "agreement": (same.sum(), items),
            "mean_kl": (ForwardKL(1.0)(coarsened(rows, 1.0)).sum(), items),
        }
    teacher = rows.teacher.logits
    if teacher is None:
        return {}
    if head.kind == "multi_label":
        same = (student > 0) == (teacher > 0)
        return {"agreement": (same.sum(), same.numel()), "mean_kl": (BinaryKL(1.0)(rows).sum(), items)}
    squared = (at_least_float32(student) - at_least_float32(teacher)).square()
    return {"agreement": (squared.sum(), squared.numel())}


def teacher_scores(signals: TeacherSignals, head: Head) -> torch.Tensor | None:
    """Return what stands for the teacher's logits in a metric, or None where there is nothing.

    A mixture of probabilities is measured by its log-probabilities at T = 1, whose softmax they are.

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> teacher_scores(DenseSignals(torch.tensor([[2.0, 0.0]])), Head("single_label"))
        tensor([[2., 0.]])
    """
    if head.kind != "single_label":
        return signals.logits
    logits = retemperable_logits(signals)
    return signals.log_probs(1.0) if logits is None else logits


def finish_agreement(mean: float, head: Head) -> float:
    """Return the reported agreement from the mean of its sums: a root for regression.

    Example:
        >>> finish_agreement(4.0, Head("regression")), finish_agreement(0.5, Head("single_label"))
        (2.0, 0.5)
    """
    return mean**0.5 if head.kind == "regression" else mean
