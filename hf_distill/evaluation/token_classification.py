"""How tags of words are measured: accuracy, and F1 over entities as seqeval counts it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy
from numpy.typing import NDArray

from hf_distill.evaluation.measures import Column, Measure, ratio
from hf_distill.evaluation.needed import needed
from hf_distill.items import IGNORED

_OF_ENTITY = re.compile(r"[BI]-.+|O")


def tags_entities(names: Sequence[str]) -> bool:
    """Whether classes are those of entities in IOB2: ``B-`` begins one, ``I-`` goes on, ``O`` is outside.

    Example:
        >>> tags_entities(["B-LOC", "I-LOC", "O"]), tags_entities(["NOUN", "VERB"])
        (True, False)
    """
    return all(_OF_ENTITY.fullmatch(name) for name in names) and any(name.startswith("B-") for name in names)


def token_measure(names: Sequence[str]) -> Measure:
    """Return how tags with some names are measured: entities by their F1, any others by accuracy."""
    return EntityMeasure(names) if tags_entities(names) else TokenAccuracyMeasure()


class TokenAccuracyMeasure(Measure):
    """The share of words whose tag is right; words without one (-100) are left out.

    Shapes: logits ``(sentences, length, classes)``, of which the largest class is kept, and labels
    ``(sentences, length)``.

    Example:
        >>> measure = TokenAccuracyMeasure()
        >>> measure.metrics(numpy.array([[1, 0, 2]]), numpy.array([[1, 1, -100]]))
        {'accuracy': 0.5}
    """

    headline = "accuracy"
    columns: ClassVar[tuple[Column, ...]] = (Column("accuracy", "accuracy"),)

    def preprocess(self, logits: Any, labels: Any) -> Any:
        """Keep the class of each position alone."""
        return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)

    def metrics(self, predictions: Any, labels: Any) -> dict[str, float]:
        """Return the accuracy over words."""
        sums = self.statistics(predictions, labels).sum(0)
        return {"accuracy": float(ratio(sums))} if sums[1] else {}

    def statistics(self, predictions: Any, labels: Any) -> NDArray[numpy.float64]:
        """Return right and tagged words of each sentence."""
        predictions, labels = numpy.asarray(predictions), numpy.asarray(labels)
        tagged = labels != IGNORED
        right = (predictions == labels) & tagged
        return numpy.stack([right.sum(-1), tagged.sum(-1)], -1).astype(numpy.float64)

    def value(self, sums: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
        """Return accuracy from right and tagged words."""
        return ratio(sums)


class EntityMeasure(TokenAccuracyMeasure):
    """Precision, recall and F1 over whole entities, micro-averaged as ``seqeval`` does, and accuracy over words.

    Args:
        names: of the classes, in IOB2.

    Raises:
        ImportError: ``seqeval`` is not installed.

    Source: Ramshaw and Marcus 1995, cmp-lg/9505040; Tjong Kim Sang and De Meulder 2003, cs/0306050 (CoNLL-2003): an
    entity is right if its span and its type are.

    Example:
        >>> measure = EntityMeasure(["B-LOC", "I-LOC", "O"])
        >>> truth = numpy.array([[0, 1, 2, 0]])
        >>> found = measure.metrics(numpy.array([[0, 2, 2, 0]]), truth)
        >>> found["precision"], found["recall"], found["f1"], found["accuracy"]
        (0.5, 0.5, 0.5, 0.75)
    """

    headline = "f1"
    columns = (
        Column("f1", "F1"), Column("precision", "precision"), Column("recall", "recall"),
        Column("accuracy", "accuracy"),
    )  # fmt: skip

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._entities = needed("seqeval.metrics.sequence_labeling", "seqeval").get_entities

    def metrics(self, predictions: Any, labels: Any) -> dict[str, float]:
        """Return F1, precision, recall and accuracy."""
        words = TokenAccuracyMeasure.statistics(self, predictions, labels).sum(0)
        if not words[1]:
            return {}
        right, found, there = self.statistics(predictions, labels).sum(0)
        return {
            "f1": float(self.value(numpy.array([right, found, there]))),
            "precision": float(ratio(numpy.array([right, found]))),
            "recall": float(ratio(numpy.array([right, there]))),
            "accuracy": float(ratio(words)),
        }

    def statistics(self, predictions: Any, labels: Any) -> NDArray[numpy.float64]:
        """Return right, found and true entities of each sentence."""
        rows = []
        for predicted, true in self._sentences(numpy.asarray(predictions), numpy.asarray(labels)):
            found, there = set(self._entities(predicted)), set(self._entities(true))
            rows.append([len(found & there), len(found), len(there)])
        return numpy.asarray(rows, dtype=numpy.float64).reshape(-1, 3)

    def _sentences(
        self, predictions: NDArray[Any], labels: NDArray[Any]
    ) -> Iterator[tuple[list[str], list[str]]]:
        for predicted, true in zip(predictions, labels, strict=True):
            tagged = (true != IGNORED).nonzero()[0]
            yield [self.names[predicted[i]] for i in tagged], [self.names[true[i]] for i in tagged]

    def value(self, sums: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
        """Return F1 from right, found and true entities: ``2 right / (found + true)``."""
        return ratio(numpy.stack([2 * sums[..., 0], sums[..., 1] + sums[..., 2]], -1))
