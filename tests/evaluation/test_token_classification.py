"""Accuracy over words and F1 over entities: by hand, as seqeval has it, and from sums over sentences."""

from __future__ import annotations

import sys

import numpy
import pytest
import torch

from hf_distill.evaluation.token_classification import EntityMeasure, TokenAccuracyMeasure, token_measure

NAMES = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]


def test_accuracy_by_hand() -> None:
    labels = numpy.array([[1, 2, -100], [-100, 0, -100], [-100, -100, -100]])
    predicted = numpy.array([[1, 0, 5], [5, 0, 5], [1, 1, 1]])
    measure = TokenAccuracyMeasure()
    assert measure.statistics(predicted, labels).tolist() == [[1, 2], [1, 1], [0, 0]]
    assert measure.metrics(predicted, labels) == {"accuracy": pytest.approx(2 / 3)}
    assert measure.metrics(predicted, numpy.full_like(labels, -100)) == {}
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 6).float()
    assert measure.preprocess(logits, None).tolist() == predicted.tolist()


def test_entities_by_hand() -> None:
    # True: Rome [LOC], New York [LOC], Ann [PER]. Found: Rome, York alone (I- without B- begins one), Ann as LOC.
    labels = numpy.array([[0, 4, 0, 2], [1, 4, -100, -100]])
    predicted = numpy.array([[0, 4, 4, 2], [0, 4, 1, 1]])
    found = EntityMeasure(NAMES).metrics(predicted, labels)
    assert found["precision"] == pytest.approx(1 / 3)
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx(1 / 3)
    assert found["accuracy"] == pytest.approx(4 / 6)


def test_sums_over_sentences_are_seqevals_own() -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    draw = numpy.random.default_rng(0)
    labels, predicted = draw.integers(5, size=(60, 12)), draw.integers(5, size=(60, 12))
    predicted = numpy.where(draw.random((60, 12)) < 0.7, labels, predicted)
    labels[:, 9:] = -100
    measure = EntityMeasure(NAMES)
    found = measure.metrics(predicted, labels)
    true = [[NAMES[tag] for tag in row[:9]] for row in labels]
    said = [[NAMES[tag] for tag in row[:9]] for row in predicted]
    assert found["f1"] == pytest.approx(seqeval.f1_score(true, said))
    assert found["precision"] == pytest.approx(seqeval.precision_score(true, said))
    assert found["recall"] == pytest.approx(seqeval.recall_score(true, said))
    assert found["accuracy"] == pytest.approx(seqeval.accuracy_score(true, said))
    sums = measure.statistics(predicted, labels)
    assert measure.value(sums.sum(0)) == pytest.approx(found["f1"])
    assert measure.value(sums.reshape(2, 30, 3).sum(1)).shape == (2,)


def test_which_measure_and_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_measure(["NOUN", "VERB"]).headline == "accuracy"
    assert token_measure(NAMES).headline == "f1"
    monkeypatch.setitem(sys.modules, "seqeval.metrics.sequence_labeling", None)
    with pytest.raises(ImportError, match=r"expected seqeval.*pip install 'hf-distill\[metrics\]'"):
        token_measure(NAMES)
