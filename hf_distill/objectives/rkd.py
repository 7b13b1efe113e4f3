"""rkd: the distances between a batch's examples and the angles they form, to the student as to the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.functional import huber_loss

from hf_distill.features import POOLINGS, FeatureNeeds, ModelShape
from hf_distill.objectives.base import Level, Objective, Rows, check_choice, check_not_negative

# Squared distances below this count as this, so that the root has a gradient where two examples coincide.
_SMALLEST = 1e-12


@dataclass(frozen=True)
class RelationalDistillation(Objective):
    """Match the relations among a batch's examples: distances of pairs and angles of triplets.

    Formula: for example ``i``, ``w_d mean_{j != i} H(d_t(i, j) - d_s(i, j)) + w_a mean_{j != k} H(c_t - c_s)``
    with ``d`` the distance of two pooled vectors over the mean distance of the batch's pairs, ``c`` the
    cosine of the angle at ``i`` between ``j`` and ``k``, and ``H`` the Huber function with threshold 1. A
    mean over no pair (fewer than two examples, or three for angles) is 0. No temperature, so no T^2.

    The examples compared are those of one micro-batch of one process: accumulation and more processes
    change which examples meet, so the value depends on them, unlike that of other objectives.

    Shapes: ``(examples, width)`` vectors, of any two widths, to ``(examples,)`` values.
    Units: none.

    Args:
        distance_weight: ``w_d``, at least 0.
        angle_weight: ``w_a``, at least 0. 1 and 2 are the paper's for metric learning, 25 and 50 its
            official code's for classification.
        pooling: ``mean``, ``cls`` (the first position) or ``last``, of the last layer.

    Raises:
        ValueError: a weight below 0, both 0, or an unknown pooling.

    Source: Park et al., "Relational Knowledge Distillation", arXiv 1904.05068, equations 5 to 10. The
        official code averages over all pairs and triplets, the degenerate ones included, which are 0
        in both models; here only real ones count.

    Example:
        >>> RelationalDistillation(angle_weight=0.0)
        RelationalDistillation(distance_weight=1.0, angle_weight=0.0, pooling='mean')
    """

    distance_weight: float = 1.0
    angle_weight: float = 2.0
    pooling: str = "mean"

    batch_relational: ClassVar[bool] = True
    name: ClassVar[str] = "rkd"
    level: ClassVar[Level] = "example"
    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label", "multi_label", "regression"})
    paper: ClassVar[str] = "Park et al. 2019, arXiv 1904.05068"
    cost: ClassVar[str] = "examples^2 distances and examples^3 cosines of a micro-batch"

    def __post_init__(self) -> None:
        """Check the settings."""
        for setting in ("distance_weight", "angle_weight"):
            check_not_negative(setting, getattr(self, setting), self.name)
        if self.distance_weight == 0 and self.angle_weight == 0:
            raise ValueError(
                f"{self.name}: distance_weight and angle_weight: expected one above 0, received 0."
            )
        check_choice("pooling", self.pooling, POOLINGS, self.name)

    def feature_needs(self, student: ModelShape, teacher: ModelShape) -> tuple[FeatureNeeds, FeatureNeeds]:
        """Ask for the last hidden states."""
        return FeatureNeeds(frozenset({student.layers})), FeatureNeeds(frozenset({teacher.layers}))

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per example."""
        pooling: Any = self.pooling
        ours, theirs = (one.pooled(one.shape.layers, pooling) for one in rows.features())
        theirs = theirs.to(ours.dtype)  # huber_loss takes no two precisions
        total = ours.sum(-1) * 0.0
        if self.distance_weight > 0 and ours.shape[0] >= 2:
            total = total + self.distance_weight * _mean_off_diagonal(
                huber_loss(_distances(ours), _distances(theirs), reduction="none")
            )
        if self.angle_weight > 0 and ours.shape[0] >= 3:
            total = total + self.angle_weight * _angles_loss(ours, theirs)
        return total


def _distances(vectors: torch.Tensor) -> torch.Tensor:
    """Return ``(examples, examples)`` distances over their mean, with a gradient where two coincide."""
    difference = vectors[:, None, :] - vectors[None, :, :]
    distances = difference.square().sum(-1).clamp(min=_SMALLEST).sqrt()
    mean = _mean_off_diagonal(distances).mean()
    return distances / mean


def _mean_off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    others = ~torch.eye(matrix.shape[0], dtype=torch.bool, device=matrix.device)
    return matrix.masked_fill(~others, 0.0).sum(-1) / (matrix.shape[0] - 1)


def _angles_loss(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return, for each example as the vertex, the mean over ordered pairs of two others."""
    size = ours.shape[0]
    other = ~torch.eye(size, dtype=torch.bool, device=ours.device)
    real = other[:, :, None] & other[:, None, :] & other[None, :, :]
    losses = huber_loss(_cosines(ours), _cosines(theirs), reduction="none").masked_fill(~real, 0.0)
    return losses.sum((1, 2)) / ((size - 1) * (size - 2))


def _cosines(vectors: torch.Tensor) -> torch.Tensor:
    """Return ``(vertex, one, other)`` cosines."""
    edges = vectors[None, :, :] - vectors[:, None, :]
    squares = edges.square().sum(-1, keepdim=True)
    # Two examples in one place form no angle: a cosine of 0, and no gradient instead of an endless one.
    edges = edges.masked_fill(squares < _SMALLEST, 0.0) / squares.clamp(min=_SMALLEST).sqrt()
    return edges @ edges.transpose(-1, -2)
