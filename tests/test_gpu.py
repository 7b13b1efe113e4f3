"""What only a GPU shows: no waiting for the device, mixed precision there, and the CPU's gradient.

Run with ``pytest -m gpu``; skipped where there is none.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import bert, distiller, examples, gradient_of, one_step, teacher_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch sees"),
]


def on_gpu(folder: Any, **options: Any) -> Any:
    return distiller(bert(), teacher_of(), one_step(folder, 8, 1, use_cpu=False, **options), examples(8))


def test_the_gradient_is_the_cpus(tmp_path: Any) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
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


def test_the_loss_never_waits_for_the_device(tmp_path: Any) -> None:
    trainer = on_gpu(tmp_path)
    trainer.train()  # what is done once is done
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer._totals = trainer._count([batch], trainer.args.device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.compute_loss(
            trainer.model, batch, num_items_in_batch=torch.tensor(8, device="cuda")
        ).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(parameter.grad.abs().max() > 0 for parameter in trainer.model.classifier.parameters())
