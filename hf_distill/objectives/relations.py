"""relations: how each position's query, key and value relate to those of the others, as distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from hf_distill.features import FeatureNeeds, ModelShape
from hf_distill.objectives.base import Level, Objective, Rows, check_count, divergence_terms

_KINDS: tuple[Literal["query", "key", "value"], ...] = ("query", "key", "value")


@dataclass(frozen=True)
class Relations(Objective):
    """Match the self-attention relations of one layer, whatever the widths and numbers of heads.

    Formula: ``sum over X in (Q, K, V) of mean over relation heads of KL(R_t ‖ R_s)`` for each query position,
    with ``R = softmax(X X^T / sqrt(d))`` over the positions, ``X`` the heads put side by side and cut anew
    into ``relation_heads`` heads of width ``d``. Positions that are padding, or that a causal mask hides,
    leave the softmax. Its own scale is ``sqrt(d)``: no temperature, so no T^2.

    Shapes: ``(examples, heads, length, head width)`` to ``(tokens,)`` values, one per attended position.
    Units: nats per position and kind of relation.

    Args:
        relation_heads: a divisor of both models' widths, of all heads side by side; the paper's settings are 12
            for a 12-head teacher of width 768 in its main comparison of numbers of heads, and more, 24 to 64,
            are better there.
        student_layer: counted from 1; None is the last.
        teacher_layer: counted from 1; None is the last. The paper takes one below the last for teachers of
            24 layers.

    Raises:
        ValueError: a number of relation heads that does not divide a width, or a layer that is not there.

    Source: Wang et al., "MiniLMv2", arXiv 2012.15828, equations 4 to 7.

    Example:
        >>> Relations(relation_heads=4)
        Relations(relation_heads=4, student_layer=None, teacher_layer=None)
    """

    relation_heads: int = 12
    student_layer: int | None = None
    teacher_layer: int | None = None

    name: ClassVar[str] = "relations"
    level: ClassVar[Level] = "token"
    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    heads: ClassVar[frozenset[str]] = frozenset({"single_label", "multi_label", "regression"})
    paper: ClassVar[str] = "Wang et al. 2021, arXiv 2012.15828"
    cost: ClassVar[str] = "three relations of length^2 a relation head, of one layer"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("relation_heads", self.relation_heads, self.name)
        for setting in ("student_layer", "teacher_layer"):
            if getattr(self, setting) is not None:
                check_count(setting, getattr(self, setting), self.name)

    def layers(self, student: ModelShape, teacher: ModelShape) -> tuple[int, int]:
        """Return the two layers that are compared."""
        return self.student_layer or student.layers, self.teacher_layer or teacher.layers

    def feature_needs(self, student: ModelShape, teacher: ModelShape) -> tuple[FeatureNeeds, FeatureNeeds]:
        """Ask for one layer of each."""
        own, other = self.layers(student, teacher)
        for who, layer, shape in (("student", own, student), ("teacher", other, teacher)):
            if layer > shape.layers:
                raise ValueError(
                    f"{self.name}: {who}_layer: expected at most {shape.layers}, received {layer}."
                )
            if shape.attention_width % self.relation_heads:
                raise ValueError(
                    f"{self.name}: relation_heads: expected a divisor of the {who}'s width {shape.attention_width}, "
                    f"received {self.relation_heads}."
                )
        return FeatureNeeds(attention=frozenset({own})), FeatureNeeds(attention=frozenset({other}))

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return one value per attended position."""
        student, teacher = rows.features()
        own, other = self.layers(student.shape, teacher.shape)
        own_inputs, other_inputs = student.attention[own], teacher.attention[other]
        allowed = own_inputs.allowed & other_inputs.allowed
        # A padded query has no key at all: give it every one, so that its row, which is dropped, is finite.
        allowed = allowed | ~allowed.any(-1, keepdim=True)
        values = [
            divergence_terms(
                self._relation(other_inputs.vectors(kind), allowed),
                self._relation(own_inputs.vectors(kind), allowed),
            )
            .sum(-1)
            .mean(1)
            for kind in _KINDS
        ]
        return torch.stack(values).sum(0)[student.attended]

    def _relation(self, tensor: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Return ``(examples, relation heads, length, length)`` log-probabilities."""
        examples, _, length, _ = tensor.shape
        vectors = tensor.transpose(1, 2).reshape(examples, length, self.relation_heads, -1).transpose(1, 2)
        scores = vectors @ vectors.transpose(-1, -2) / vectors.shape[-1] ** 0.5
        return torch.log_softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1)
