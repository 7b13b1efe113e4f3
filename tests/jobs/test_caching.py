"""A recipe keeps its teachers' answers but where they depend on more than the text, or where that can't pay."""

from types import SimpleNamespace
from typing import Any

import pytest

from hf_distill.jobs.caching import uncached_because

RIGHT = SimpleNamespace(padding_side="right")


def reason(processor: Any = RIGHT, seeds: int = 1, **settings: Any) -> str | None:
    defaults = {
        "alpha": None, "temperature": None, "objectives": None, "world_size": 1, "max_steps": -1,
        "num_train_epochs": 2.0, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
    }  # fmt: skip
    args = SimpleNamespace(**{**defaults, **settings})
    return uncached_because(args, [RIGHT, processor], examples=160, seeds=seeds)


def test_logits_asked_for_once_will_do() -> None:
    assert reason() is None
    assert reason(objectives=[{"name": "forward_kl"}, {"name": "logit_mse", "key": "other"}]) is None


def test_a_loss_without_the_teacher_keeps_nothing() -> None:
    assert reason(alpha=0.0) == "training never needs it"


@pytest.mark.parametrize("name", ["hidden_states", "attentions", "derivative", "rkd"])
def test_what_looks_inside_needs_the_model(name: str) -> None:
    assert reason(objectives=[{"name": "forward_kl"}, {"name": name}]) == f"{name} looks inside it"


def test_answers_that_depend_on_more_than_the_text() -> None:
    assert "on the left" in str(reason(processor=SimpleNamespace(padding_side="left")))


def test_processes_on_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert reason(world_size=2) is None
    assert "several machines" in str(reason(world_size=4))


def test_a_run_that_does_not_read_all_examples_asks_as_it_goes() -> None:
    assert "fewer examples" in str(reason(max_steps=9))
    assert reason(max_steps=10) is None
    assert reason(max_steps=9, seeds=2) is None
    assert "fewer examples" in str(reason(num_train_epochs=0.5))
