"""adaptive_kl: forward and reverse KL, weighted by where teacher and student differ, times T^2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_distill.objectives.base import Objective, Rows, check_share, check_temperature, student_log_probs
from hf_distill.objectives.forward_kl import ForwardKL
from hf_distill.objectives.reverse_kl import ReverseKL


@dataclass(frozen=True)
class AdaptiveKL(Objective):
    """Match the teacher by forward KL where its likely classes differ, by reverse KL where the others do.

    Formula: ``T^2 * (w KL(p ‖ q) + (1 - w) KL(q ‖ p))`` with ``w = g_head / (g_head + g_tail)``, where
    ``g`` is ``sum_c |p_c - q_c|`` over the classes of the head or the tail, ``p = softmax(teacher / T)``
    and ``q = softmax(student / T)``. The head is the fewest of the teacher's likeliest classes that
    together hold ``head_mass``, with all that are as likely as the last of them; the tail is the rest.
    The weights are constants to the gradient, which is that of the two KLs. It multiplies by T^2.

    Cost: both KLs and a sort of the teacher's classes, 3 to 7 times forward_kl's step on a CPU.

    Shapes: ``(items, classes)`` logits to ``(items,)`` values.
    Units: nats per item (times T^2).

    Args:
        temperature: T, above 0; the paper's is 1.
        head_mass: the teacher's probability that makes the head, strictly between 0 and 1.

    Raises:
        ValueError: a temperature not above 0, or a head_mass outside (0, 1).

    Source: Wu et al., "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large
        Language Models", arXiv 2404.02657 (head_mass is its mu, 0.5); T^2 is ours. The authors' code
        leaves the class with which the mass is reached to the tail, unless it is the first; here, as in
        the definition, the head holds at least ``head_mass``. Ties are ours, so that order never counts.

    Example:
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> teacher = DenseSignals(torch.tensor([[2.0, 0.0]]))
        >>> rows = Rows(student_logits=torch.tensor([[0.0, 0.0]]), teacher=teacher)
        >>> round(AdaptiveKL(temperature=2.0)(rows).item(), 4)
        0.4621
    """

    temperature: float = 2.0
    head_mass: float = 0.5

    name: ClassVar[str] = "adaptive_kl"
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label"})
    paper: ClassVar[str] = "Wu et al. 2024 (AKL), arXiv 2404.02657"
    cost: ClassVar[str] = "forward_kl, reverse_kl and a sort of the classes: 3 to 4 times forward_kl on a CPU"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_temperature(self.temperature, self.name)
        ends = "At 1 every class is the head, which is forward_kl; at 0 the head is the likeliest class."
        check_share(self.head_mass, f"{self.name} head_mass", ends)

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per row."""
        weight = self._forward_weight(rows)
        forward = ForwardKL(self.temperature)(rows)
        reverse = ReverseKL(self.temperature)(rows)
        return weight * forward + (1 - weight) * reverse

    @torch.no_grad()
    def _forward_weight(self, rows: Rows) -> torch.Tensor:
        """Return the share of the head in the difference of the probabilities."""
        p = rows.teacher.log_probs(self.temperature).exp()
        q = student_log_probs(rows.student_logits, self.temperature).exp()
        ordered = p.sort(dim=-1, descending=True).values
        before = ordered.cumsum(-1) - ordered
        fewest = (before < self.head_mass).sum(-1, keepdim=True)  # at least 1: nothing comes before the first
        least_likely = ordered.gather(-1, fewest - 1)
        gaps = (p - q).abs()
        total = gaps.sum(-1)
        share = gaps.masked_fill(p < least_likely, 0.0).sum(-1) / total
        # Both KLs are 0 where nothing differs, whatever their weights.
        return share.masked_fill(total == 0, 0.5)
