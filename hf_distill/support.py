"""Trainer features that can't work with distillation, refused by name before anything runs."""

from __future__ import annotations

import os
from typing import Any

import torch

_PARALLELISMS = {"cp": "context", "sp": "sequence", "tp": "tensor"}


def check_supported(args: Any, model: Any = None) -> None:
    """Raise for settings that would train wrongly in silence; docs/compatibility.md lists all.

    Args:
        args: the run's training arguments.
        model: the student, which may have been sharded when it was loaded.

    Raises:
        ValueError: DataParallel, context, sequence or tensor parallelism, or Liger's
            cross-entropies: the fused one returns no logits, the other writes over them.

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
    _check_liger(args)


_LIGER = "Set liger_kernel_config={'fused_linear_cross_entropy': False, 'cross_entropy': False}."


def _check_liger(args: Any) -> None:
    """Raise where the label loss would be one of Liger's cross-entropies."""
    liger = getattr(args, "liger_kernel_config", None) or {}
    if getattr(args, "use_liger_kernel", False):
        if liger.get("fused_linear_cross_entropy", True):
            raise ValueError(
                "use_liger_kernel: expected kernels that return logits, received fused_linear_cross_entropy, which "
                f"does not. {_LIGER}"
            )
        # Asked for by default for some architectures, so it has to be turned off by name.
        if liger.get("cross_entropy", True):
            raise ValueError(
                "use_liger_kernel: expected kernels that leave logits as they are, received cross_entropy, which "
                f"writes its gradient over the logits that the objectives read after it. {_LIGER}"
            )
    # Liger puts its cross-entropy into PyTorch, for every model of the process.
    if getattr(torch.nn.functional.cross_entropy, "__module__", "").startswith("liger_kernel"):
        raise ValueError(
            "torch.nn.functional.cross_entropy: expected PyTorch's, received Liger's, put there earlier in this "
            "process, which writes its gradient over the logits that the objectives read after it. Leave it out "
            "(cross_entropy=False) where Liger is applied, and start anew."
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
