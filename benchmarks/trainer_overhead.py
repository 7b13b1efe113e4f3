"""What DistillationTrainer costs beside its teacher: a step over (teacher forward + plain Trainer step).

Everything is measured in one run, in turns, so that a busy machine slows all alike:

    python benchmarks/trainer_overhead.py --steps 30 --repeats 7
    python benchmarks/trainer_overhead.py --device gpu --sizes base --bf16

prints the medians and the ratio. Sizes are those of a small real job (a 4-layer 256-wide teacher and a 2-layer
128-wide student, 32 texts of 32 tokens), or BERT-base's and DistilBERT's depths (12 and 6 layers of 768, 128 tokens).
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

# Layers and width of the teacher, of the student, and tokens of a text.
SIZES = {"small": ((4, 256), (2, 128), 32), "base": ((12, 768), (6, 768), 128)}


def model(layers: int, width: int, seed: int) -> BertForSequenceClassification:
    """Return a BERT classifier of 8 classes."""
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=8000,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=max(4, width // 64),
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
    """Return how long a call takes, to the end of what it asks of a GPU."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ask(
    teacher: BertForSequenceClassification, batch: dict[str, torch.Tensor], steps: int, bf16: bool
) -> None:
    """Run the bare forwards that a step of distillation can't do without."""
    with torch.no_grad(), torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=bf16):
        for _ in range(steps):
            teacher(**batch)


def main() -> None:
    """Measure in turns, and print medians and ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="steps of one measurement (default 30)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each (default 7)")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="where to run (default cpu)")
    parser.add_argument("--sizes", choices=list(SIZES), default="small", help="of the models (default small)")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16")
    options = parser.parse_args()
    of_teacher, of_student, length = SIZES[options.sizes]
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    data = texts(32 * options.steps, length)
    common = {
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": options.device == "cpu",
        "max_steps": options.steps,
        "per_device_train_batch_size": 32,
        "bf16": options.bf16,
    }
    teacher = model(*of_teacher, 0).eval()
    with tempfile.TemporaryDirectory() as folder:
        plain = Trainer(model(*of_student, 1), TrainingArguments(folder, **common), train_dataset=data)
        ours = DistillationTrainer(
            model(*of_student, 1),
            teacher,
            DistillationTrainingArguments(folder, **common),
            train_dataset=data,
        )
        batch = {
            key: torch.stack([example[key] for example in data[:32]]).to(plain.args.device)
            for key in ("input_ids", "attention_mask")
        }
        times: dict[str, list[float]] = {"plain step": [], "teacher forward": [], "distillation step": []}
        for repeat in range(options.repeats + 1):
            taken = {
                "plain step": seconds(plain.train),
                "teacher forward": seconds(lambda: ask(teacher, batch, options.steps, options.bf16)),
                "distillation step": seconds(ours.train),
            }
            if repeat:  # the first round warms up
                for key, value in taken.items():
                    times[key].append(1000 * value / options.steps)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, "
          f"{torch.get_num_threads()} threads, {options.device}, {options.sizes} sizes, "
          f"{'bfloat16' if options.bf16 else 'float32'}; median of {options.repeats}")  # fmt: skip
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
