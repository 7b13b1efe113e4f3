"""Student and teacher as functions of a batch's continuous input: embeddings, pixels or audio values."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_distill.directions import standard_normals
from hf_distill.double_backward import double_backward
from hf_distill.input_space import embedding_layer, input_name
from hf_distill.items import Head, items_by_example, logits_by_example
from hf_distill.normalisation import untouched_randomness
from hf_distill.objectives.base import at_least_float32

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class InputFunctions:
    """Two models as functions of the same continuous input, and random directions to probe them along.

    Both functions return ``(examples, positions, classes)`` logits, one position for heads without
    positions, in the current grad mode. What one example gets does not depend on the others.

    Args:
        inputs: the point ``(examples, ...)`` at which to differentiate, in float32 or better.
        mask: which entries of the input are attended, boolean, broadcastable to ``inputs``.
        items: which logits are the examples' items, boolean, broadcastable to the logits.
        keys: ``(examples,)``, what the directions of each example are drawn by.
        student: the student's logits of an input; every call draws the same dropout.
        teacher: the teacher's.
        twice_differentiable: the context in which both can be differentiated twice.

    Example:
        >>> from hf_distill.directions import example_keys
        >>> x = torch.ones(1, 2)
        >>> functions = InputFunctions(
        ...     x, torch.tensor([[True, False]]), torch.ones(1, 1, 1, dtype=torch.bool),
        ...     example_keys(0, 0, 0, 1, x.device), lambda x: 2 * x[:, None], lambda x: x[:, None])
        >>> functions.input_directions()[0, 1].item()
        0.0
    """

    inputs: torch.Tensor
    mask: torch.Tensor
    items: torch.Tensor
    keys: torch.Tensor
    student: Function
    teacher: Function
    twice_differentiable: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    def input_directions(self) -> torch.Tensor:
        """Return v ~ N(0, I) over the attended entries of each example's input, and 0 elsewhere."""
        return standard_normals(self.keys, self.mask.expand_as(self.inputs), self.inputs.dtype)

    def output_directions(self, where: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return u, uniform on the unit sphere over some logits of each example, and 0 elsewhere.

        Shapes: a boolean mask ``(examples, positions, classes)``, to the same shape.
        """
        normals = standard_normals(self.keys, where, dtype)
        norm = normals.flatten(1).norm(dim=1).clamp(min=torch.finfo(dtype).tiny)
        return normals / norm[:, None, None]


def functions_of_batch(
    batch: dict[str, Any],
    student: nn.Module,
    teacher: nn.Module,
    head: Head,
    keys: torch.Tensor,
    run_student: Callable[[dict[str, Any]], torch.Tensor],
    run_teacher: Callable[[dict[str, Any]], torch.Tensor],
    seed: int,
) -> InputFunctions:
    """Return the two models as functions of this batch's input, at the same point for both.

    For text the point is the teacher's embedding of the tokens, which training does not move; the
    output of each model's word-embedding layer is replaced, so that positions, the last token of a
    causal classifier and all else that is read from ``input_ids`` stay as they are.

    Args:
        batch: a prepared batch.
        student: the student without wrappers, whose forward hooks and modes are set for a while.
        teacher: the teacher's model.
        head: what the logits mean.
        keys: see :class:`InputFunctions`.
        run_student: returns the logits of a batch through the wrapped student.
        run_teacher: returns the teacher's logits, in the student's order of classes.
        seed: what the student's dropout is drawn by.
    """
    name = input_name(student)
    text = name == "input_ids"
    if text:
        with torch.no_grad():
            point = _embedded(teacher, batch[name])
    else:
        point = batch[name]

    def of_student(x: torch.Tensor) -> torch.Tensor:
        with _same_randomness(seed, keys), _with_settled_modules(student):
            return _logits(student, run_student, x)

    def of_teacher(x: torch.Tensor) -> torch.Tensor:
        return _logits(teacher, run_teacher, x)

    def _logits(model: nn.Module, run: Callable[[dict[str, Any]], torch.Tensor], x: torch.Tensor) -> Any:
        with _replaced_embeddings(model, x) if text else contextlib.nullcontext():
            logits = run(batch if text else {**batch, name: x.to(batch[name].dtype)})
        return logits_by_example(logits, head)

    return InputFunctions(
        at_least_float32(point).detach(),
        _attended(batch, name, point),
        items_by_example(batch, head, point),
        keys,
        of_student,
        of_teacher,
        lambda: double_backward(student, teacher),
    )


def _embedded(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return a model's word embeddings of some tokens, on the tokens' device."""
    layer = embedding_layer(model)
    table = next(layer.parameters())
    return layer(ids.to(table.device)).to(ids.device)


def _attended(batch: dict[str, Any], name: str, point: torch.Tensor) -> torch.Tensor:
    """Return which entries of the input are no padding, broadcastable to it.

    Raises:
        ValueError: an attention mask that fits no dimension of the input.
    """
    mask = batch.get("attention_mask")
    if mask is None or name == "pixel_values":
        return torch.ones((1,) * point.dim(), dtype=torch.bool, device=point.device)
    mask = mask.bool()
    for shape in ((*mask.shape, *(1,) * (point.dim() - 2)), (mask.shape[0], 1, mask.shape[-1])):
        # (examples, length, width) for text and values; (examples, bands, frames) for some spectrograms
        if mask.dim() == 2 and len(shape) == point.dim():
            reshaped = mask.reshape(shape)
            if all(m in (1, p) for m, p in zip(reshaped.shape, point.shape, strict=True)):
                return reshaped
    raise ValueError(
        f"attention_mask: expected one entry per position of {name}, received {tuple(mask.shape)} beside an input "
        f"of shape {tuple(point.shape)}. Give a mask of shape (examples, length)."
    )


@contextlib.contextmanager
def _replaced_embeddings(model: nn.Module, x: torch.Tensor) -> Iterator[None]:
    """Let a model read x in place of its word embeddings, in its next forward."""
    calls: list[tuple[int, ...]] = []

    def replace(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        calls.append(tuple(output.shape))
        if len(calls) > 1:  # a decoder may share its encoder's layer
            return None
        if output.shape != x.shape:
            return None  # refused below, by name
        # The table stays in the graph, with a gradient of 0: DDP would take it for unused otherwise.
        return x.to(output.device, output.dtype) + 0.0 * output

    handle = embedding_layer(model).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
    if not calls or calls[0] != tuple(x.shape):
        raise ValueError(
            f"derivative: expected {type(model).__name__} to embed its input_ids once, into {tuple(x.shape)}, "
            f"received {calls[0] if calls else 'no call of its word-embedding layer'}. Student and teacher must share "
            "their embedding space: cut the student from the teacher with student_from_teacher."
        )


@contextlib.contextmanager
def _same_randomness(seed: int, keys: torch.Tensor) -> Iterator[None]:
    """Draw the same dropout in every forward of these examples, and leave the training's stream as it was."""
    with untouched_randomness([keys.device.index] if keys.device.type == "cuda" else []):
        torch.manual_seed(seed)
        numpy.random.seed(seed % 2**32)  # audio models mask spans of time by numpy
        random.seed(seed)
        yield


@contextlib.contextmanager
def _with_settled_modules(model: nn.Module) -> Iterator[None]:
    """Set aside what keeps a module in training from being a function of each example's input alone.

    Batch normalisation uses its running statistics: those of the batch couple its examples. And the
    feature encoders of wav2vec2's kin make no leaf of their input, which only a leaf bears: it has
    a gradient here already.
    """
    normalising: list[nn.Module] = [
        part for part in model.modules() if isinstance(part, _BatchNorm) and part.training
    ]
    making_leaves = [part for part in model.modules() if vars(part).get("_requires_grad") is True]
    for part in normalising:
        part.eval()
    for part in making_leaves:
        vars(part)["_requires_grad"] = False
    try:
        yield
    finally:
        for part in normalising:
            part.train()
        for part in making_leaves:
            vars(part)["_requires_grad"] = True
