"""double_backward: torch's MATH attention while it lasts, whatever kernel a model calls, under checkpoints too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from hf_distill.double_backward import double_backward
from tests.tiny import classifier

ARCHITECTURES = ["bert", "distilbert", "roberta", "modernbert", "gpt2", "gpt2_lm", "llama_lm", "vit"]


def inputs(model: Any) -> dict[str, torch.Tensor]:
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 8, 8)}
    return {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}


def second_order(model: Any, fixed: bool) -> torch.Tensor:
    """Return the gradient of a gradient to one weight: of the logits to that weight, and to all weights."""
    torch.manual_seed(0)
    weights = [p for p in model.parameters() if p.dim() == 2]
    with double_backward(model) if fixed else torch.enable_grad():
        total = model(**inputs(model)).logits.square().sum()
        gradients = torch.autograd.grad(total, weights, create_graph=True, allow_unused=True)
    second = sum(g.square().sum() for g in gradients if g is not None)
    model.zero_grad()
    second.backward()
    return torch.cat([p.grad.flatten() for p in weights if p.grad is not None])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_default_attention_fails_and_this_mends_it(architecture: str) -> None:
    model = classifier(architecture).eval()  # no dropout, with which the CPU would take MATH by itself
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(RuntimeError, match="not implemented"):
        second_order(model, fixed=False)
    got = second_order(model, fixed=True)
    model.set_attn_implementation("eager")
    expected = second_order(model, fixed=False)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_kernel_is_the_users_again_afterwards() -> None:
    x = torch.randn(1, 1, 3, 4, requires_grad=True)
    with double_backward():
        assert "Math" in kernel_of(scaled_dot_product_attention(x, x, x))
    assert "Math" not in kernel_of(scaled_dot_product_attention(x, x, x))


def kernel_of(output: torch.Tensor) -> str:
    return "fused" if "ScaledDotProduct" in output.grad_fn.name() else "Math"


def test_a_kernel_called_by_name_is_left_out_for_a_while() -> None:
    calls = []

    def fused(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return query.detach().transpose(1, 2).contiguous(), None

    AttentionInterface.register("fused_for_test", fused)
    try:
        model = classifier("bert").eval()
        model.config._attn_implementation = "fused_for_test"
        second_order(model, fixed=True)
        assert not calls
        assert model.config._attn_implementation == "fused_for_test"
        with torch.no_grad():
            model(**inputs(model))
        assert calls
    finally:
        AttentionInterface._global_mapping.pop("fused_for_test", None)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama_lm"])
def test_layers_under_checkpoints_are_recomputed_by_the_same_kernel(
    architecture: str, reentrant: bool
) -> None:
    model = classifier(architecture).train()
    plain = second_order(model, fixed=True)
    # Named gradient_... in older transformers, and deprecated since.
    name = "activation_checkpointing_enable"
    enable = getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")
    enable({"use_reentrant": reentrant})
    functions = [
        m._gradient_checkpointing_func for m in model.modules() if "_gradient_checkpointing_func" in vars(m)
    ]
    assert functions
    got = second_order(model, fixed=True)
    assert (got - plain).abs().max() <= 1e-5 * plain.abs().max()
    after = [
        m._gradient_checkpointing_func for m in model.modules() if "_gradient_checkpointing_func" in vars(m)
    ]
    assert after == functions
