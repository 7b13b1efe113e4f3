"""How a language model is measured: perplexity over the tokens it is to predict, and how many it gets right."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from hf_distill.evaluation.measures import Column, Measure, ratio
from hf_distill.items import IGNORED


class PerplexityMeasure(Measure):
    """Perplexity, cross-entropy in nats per token, and the share of tokens predicted rightly.

    Formula: ``perplexity = exp(sum over labelled tokens of -log p(token) / their number)``, over all tokens of the
    evaluation set, and not a mean over batches or texts.

    Shapes: logits ``(examples, length, vocabulary)`` and labels ``(examples, length)``, of which ``-100`` does not
    count; what is kept of a batch is ``(examples, 3)``: the sum of nats, the right tokens, all labelled tokens.

    Args:
        shift: position ``t`` predicts the label of ``t + 1``, as in causal language models.

    Example:
        >>> measure = PerplexityMeasure(shift=False)
        >>> logits = torch.log(torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]))
        >>> kept = measure.preprocess(logits, torch.tensor([[0, 0]])).numpy()
        >>> {name: round(value, 3) for name, value in measure.metrics(kept, None).items()}
        {'perplexity': 2.828, 'cross_entropy': 1.04, 'accuracy': 0.5}
    """

    headline = "perplexity"
    lower_is_better = True
    columns: ClassVar[tuple[Column, ...]] = (
        Column("perplexity", "perplexity", percent=False),
        Column("cross_entropy", "nats / token", percent=False),
        Column("accuracy", "accuracy"),
    )

    def __init__(self, shift: bool) -> None:
        self.shift = shift

    def preprocess(self, logits: Any, labels: Any) -> Any:
        """Sum over each example's tokens, so that logits over a vocabulary are never gathered."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        if self.shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        told = labels != IGNORED
        nats = torch.zeros(told.shape, dtype=torch.float32, device=logits.device)
        nats[told] = cross_entropy(logits[told].float(), labels[told], reduction="none")
        right = (logits.argmax(-1) == labels) & told
        return torch.stack([nats.sum(-1), right.sum(-1).float(), told.sum(-1).float()], -1)

    def metrics(self, predictions: Any, labels: Any) -> dict[str, float]:
        """Return perplexity, cross-entropy and accuracy of what was kept."""
        nats, right, told = self.statistics(predictions, labels).sum(0)
        if not told:
            return {}
        return {
            "perplexity": float(numpy.exp(nats / told)),
            "cross_entropy": float(nats / told),
            "accuracy": float(right / told),
        }

    def statistics(self, predictions: Any, labels: Any) -> NDArray[numpy.float64]:
        """Return the sums of each example."""
        return numpy.asarray(predictions, dtype=numpy.float64)

    def value(self, sums: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
        """Return perplexity from sums."""
        values: NDArray[numpy.float64] = numpy.exp(ratio(sums[..., [0, 2]]))
        return values
