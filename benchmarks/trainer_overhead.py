"""What DistillationTrainer costs beside its teacher: a step over (teacher forward + plain Trainer step).

Everything is measured in one run, in turns, so that a busy machine slows all alike:

    python benchmarks/trainer_overhead.py --steps 30 --repeats 7

prints the medians and the ratio. Sizes are those of a small real job: a 4-layer 256-wide teacher and a
2-layer 128-wide student, 32 texts of 32 tokens.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
import warnings
from typing import Any

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hf_distill import DistillationTrainer, DistillationTrainingArguments


def model(layers: int, width: int, seed: int) -> BertForSequenceClassification:
    """Return a BERT classifier of 8 classes."""
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=8000,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=4 * width,
            num_labels=8,
        )
    )


def texts(count: int, length: int) -> list[dict[str, Any]]:
    """Return random texts with labels."""
    ids = torch.randint(5, 8000, (count, length), generator=torch.Generator().manual_seed(0))
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": index % 8}
        for index, row in enumerate(ids)
    ]


def seconds(function: Any) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ask(teacher: BertForSequenceClassification, batch: dict[str, torch.Tensor], steps: int) -> None:
    """Run the bare forwards that a step of distillation can't do without."""
    with torch.no_grad():
        for _ in range(steps):
            teacher(**batch)


def main() -> None:
    """Measure in turns, and print medians and ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="steps of one measurement (default 30)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each (default 7)")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="where to run (default cpu)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    data = texts(32 * options.steps, 32)
    common = {
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": options.device == "cpu",
        "max_steps": options.steps,
        "per_device_train_batch_size": 32,
    }
    teacher = model(4, 256, 0).eval()
    with tempfile.TemporaryDirectory() as folder:
        plain = Trainer(model(2, 128, 1), TrainingArguments(folder, **common), train_dataset=data)
        ours = DistillationTrainer(
            model(2, 128, 1), teacher, DistillationTrainingArguments(folder, **common), train_dataset=data
        )
        batch = {
            key: torch.stack([example[key] for example in data[:32]]).to(plain.args.device)
            for key in ("input_ids", "attention_mask")
        }
        times: dict[str, list[float]] = {"plain step": [], "teacher forward": [], "distillation step": []}
        for repeat in range(options.repeats + 1):
            taken = {
                "plain step": seconds(plain.train),
                "teacher forward": seconds(lambda: ask(teacher, batch, options.steps)),
                "distillation step": seconds(ours.train),
            }
            if repeat:  # the first round warms up
                for key, value in taken.items():
                    times[key].append(1000 * value / options.steps)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, "
          f"{torch.get_num_threads()} threads, {options.device}; median of {options.repeats}")  # fmt: skip
    for key, values in times.items():
        print(f"{key:18s} {statistics.median(values):8.2f} ms")
    ratios = [
        ours / (plain + forward)
        for plain, forward, ours in zip(
            times["plain step"], times["teacher forward"], times["distillation step"], strict=True
        )
    ]
    print(f"distillation step / (plain step + teacher forward): {statistics.median(ratios):.3f} "
          f"(from {min(ratios):.3f} to {max(ratios):.3f})")  # fmt: skip


if __name__ == "__main__":
    main()
