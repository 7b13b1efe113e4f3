"""A step asks the device for no number: on a GPU, each would make the processor wait until all work before it is done.

Seen on the CPU by watching the operations themselves; tests/test_gpu.py has CUDA's own word for it.
"""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_distill import student_from_teacher
from hf_distill.objectives import objective_classes
from hf_distill.teachers.finite_check import FiniteCheck
from tests.tiny import bert, distiller, examples, one_step, perturbed

# What hands a number, or a size that depends on numbers, to the processor.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.default")
# These compare the tokens that count and no others: how many there are is a number.
PICK_TOKENS = ("attentions", "hidden_states", "relations")
HEADS = {"regression": "regression", "binary_kl": "multi_label"}


class Waits(TorchDispatchMode):
    """Keeps where an operation that waits was called."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = "index" in str(function) and any(
            getattr(index, "dtype", None) == torch.bool
            for given in args[1:2]
            for index in (given if isinstance(given, (list, tuple)) else ())
        )
        result = function(*args, **(kwargs or {}))
        moved = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)} == {"cpu"}
        moved = moved and any(x.is_meta for x in tree_leaves(result) if isinstance(x, torch.Tensor))
        if by_mask or moved or any(f".{name}" in str(function) for name in WAITING):
            caller = [frame for frame in traceback.extract_stack()[:-1] if "torch" not in frame.filename][-1]
            self.places.append(f"{function} at {caller.filename}:{caller.lineno}")
        return result


@pytest.fixture
def loss_of(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what trains one step, and then computes and differentiates a loss under watch."""
    # Transformers itself looks whether a mask hides anything, once in every forward.
    monkeypatch.setattr(
        "transformers.masking_utils._ignore_bidirectional_mask_sdpa", lambda *args, **more: False
    )

    def run(head: str = "single_label", device: str = "cpu", **options: Any) -> list[str]:
        teacher = perturbed(bert(3, seed=5, head=head), 0.2)
        student = perturbed(student_from_teacher(teacher, num_hidden_layers=2), 0.02, seed=3)
        trainer = distiller(student, teacher, one_step(tmp_path, 8, 1, **options), examples(8, head))
        trainer.train()  # what is done once is done
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        trainer._totals = trainer._count([batch], trainer.args.device)
        if device != "cpu":
            trainer._finite = FiniteCheck()  # what it has seen lies on the processor
            trainer.model.to(device)
            trainer.teacher.to(device)
            batch = {name: values.to(device) for name, values in batch.items()}
        items = torch.tensor(8, device=device)
        with Waits() as waits:
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=items).backward()
        if device != "cpu":
            return waits.places
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trainer.model.parameters())
        return waits.places

    return run


def test_the_default_loss_does_not_wait(loss_of: Any) -> None:
    assert loss_of() == []


@pytest.mark.parametrize("name", sorted(objective_classes()))
def test_no_objective_waits(loss_of: Any, name: str) -> None:
    settings = {"relation_heads": 2} if name == "relations" else {}
    places = loss_of(HEADS.get(name, "single_label"), objectives=[{"name": name, **settings}])
    if name in PICK_TOKENS:
        assert places
        assert all(place.startswith("aten.index") for place in places)
    else:
        assert places == []


def test_the_default_loss_hands_the_device_nothing(loss_of: Any) -> None:
    """On the meta device numbers can't be read at all, and what comes from the processor is seen."""
    assert loss_of(device="meta") == []


def test_the_watch_sees_what_waits() -> None:
    numbers = torch.arange(4.0)
    with Waits() as waits:
        numbers.sum().item()
        numbers[numbers > 1]
        bool((numbers > 1).all())
        numbers.to("meta")
    assert len(waits.places) >= 4
