"""Forwards that can be differentiated twice: the attention kernel, and activation checkpoints, for a while."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

# What torch can differentiate twice: its own attention by the MATH kernel, and attention written out.
_DIFFERENTIABLE = frozenset({"sdpa", "eager"})


@contextlib.contextmanager
def double_backward(*models: nn.Module) -> Iterator[None]:
    """Let the forwards in this context be differentiated twice; whatever runs outside keeps its kernel.

    The fused kernels behind ``scaled_dot_product_attention`` have no second derivative (pytorch
    #116350), so only the one written out, MATH, is allowed. A model that calls another kernel by name
    (FlashAttention, FlexAttention) is set to one of torch's. Layers under activation checkpointing run
    again in each backward, the last of which comes long after this context: their checkpoints remember
    the kernel, and are of the kind that ``torch.autograd.grad`` works with.

    Example:
        >>> import torch
        >>> x = torch.randn(1, 1, 3, 4, requires_grad=True)
        >>> with double_backward():
        ...     attended = nn.functional.scaled_dot_product_attention(x, x, x)
        >>> (first,) = torch.autograd.grad(attended.sum(), x, create_graph=True)
        >>> torch.autograd.grad(first.square().sum(), x)[0].shape
        torch.Size([1, 1, 3, 4])
    """
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(_attention_of_torch(model))
            stack.enter_context(_checkpoints_with_the_kernel(model))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


@contextlib.contextmanager
def _attention_of_torch(model: nn.Module) -> Iterator[None]:
    """Set the attention of a model, and of the models within it, to one that torch differentiates twice."""
    configs: dict[int, Any] = {
        id(part.config): part.config for part in model.modules() if hasattr(part, "config")
    }
    before = [
        (config, config._attn_implementation)
        for config in configs.values()
        if getattr(config, "_attn_implementation", None) is not None
    ]
    fallback = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
    changed = [pair for pair in before if pair[1] not in _DIFFERENTIABLE]
    try:
        for config, _ in changed:
            config._attn_implementation = fallback
        yield
    finally:
        # A config hands its setting down to those it holds, which `modules()` lists after it.
        for config, implementation in before if changed else ():
            config._attn_implementation = implementation


@contextlib.contextmanager
def _checkpoints_with_the_kernel(model: nn.Module) -> Iterator[None]:
    """Give checkpointed layers a checkpoint that recomputes under the MATH kernel."""
    name = "_gradient_checkpointing_func"
    before = [(part, vars(part)[name]) for part in model.modules() if name in vars(part)]
    try:
        for part, _ in before:
            setattr(part, name, _checkpoint)
        yield
    finally:
        for part, function in before:
            setattr(part, name, function)


class _MathKernel:
    """``sdpa_kernel(MATH)`` that can be entered again: a layer is recomputed once per backward."""

    def __init__(self) -> None:
        self._entered: list[Any] = []

    def __enter__(self) -> None:
        self._entered.append(sdpa_kernel(SDPBackend.MATH))
        self._entered[-1].__enter__()

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)


_checkpoint = functools.partial(
    checkpoint, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _MathKernel())
)
