"""The metrics: against numbers worked by hand, a naive reference, and without a network."""

import socket

import numpy as np
import pytest
from transformers import EvalPrediction

from hf_distill.evaluation import classification_metrics, expected_calibration_error


def naive_calibration_error(confidences, correct, bins):
    total = 0.0
    for k in range(1, bins + 1):
        inside = [
            i for i, c in enumerate(confidences) if (k - 1) / bins < c <= k / bins or (k == 1 and c == 0)
        ]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            confidence = sum(confidences[i] for i in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_calibration_error_equals_the_naive_one(bins):
    generator = np.random.default_rng(bins)
    confidences = np.concatenate([generator.random(500), np.arange(bins + 1) / bins])
    correct = generator.random(confidences.size) < 0.5
    expected = naive_calibration_error(confidences.tolist(), correct.tolist(), bins)
    assert expected_calibration_error(confidences, correct, bins) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand():
    # Bins of two: (0, .5] holds .5 (right); (.5, 1] holds .9 (right), .7 (wrong) and 1.0 (right).
    # 1/4 * |1 - .5| + 3/4 * |2/3 - 2.6/3| = .125 + .15
    result = expected_calibration_error([0.5, 0.9, 0.7, 1.0], [1, 1, 0, 1], bins=2)
    assert result == pytest.approx(0.275)


def test_calibration_error_needs_rows():
    with pytest.raises(ValueError, match="at least one row"):
        expected_calibration_error([], [])


def test_all_four_by_hand_and_unlabelled_rows_left_out():
    # Classes 0, 0, 1, 2 are true; 0, 1, 1, 1 are predicted, each with probability .8. The last two rows don't
    # count.
    predicted = [0, 1, 1, 1, 2, 0]
    logits = np.log(np.where(np.eye(3)[predicted] == 1, 0.8, 0.1))
    labels = np.array([0, 0, 1, 2, -100, -100])
    results = classification_metrics()(EvalPrediction(logits, labels))
    assert results == {
        "accuracy": pytest.approx(0.5),
        "macro_f1": pytest.approx((2 / 3 + 1 / 2 + 0) / 3),
        # R_K: (2 * 4 - (1*2 + 3*1 + 0*1)) / sqrt((16 - (1 + 9)) * (16 - (4 + 1 + 1)))
        "matthews": pytest.approx(3 / np.sqrt(6 * 10)),
        "calibration_error": pytest.approx(0.3),
    }


def test_used_twice_and_with_a_tuple_of_predictions():
    metrics = classification_metrics()
    logits, labels = np.eye(3, dtype=np.float32), np.arange(3)
    first = metrics(EvalPrediction(logits, labels))
    second = metrics(EvalPrediction((logits, np.zeros(3)), labels))
    assert first == second
    assert first["accuracy"] == 1.0


def test_no_labelled_row():
    assert classification_metrics()(EvalPrediction(np.eye(2), np.array([-100, -100]))) == {}


def test_no_network_and_no_random_numbers_used(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("a metric asked for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    np.random.seed(3)
    classification_metrics()(EvalPrediction(np.eye(3), np.arange(3)))
    after = np.random.random()
    np.random.seed(3)
    assert after == np.random.random()
