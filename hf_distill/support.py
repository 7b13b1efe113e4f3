"""Trainer features that can't work with distillation, refused by name before anything runs."""

from __future__ import annotations

import os
from typing import Any

_PARALLELISMS = {"cp": "context", "sp": "sequence", "tp": "tensor"}


def check_supported(args: Any, model: Any = None) -> None:
    """Raise for settings that would train wrongly in silence; docs/compatibility.md lists all.

    Args:
        args: the run's training arguments.
        model: the student, which may have been sharded when it was loaded.

    Raises:
        ValueError: DataParallel, context, sequence or tensor parallelism, or Liger's fused
            cross-entropy, which returns no logits.

    Example:
        >>> from types import SimpleNamespace
        >>> check_supported(SimpleNamespace(n_gpu=1, use_liger_kernel=False))
    """
    if getattr(args, "n_gpu", 0) > 1:
        raise ValueError(
            f"devices: expected one GPU per process, received {args.n_gpu} GPUs in one process (DataParallel), whose "
            "scattered batches have no common count of items. Run: accelerate launch --multi_gpu --num_processes "
            f"{args.n_gpu} script.py, or set CUDA_VISIBLE_DEVICES=0."
        )
    for short, size in _parallel_sizes(args, model).items():
        if size > 1:
            raise ValueError(
                f"parallelism: expected processes that each read examples of their own, received {short}_size={size} "
                f"({_PARALLELISMS[short]} parallelism), where several share one example and its items would be "
                f"counted {size} times. Set {short}_size=1; DDP and FSDP share out the examples."
            )
    liger = getattr(args, "liger_kernel_config", None) or {}
    if getattr(args, "use_liger_kernel", False) and liger.get("fused_linear_cross_entropy", True):
        raise ValueError(
            "use_liger_kernel: expected kernels that return logits, received fused_linear_cross_entropy, which does "
            "not. Set liger_kernel_config={'fused_linear_cross_entropy': False, 'cross_entropy': True}."
        )


def _parallel_sizes(args: Any, model: Any) -> dict[str, int]:
    """Return how many processes share one example, by kind, from wherever it may be set."""
    config = getattr(args, "parallelism_config", None)
    sizes = {short: getattr(config, f"{short}_size", None) or 1 for short in _PARALLELISMS}
    # `accelerate launch --use_parallelism_config` sets the environment, which counts where args say nothing.
    if config is None and os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true":
        sizes = {
            short: int(os.environ.get(f"PARALLELISM_CONFIG_{short.upper()}_SIZE", "1")) for short in sizes
        }
    deepspeed = getattr(getattr(args, "hf_deepspeed_config", None), "config", None) or {}
    sharded = (deepspeed.get("tensor_parallel", {}).get("autotp_size"), getattr(model, "tp_size", None))
    sizes["tp"] = max(sizes["tp"], *(size or 1 for size in sharded))
    return sizes
