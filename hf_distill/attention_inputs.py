"""The queries, keys, values and masks that attention layers are given, noted on their way to the kernel."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_RECORDABLE = ("eager", "sdpa")


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Return float32, or float64 as it is.

    Example:
        >>> full_precision(torch.zeros(1, dtype=torch.float16)).dtype
        torch.float32
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True)
class AttentionInputs:
    """What one attention layer was given.

    Shapes: ``query``, ``key``, ``value`` are ``(examples, heads, length, head width)``, the keys' heads
    repeated where queries share them; ``allowed`` is ``(examples, 1, length, length)``: which key each
    query may look at.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    allowed: torch.Tensor

    def select(self, rows: slice) -> AttentionInputs:
        """Return those of some examples."""
        return AttentionInputs(
            self.query[rows], self.key[rows], self.value[rows], self.scaling, self.allowed[rows]
        )

    def within(self, allowed: torch.Tensor) -> AttentionInputs:
        """Return them with fewer keys allowed, and one head of keys and values for each head of queries."""
        shared = self.query.shape[1] // self.key.shape[1]
        key, value = (heads.repeat_interleave(shared, dim=1) for heads in (self.key, self.value))
        return replace(self, key=key, value=value, allowed=self.allowed & allowed)

    def vectors(self, kind: Literal["query", "key", "value"]) -> torch.Tensor:
        """Return queries, keys or values in float32 or better, 0 at positions that nothing looks at.

        Those are pads. What they hold, NaN included, must not reach a value, nor as 0 * NaN a gradient.
        """
        seen = self.allowed.any(-2).unsqueeze(-1)
        tensor: torch.Tensor = getattr(self, kind)
        return full_precision(tensor).masked_fill(~seen, 0.0)

    def scores(self) -> torch.Tensor:
        """Return ``Q K^T * scaling``, ``(examples, heads, length, length)``, before mask and softmax."""
        return self.vectors("query") @ self.vectors("key").transpose(-1, -2) * self.scaling


@contextlib.contextmanager
def attention_recorded(
    model: Any, layers: frozenset[int], into: dict[int, AttentionInputs], members: dict[int, int]
) -> Iterator[None]:
    """Stand in for the model's attention function: note the inputs of some layers, and call it.

    Args:
        model: a transformers model without wrappers.
        layers: which layers, counted from 1.
        into: takes what the first forward gives to each layer, the keys' heads as they are.
        members: takes the number of each attention module, by its id.

    Raises:
        ValueError: an attention kernel that hides queries and masks.
    """
    kernel = model.config._attn_implementation
    if kernel not in _RECORDABLE:
        raise ValueError(
            f"attn_implementation: expected {' or '.join(_RECORDABLE)} for an objective on attention, received "
            f"{kernel!r}, whose masks can't be read. Load the model with attn_implementation='sdpa'."
        )

    def record(module: Any, query: Any, key: Any, value: Any, mask: Any, *args: Any, **options: Any) -> Any:
        if not members:
            alike = [one for one in model.modules() if type(one) is type(module)]
            members.update({id(one): number for number, one in enumerate(alike, start=1)})
        layer = members.get(id(module))
        if layer in layers and layer not in into:  # of the first forward
            causal = mask is None and kernel == "sdpa" and _is_causal(module, options)
            into[layer] = _inputs(query, key, value, mask, causal, options.get("scaling"))
        return _original(kernel, own, module)(module, query, key, value, mask, *args, **options)

    own = ALL_ATTENTION_FUNCTIONS._local_mapping.get(kernel)
    ALL_ATTENTION_FUNCTIONS[kernel] = record
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[kernel]
        if own is not None:
            ALL_ATTENTION_FUNCTIONS[kernel] = own


def _original(kernel: str, own: Callable[..., Any] | None, module: Any) -> Callable[..., Any]:
    """Return what the model would have called: eager attention lies in the model's own file."""
    if own is not None:
        return own
    registered: Callable[..., Any] | None = ALL_ATTENTION_FUNCTIONS._global_mapping.get(kernel)
    if registered is not None:
        return registered
    files = (
        vars(sys.modules[cls.__module__]) for cls in type(module).__mro__
    )  # a subclass's file may lack it
    return next(file["eager_attention_forward"] for file in files if "eager_attention_forward" in file)


def _is_causal(module: Any, options: Any) -> bool:
    """Whether SDPA hides later keys where it is given no mask, by the rule that transformers has for it."""
    causal = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if causal is None else causal)


def _inputs(query: Any, key: Any, value: Any, mask: Any, causal: bool, scaling: Any) -> AttentionInputs:
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    length = query.shape[2]
    if mask is None:
        allowed = torch.ones(query.shape[0], 1, length, length, dtype=torch.bool, device=query.device)
        allowed = allowed.tril() if causal else allowed
    else:
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        allowed = allowed.expand(query.shape[0], -1, -1, -1)[:, :1]
    return AttentionInputs(query, key, value, scaling, allowed.expand(-1, -1, length, -1))
