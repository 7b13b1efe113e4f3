"""What only a GPU shows: no waiting for the device, mixed precision, compiled kernels, and the CPU's gradient.

Run with ``pytest -m gpu``; skipped where there is none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from hf_distill import TeacherCache, student_from_teacher
from hf_distill.objectives import objective_classes
from tests.tiny import (
    arguments,
    bert,
    classifier,
    collate,
    distiller,
    examples,
    gradient_of,
    one_step,
    perturbed,
    teacher_of,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch sees"),
]


@pytest.fixture(autouse=True)
def _float32_products() -> Iterator[None]:
    """Take back TF32, which ``torch_compile`` turns on for its whole process."""
    before = torch.backends.fp32_precision
    yield
    torch.backends.fp32_precision = before


HEADS = {"regression": "regression", "binary_kl": "multi_label"}


def on_gpu(folder: Any, **options: Any) -> Any:
    return distiller(bert(), teacher_of(), one_step(folder, 8, 1, use_cpu=False, **options), examples(8))


def cut(folder: Any, head: str = "single_label", **options: Any) -> Any:
    """Return a trainer whose student has about the embeddings and two of the layers of its teacher of three."""
    teacher = perturbed(bert(3, seed=5, head=head), 0.2)
    student = perturbed(student_from_teacher(teacher, num_hidden_layers=2), 0.02, seed=3)
    return distiller(student, teacher, one_step(folder, 8, 1, **options), examples(8, head))


class LastGradient(TrainerCallback):
    """Keeps the gradient that the optimizer is handed at the last step."""

    value: torch.Tensor

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.value = torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def losses_of(trainer: Any) -> list[float]:
    """Train, and return the loss of each step."""
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def alone(name: str, **settings: Any) -> dict[str, Any]:
    """Return arguments for one objective without the label loss."""
    more = {"relation_heads": 2} if name == "relations" else {}
    return {"label_weight": 0.0, "objectives": [{"name": name, **more, **settings}]}


def test_the_gradient_is_the_cpus(tmp_path: Any) -> None:
    cpu = gradient_of(distiller(bert(), teacher_of(), one_step(tmp_path, 8, 1), examples(8)))
    gpu = gradient_of(on_gpu(tmp_path)).cpu()
    assert (gpu - cpu).abs().max() <= 1e-4 * cpu.abs().max()


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_half_precision_trains_and_keeps_float32_weights(tmp_path: Any, half: str) -> None:
    trainer = on_gpu(tmp_path, **{half: True, "learning_rate": 0.1, "max_steps": 3})
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_the_loss_never_waits_for_the_device(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Transformers itself looks whether a mask hides anything, once in every forward.
    monkeypatch.setattr(
        "transformers.masking_utils._ignore_bidirectional_mask_sdpa", lambda *args, **more: False
    )
    trainer = on_gpu(tmp_path)
    trainer.train()  # what is done once is done
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer._totals = trainer._count([batch], trainer.args.device)
    items = torch.tensor(8, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=items).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(parameter.grad.abs().max() > 0 for parameter in trainer.model.classifier.parameters())


@pytest.mark.parametrize("name", sorted(objective_classes()))
def test_every_objective_has_the_cpus_gradient(tmp_path: Any, name: str) -> None:
    head, found = HEADS.get(name, "single_label"), []
    for use_cpu in (True, False):
        found.append(gradient_of(cut(tmp_path, head, use_cpu=use_cpu, **alone(name))).cpu())
    assert found[0].abs().max() > 0
    assert (found[1] - found[0]).abs().max() <= 1e-3 * found[0].abs().max()


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_derivatives_in_half_precision_point_where_float32_points(tmp_path: Any, half: str) -> None:
    found = []
    for precision in ({}, {half: True}):
        # No weight moves, so every step has the same weights; fp16's first ones may only lower the loss's scale.
        options = {"learning_rate": 0.0, "max_steps": 12}
        trainer = cut(tmp_path, use_cpu=False, **alone("derivative"), **precision, **options)
        last = LastGradient()
        trainer.add_callback(last)
        trainer.train()
        found.append(last.value)
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.98


def test_a_compiled_student_has_the_same_losses(tmp_path: Any) -> None:
    found = []
    for compiled in (False, True):
        args = arguments(tmp_path, use_cpu=False, torch_compile=compiled)
        found.append(losses_of(distiller(bert(), teacher_of(), args, examples(16))))
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_liger_kernels_that_return_logits_have_the_same_losses(tmp_path: Any) -> None:
    pytest.importorskip("liger_kernel")

    def llama(seed: int) -> Any:
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
            )
        )  # fmt: skip

    kernels = {"fused_linear_cross_entropy": False, "cross_entropy": False}
    found = []
    for liger in ({}, {"use_liger_kernel": True, "liger_kernel_config": kernels}):
        args = arguments(tmp_path, use_cpu=False, **liger)
        trainer = distiller(llama(0), perturbed(llama(1), 0.1), args, examples(16, "causal"))
        found.append(losses_of(trainer))
    assert found[1] == pytest.approx(found[0], rel=1e-3)


@pytest.mark.parametrize("architecture", ["distilbert", "modernbert", "gpt2", "llama", "vit"])
def test_one_batch_has_one_gradient_however_it_is_split(tmp_path: Any, architecture: str) -> None:
    found = []
    for size, accumulation in ((8, 1), (2, 4)):
        args = one_step(tmp_path, size, accumulation, use_cpu=False)
        data = examples(8, "image" if architecture == "vit" else "single_label")
        teacher = perturbed(classifier(architecture, 2, seed=5), 0.1)
        found.append(gradient_of(distiller(classifier(architecture), teacher, args, data)))
    assert (found[1] - found[0]).abs().max() <= 1e-4 * found[0].abs().max()


def test_answers_kept_are_those_of_the_teacher_at_work(tmp_path: Any) -> None:
    cache = TeacherCache.capture(
        teacher_of(), examples(16), tmp_path / "cache", data_collator=collate, say=lambda line: None
    )
    found = []
    for teacher in (teacher_of(), cache):
        trainer = distiller(bert(), teacher, arguments(tmp_path, use_cpu=False), examples(16))
        found.append(losses_of(trainer))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_the_recipe_runs_on_one_gpu(tmp_path: Any, repository: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += ["accelerate_configs/single_gpu.yaml", "recipes/distill_bert.py", "--quick", "--output_dir"]
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "distillation_results.json").read_text())
    assert {"teacher", "student_alone", "student_distilled", "retention"} <= results.keys()
