"""Perplexity over labelled tokens: against a naive loop, with and without the shift, and from sums."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from hf_distill.evaluation.language_modelling import PerplexityMeasure


@pytest.mark.parametrize("shift", [True, False])
def test_against_a_naive_loop(shift: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 9, generator=draw, dtype=torch.float64)
    labels = torch.randint(9, (4, 6), generator=draw)
    labels[torch.rand(4, 6, generator=draw) < 0.4] = -100
    labels[3] = -100
    nats, right, count = 0.0, 0, 0
    for row in range(4):
        for place in range(6 - shift):
            label = int(labels[row, place + shift])
            if label == -100:
                continue
            nats -= math.log(float(logits[row, place].exp()[label] / logits[row, place].exp().sum()))
            right += int(int(logits[row, place].argmax()) == label)
            count += 1
    measure = PerplexityMeasure(shift)
    kept = numpy.concatenate(
        [measure.preprocess(logits[part], labels[part]).numpy() for part in (slice(0, 3), slice(3, 4))]
    )
    assert kept.shape == (4, 3)
    found = measure.metrics(kept, None)
    assert found == {
        "perplexity": pytest.approx(math.exp(nats / count), rel=1e-5),
        "cross_entropy": pytest.approx(nats / count, rel=1e-5),
        "accuracy": pytest.approx(right / count),
    }
    assert measure.value(measure.statistics(kept, None).sum(0)) == pytest.approx(found["perplexity"])
    assert measure.metrics(kept[3:], None) == {}


def test_by_hand_and_what_is_ignored_reaches_nothing() -> None:
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)], [float("nan")] * 2]])
    labels = torch.tensor([[0, 1, -100]])
    kept = PerplexityMeasure(shift=False).preprocess((logits, None), labels)
    # -log(1/2) - log(3/4)
    assert kept[0, 0].item() == pytest.approx(math.log(2) + math.log(4 / 3))
    assert kept[0, 2] == 2
