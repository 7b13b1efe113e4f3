"""Learns a function from a teacher's values and derivatives, with a fraction of the points that values alone take.

    python recipes/learn_function.py

A small random transformer is the function, of 16 numbers to 1; a student of its size learns it from scratch at a
few points, with no labels at all (Sobolev training, Czarnecki et al. 2017). Each point brings one value, or one
value and, a random direction at a time, its 16 derivatives. Printed is the error at 2,000 other points, as a
share of the function's variance. On 2 CPU cores it takes about two minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from typing import Any

import torch
import transformers
from transformers import ViTConfig, ViTForImageClassification

from hf_distill import DistillationTrainer, DistillationTrainingArguments

VALUES = {"name": "regression"}
DERIVATIVES = {"name": "derivative", "weight": 0.1}


def function(seed: int) -> ViTForImageClassification:
    """Return a small transformer that reads 16 numbers as a picture of 4 x 4, and gives one."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    picture = {"image_size": 4, "patch_size": 2, "num_channels": 1}
    head = {"num_labels": 1, "problem_type": "regression"}
    # No dropout by default: each mask would be another function, with other derivatives.
    return ViTForImageClassification(ViTConfig(**sizes, **picture, **head))


def teacher() -> ViTForImageClassification:
    """Return a function that is far from linear: its weights are those of a start, moved at random."""
    model, generator = function(5), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.25 * torch.randn(parameter.shape, generator=generator)
    return model


def points(count: int, seed: int) -> list[dict[str, Any]]:
    """Return points drawn from a normal distribution, without labels."""
    generator = torch.Generator().manual_seed(seed)
    return [{"pixel_values": point} for point in torch.randn(count, 1, 4, 4, generator=generator)]


def error(objectives: list[dict[str, Any]], count: int, steps: int, seed: int) -> float:
    """Train a student from scratch at some points, and return its squared error at others, over the variance."""
    of, others = teacher(), points(2000, 99)
    with torch.no_grad():
        variance = of(torch.stack([point["pixel_values"] for point in others])).logits.var().item()
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationTrainingArguments(
            folder, objectives=objectives, label_weight=0, seed=seed, max_steps=steps, learning_rate=3e-3,
            lr_scheduler_type="cosine", per_device_train_batch_size=32, per_device_eval_batch_size=500,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = DistillationTrainer(function(seed), of, args, train_dataset=points(count, 1000 + seed))
        trainer.train()
        return trainer.evaluate(others)["eval_loss/regression"] / variance


def main(arguments: list[str] | None = None) -> None:
    """Train on values at few and at many points, and on values and derivatives at few."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=64, help="the few points (default 64)")
    parser.add_argument("--times", type=int, default=8, help="how many times as many are many (default 8)")
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps of each run (default 1500)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default 3)")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # random starts and few points are the point here
    transformers.logging.set_verbosity_error()
    many = options.points * options.times
    runs = {
        f"values at {options.points} points": ([VALUES], options.points),
        f"values at {many} points": ([VALUES], many),
        f"values and derivatives at {options.points} points": ([VALUES, DERIVATIVES], options.points),
    }
    table = {
        name: [error(objectives, count, options.steps, seed) for seed in range(1, options.seeds + 1)]
        for name, (objectives, count) in runs.items()
    }
    print("\n| Learnt from | Squared error / variance, mean | From | To |\n| --- | --- | --- | --- |")
    for name, errors in table.items():
        print(f"| {name} | {statistics.mean(errors):.3f} | {min(errors):.3f} | {max(errors):.3f} |")


if __name__ == "__main__":
    main()
