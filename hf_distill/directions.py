"""Random directions that depend on the example and the step alone, however a batch is split or padded."""

from __future__ import annotations

import math

import torch

# splitmix64 (Steele, Lea, Flood 2014), its constants as the signed numbers that torch's int64 wraps to.
_STEP = -0x61C8864680B583EB
_FIRST, _SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
_LOW_32 = 0xFFFFFFFF


def example_keys(seed: int, step: int, first: int, count: int, device: torch.device) -> torch.Tensor:
    """Return the keys that the random numbers of some consecutive examples are drawn by.

    Shapes: ``(count,)`` int64.

    Args:
        seed: the run's seed.
        step: the optimizer's step, so that every step draws anew.
        first: index of the first example in the whole accumulated batch over all processes.
        count: number of examples.
        device: where the keys are needed.

    Example:
        >>> whole = example_keys(1, 7, 0, 4, torch.device("cpu"))
        >>> torch.equal(whole[2:], example_keys(1, 7, 2, 2, torch.device("cpu")))
        True
    """
    keys = torch.full((count,), seed, dtype=torch.int64, device=device)
    keys = _scrambled(_scrambled(keys) + step)
    return _scrambled(keys + torch.arange(first, first + count, device=device))


def standard_normals(keys: torch.Tensor, where: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return standard normal numbers where a mask is true, and 0 elsewhere.

    The n-th true entry of an example gets the n-th number of its key, so that padding on either side
    and the other examples change nothing. No generator is asked, hence none is disturbed, and the
    device is not waited for.

    Shapes: keys ``(examples,)`` and a boolean mask ``(examples, ...)``, to the mask's shape.
    Source: Box and Muller 1958, on the bits of splitmix64.

    Example:
        >>> keys = example_keys(1, 0, 0, 1, torch.device("cpu"))
        >>> short = standard_normals(keys, torch.tensor([[True, True]]), torch.float32)
        >>> padded = standard_normals(keys, torch.tensor([[False, True, True, False]]), torch.float32)
        >>> torch.equal(padded[:, 1:3], short), padded[0, 0].item(), padded[0, 3].item()
        (True, 0.0, 0.0)
    """
    # One example at a time: the 64-bit numbers of a whole batch of logits would outweigh the logits.
    rows = [_normals(key, mask.reshape(-1), dtype) for key, mask in zip(keys, where, strict=True)]
    return torch.stack(rows).reshape(where.shape) if rows else where.to(dtype)


def _normals(key: torch.Tensor, where: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    bits = _scrambled(where.cumsum(0) * _STEP + key)
    radius = (((bits >> 32) & _LOW_32).float() + 0.5) / 2**32
    angle = (bits & _LOW_32).float() * (2 * math.pi / 2**32)
    numbers = (-2 * radius.log()).clamp(min=0).sqrt() * angle.cos()
    return torch.where(where, numbers, torch.zeros_like(numbers)).to(dtype)


def _scrambled(numbers: torch.Tensor) -> torch.Tensor:
    """Return splitmix64's next output for each state: int64 in, int64 out, wrapping."""
    numbers = numbers + _STEP
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * _SECOND
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: torch.Tensor, places: int) -> torch.Tensor:
    """Return a shift to the right that fills up with zeros: torch's repeats the sign."""
    return (numbers >> places) & ((1 << (64 - places)) - 1)
