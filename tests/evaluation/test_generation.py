"""BLEU, ROUGE-L and exact match: by hand, as sacrebleu has it, from sums, and without a network."""

from __future__ import annotations

import socket
import sys
from typing import Any

import numpy
import pytest

from hf_distill.evaluation.generation import GenerationMeasure
from hf_distill.tasks.byte_pairs import train_byte_pairs

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")
TRUTHS = [["the cat sat on the mat ."], ["a dog barks", "the dog is barking loudly"], ["rain"]]
SAID = ["the cat sat on a mat .", "the dog is barking", "sun"]


@pytest.fixture
def tokenizer() -> Any:
    return train_byte_pairs([text for texts in TRUTHS for text in texts], 320)


def ids_of(tokenizer: Any, texts: list[str]) -> Any:
    """Return what a trainer hands over: padded ids, some with -100."""
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    longest = max(map(len, encoded)) + 1
    return numpy.array(
        [[*one, tokenizer.eos_token_id, *[-100] * (longest - len(one))][:longest] for one in encoded]
    )


def test_all_three_by_hand_and_as_sacrebleu_has_it(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("no metric may ask the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    import sacrebleu

    found = GenerationMeasure(tokenizer, TRUTHS).metrics(ids_of(tokenizer, SAID), None)
    # Longest common subsequences: 5 of 6 and 6 words ("." is none to rouge_score); 4 of 4 and 5; none.
    assert found["rouge_l"] == pytest.approx((5 / 6 + 2 * (4 / 4) * (4 / 5) / (4 / 4 + 4 / 5) + 0) / 3)
    assert found["exact_match"] == 0
    streams = [[texts[0] for texts in TRUTHS], [texts[-1] for texts in TRUTHS]]
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(SAID, streams).score / 100)
    right = GenerationMeasure(tokenizer, TRUTHS).metrics(ids_of(tokenizer, [t[-1] for t in TRUTHS]), None)
    assert right["exact_match"] == right["rouge_l"] == 1


@pytest.mark.parametrize("headline", ["rouge_l", "bleu", "exact_match"])
def test_the_headline_is_a_function_of_sums(tokenizer: Any, headline: str) -> None:
    measure = GenerationMeasure(tokenizer, TRUTHS, headline)
    ids = ids_of(tokenizer, SAID)
    sums = measure.statistics(ids, None)
    assert len(sums) == 3
    assert float(measure.value(sums.sum(0))) == pytest.approx(measure.metrics(ids, None)[headline])
    several = measure.value(numpy.stack([[sums.sum(0)] * 2] * 3))
    assert several.shape == (3, 2)


def test_what_is_missing_or_unknown(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected one of rouge_l, bleu, exact_match, received 'meteor'"):
        GenerationMeasure(tokenizer, TRUTHS, "meteor")
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ImportError, match=r"expected sacrebleu.*hf-distill\[metrics\]"):
        GenerationMeasure(tokenizer, TRUTHS)
