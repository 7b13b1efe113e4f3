"""How answers cut out of a text are measured: exact match and F1 over words, as SQuAD 1.1 defines them."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
from numpy.typing import NDArray

from hf_distill.evaluation.measures import Column, Measure, ratio

# Starts and ends that are tried against each other, and the longest answer in tokens.
BEST, LONGEST_ANSWER = 20, 30


def normalised(answer: str) -> str:
    """Return an answer in small letters, without punctuation, articles and more than one blank.

    Example:
        >>> normalised("The  Sky, blue!")
        'sky blue'
    """
    plain = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """Return 1 if an answer is one of the true ones, else 0."""
    return float(any(normalised(answer) == normalised(truth) for truth in truths))


def word_f1(answer: str, truths: Sequence[str]) -> float:
    """Return the largest F1 over words of an answer against the true ones.

    Example:
        >>> word_f1("the blue sky", ["blue", "a sky of blue"])
        0.8
    """
    return max(_f1(normalised(answer).split(), normalised(truth).split()) for truth in truths)


def _f1(words: list[str], truth: list[str]) -> float:
    if not words or not truth:
        return float(words == truth)
    common = sum((collections.Counter(words) & collections.Counter(truth)).values())
    return 2 * common / (len(words) + len(truth))


@dataclass(frozen=True)
class TextFeature:
    """One window of a question's text, as a model read it.

    Args:
        example: number of the question.
        offsets: of each token, where its characters start and end in the context; None where it is not of the context.
    """

    example: int
    offsets: Sequence[tuple[int, int] | None]


class SpanMeasure(Measure):
    """F1 and exact match of the best span over all windows of each question's text.

    Args:
        contexts: the text of each question.
        truths: its true answers, one at least.
        features: the windows, in the order of the predictions.

    Shapes: predictions are a pair ``(start logits, end logits)``, each ``(windows, positions)``.

    Source: Rajpurkar et al. 2016, SQuAD, arXiv 1606.05250, section 6.1; a span is scored by the sum of both logits, as
    in BERT, arXiv 1810.04805, section 4.2. The best 20 starts and ends are tried, for answers of at most 30 tokens.

    Example:
        >>> offsets = [None, (0, 3), (4, 7)]
        >>> measure = SpanMeasure(["the sky"], [["sky"]], [TextFeature(0, offsets)])
        >>> logits = numpy.array([[9.0, 0.0, 1.0]])
        >>> measure.metrics((logits, logits), None)
        {'f1': 1.0, 'exact_match': 1.0}
    """

    headline = "f1"
    columns: ClassVar[tuple[Column, ...]] = (Column("f1", "F1"), Column("exact_match", "exact match"))

    def __init__(
        self, contexts: Sequence[str], truths: Sequence[Sequence[str]], features: Sequence[TextFeature]
    ) -> None:
        self.contexts, self.truths, self.features = list(contexts), list(truths), list(features)

    def preprocess(self, logits: Any, labels: Any) -> Any:
        """Keep the logits of starts and ends."""
        return logits[:2]

    def answers(self, predictions: Any) -> list[str]:
        """Return the answer to each question; an empty one where no span is in its text."""
        starts, ends = (numpy.asarray(one, dtype=numpy.float64) for one in predictions)
        if len(starts) != len(self.features):
            raise ValueError(
                f"predictions: expected those of {len(self.features)} windows, received {len(starts)}. Evaluate the "
                "whole set, in its order."
            )
        best: list[tuple[float, str]] = [(-numpy.inf, "")] * len(self.contexts)
        for feature, start, end in zip(self.features, starts, ends, strict=True):
            score, span = _best_span(feature.offsets, start, end)
            if span is not None and score > best[feature.example][0]:
                best[feature.example] = score, self.contexts[feature.example][span[0] : span[1]]
        return [answer for _, answer in best]

    def metrics(self, predictions: Any, labels: Any) -> dict[str, float]:
        """Return F1 and exact match."""
        f1, exact, count = self.statistics(predictions, labels).sum(0)
        return {"f1": float(f1 / count), "exact_match": float(exact / count)}

    def statistics(self, predictions: Any, labels: Any) -> NDArray[numpy.float64]:
        """Return F1, exact match and 1 for each question."""
        pairs = zip(self.answers(predictions), self.truths, strict=True)
        return numpy.array([[word_f1(said, true), exact_match(said, true), 1.0] for said, true in pairs])

    def value(self, sums: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
        """Return F1 from sums."""
        return ratio(sums[..., [0, 2]])


def _best_span(
    offsets: Sequence[tuple[int, int] | None], start: NDArray[Any], end: NDArray[Any]
) -> tuple[float, tuple[int, int] | None]:
    """Return the highest score of a span inside the context, and where it is in it."""
    inside = numpy.array([place for place, offset in enumerate(offsets) if offset is not None], dtype=int)
    if not len(inside):
        return -numpy.inf, None
    starts = inside[numpy.argsort(-start[inside], kind="stable")[:BEST]]
    ends = inside[numpy.argsort(-end[inside], kind="stable")[:BEST]]
    scores = start[starts][:, None] + end[ends][None, :]
    lengths = ends[None, :] - starts[:, None] + 1
    scores = numpy.where((lengths >= 1) & (lengths <= LONGEST_ANSWER), scores, -numpy.inf)
    first, last = numpy.unravel_index(int(scores.argmax()), scores.shape)
    if scores[first, last] == -numpy.inf:
        return -numpy.inf, None
    before, behind = offsets[starts[first]], offsets[ends[last]]
    assert before is not None, "starts are inside the context"
    assert behind is not None, "ends are inside the context"
    return float(scores[first, last]), (before[0], behind[1])
