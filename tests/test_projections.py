"""Projections are trained beside the student: optimizer, clipping, gradients, resume; never exported with it."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from hf_distill import DistillationTrainer
from hf_distill.projections import PROJECTIONS_NAME, module_name
from hf_distill.whole_checkpoints import MANIFEST_NAME
from tests.tiny import (
    arguments,
    bert,
    collate,
    distiller,
    examples,
    gradient_of,
    one_step,
    perturbed,
)

HIDDEN = [{"name": "hidden_states"}]


def wide_teacher(**options: Any) -> Any:
    """Return a teacher whose width and number of heads are not the student's."""
    return perturbed(bert(3, seed=5, hidden_size=24, num_attention_heads=4, **options), 0.2)


def trainer_of(folder: Any, objectives: Any = HIDDEN, model: Any = None, **options: Any) -> Any:
    """Return a trainer whose objectives train projections."""
    others = {key: options.pop(key) for key in ("optimizers", "model_init", "callbacks") if key in options}
    make = options.pop("make", arguments)
    settings = {"objectives": objectives, "label_weight": 0.0, **options}
    student = None if "model_init" in others else model or bert(2)
    args = make(folder, **settings)
    return DistillationTrainer(
        student, wide_teacher(), args, data_collator=collate, train_dataset=examples(16), eval_dataset=examples(4),
        **others,
    )  # fmt: skip


def weight(trainer: Any, key: str = "hidden_states") -> torch.Tensor:
    """Return a copy of a projection."""
    return trainer.projections[module_name(key)].weight.detach().clone()


# ---- the optimizer ---------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "expected"), [(None, 1e-2), (0.5, 0.5), (0.0, 0.0)])
def test_learning_rate_is_its_own(tmp_path: Path, given: float | None, expected: float) -> None:
    trainer = trainer_of(tmp_path, projection_learning_rate=given, weight_decay=0.1, max_steps=1)
    before = weight(trainer)
    trainer.train()
    group = trainer.optimizer.param_groups[-1]
    assert {id(p) for p in group["params"]} == {id(p) for p in trainer.projections.parameters()}
    assert group["initial_lr"] == expected
    assert group["weight_decay"] == 0.1
    assert all(other["initial_lr"] == 1e-2 for other in trainer.optimizer.param_groups[:-1])
    assert torch.equal(before, weight(trainer)) == (expected == 0)


@pytest.mark.parametrize("rate", [-1e-3, math.nan, math.inf, "fast"])
def test_a_learning_rate_out_of_range_is_refused_by_name(tmp_path: Path, rate: Any) -> None:
    with pytest.raises(ValueError, match="projection_learning_rate: expected a finite number of at least 0"):
        trainer_of(tmp_path, projection_learning_rate=rate)


def test_nothing_is_added_without_a_projection(tmp_path: Path) -> None:
    plain = distiller(bert(2), wide_teacher(), arguments(tmp_path, max_steps=1), examples(8))
    equal = distiller(bert(2), bert(3), arguments(tmp_path, objectives=HIDDEN, max_steps=1), examples(8))
    for trainer in (plain, equal):
        trainer.train()
        assert len(trainer.projections) == 0
        optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        assert optimised == {id(p) for p in trainer.model.parameters()}


def test_an_optimizer_of_the_users_own_trains_them_too(tmp_path: Path) -> None:
    student = bert(2)
    own = torch.optim.SGD(student.parameters(), lr=0.1)
    trainer = trainer_of(
        tmp_path, model=student, optimizers=(own, None), max_steps=2, projection_learning_rate=0.3
    )
    before = weight(trainer)
    trainer.train()
    assert own.param_groups[-1]["initial_lr"] == 0.3
    assert not torch.equal(before, weight(trainer))


def test_a_scheduler_of_the_users_own_is_refused(tmp_path: Path) -> None:
    student = bert(2)
    own = torch.optim.SGD(student.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(own)
    trainer = trainer_of(tmp_path, model=student, optimizers=(own, schedule))
    with pytest.raises(ValueError, match="optimizers: expected an optimizer without a scheduler"):
        trainer.train()


def test_every_step_has_its_own_gradient(tmp_path: Path) -> None:
    # Trainer clears the gradients of the model only; those of a step must not be in the next.
    norms = []

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            norms.append(next(p.grad.norm().item() for p in trainer.projections.parameters()))

    trainer = trainer_of(
        tmp_path, make=one_step_of, max_steps=4, learning_rate=0.0, callbacks=[Note()],
        per_device_train_batch_size=16,
    )  # fmt: skip
    trainer.train()
    assert norms == pytest.approx([norms[0]] * 4, rel=1e-5)


def one_step_of(folder: Any, **options: Any) -> Any:
    """Return arguments for plain SGD, whatever the batch."""
    batch_size = options.pop("per_device_train_batch_size", 8)
    return one_step(folder, batch_size, options.pop("gradient_accumulation_steps", 1), **options)


def test_they_are_clipped_apart(tmp_path: Path) -> None:
    moved = {}
    for clip in (0.0, 1e-2):
        trainer = trainer_of(tmp_path, make=one_step_of, max_grad_norm=clip, projection_learning_rate=1.0)
        before, start = weight(trainer), [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        ours = (before - weight(trainer)).norm().item()
        theirs = torch.cat(
            [(a - b).flatten() for a, b in zip(start, trainer.model.parameters(), strict=True)]
        )
        moved[clip] = ours, theirs.norm().item()
    assert min(moved[0.0]) > 0.1
    # Each is as long as the limit: neither is shortened by the other.
    assert moved[1e-2] == pytest.approx((1e-2, 1e-2), rel=1e-3)


@pytest.mark.parametrize("name", ["hidden_states", "patient"])
def test_one_batch_has_one_gradient_however_it_is_split(tmp_path: Path, name: str) -> None:
    gradients = [
        gradient_of(trainer_of(
            tmp_path, [{"name": name}], make=one_step_of, label_weight=0.5, per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        ))
        for size in (8, 2, 1)
    ]  # fmt: skip
    of_projection = gradients[0][-16 * 24 :]
    assert of_projection.abs().max() > 0
    for other in gradients[1:]:
        assert (gradients[0] - other).abs().max() <= 1e-6 * gradients[0].abs().max()
        assert (of_projection - other[-16 * 24 :]).abs().max() <= 1e-6 * of_projection.abs().max()


def test_they_learn(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=20, learning_rate=0.0, projection_learning_rate=1e-2)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


# ---- their start -----------------------------------------------------------------------------


def test_the_seed_decides_their_start(tmp_path: Path) -> None:
    first, again, other = (weight(trainer_of(tmp_path, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_randomness_of_training_is_undisturbed(tmp_path: Path) -> None:
    states = []
    for teacher in (wide_teacher(), bert(3)):  # with a projection, and without
        student = bert(2, dropout=True)
        trainer = distiller(student, teacher, arguments(tmp_path, objectives=HIDDEN), examples(16))
        states.append([torch.get_rng_state()])
        trainer.train()
        states[-1].append(torch.get_rng_state())
        states[-1].append(
            torch.tensor([entry.get("loss/label", 0.0) for entry in trainer.state.log_history[:1]])
        )
    for one, other in zip(*states, strict=True):
        assert torch.equal(one, other)


def test_a_second_train_goes_on_with_them(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=2)
    module = trainer.projections[module_name("hidden_states")]
    trainer.train()
    between = weight(trainer)
    trainer.train()
    assert trainer.projections[module_name("hidden_states")] is module
    assert not torch.equal(between, weight(trainer))
    known = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert known.count(id(module.weight)) == 1


def test_an_objective_added_before_a_second_train_is_trained(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=2)
    trainer.train()
    kept = weight(trainer)
    trainer.args.objectives = [{"name": "hidden_states", "weight": 0.5}, {"name": "patient"}]
    start = None

    class Note(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            nonlocal start
            assert torch.equal(kept, weight(trainer))  # another weight, the same objective
            start = weight(trainer, "patient")

    trainer.add_callback(Note())
    trainer.train()
    assert start is not None
    assert not torch.equal(start, weight(trainer, "patient"))


def test_a_new_student_gets_new_ones(tmp_path: Path) -> None:
    starts, ends = [], []

    class Note(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            starts.append(weight(trainer))

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(weight(trainer))

    trainer = trainer_of(tmp_path, model_init=lambda: bert(2), max_steps=2, callbacks=[Note()])
    trainer.train()
    trainer.train()
    assert torch.equal(*starts)
    assert torch.equal(*ends)
    assert not torch.equal(starts[0], ends[0])


def test_a_trial_gets_new_ones(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    starts = []

    class Note(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            starts.append((weight(trainer), trainer.optimizer.param_groups[-1]["initial_lr"]))

    trainer = trainer_of(
        tmp_path, model_init=lambda: bert(2), max_steps=2, callbacks=[Note()], projection_learning_rate=0.1,
        eval_strategy="epoch",
    )  # fmt: skip
    trainer.hyperparameter_search(
        lambda trial: {
            "projection_learning_rate": trial.suggest_categorical("projection_learning_rate", [0.2, 0.3])
        },
        n_trials=2, backend="optuna", direction="minimize",
    )  # fmt: skip
    assert torch.equal(starts[0][0], starts[1][0])
    assert {rate for _, rate in starts} <= {0.2, 0.3}


def test_half_precision_students_have_them_in_float32(tmp_path: Path) -> None:
    assert weight(trainer_of(tmp_path, model=bert(2).bfloat16())).dtype == torch.float32
    assert weight(trainer_of(tmp_path, model=bert(2).double())).dtype == torch.float64


# ---- checkpoints -----------------------------------------------------------------------------

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def test_resume_ends_with_the_bits_of_a_run_that_was_not_stopped(tmp_path: Path) -> None:
    objectives = [{"name": "hidden_states"}, {"name": "patient", "key": "keys"}]
    whole = trainer_of(tmp_path / "a", objectives, bert(2, dropout=True), **SAVING)
    whole.train()
    resumed = trainer_of(tmp_path / "b", objectives, bert(2, seed=8, dropout=True), **SAVING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for key in ("hidden_states", "keys"):
        assert torch.equal(weight(whole, key), weight(resumed, key))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_never_in_the_student_nor_in_what_is_exported(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, **SAVING)
    trainer.train()
    expected = set(bert(2).state_dict())
    assert set(trainer.model.state_dict()) == expected
    trainer.save_model(str(tmp_path / "student"))
    assert not (tmp_path / "student" / PROJECTIONS_NAME).exists()
    assert set(load_file(tmp_path / "student" / "model.safetensors")) == expected
    checkpoint = tmp_path / "checkpoint-4"
    assert set(load_file(checkpoint / "model.safetensors")) == expected
    assert {name: value.shape for name, value in load_file(checkpoint / PROJECTIONS_NAME).items()} == {
        "key:hidden_states.weight": (24, 16)
    }
    assert PROJECTIONS_NAME in (checkpoint / MANIFEST_NAME).read_text()


@pytest.mark.parametrize("damage", ["missing", "other"])
def test_a_checkpoint_without_them_is_refused(tmp_path: Path, damage: str) -> None:
    trainer_of(tmp_path, **SAVING).train()
    path = tmp_path / "checkpoint-2" / PROJECTIONS_NAME
    (path.parent / MANIFEST_NAME).unlink()  # changed on purpose
    path.unlink()
    if damage == "other":
        save_file({"key:hidden_states.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match=rf"checkpoint-2: expected {PROJECTIONS_NAME} with .*received"):
        trainer_of(tmp_path, **SAVING).train(resume_from_checkpoint=str(path.parent))


def test_objectives_that_did_not_write_the_checkpoint_are_refused(tmp_path: Path) -> None:
    trainer_of(tmp_path, **SAVING).train()
    checkpoint = str(tmp_path / "checkpoint-2")
    for objectives in ([{"name": "rkd"}], [{"name": "patient"}]):
        with pytest.raises(
            ValueError, match="Resume with the objectives and models that wrote the checkpoint"
        ):
            trainer_of(tmp_path, objectives, **SAVING).train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize("key", ["a.b", "keys"])
def test_any_key_will_do(tmp_path: Path, key: str) -> None:
    objectives = [{"name": "hidden_states", "key": key}]
    whole = trainer_of(tmp_path, objectives, **SAVING)
    whole.train()
    assert any(f"loss/{key}" in entry for entry in whole.state.log_history)
    resumed = trainer_of(tmp_path, objectives, **SAVING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(weight(whole, key), weight(resumed, key))


def test_module_names_do_not_collide() -> None:
    assert len({module_name(key) for key in ("a.b", "a%2Eb", "a%b", "ab", "training")}) == 5


# ---- what can't train them ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_sharded_training_is_refused_at_construction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(trainer, name, True)
    with pytest.raises(ValueError, match=r"no trained projection under FSDP or DeepSpeed.*hidden_states"):
        trainer._prepare_features()


def test_the_best_student_is_measured_through_its_own_projections(tmp_path: Path) -> None:
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 4,
    }
    # The highest loss is that of the first step, so the best student is not the last one.
    options |= {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,
    }
    trainer = trainer_of(tmp_path, projection_learning_rate=0.1, **options)
    trainer.train()
    assert trainer.state.best_global_step == 1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)


def test_a_best_checkpoint_without_projections_is_warned_about(tmp_path: Path, caplog: Any) -> None:
    logging.getLogger("hf_distill").propagate = True
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 2,
    }
    trainer = trainer_of(tmp_path, load_best_model_at_end=True, save_only_model=True, **options)
    trainer.train()
    assert "beside the projections of the last step" in caplog.text
