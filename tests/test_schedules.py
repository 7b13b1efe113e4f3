"""Schedules: numbers worked by hand for every kind, spans in shares and steps, and what is refused."""

import json
import math

import pytest

from hf_distill.schedules import Complement, Schedule, as_plain, highest, read_schedule, value_at

MOVING = ["linear", "cosine"]


def read(**mapping) -> Schedule:
    return read_schedule("weight", mapping)


def values(schedule, max_steps: int) -> list[float]:
    return [schedule.at(step, max_steps) for step in range(max_steps + 1)]


# ---- by hand ----------------------------------------------------------------------------


def test_constant_by_hand():
    assert values(read(schedule="constant", value=0.3), 4) == [0.3] * 5


def test_linear_by_hand():
    assert values(read(schedule="linear", start=0, end=1), 4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert values(read(schedule="linear", start=8, end=4), 4) == [8.0, 7.0, 6.0, 5.0, 4.0]


def test_cosine_by_hand():
    # (1 - cos(pi f)) / 2 at f = 0, 1/4, 1/2, 3/4, 1.
    half = math.sqrt(0.5)
    expected = [0.0, (1 - half) / 2, 0.5, (1 + half) / 2, 1.0]
    assert values(read(schedule="cosine", start=0, end=1), 4) == pytest.approx(expected, abs=1e-15)
    falling = [4 - 2 * value for value in expected]
    assert values(read(schedule="cosine", start=4, end=2), 4) == pytest.approx(falling, abs=1e-15)


def test_warmup_by_hand():
    # DKD on CIFAR-100: weight 1 after 20 of 240 epochs, here with 2 steps each.
    warmup = read(schedule="warmup", value=1.0, steps=20 / 240)
    assert [warmup.at(step, 480) for step in (0, 10, 20, 40, 41, 480)] == [0.0, 0.25, 0.5, 1.0, 1.0, 1.0]


def test_warmup_is_linear_from_0():
    warmup, linear = (
        read(schedule="warmup", value=3, steps=7),
        read(schedule="linear", start=0, end=3, steps=7),
    )
    assert values(warmup, 20) == values(linear, 20)


@pytest.mark.parametrize("kind", MOVING)
def test_steps_and_delay_by_hand(kind):
    in_steps = read(schedule=kind, start=1, end=3, steps=4, delay_steps=2)
    in_shares = read(schedule=kind, start=1, end=3, steps=0.4, delay_steps=0.2)
    middle = 1 + 2 * (0.25 if kind == "linear" else (1 - math.sqrt(0.5)) / 2)
    expected = [1, 1, 1, middle, 2, 4 - middle, 3, 3, 3, 3, 3]
    assert values(in_steps, 10) == pytest.approx(expected, abs=1e-15)
    assert values(in_shares, 10) == values(in_steps, 10)


def test_a_delay_alone_moves_over_the_rest_of_training():
    assert values(read(schedule="linear", start=0, end=1, delay_steps=0.5), 8) == [
        *[0.0] * 5,
        0.25,
        0.5,
        0.75,
        1.0,
    ]


def test_1_is_the_whole_training_whatever_its_type():
    expected = values(read(schedule="linear", start=0, end=1), 10)
    for steps in (1, 1.0):
        assert values(read(schedule="linear", start=0, end=1, steps=steps), 10) == expected


def test_a_share_is_rounded_up_as_warmup_steps_is(tmp_path):
    from transformers import TrainingArguments

    share, max_steps = 0.15, 10
    warm_up = TrainingArguments(str(tmp_path), warmup_steps=share, report_to="none").get_warmup_steps(
        max_steps
    )
    assert warm_up == 2
    assert values(read(schedule="warmup", value=1, steps=share), max_steps)[:4] == [0.0, 0.5, 1.0, 1.0]


def test_steps_beyond_the_training_end_on_the_way():
    assert values(read(schedule="linear", start=0, end=1, steps=8), 4) == [0.0, 0.125, 0.25, 0.375, 0.5]
    assert values(read(schedule="linear", start=0, end=1, delay_steps=8), 4) == [0.0] * 5


# ---- for all -----------------------------------------------------------------------------


SPANS = [{}, {"steps": 0.37}, {"steps": 5}, {"delay_steps": 0.21, "steps": 0.79}, {"delay_steps": 3}]


@pytest.mark.parametrize("kind", MOVING)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0), (0.1, 0.7), (7.3, 1.9), (0.0, 1e-9)])
@pytest.mark.parametrize("span", SPANS)
def test_from_end_to_end_one_way_and_never_beyond(kind, ends, span):
    schedule = Schedule(kind, *ends, **span)
    for max_steps in (7, 10, 333):
        found = values(schedule, max_steps)
        assert (found[0], found[-1]) == ends
        assert found == sorted(found, reverse=ends[1] < ends[0])
        assert all(min(ends) <= value <= max(ends) for value in found)


def test_before_training_there_is_only_the_start():
    for span in SPANS:
        assert Schedule("linear", 0.25, 1.0, **span).at(0, max_steps=0) == 0.25


def test_the_complement_is_1_minus_each_value():
    alpha = Schedule("cosine", 0.1, 0.9, steps=0.7)
    assert values(Complement(alpha), 30) == [1.0 - value for value in values(alpha, 30)]


MAPPINGS = [
    {"schedule": "constant", "value": 0.5},
    {"schedule": "linear", "start": 0.0, "end": 1.0},
    {"schedule": "linear", "start": 0.0, "end": 1.0, "steps": 0.5, "delay_steps": 100},
    {"schedule": "cosine", "start": 4.0, "end": 1.0, "steps": 300},
    {"schedule": "warmup", "value": 0.5, "steps": 0.1},
    {"schedule": "warmup", "value": 0.5, "steps": 10, "delay_steps": 0.1},
]


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_describe_reads_as_the_same_schedule(mapping):
    schedule = read(**mapping)
    assert json.loads(json.dumps(schedule.describe())) == mapping
    assert read(**schedule.describe()) == schedule


@pytest.mark.parametrize("mapping", MAPPINGS[:3] + MAPPINGS[4:])
def test_the_complements_mapping_has_the_same_values(mapping):
    complement = Complement(read(**mapping))
    again = read(**complement.describe())
    assert values(again, 1000) == pytest.approx(values(complement, 1000), abs=1e-15)
    assert again.ends == complement.ends


def test_plain_numbers_stay_as_they_are():
    assert (value_at(0.3, 1, 2), highest(0.3), as_plain(0.3)) == (0.3, 0.3, 0.3)


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exponential", "", None, 3, ["linear"]])
def test_an_unknown_kind_lists_the_valid_ones(kind):
    with pytest.raises(
        ValueError, match=r"weight: expected .* constant, linear, cosine, warmup.*received.*Name"
    ):
        read(schedule=kind, start=0, end=1)


def test_a_mapping_that_is_no_schedule():
    with pytest.raises(ValueError, match=r"weight: expected a schedule that is one of"):
        read(start=0, end=1)


@pytest.mark.parametrize(
    ("mapping", "problem"),
    [
        ({"schedule": "linear", "start": 0, "end": 1, "stop": 2}, "the unknown 'stop'"),
        ({"schedule": "constant", "value": 1, "steps": 2}, "the unknown 'steps'"),
        ({"schedule": "warmup", "value": 1, "steps": 2, "start": 0}, "the unknown 'start'"),
        ({"schedule": "linear", "start": 0}, "none for 'end'"),
        ({"schedule": "cosine", "end": 0}, "none for 'start'"),
        ({"schedule": "constant"}, "none for 'value'"),
        ({"schedule": "warmup", "value": 1}, "none for 'steps'"),
        ({"schedule": "warmup", "value": 1, "steps": None}, "none for 'steps'"),
    ],
)
def test_unknown_and_missing_keys(mapping, problem):
    with pytest.raises(ValueError, match=rf"weight: expected the keys .*received {problem}.*Correct"):
        read(**mapping)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "1", [1]])
@pytest.mark.parametrize("key", ["start", "end"])
def test_values_out_of_range(key, value):
    mapping = {"schedule": "linear", "start": 0, "end": 1, key: value}
    with pytest.raises(ValueError, match=rf"weight: {key}: expected a finite number of at least 0, received"):
        read(**mapping)
    with pytest.raises(ValueError, match=r"weight: value: expected a finite number of at least 0, received"):
        read(schedule="warmup", value=value, steps=0.1)


@pytest.mark.parametrize("steps", [0, -0.5, -3, 1.5, 2.5, math.nan, math.inf, True, "0.5"])
def test_steps_out_of_range(steps):
    with pytest.raises(
        ValueError, match=r"weight: steps: expected a share .*above 1, received .*Leave it out"
    ):
        read(schedule="linear", start=0, end=1, steps=steps)


@pytest.mark.parametrize("delay", [1, 1.0, -0.5, -3, 2.5, math.nan, math.inf, True, "0.5", None])
def test_delay_out_of_range(delay):
    with pytest.raises(ValueError, match=r"weight: delay_steps: expected a share .*received .*Leave it out"):
        read(schedule="linear", start=0, end=1, delay_steps=delay)


def test_shares_that_do_not_fit_into_training():
    with pytest.raises(ValueError, match=r"add up to at most 1, received 0.6 \+ 0.5"):
        read(schedule="linear", start=0, end=1, delay_steps=0.6, steps=0.5)
    for delay, steps in [(0.1, 0.9), (0.7, 0.3), (0.35, 0.65), (0.9, 100), (100, 0.9)]:
        read(schedule="linear", start=0, end=1, delay_steps=delay, steps=steps)


@pytest.mark.parametrize(
    "settings",
    [("constant", 0.0, 1.0), ("warmup", 0.5, 1.0, 10), ("warmup", 0.0, 1.0), ("quadratic", 0.0, 1.0)],
)
def test_what_no_mapping_could_say_is_refused_in_python_too(settings):
    with pytest.raises(ValueError, match=r"expected .*received"):
        Schedule(*settings)
