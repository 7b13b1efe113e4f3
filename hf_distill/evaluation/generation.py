"""How written text is measured: BLEU, ROUGE-L and exact match, against one or several references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy
from numpy.typing import NDArray

from hf_distill.evaluation.measures import Column, Measure, ratio
from hf_distill.evaluation.needed import needed
from hf_distill.items import IGNORED

HEADLINES = ("rouge_l", "bleu", "exact_match")


class GenerationMeasure(Measure):
    """ROUGE-L, corpus BLEU and exact match of texts that a model wrote.

    Predictions are token ids, ``(texts, length)``, padded with the tokenizer's padding or -100.

    Args:
        tokenizer: turns ids into text, special tokens left out.
        references: of each text, one at least.
        headline: the metric that students are compared by.

    Raises:
        ImportError: ``sacrebleu`` or ``rouge_score`` is not installed.
        ValueError: an unknown headline.

    Source: BLEU of Papineni et al. 2002 as sacrebleu has it (Post 2018, arXiv 1804.08771; tokenizer 13a); ROUGE-L of
    Lin 2004 as Google's rouge_score has it (F1, no stemming), the best over references; an exact match has the same
    words.

    Example:
        >>> from hf_distill.tasks.byte_pairs import train_byte_pairs
        >>> tokenizer = train_byte_pairs(["the cat sat on the mat"], 300)
        >>> ids = numpy.array([tokenizer("the cat sat on the mat")["input_ids"]])
        >>> measure = GenerationMeasure(tokenizer, [["the cat sat on a mat", "the cat sat on the mat"]])
        >>> {name: round(value, 3) for name, value in measure.metrics(ids, None).items()}
        {'rouge_l': 1.0, 'bleu': 1.0, 'exact_match': 1.0}
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column("rouge_l", "ROUGE-L"), Column("bleu", "BLEU"), Column("exact_match", "exact match"),
    )  # fmt: skip

    def __init__(
        self, tokenizer: Any, references: Sequence[Sequence[str]], headline: str = "rouge_l"
    ) -> None:
        if headline not in HEADLINES:
            raise ValueError(f"headline: expected one of {', '.join(HEADLINES)}, received {headline!r}.")
        self.headline: str = headline  # type: ignore[misc]
        self.tokenizer, self.references = tokenizer, [list(texts) for texts in references]
        self._bleu = needed("sacrebleu.metrics", "sacrebleu").BLEU(tokenize="13a")
        scorer = needed("rouge_score.rouge_scorer", "rouge-score").RougeScorer
        self._rouge = scorer(["rougeL"], use_stemmer=False)

    def preprocess(self, logits: Any, labels: Any) -> Any:
        """Keep what was written."""
        return logits

    def texts(self, predictions: Any) -> list[str]:
        """Return what was written, as text."""
        ids = numpy.asarray(predictions)
        ids = numpy.where(ids == IGNORED, self.tokenizer.pad_token_id, ids)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def metrics(self, predictions: Any, labels: Any) -> dict[str, float]:
        """Return the three as shares; sacrebleu prints BLEU times 100."""
        texts = self.texts(predictions)
        rouge, exact = self._rouge_of(texts), self._exact_of(texts)
        return {
            "rouge_l": float(rouge.mean()),
            "bleu": float(self._bleu_of(self._bleu_sums(texts).sum(0))),
            "exact_match": float(exact.mean()),
        }

    def statistics(self, predictions: Any, labels: Any) -> NDArray[numpy.float64]:
        """Return what the headline metric is summed from: of BLEU lengths, matches and counts; else a value and 1."""
        texts = self.texts(predictions)
        if self.headline == "bleu":
            return self._bleu_sums(texts)
        values = self._rouge_of(texts) if self.headline == "rouge_l" else self._exact_of(texts)
        return numpy.stack([values, numpy.ones_like(values)], -1)

    def value(self, sums: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
        """Return the headline metric from sums."""
        if self.headline != "bleu":
            return ratio(sums)
        flat = sums.reshape(-1, sums.shape[-1])
        return numpy.array([self._bleu_of(one) for one in flat]).reshape(sums.shape[:-1])

    def _rouge_of(self, texts: list[str]) -> NDArray[numpy.float64]:
        return numpy.array(
            [
                max(self._rouge.score(true, said)["rougeL"].fmeasure for true in truths)
                for said, truths in zip(texts, self.references, strict=True)
            ]
        )

    def _exact_of(self, texts: list[str]) -> NDArray[numpy.float64]:
        pairs = zip(texts, self.references, strict=True)
        return numpy.array(
            [float(any(said.split() == true.split() for true in truths)) for said, truths in pairs]
        )

    def _bleu_sums(self, texts: list[str]) -> NDArray[numpy.float64]:
        most = max(map(len, self.references))
        # sacrebleu takes the first references of all texts, then the second: a text with fewer repeats its last.
        streams = [
            [truths[min(place, len(truths) - 1)] for truths in self.references] for place in range(most)
        ]
        return numpy.asarray(self._bleu._extract_corpus_statistics(texts, streams), dtype=numpy.float64)

    def _bleu_of(self, sums: NDArray[numpy.float64]) -> float:
        score = self._bleu._compute_score_from_stats([int(one) for one in sums])
        return float(score.score) / 100
