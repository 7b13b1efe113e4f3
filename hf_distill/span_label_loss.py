"""The label loss of heads that point at spans: the models' own, taken over starts and ends apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_distill.items import IGNORED, Head, count_span_labels
from hf_distill.normalisation import Normalisation, undisturbed
from hf_distill.spans import span_loss_sums
from hf_distill.teachers.online import logits_of


class SpanLabelLossMixin:
    """Scales the loss of starts and of ends by the labels that each has in the whole accumulated batch.

    The models' own loss is the mean of two means: over the starts that are in the text, and over the ends. Where a
    batch is split, or an answer is cut off, the two have other counts, which one scale for their sum can't give.
    """

    head: Head
    _matches_functional_loss: bool | None

    def _share(self, level: str, local: torch.Tensor | int) -> torch.Tensor | float:
        raise TypeError("SpanLabelLossMixin is one layer of LabelLossMixin, which counts.")

    def _probed_model(self) -> nn.Module:
        raise TypeError("SpanLabelLossMixin is one layer of LabelLossMixin, which knows the model.")

    def unscaled_label_loss(
        self, model: nn.Module, batch: dict[str, Any], num_items: torch.Tensor | int | None
    ) -> tuple[torch.Tensor, Any, Normalisation]:
        """Return the loss as the model gives it."""
        raise TypeError("SpanLabelLossMixin is one layer of LabelLossMixin, which asks the model.")

    def _agree(self, answer: Normalisation) -> Normalisation:
        raise TypeError("SpanLabelLossMixin is one layer of LabelLossMixin, which asks all ranks.")

    def _loss_of_spans(self, outputs: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Return the models' own loss, the mean of starts' and ends', each over its own labels in the whole batch."""
        sums = span_loss_sums(logits_of(outputs, "student"), batch["labels"])
        counts = count_span_labels(batch, self.head)
        shares = [self._share(level, count) for level, count in zip(("start", "end"), counts, strict=True)]
        return (
            torch.stack([total * share for total, share in zip(sums, shares, strict=True)]).sum().float() / 2
        )

    def _probe_spans(self, batch: dict[str, Any], tolerance: float) -> Normalisation:
        """Find out whether a model's own loss is the usual one, which can be taken over starts and ends apart."""
        context: Any = self
        with undisturbed(self._probed_model()), context.compute_loss_context_manager():
            loss, outputs, _ = self.unscaled_label_loss(self._probed_model(), batch, None)
            sums = span_loss_sums(logits_of(outputs, "student"), batch["labels"])
            usual = (sums / (batch["labels"] != IGNORED).sum(0).clamp(min=1)).mean()
        both = bool((batch["labels"] != IGNORED).any(0).all())
        alike = not both or bool((loss - usual).abs() <= tolerance * usual.abs())
        self._matches_functional_loss = alike
        return self._agree(Normalisation.MEAN if alike else Normalisation.NEITHER)
