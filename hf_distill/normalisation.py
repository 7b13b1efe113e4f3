"""Finds out how a label loss is normalised, by asking the loss that is really used."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any

import numpy
import torch
from torch import nn

from hf_distill.items import IGNORED, Head, batch_size, labelled_mask, slice_batch


class Normalisation(Enum):
    """How a label loss is normalised.

    ``normalised``: divided by ``num_items_in_batch``, so accumulated batches sum to the mean.
    ``mean``: a plain mean over its own labelled items, whatever count it is given.
    ``neither``: something else, e.g. a mean plus a router's auxiliary loss.
    ``unknown``: the batch had nothing to tell by.
    """

    UNKNOWN = 0
    NORMALISED = 1
    MEAN = 2
    NEITHER = 3


_ROUNDING = 1e-5
LossOf = Callable[[dict[str, Any], float], torch.Tensor]


def probe_normalisation(
    loss_of: LossOf, batch: dict[str, Any], head: Head, tolerance: float, classes: int | None = None
) -> Normalisation:
    """Ask a label loss four times, and tell how it is normalised.

    Given the count n and 4n, a normalised loss falls to a quarter. One that ignores the count is a
    mean if the parts of the batch, weighted by their labelled items, give the whole: ``n L = a L_a +
    b L_b``. It takes four forwards whatever comes, so that sharded models keep in step.

    Args:
        loss_of: gives the label loss of a batch under a count.
        batch: a real batch; one example is compared with itself twice over.
        head: what the labels are.
        tolerance: relative difference between forwards of different rows that counts as none, by
            their precision. The two counts are asked about the same rows, where only the loss rounds.
        classes: how many classes integer labels have, where known. Some rows are then asked about under other
            labels: a loss with class weights looks like a plain mean on rows of one class.

    Example:
        >>> def mean_loss(batch, count):
        ...     return batch["labels"].double().mean()
        >>> batch = {"labels": torch.tensor([1, 2, 6])}
        >>> probe_normalisation(mean_loss, batch, Head("single_label"), 1e-4)
        <Normalisation.MEAN: 2>
        >>> probe_normalisation(lambda b, n: b["labels"].double().sum() / n, batch, Head("single_label"), 1e-4)
        <Normalisation.NORMALISED: 1>
    """
    if classes is not None and classes > 1 and head.kind == "single_label" and _labelled(batch, head):
        batch = _of_many_classes(batch, head, classes)
    count = _labelled(batch, head)
    first, second = _parts(batch, head)
    losses = [loss_of(batch, max(count, 1) * factor) for factor in (1, 4)]
    whole, quarter = map(float, losses)
    rounding = _ROUNDING if losses[0].dtype in (torch.float32, torch.float64) else tolerance
    parts = [(float(loss_of(part, max(count, 1))), _labelled(part, head)) for part in (first, second)]
    if count == 0 or whole == 0 or not numpy.isfinite([whole, quarter]).all():
        return Normalisation.UNKNOWN
    if abs(4 * quarter - whole) <= rounding * abs(whole):
        return Normalisation.NORMALISED
    if abs(quarter - whole) > rounding * abs(whole):
        return Normalisation.NEITHER
    together = sum(loss * items for loss, items in parts) / sum(items for _, items in parts)
    return Normalisation.MEAN if abs(together - whole) <= tolerance * abs(whole) else Normalisation.NEITHER


def _parts(batch: dict[str, Any], head: Head) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two batches whose means, weighted by items, give the mean of the whole.

    The halves of the batch where both have labels; else the batch and the batch twice over, which
    tell a sum from a mean just as well.
    """
    size = batch_size(batch)
    halves = slice_batch(batch, slice(0, size // 2)), slice_batch(batch, slice(size // 2, size))
    if size > 1 and all(_labelled(half, head) for half in halves):
        return halves
    return batch, _twice(batch)


def _of_many_classes(batch: dict[str, Any], head: Head, classes: int) -> dict[str, Any]:
    """Return a batch whose second half has the classes that are rarest in its first half, and as many labels."""
    if _parts(batch, head)[0] is batch:
        batch = _twice(batch)
    for _ in range(2):  # rows for all classes, while that costs no memory that training does not need
        if _labelled(batch, head) < 2 * classes:
            batch = _twice(batch)
    labels = batch["labels"].clone()
    first, second = labels.tensor_split((labels.shape[0] // 2,))  # views
    counts = torch.bincount(first[(first >= 0) & (first < classes)], minlength=classes)
    rarest = (counts == counts.min()).nonzero().flatten()
    if len(rarest) == classes:  # all alike: one of them has another share in the second half
        rarest = rarest[:1]
    places = torch.arange(second.numel(), device=labels.device).reshape(second.shape)
    # Each once, then the last: in equal shares their weights could have the mean of the first half's.
    second.copy_(torch.where(second == IGNORED, second, rarest[places.clamp(max=len(rarest) - 1)]))
    return {**batch, "labels": labels}


def _labelled(batch: dict[str, Any], head: Head) -> int:
    return int(labelled_mask(batch["labels"], head).sum())


def _twice(batch: dict[str, Any]) -> dict[str, Any]:
    size = batch_size(batch)
    return {
        key: torch.cat([value, value])
        if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == size
        else value
        for key, value in batch.items()
    }


@contextlib.contextmanager
def untouched_randomness(devices: Sequence[int] = ()) -> Iterator[None]:
    """Give back the random states of torch, numpy and Python as they were.

    Example:
        >>> state = torch.get_rng_state()
        >>> with untouched_randomness():
        ...     _ = torch.rand(3)
        >>> torch.equal(state, torch.get_rng_state())
        True
    """
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run forwards that leave no trace: random states, buffers, modes and the config come back.

    A forward in eval mode draws no dropout, but some models draw all the same, move buffers, or
    write ``config.problem_type`` at their first batch.
    """
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    config = getattr(model, "config", None)
    settings = dict(vars(config)) if config is not None else {}
    model.eval()
    try:
        with untouched_randomness(_devices(model)), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
        if config is not None:
            vars(config).clear()
            vars(config).update(settings)


def _devices(model: nn.Module) -> list[Any]:
    """Return the CUDA devices that the model's parameters lie on."""
    return sorted(
        {parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"}
    )
