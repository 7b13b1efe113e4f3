"""Heads that point at the start and the end of an answer: their logits and labels in the shape of all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

IGNORED = -100
START, END = "start_positions", "end_positions"
# Heads that search the end for each of some starts: there are no logits over all positions.
_SEARCHING = ("XLNetForQuestionAnswering", "XLMForQuestionAnswering", "FlaubertForQuestionAnswering")
# What models add to a position that can't be an answer, XLNet's 1e30 among them.
_RULED_OUT = -1e29


def points_at_spans(model: Any) -> bool:
    """Whether a model's head has logits for the start and the end of a span.

    Raises:
        ValueError: a head that searches ends for the best starts alone.

    Example:
        >>> from transformers import BertConfig, BertForQuestionAnswering
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> points_at_spans(BertForQuestionAnswering(BertConfig(**sizes)))
        True
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    name = type(model).__name__
    if name in _SEARCHING:
        raise ValueError(
            f"model: expected a head with logits for the start and the end at every position, received {name}, which "
            f"searches among the best starts. Use {name}Simple."
        )
    return name.endswith(("ForQuestionAnswering", "ForQuestionAnsweringSimple"))


def span_logits(outputs: Any) -> torch.Tensor | None:
    """Return ``(examples, 2, positions)``, start and end, of a model's output; None where it has none."""
    held = outputs if isinstance(outputs, Mapping) else vars(outputs) if hasattr(outputs, "__dict__") else {}
    start, end = held.get("start_logits"), held.get("end_logits")
    return None if start is None or end is None else torch.stack([start, end], 1)


def without_padding(logits: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return start and end logits with minus infinity where no answer can be: padding, and what the model rules out.

    Shapes: ``(examples, 2, positions)``, and so the result.

    Example:
        >>> mask = torch.tensor([[1, 1, 0]])
        >>> without_padding(torch.zeros(1, 2, 3), {"attention_mask": mask})[0, 0]
        tensor([0., 0., -inf])
    """
    ruled_out = logits <= max(_RULED_OUT, torch.finfo(logits.dtype).min / 2)
    attended = inputs.get("attention_mask")
    if attended is not None and attended.dim() == 2 and attended.shape[1] == logits.shape[-1]:
        ruled_out = ruled_out | (attended == 0).unsqueeze(1)
    return logits.masked_fill(ruled_out, -torch.inf)


def span_labels(start: torch.Tensor, end: torch.Tensor, length: int) -> torch.Tensor:
    """Return ``(examples, 2)`` labels as the models read them: below 0 is 0, and beyond the text is none (-100).

    Example:
        >>> span_labels(torch.tensor([1, 9]), torch.tensor([2, -1]), length=4)
        tensor([[   1,    2],
                [-100,    0]])
    """
    positions = torch.stack([start.reshape(-1), end.reshape(-1)], 1).clamp(min=0)
    return positions.masked_fill(positions >= length, IGNORED)


def span_loss_sums(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the summed cross-entropies of starts and of ends, ``(2,)``, over the examples that have a label.

    Shapes: logits ``(examples, 2, positions)`` as the model gives them, labels ``(examples, 2)``.
    """
    return torch.stack(
        [
            cross_entropy(logits[:, which].float(), labels[:, which], ignore_index=IGNORED, reduction="sum")
            for which in range(2)
        ]
    )


@dataclass
class SpanLabels:
    """Wraps a data collator, and puts the labels of starts and ends where those of other heads are.

    Args:
        collator: makes the batch.
    """

    collator: Callable[[list[Any]], Any]

    @property
    def tokenizer(self) -> Any:
        """The wrapped collator's tokenizer, which Trainer saves when it has no processing class."""
        return getattr(self.collator, "tokenizer", None)

    def __call__(self, features: list[Any]) -> Any:
        """Make a batch."""
        batch = self.collator(features)
        start, end = batch.get(START), batch.get(END)
        if start is not None and end is not None:
            text = batch.get("input_ids") if batch.get("input_ids") is not None else batch["inputs_embeds"]
            batch["labels"] = span_labels(start, end, text.shape[1])
        return batch
