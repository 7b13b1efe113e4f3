"""Whether a recipe can keep its teachers' answers, and why not where it can't."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from hf_distill.loss_plan import resolve_loss
from hf_distill.objectives.base import OF_ONE_MODEL


def uncached_because(args: Any, processors: Sequence[Any], examples: int, seeds: int) -> str | None:
    """Return why teachers are asked at every step, or None where their logits, asked for once, will do and pay.

    Args:
        args: distillation arguments.
        processors: what makes each teacher's input.
        examples: how many a student is trained on.
        seeds: how many students are distilled.

    Example:
        >>> from types import SimpleNamespace
        >>> right = SimpleNamespace(padding_side="right")
        >>> args = SimpleNamespace(alpha=0.5, temperature=2.0, world_size=1, max_steps=-1, num_train_epochs=3.0)
        >>> uncached_because(args, [right], examples=1000, seeds=1) is None
        True
        >>> args = SimpleNamespace(objectives=[{"name": "hidden_states"}])
        >>> uncached_because(args, [right], examples=1000, seeds=1)
        'hidden_states looks inside it'
    """
    terms = resolve_loss(args, "single_label").terms
    if not terms:
        return "training never needs it"
    inside = [term.key for term in terms if term.objective.needs & OF_ONE_MODEL]
    if inside:
        return f"{', '.join(inside)} {'looks' if len(inside) == 1 else 'look'} inside it"
    if any(getattr(processor, "padding_side", "right") == "left" for processor in processors):
        return "padding on the left moves its positions from batch to batch"
    if int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size)) < args.world_size:
        return "processes on several machines may not see one folder"
    if seeds * _epochs(args, examples) < 1:
        return "training reads fewer examples than there are"
    return None


def _epochs(args: Any, examples: int) -> float:
    """Return how often each example is read."""
    if args.max_steps <= 0:
        return float(args.num_train_epochs)
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return float(args.max_steps * step / max(examples, 1))
