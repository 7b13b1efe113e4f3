"""similarity: which examples of a batch are alike, to the student as to the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.functional import normalize

from hf_distill.features import POOLINGS, FeatureNeeds, ModelShape
from hf_distill.layer_pairs import Pairs, check_layers, layer_pairs
from hf_distill.objectives.base import Level, Objective, Rows, check_choice


@dataclass(frozen=True)
class Similarity(Objective):
    """Match the similarity matrix of a batch's examples ("similarity-preserving" distillation).

    Formula: ``sum over pairs of (1 / b) sum_j (G_t - G_s)_ij^2`` for example ``i`` of ``b``, with ``G`` the
    matrix ``A A^T`` of the pooled vectors ``A``, each row of it divided by its norm. Its mean over
    examples is the paper's ``1 / b^2`` times the squared Frobenius norm. No temperature, so no T^2.

    The examples compared are those of one micro-batch of one process: accumulation and more processes
    change which examples meet, so the value depends on them, unlike that of other objectives.

    Shapes: ``(examples, width)`` vectors, of any two widths, to ``(examples,)`` values.
    Units: none, from 0 to 4 / b a pair.

    Args:
        layers: ``last``, ``uniform``, or a list of ``[student, teacher]`` pairs counted from 1.
        pooling: ``mean``, ``cls`` (the first position) or ``last``.

    Raises:
        ValueError: an unknown word, or a layer that a model does not have.

    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", arXiv 1907.09682, equations 1
        to 4. The paper flattens an image's whole activation map; texts differ in length, so they are pooled.

    Example:
        >>> Similarity(pooling="cls")
        Similarity(layers='last', pooling='cls')
    """

    layers: str | Pairs | list[Any] = "last"
    pooling: str = "mean"

    batch_relational: ClassVar[bool] = True
    name: ClassVar[str] = "similarity"
    level: ClassVar[Level] = "example"
    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label", "multi_label", "regression"})
    paper: ClassVar[str] = "Tung and Mori 2019, arXiv 1907.09682"
    cost: ClassVar[str] = "keeps the paired hidden states; a product of examples by examples a pair"

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "layers", check_layers(self.layers, ("last", "uniform"), self.name))
        check_choice("pooling", self.pooling, POOLINGS, self.name)

    def pairs(self, student: ModelShape, teacher: ModelShape) -> Pairs:
        """Return the pairs of hidden states that are compared."""
        return layer_pairs(self.layers, student, teacher, self.name)  # type: ignore[arg-type]

    def feature_needs(self, student: ModelShape, teacher: ModelShape) -> tuple[FeatureNeeds, FeatureNeeds]:
        """Ask for the paired hidden states."""
        own, other = zip(*self.pairs(student, teacher), strict=True)
        return FeatureNeeds(frozenset(own)), FeatureNeeds(frozenset(other))

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per example."""
        student, teacher = rows.features()
        pooling: Any = self.pooling
        values = []
        for own, other in self.pairs(student.shape, teacher.shape):
            ours, theirs = (
                _similarities(x) for x in (student.pooled(own, pooling), teacher.pooled(other, pooling))
            )
            values.append((theirs - ours).square().mean(-1))
        return torch.stack(values).sum(0)


def _similarities(vectors: torch.Tensor) -> torch.Tensor:
    return normalize(vectors @ vectors.T, dim=-1)
