"""Which rows a loss is taken over: shift, masks and -100 are handled here, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hf_distill.objectives.base import HeadKind, Level, Rows
from hf_distill.spans import IGNORED as IGNORED
from hf_distill.spans import points_at_spans
from hf_distill.teachers.signals import TeacherSignals

_POSITION_LOSSES = {"ForCausalLM", "ForMaskedLM", "ForTokenClassification", "ForConditionalGeneration"}
_WRITERS = ("LMHeadModel", "ModelWithLMHead")
# Their own loss compares the logits of a position with the label of the same one, whatever their names promise.
_UNSHIFTED = frozenset(
    "XLMWithLMHeadModel FlaubertWithLMHeadModel XLNetLMHeadModel BartForCausalLM BigBirdPegasusForCausalLM "
    "BlenderbotForCausalLM BlenderbotSmallForCausalLM CpmAntForCausalLM MarianForCausalLM MBartForCausalLM "
    "MusicgenForCausalLM MusicgenMelodyForCausalLM MvpForCausalLM PegasusForCausalLM PLBartForCausalLM "
    "TrOCRForCausalLM WhisperForCausalLM".split()
)


@dataclass(frozen=True)
class Head:
    """What a model's outputs mean.

    Args:
        kind: ``single_label``, ``multi_label`` or ``regression``.
        positions: one prediction per position (tokens) instead of one per example.
        shift: position ``t`` predicts the label of ``t + 1`` (causal language models).
        spans: two predictions per example, the start and the end of a span, whose classes are positions.
        attended: with positions, the teacher's items are all attended ones and not those with a label alone.
        special_ids: tokens that are no items then, where the batch has no ``special_tokens_mask``.
    """

    kind: HeadKind
    positions: bool = False
    shift: bool = False
    spans: bool = False
    attended: bool = False
    special_ids: tuple[int, ...] = ()

    @property
    def meaning(self) -> dict[str, Any]:
        """What a teacher's head must have in common with it."""
        return {name: getattr(self, name) for name in ("kind", "positions", "shift", "spans")}


def head_of(model: Any, example_label: Any = None) -> Head:
    """Read the kind of a model's head from its class, ``problem_type`` and ``num_labels``.

    ``problem_type`` wins. Without it, one label means regression, and integer labels one class
    out of several, as transformers decides at its first batch.

    Args:
        model: a transformers model, unwrapped.
        example_label: the label of any example, looked at where ``problem_type`` is not set.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> head_of(BertForSequenceClassification(BertConfig(num_labels=1, **sizes))).kind
        'regression'
    """
    if points_at_spans(model):
        return Head("single_label", positions=True, spans=True)
    loss_type = getattr(model, "loss_type", None)
    config = getattr(model, "config", None)
    name = type(model).__name__
    if loss_type in _POSITION_LOSSES or name.endswith(_WRITERS):
        causal = loss_type in ("ForCausalLM", "ForConditionalGeneration") or name.endswith(_WRITERS)
        causal = causal and name not in _UNSHIFTED
        return Head(
            "single_label", positions=True, shift=causal and not getattr(config, "is_encoder_decoder", False)
        )
    if chooses(model):
        return Head("single_label")
    problem_type = getattr(config, "problem_type", None)
    if problem_type is not None:
        kinds: dict[str, HeadKind] = {
            "regression": "regression",
            "single_label_classification": "single_label",
            "multi_label_classification": "multi_label",
        }
        return Head(kinds[problem_type])
    if getattr(config, "num_labels", 2) == 1:
        return Head("regression")
    first = example_label[0] if isinstance(example_label, (list, tuple)) and example_label else example_label
    if _is_float(first):
        return Head("multi_label")
    return Head("single_label")


def chooses(model: Any) -> bool:
    """Return whether a model's classes are the choices that an example has, which ``num_labels`` says nothing of.

    Example:
        >>> from transformers import BertConfig, BertForMultipleChoice
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> chooses(BertForMultipleChoice(BertConfig(**sizes)))
        True
    """
    return type(model).__name__.endswith("ForMultipleChoice")


def _is_float(label: Any) -> bool:
    if hasattr(label, "ndim") and label.ndim > 0:
        return "float" in str(label.dtype)
    return isinstance(label, float)


def labelled_mask(labels: torch.Tensor, head: Head) -> torch.Tensor:
    """Return which rows carry a label: not -100 for integers, no NaN for floats.

    Shapes: integer ``(batch,)`` or ``(batch, length)`` to the same shape (one shorter when shifted);
    float ``(batch,)`` or ``(batch, outputs)`` to ``(batch,)``.

    Example:
        >>> labelled_mask(torch.tensor([1, -100]), Head("single_label"))
        tensor([ True, False])
        >>> labelled_mask(torch.tensor([[0.0, 1.0], [float("nan")] * 2]), Head("multi_label"))
        tensor([ True, False])
    """
    if head.kind != "single_label":
        return ~labels.isnan().flatten(1).any(-1) if labels.dim() > 1 else ~labels.isnan()
    if head.positions and head.shift:
        labels = labels[..., 1:]
    return labels.ne(IGNORED)


def labels_of_predictions(labels: torch.Tensor, head: Head) -> torch.Tensor:
    """Return, for each prediction of a model, the label it is to give; -100 where there is none.

    Shapes: as the labels; causal models predict the label of the next position.

    Example:
        >>> labels_of_predictions(torch.tensor([[5, 6, 7]]), Head("single_label", positions=True, shift=True))
        tensor([[   6,    7, -100]])
    """
    if not (head.positions and head.shift):
        return labels
    return torch.cat([labels[..., 1:], torch.full_like(labels[..., :1], IGNORED)], -1)


def item_mask(batch: dict[str, Any], head: Head) -> torch.Tensor | None:
    """Return which positions are items, ``(batch, length)``, or None where every example is one.

    Positions with a label are items; with no label column, or where the head says so, attended and non-special
    positions are. Each example has one start and one end, with a label or without.
    """
    if not head.positions:
        return None
    labels = batch.get("labels")
    if head.spans:
        like = labels if labels is not None else batch.get("input_ids", batch.get("inputs_embeds"))
        assert isinstance(like, torch.Tensor), "a text is given as ids or embeddings"
        return torch.ones(like.shape[0], 2, dtype=torch.bool, device=like.device)
    if labels is not None and not head.attended:
        return labelled_mask(labels, head)
    inputs: Any = batch.get("input_ids")
    mask: Any = batch.get("attention_mask")
    if mask is None and inputs is None:
        raise ValueError("expected labels, an attention_mask or input_ids to tell which positions are items.")
    mask = torch.ones_like(inputs, dtype=torch.bool) if mask is None else mask.bool()
    special = batch.get("special_tokens_mask")
    if special is not None:
        mask = mask & ~special.bool()
    elif head.special_ids and inputs is not None:
        mask = mask & ~torch.isin(inputs, torch.tensor(head.special_ids, device=inputs.device))
    # A prediction needs both its own position and the one it predicts to be text.
    return mask[..., :-1] & mask[..., 1:] if head.shift else mask


def count_items(batch: dict[str, Any], head: Head, level: Level = "item") -> torch.Tensor | int:
    """Return how many rows of a level a batch has, without waiting for the device."""
    if level == "token":
        return count_tokens(batch)
    mask = item_mask(batch, head)
    if mask is None or level == "example":
        return batch_size(batch)
    return mask.sum()


def count_tokens(batch: dict[str, Any]) -> torch.Tensor | int:
    """Return how many positions of text a batch has.

    Of images and audio, whose positions the model makes, return how many examples.

    Example:
        >>> count_tokens({"input_ids": torch.ones(2, 3), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])})
        tensor(4)
    """
    inputs, mask = batch.get("input_ids"), batch.get("attention_mask")
    if inputs is None:
        return batch_size(batch)
    return int(inputs.numel()) if mask is None else mask.bool().sum()


def token_weights(attended: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor | None:
    """Return what each attended position weighs, ``(tokens,)``: None for text, where each counts as one.

    Without ``input_ids`` the positions of an example share the weight 1, as :func:`count_tokens` counts it.
    """
    if batch.get("input_ids") is not None:
        return None
    per_example = attended.sum(-1, keepdim=True).clamp(min=1)
    return (1.0 / per_example).expand(attended.shape)[attended]


def count_labelled(batch: dict[str, Any], head: Head) -> torch.Tensor | int:
    """Return how many labelled items a batch has, without waiting for the device."""
    labels = batch.get("labels")
    return 0 if labels is None else labelled_mask(labels, head).sum()


def count_span_labels(batch: dict[str, Any], head: Head) -> tuple[torch.Tensor | int, torch.Tensor | int]:
    """Return how many starts and how many ends of spans have a label; 0 for other heads."""
    labels = batch.get("labels")
    if not head.spans or labels is None:
        return 0, 0
    told = labels.ne(IGNORED).sum(0)
    return told[0], told[1]


def batch_size(batch: dict[str, Any]) -> int:
    """Return the number of examples: the first dimension of the first tensor that has one."""
    for value in batch.values():
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            return int(value.shape[0])
    raise ValueError(f"expected a batch with at least one tensor, received the keys {list(batch)}.")


def slice_batch(batch: dict[str, Any], rows: slice) -> dict[str, Any]:
    """Return some examples of a batch; what is no tensor of that length stays."""
    size = batch_size(batch)
    return {
        key: value[rows]
        if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == size
        else value
        for key, value in batch.items()
    }


def select_rows(
    student_logits: torch.Tensor, teacher: TeacherSignals, batch: dict[str, Any], head: Head
) -> Rows:
    """Align student, teacher and labels, and keep the items only.

    Shapes: ``(batch, classes)``, or ``(batch, length, classes)`` for heads with positions, to
    ``(items, classes)``. What is ignored is dropped, so a NaN there reaches nothing.
    """
    labels = batch.get("labels")
    mask = item_mask(batch, head)
    if mask is None:
        if student_logits.dim() == 1:
            student_logits = student_logits.unsqueeze(-1)
        return Rows(student_logits, teacher, labels)
    if head.shift:
        student_logits = student_logits[..., :-1, :]
        teacher = teacher.select((..., slice(None, -1), slice(None)))
        labels = None if labels is None else labels[..., 1:]
    return Rows(student_logits[mask], teacher.select(mask), None if labels is None else labels[mask])


def logits_by_example(logits: torch.Tensor, head: Head) -> torch.Tensor:
    """Return ``(batch, positions, classes)`` logits, with one position for heads without positions.

    Example:
        >>> logits_by_example(torch.zeros(2, 3), Head("single_label")).shape
        torch.Size([2, 1, 3])
        >>> logits_by_example(torch.zeros(2, 5, 9), Head("single_label", positions=True, shift=True)).shape
        torch.Size([2, 4, 9])
    """
    if not head.positions:
        return logits.reshape(logits.shape[0], 1, -1)
    return logits[..., :-1, :] if head.shift else logits


def items_by_example(batch: dict[str, Any], head: Head, like: torch.Tensor) -> torch.Tensor:
    """Return which of :func:`logits_by_example` are items, ``(batch, positions, 1)``, boolean.

    Args:
        batch: a prepared batch.
        head: what the logits mean.
        like: any tensor of as many examples, on the device of the answer.
    """
    mask = item_mask(batch, head)
    if mask is None:
        return torch.ones(like.shape[0], 1, 1, dtype=torch.bool, device=like.device)
    return mask.unsqueeze(-1)
