"""hidden_states: the student's hidden states against the teacher's, layer by layer, position by position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from hf_distill.features import FeatureNeeds, ModelShape
from hf_distill.layer_pairs import Pairs, check_layers, layer_pairs
from hf_distill.objectives.base import Level, Objective, Rows, check_choice
from hf_distill.projections import to_teachers_width


@dataclass(frozen=True)
class HiddenStates(Objective):
    """Match what the layers compute at every attended position.

    Formula: ``sum over pairs (i, j) of mean_d (W h_i - g_j)^2`` with ``distance: mse``, or
    ``1 - cos(W h_i, g_j)`` with ``cosine``; ``h`` the student's states, ``g`` the teacher's, ``W`` the
    identity where the widths are equal, else one trained matrix for all pairs. No temperature, so no T^2.

    Shapes: ``(tokens, width)`` states to ``(tokens,)`` values. Pads are no tokens; inputs without
    ``input_ids`` (images, audio) weigh every example the same, whatever its number of positions.
    Units: the states' own, squared; or none for ``cosine``.

    Args:
        layers: ``uniform`` (the map the student was cut by, else evenly spaced), ``last``, or a list of
            ``[student, teacher]`` pairs counted from 1, 0 being the embeddings.
        distance: ``mse`` or ``cosine``.

    Raises:
        ValueError: an unknown word, or a layer that a model does not have.

    Source: FitNets (Romero et al., arXiv 1412.6550, equation 3) for a trained ``W``; TinyBERT (Jiao et al.,
        arXiv 1909.10351, equation 8) for all layers and one ``W``; DistilBERT (Sanh et al., arXiv 1910.01108)
        for the cosine of the last layer. TinyBERT's own code also matches the embeddings, which is the pair
        ``[0, 0]`` here.

    Example:
        >>> HiddenStates(layers="last", distance="cosine")
        HiddenStates(layers='last', distance='cosine')
    """

    layers: str | Pairs | list[Any] = "uniform"
    distance: str = "mse"

    name: ClassVar[str] = "hidden_states"
    level: ClassVar[Level] = "token"
    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label", "multi_label", "regression"})
    paper: ClassVar[str] = "Romero et al. 2015, arXiv 1412.6550; Jiao et al. 2020, arXiv 1909.10351"
    cost: ClassVar[str] = "keeps the paired hidden states; a matrix product a pair where the widths differ"

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "layers", check_layers(self.layers, ("uniform", "last"), self.name))
        check_choice("distance", self.distance, ("mse", "cosine"), self.name)

    def pairs(self, student: ModelShape, teacher: ModelShape) -> Pairs:
        """Return the pairs of hidden states that are compared."""
        return layer_pairs(self.layers, student, teacher, self.name)  # type: ignore[arg-type]

    def feature_needs(self, student: ModelShape, teacher: ModelShape) -> tuple[FeatureNeeds, FeatureNeeds]:
        """Ask for the paired hidden states."""
        own, other = zip(*self.pairs(student, teacher), strict=True)
        return FeatureNeeds(frozenset(own)), FeatureNeeds(frozenset(other))

    def projection(self, student: ModelShape, teacher: ModelShape) -> nn.Module | None:
        """Return one matrix to the teacher's width, or None where the widths are equal."""
        return to_teachers_width(student, teacher)

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per token."""
        student, teacher = rows.features()
        values = []
        for own, other in self.pairs(student.shape, teacher.shape):
            projected, target = rows.project(student.tokens(own)), teacher.tokens(other)
            if self.distance == "mse":
                values.append((projected - target).square().mean(-1))
            else:
                values.append(1 - torch.cosine_similarity(projected, target, dim=-1))
        return torch.stack(values).sum(0)
