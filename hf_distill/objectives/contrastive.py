"""contrastive: the student's vector of an example must pick out the teacher's among those of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import normalize

from hf_distill.features import POOLINGS, FeatureNeeds, ModelShape
from hf_distill.objectives.base import Level, Objective, Rows, check_choice, check_temperature
from hf_distill.projections import to_teachers_width


@dataclass(frozen=True)
class Contrastive(Objective):
    """Tell each example's teacher vector from those of the other examples.

    Formula: ``-log (exp(cos(W h_i, g_i) / T) / sum_j exp(cos(W h_i, g_j) / T))`` for example ``i``, over the
    examples ``j`` of the batch; ``h`` and ``g`` the pooled vectors of the last layers, ``W`` the identity where
    the widths are equal, else a trained matrix. T is the softmax's own; the value is not multiplied by T^2.

    The examples compared are those of one micro-batch of one process: accumulation and more processes
    change how many there are, so the value depends on them, unlike that of other objectives. It is not 0
    where student and teacher are equal, and 0 for one example alone.

    Shapes: ``(examples, width)`` vectors to ``(examples,)`` values.
    Units: nats per example.

    Args:
        temperature: T, above 0.
        pooling: ``mean``, ``cls`` (the first position) or ``last``.

    Raises:
        ValueError: a temperature that is not above 0, or an unknown pooling.

    Source: after Tian et al., "Contrastive Representation Distillation", arXiv 1910.10699, in the InfoNCE
        form (van den Oord et al., arXiv 1807.03748, equation 4). The paper estimates with a memory bank of
        thousands of negatives and projects both models to 128 dimensions; here the negatives are the batch's.

    Example:
        >>> Contrastive(temperature=0.1)
        Contrastive(temperature=0.1, pooling='mean')
    """

    temperature: float = 0.07
    pooling: str = "mean"

    batch_relational: ClassVar[bool] = True
    name: ClassVar[str] = "contrastive"
    level: ClassVar[Level] = "example"
    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label", "multi_label", "regression"})
    paper: ClassVar[str] = "Tian et al. 2020, arXiv 1910.10699"
    cost: ClassVar[str] = "a product of examples by examples"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_temperature(self.temperature, f"{self.name}: temperature")
        check_choice("pooling", self.pooling, POOLINGS, self.name)

    def feature_needs(self, student: ModelShape, teacher: ModelShape) -> tuple[FeatureNeeds, FeatureNeeds]:
        """Ask for the last hidden states."""
        return FeatureNeeds(frozenset({student.layers})), FeatureNeeds(frozenset({teacher.layers}))

    def projection(self, student: ModelShape, teacher: ModelShape) -> nn.Module | None:
        """Return a matrix to the teacher's width, or None where the widths are equal."""
        return to_teachers_width(student, teacher)

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per example."""
        pooling: Any = self.pooling
        ours, theirs = (one.pooled(one.shape.layers, pooling) for one in rows.features())
        ours = rows.project(ours)
        cosines = normalize(ours, dim=-1) @ normalize(theirs.to(ours.dtype), dim=-1).T
        return -torch.log_softmax(cosines / self.temperature, dim=-1).diagonal()
