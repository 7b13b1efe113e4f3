"""Costs of a tiny model: exact counts, bytes of the weights only, and the median latency."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_distill.evaluation import cost, measure_cost


def tiny_model():
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return BertForSequenceClassification(config)


def texts(*lengths):
    return [{"input_ids": torch.arange(length)[None]} for length in lengths]


def test_parameters_and_bytes(tmp_path):
    model = tiny_model().train()
    model.save_pretrained(tmp_path)
    (tmp_path / "optimizer.pt").write_bytes(b"0" * 10**6)
    measured = measure_cost(model, tmp_path, texts(4, 8), repeats=1)
    assert measured.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert 4 * measured.parameters <= measured.size_on_disk_bytes < 4 * measured.parameters + 20_000
    assert measured.latency_ms > 0
    assert model.training


def test_latency_is_the_median_after_a_warm_up(tmp_path, monkeypatch):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    # Four passes over two lengths: a slow warm-up of 100 s, then 1, 2 and 9 s.
    clock = iter([0.0, 100.0, 0.0, 1.0, 0.0, 2.0, 0.0, 9.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    assert measure_cost(model, tmp_path, texts(4, 8), repeats=3).latency_ms == 1000.0


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="weight files"):
        measure_cost(tiny_model(), tmp_path, texts(4))
    with pytest.raises(ValueError, match="0 inputs"):
        measure_cost(tiny_model(), tmp_path, [])
