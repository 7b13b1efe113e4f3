"""Trainer features that can't work with distillation, refused by name before anything runs."""

from __future__ import annotations

from typing import Any


def check_supported(args: Any) -> None:
    """Raise for settings that would train wrongly in silence; docs/compatibility.md lists all.

    Raises:
        ValueError: DataParallel, or Liger's fused cross-entropy, which returns no logits.
    """
    if getattr(args, "n_gpu", 0) > 1:
        raise ValueError(
            f"devices: expected one GPU per process, received {args.n_gpu} GPUs in one process (DataParallel), whose "
            "scattered batches have no common count of items. Run: accelerate launch --multi_gpu --num_processes "
            f"{args.n_gpu} script.py, or set CUDA_VISIBLE_DEVICES=0."
        )
    liger = getattr(args, "liger_kernel_config", None) or {}
    if getattr(args, "use_liger_kernel", False) and liger.get("fused_linear_cross_entropy", True):
        raise ValueError(
            "use_liger_kernel: expected kernels that return logits, received fused_linear_cross_entropy, which does "
            "not. Set liger_kernel_config={'fused_linear_cross_entropy': False, 'cross_entropy': True}."
        )
