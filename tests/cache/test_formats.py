"""What each format keeps: every class exactly, the top k with the rest's mass, or draws right on average."""

from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch

from hf_distill.cache.formats import FullLogits, SampledLogits, SignalFormat, TopKLogits, build_format
from hf_distill.cache.id_packing import ID_BITS, bits_for, pack_ids, packed_bytes, unpack_ids

KEY = b"0123456789abcdef"


def logits(rows: int = 5, classes: int = 12, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def kept(signals: SignalFormat, given: torch.Tensor, order: torch.Tensor | None = None) -> Any:
    raw = signals.encode(given, KEY)
    assert raw.dtype == numpy.uint8
    assert raw.shape == (len(given), signals.row_bytes(given.shape[-1]))
    parts = signals.decode(raw, given.shape[-1])
    assert set(parts) == set(signals.parts)
    return signals.signals(parts, given.shape[-1], order)


@pytest.mark.parametrize("bits", ID_BITS)
def test_ids_come_back_at_every_width(bits: int) -> None:
    top = min(1 << bits, 1 << 31) - 1
    ids = numpy.random.default_rng(0).integers(0, top + 1, (7, 13))
    ids[0, 0], ids[0, 1] = 0, top
    packed = pack_ids(ids, bits)
    assert packed.shape == (7, packed_bytes(13, bits))
    assert (unpack_ids(packed, bits, 13) == ids).all()


def test_the_narrowest_width_that_fits_is_taken() -> None:
    assert [bits_for(n) for n in (2, 65_536, 65_537, 131_073, 262_144, 262_145, 1 << 24, 1 << 25)] == [
        16, 16, 18, 18, 18, 24, 24, 32,
    ]  # fmt: skip
    assert TopKLogits(k=4).row_bytes(151_936) == 9 + 16 + 12


def test_full_float32_is_exact_and_bfloat16_rounds() -> None:
    given = logits()
    assert torch.equal(kept(FullLogits(), given).logits, given)
    assert torch.equal(kept(FullLogits("bfloat16"), given).logits, given.bfloat16())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_top_k_knows_the_probability_of_the_rest_at_each_stored_temperature(temperature: float) -> None:
    given = logits()
    p = torch.log_softmax(given.double() / temperature, -1).exp()
    signals = kept(TopKLogits(k=3), given)
    coarse = signals.coarse_log_probs(temperature).exp().double()
    values, ids = p.topk(3, -1)
    assert torch.equal(signals.ids, ids)
    assert torch.allclose(coarse[:, :3], values, atol=1e-6)
    assert torch.allclose(coarse[:, 3], 1 - values.sum(-1), atol=1e-6)
    assert torch.allclose(signals.log_probs(temperature).exp().sum(-1), torch.ones(5))


def test_top_k_answers_no_other_temperature() -> None:
    with pytest.raises(ValueError, match=r"captured for \(1, 2, 4\), received 3"):
        kept(TopKLogits(k=3), logits()).coarse_log_probs(3.0)


@pytest.mark.parametrize("given", [logits(), torch.tensor([[1e4, -1e4, 0.0], [0.0, -torch.inf, 1.0]])])
def test_all_classes_kept_leave_no_rest(given: torch.Tensor) -> None:
    signals = kept(TopKLogits(k=given.shape[-1]), given)
    assert torch.equal(signals.rest, torch.full((len(given), 3), -torch.inf))
    assert torch.allclose(signals.log_probs(2.0).exp(), torch.softmax(given / 2, -1), atol=1e-6)


def test_draws_are_right_on_average_and_the_same_again() -> None:
    given = logits(1, 6) / 3
    draw = SampledLogits(draws=64)
    assert (draw.encode(given, KEY) == draw.encode(given, KEY)).all()
    assert (draw.encode(given, KEY) != replace(draw, seed=1).encode(given, KEY)).any()
    assert (draw.encode(given, KEY) != draw.encode(given, KEY[::-1])).any()
    many = torch.stack([
        kept(replace(draw, seed=seed), given).log_probs(1.0).exp()[0] for seed in range(400)
    ])  # fmt: skip
    p = torch.softmax(given, -1)[0]
    deviation = (p * (1 - p) / (64 * 400)).sqrt()
    assert ((many.mean(0) - p).abs() < 4 * deviation + 1e-6).all()
    assert torch.allclose(many.sum(-1), torch.ones(400))


def test_a_class_that_cannot_come_is_never_drawn() -> None:
    given = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]])
    drawn = kept(SampledLogits(draws=500), given)
    assert set(drawn.ids.flatten().tolist()) == {0, 2}


@pytest.mark.parametrize("signals", [FullLogits(), TopKLogits(k=3), SampledLogits(draws=200)])
def test_the_students_order_of_classes_is_taken(signals: SignalFormat) -> None:
    given, order = logits(), torch.tensor([3, 1, 0, 2, *range(4, 12)])
    assert torch.allclose(
        kept(signals, given, order).log_probs(1.0), kept(signals, given).log_probs(1.0)[:, order]
    )


@pytest.mark.parametrize(
    "signals", [FullLogits("bfloat16"), TopKLogits(k=9, temperatures=[3]), SampledLogits()]
)
def test_a_format_is_what_its_description_builds(signals: SignalFormat) -> None:
    import json

    assert build_format(json.loads(json.dumps(signals.describe()))) == signals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FullLogits("float16"), "dtype: expected float32 or bfloat16"),
        (lambda: TopKLogits(k=0), "k: expected a whole number"),
        (lambda: TopKLogits(temperatures=(0.0,)), "temperature above 0"),
        (lambda: TopKLogits(id_bits=17), "id_bits: expected 16, 18, 24 or 32"),
        (lambda: SampledLogits(draws=True), "draws: expected a whole number"),
        (lambda: TopKLogits(id_bits=16).row_bytes(70_000), "holds 70000 classes, received 16. Use 18"),
        (lambda: build_format({"name": "half"}), "expected one of full, top_k, sampled"),
        (lambda: build_format({"name": "full", "digits": 3}), "format full: .*digits"),
    ],
)
def test_bad_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
