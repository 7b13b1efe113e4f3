"""patient: the direction of one vector per example and layer, the student's against the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import normalize

from hf_distill.features import POOLINGS, FeatureNeeds, ModelShape
from hf_distill.layer_pairs import Pairs, check_layers, layer_pairs
from hf_distill.objectives.base import Level, Objective, Rows, check_choice
from hf_distill.projections import to_teachers_width


@dataclass(frozen=True)
class Patient(Objective):
    """Match the normalised first vector of intermediate layers ("patient" distillation).

    Formula: ``sum over pairs (i, j) of ||h_i / ||h_i|| - g_j / ||g_j|| ||^2`` with ``h_i`` and ``g_j`` the
    vectors of layer ``i`` of the student and ``j`` of the teacher. No temperature, so no T^2.

    Shapes: ``(examples, width)`` vectors to ``(examples,)`` values.
    Units: none; each pair from 0 to 4. The paper's weights are 10 to 1000.

    Args:
        layers: ``skip`` (every layer of the student but the last, evenly spaced in the teacher),
            ``last`` (its layers but the last, beside the teacher's last ones), or a list of
            ``[student, teacher]`` pairs counted from 1.
        pooling: ``cls`` (the first position, as in the paper), ``mean`` or ``last``.

    Raises:
        ValueError: an unknown word, a layer that a model does not have, or a student of one layer.

    Source: Sun et al., "Patient Knowledge Distillation for BERT Model Compression", arXiv 1908.09355,
        equation 7 (PKD-Skip and PKD-Last). The paper has equal widths; where they differ here, one
        trained matrix for all pairs takes the student's vectors to the teacher's width.

    Example:
        >>> Patient(layers=[[1, 2]])
        Patient(layers=((1, 2),), pooling='cls')
    """

    layers: str | Pairs | list[Any] = "skip"
    pooling: str = "cls"

    name: ClassVar[str] = "patient"
    level: ClassVar[Level] = "example"
    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label", "multi_label", "regression"})
    paper: ClassVar[str] = "Sun et al. 2019, arXiv 1908.09355"
    cost: ClassVar[str] = "keeps the paired hidden states; compares one vector an example and pair"

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "layers", check_layers(self.layers, ("skip", "last"), self.name))
        check_choice("pooling", self.pooling, POOLINGS, self.name)

    def pairs(self, student: ModelShape, teacher: ModelShape) -> Pairs:
        """Return the pairs of hidden states that are compared."""
        layers: Any = "last_before" if self.layers == "last" else self.layers
        return layer_pairs(layers, student, teacher, self.name)

    def feature_needs(self, student: ModelShape, teacher: ModelShape) -> tuple[FeatureNeeds, FeatureNeeds]:
        """Ask for the paired hidden states."""
        own, other = zip(*self.pairs(student, teacher), strict=True)
        return FeatureNeeds(frozenset(own)), FeatureNeeds(frozenset(other))

    def projection(self, student: ModelShape, teacher: ModelShape) -> nn.Module | None:
        """Return one matrix to the teacher's width, or None where the widths are equal."""
        return to_teachers_width(student, teacher)

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per example."""
        student, teacher = rows.features()
        pooling: Any = self.pooling
        return torch.stack(
            [
                (
                    normalize(rows.project(student.pooled(own, pooling)), dim=-1)
                    - normalize(teacher.pooled(other, pooling), dim=-1)
                )
                .square()
                .sum(-1)
                for own, other in self.pairs(student.shape, teacher.shape)
            ]
        ).sum(0)
