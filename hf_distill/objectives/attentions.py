"""attentions: the attention scores before the softmax, the student's against the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hf_distill.attention_inputs import AttentionInputs
from hf_distill.features import FeatureNeeds, ModelShape
from hf_distill.layer_pairs import Pairs, check_layers, layer_pairs
from hf_distill.objectives.base import Level, Objective, Rows


@dataclass(frozen=True)
class Attentions(Objective):
    """Match which positions each position looks at, as scores before the softmax.

    Formula: ``sum over pairs (i, j) of mean over heads and allowed keys of (A_i - B_j)^2`` with ``A`` and ``B``
    the scores ``Q K^T * scaling`` of a query position. Heads are averaged first where their numbers
    differ. Keys that are padding, or that a causal mask hides, are left out. No temperature, so no T^2.

    Shapes: scores ``(examples, heads, length, length)`` to ``(tokens,)`` values, one per attended query.
    Units: scores squared.

    Args:
        layers: ``uniform`` (the map the student was cut by, else evenly spaced), ``last``, or a list of
            ``[student, teacher]`` pairs counted from 1.

    Raises:
        ValueError: an unknown word, layer 0 (the embeddings do not attend), a layer that a model does
            not have, or a model whose attention can't be recorded.

    Source: Jiao et al., "TinyBERT", arXiv 1909.10351, equation 7. The paper has equal numbers of heads;
        the mean over heads where they differ is ours. Its code sets scores of padding to 0 in both
        models, which then count as equal; here they do not count.

    Example:
        >>> Attentions(layers="last")
        Attentions(layers='last')
    """

    layers: str | Pairs | list[Any] = "uniform"

    name: ClassVar[str] = "attentions"
    level: ClassVar[Level] = "token"
    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label", "multi_label", "regression"})
    paper: ClassVar[str] = "Jiao et al. 2020, arXiv 1909.10351"
    cost: ClassVar[str] = "forms length^2 scores a head and pair, which the fused kernels never hold"

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "layers", check_layers(self.layers, ("uniform", "last"), self.name))
        if not isinstance(self.layers, str) and any(0 in pair for pair in self.layers):
            raise ValueError(
                f"{self.name}: layers: expected layers counted from 1, received {list(self.layers)}."
            )

    def pairs(self, student: ModelShape, teacher: ModelShape) -> Pairs:
        """Return the pairs of layers that are compared."""
        return layer_pairs(self.layers, student, teacher, self.name)  # type: ignore[arg-type]

    def feature_needs(self, student: ModelShape, teacher: ModelShape) -> tuple[FeatureNeeds, FeatureNeeds]:
        """Ask for the paired layers' queries and keys."""
        own, other = zip(*self.pairs(student, teacher), strict=True)
        return FeatureNeeds(attention=frozenset(own)), FeatureNeeds(attention=frozenset(other))

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per attended position."""
        student, teacher = rows.features()
        values = [
            _distance(student.attention[own], teacher.attention[other])
            for own, other in self.pairs(student.shape, teacher.shape)
        ]
        return torch.stack(values).sum(0)[student.attended]


def _distance(student: AttentionInputs, teacher: AttentionInputs) -> torch.Tensor:
    """Return ``(examples, length)`` mean squared differences over heads and allowed keys."""
    own, other = student.scores(), teacher.scores()
    if own.shape[1] != other.shape[1]:
        own, other = own.mean(1, keepdim=True), other.mean(1, keepdim=True)
    allowed = (student.allowed & teacher.allowed).expand_as(own)
    squared = (own - other).masked_fill(~allowed, 0.0).square()
    return squared.sum((1, 3)) / allowed.sum((1, 3)).clamp(min=1)
