"""Random features of two models, shared by the tests of objectives that match what models compute inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_distill.attention_inputs import AttentionInputs
from hf_distill.features import Features, ModelShape
from hf_distill.objectives import Objective, Rows
from hf_distill.teachers.signals import DenseSignals

# Widths that the 12 relation heads of the default divide; other numbers of layers, heads and widths.
STUDENT = ModelShape(layers=2, width=12, heads=2)
TEACHER = ModelShape(layers=4, width=24, heads=4)
LENGTHS = (4, 2, 3, 1)


def features(
    shape: ModelShape,
    seed: int = 0,
    lengths: tuple[int, ...] = LENGTHS,
    dtype: torch.dtype = torch.float64,
    causal: bool = False,
    scale: float = 1.0,
) -> Features:
    """Return random features of every layer, for padded texts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    examples, longest = len(lengths), max(lengths)

    def random(*sizes: int) -> torch.Tensor:
        return (torch.randn(*sizes, generator=generator, dtype=torch.float64) * scale).to(dtype)

    attended = torch.arange(longest) < torch.tensor(lengths)[:, None]
    allowed = attended[:, None, None, :].expand(-1, -1, longest, -1)
    allowed = allowed.tril() if causal else allowed
    heads, head_width = shape.heads, shape.width // shape.heads
    attention = {
        layer: AttentionInputs(
            *(random(examples, heads, longest, head_width) for _ in range(3)), head_width**-0.5, allowed
        )
        for layer in range(1, shape.layers + 1)
    }
    states = {number: random(examples, longest, shape.width) for number in range(shape.layers + 1)}
    return Features(states, attention, attended, shape)


def tensors(of: Features) -> list[torch.Tensor]:
    """Return all that an objective may read."""
    inside = [getattr(one, kind) for one in of.attention.values() for kind in ("query", "key", "value")]
    return [*of.hidden_states.values(), *inside]


def rebuilt(like: Features, values: Any) -> Features:
    """Return features with other tensors, in the order of :func:`tensors`."""
    values = iter(values)
    states = {number: next(values) for number in like.hidden_states}
    attention = {
        layer: AttentionInputs(next(values), next(values), next(values), one.scaling, one.allowed)
        for layer, one in like.attention.items()
    }
    return Features(states, attention, like.attended, like.shape)


def with_gradient(of: Features) -> Features:
    """Return the same features as leaves that gather a gradient."""
    return rebuilt(of, [value.detach().clone().requires_grad_(True) for value in tensors(of)])


def gradients(of: Features) -> torch.Tensor:
    """Return the gradients of all tensors, 0 where none came."""
    return torch.cat(
        [(torch.zeros_like(v) if v.grad is None else v.grad).flatten().double() for v in tensors(of)]
    )


def projection_for(objective: Objective, student: ModelShape, teacher: ModelShape) -> nn.Module | None:
    """Return the objective's own module with weights of its own, in float64."""
    torch.manual_seed(3)
    made = objective.projection(student, teacher)
    return None if made is None else made.double()


def feature_rows(student: Features, teacher: Features, projection: nn.Module | None = None) -> Rows:
    """Return the rows that the trainer would give an objective."""
    logits = torch.zeros(student.attended.shape[0], 2)
    return Rows(
        logits,
        DenseSignals(logits),
        student_features=student,
        teacher_features=teacher,
        projection=projection,
    )


def values_of(objective: Objective, student: Features, teacher: Features) -> torch.Tensor:
    """Return the objective's values, with its module where the widths differ."""
    made = projection_for(objective, student.shape, teacher.shape)
    if made is not None and tensors(student)[0].dtype != torch.float64:
        made = made.float()
    return objective(feature_rows(student, teacher, made))
