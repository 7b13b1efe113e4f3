"""What a model costs: parameters, bytes on disk, and time per example on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

# Weights as `save_pretrained` writes them; a folder of the Trainer also holds optimizer states and arguments.
_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class ModelCost:
    """Size and speed of one model.

    Args:
        parameters: number of parameters, shared ones counted once.
        size_on_disk_bytes: bytes of the weight files.
        latency_ms: milliseconds per example, one example at a time.
    """

    parameters: int
    size_on_disk_bytes: int
    latency_ms: float


def total_cost(costs: Sequence[ModelCost]) -> ModelCost:
    """Return what models cost that run one after another on the same example.

    Example:
        >>> total_cost([ModelCost(10, 40, 1.5), ModelCost(20, 80, 2.5)])
        ModelCost(parameters=30, size_on_disk_bytes=120, latency_ms=4.0)
    """
    return ModelCost(
        parameters=sum(cost.parameters for cost in costs),
        size_on_disk_bytes=sum(cost.size_on_disk_bytes for cost in costs),
        latency_ms=sum(cost.latency_ms for cost in costs),
    )


def measure_cost(
    model: PreTrainedModel, folder: str | Path, inputs: Sequence[Mapping[str, torch.Tensor]], repeats: int = 5
) -> ModelCost:
    """Measure a model whose weights were saved to `folder`.

    The latency is that of `forward`, one example at a time, without what makes its input: the mean over the inputs,
    in the median of the repeats, after a warm-up over all of them. It holds for the device, precision and number of
    threads that the model is on now.

    Args:
        model: its training mode is restored.
        folder: where `save_pretrained` wrote it.
        inputs: arguments of its `forward`, one typical example each.
        repeats: passes over the inputs, at least 1.

    Raises:
        FileNotFoundError: if `folder` has no weight files.
        ValueError: for no inputs or no repeats.
    """
    if not inputs or repeats < 1:
        raise ValueError(f"expected inputs and repeats; received {len(inputs)} inputs, {repeats} repeats.")
    files = [path for pattern in _WEIGHT_FILES for path in Path(folder).glob(pattern)]
    if not files:
        raise FileNotFoundError(f"{folder}: expected weight files of a saved model; found none.")
    return ModelCost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        size_on_disk_bytes=sum(path.stat().st_size for path in files),
        latency_ms=_latency_ms(model, inputs, repeats),
    )


@torch.inference_mode()
def _latency_ms(model: PreTrainedModel, inputs: Sequence[Mapping[str, torch.Tensor]], repeats: int) -> float:
    batches = [{name: value.to(model.device) for name, value in one.items()} for one in inputs]
    was_training = model.training
    model.eval()
    seconds = []
    try:
        for _ in range(repeats + 1):
            started = time.perf_counter()
            for batch in batches:
                model(**batch)
            if model.device.type != "cpu":
                torch.accelerator.synchronize()
            seconds.append(time.perf_counter() - started)
    finally:
        model.train(was_training)
    return 1000 * statistics.median(seconds[1:]) / len(inputs)
