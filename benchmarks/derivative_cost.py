"""What a derivative term costs beside labels and forward_kl: time of a step and peak memory, by method.

Each measurement runs in a process of its own, in turns, so that a busy machine slows all alike and no
peak hides behind another's:

    python benchmarks/derivative_cost.py --steps 20 --repeats 5

prints a table of medians. A 4-layer 256-wide BERT teaches the 2-layer student cut from it, 32 texts of 32 tokens.
Memory is what training adds to the process (the peak of its resident memory) on CPU, and the allocator's peak on GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

from hf_distill import DistillationTrainer, DistillationTrainingArguments, student_from_teacher

KL = {"name": "forward_kl"}
CASES: dict[str, dict[str, Any]] = {
    "forward_kl alone": {"objectives": [KL]},
    "+ vjp": {"objectives": [KL, {"name": "derivative"}]},
    "+ vjp, every 4 steps": {"objectives": [KL, {"name": "derivative", "every_n_steps": 4}]},
    "+ finite_difference": {"objectives": [KL, {"name": "derivative", "method": "finite_difference"}]},
    "+ finite_difference, every 4 steps": {
        "objectives": [KL, {"name": "derivative", "method": "finite_difference", "every_n_steps": 4}]
    },
    "forward_kl alone, checkpointed": {"objectives": [KL], "gradient_checkpointing": True},
    "+ vjp, checkpointed": {"objectives": [KL, {"name": "derivative"}], "gradient_checkpointing": True},
}


def measure(case: str, steps: int, length: int, device: str) -> dict[str, float]:
    """Train, and return milliseconds a step and the mebibytes that training added."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "vocab_size": 8000}
    config = BertConfig(num_hidden_layers=4, num_labels=8, max_position_embeddings=max(length, 512), **sizes)
    teacher = BertForSequenceClassification(config)
    student = student_from_teacher(teacher, num_hidden_layers=2)
    ids = torch.randint(5, 8000, (32 * steps, length), generator=torch.Generator().manual_seed(0))
    data = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": index % 8}
        for index, row in enumerate(ids)
    ]
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationTrainingArguments(
            folder, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=device == "cpu", max_steps=steps, per_device_train_batch_size=32, **CASES[case],
        )  # fmt: skip
        trainer = DistillationTrainer(student, teacher, args, train_dataset=data)
        before = resident()
        trainer.train()  # warms up
        start = time.perf_counter()
        trainer.train()
        if device == "gpu":
            torch.cuda.synchronize()
        milliseconds = 1000 * (time.perf_counter() - start) / steps
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "gpu" else resident() - before
    return {"ms": milliseconds, "mib": peak}


def resident() -> float:
    """Return the most resident memory this process has had, in mebibytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Measure in turns, and print the medians as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="steps of one measurement (default 20)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each (default 5)")
    parser.add_argument("--length", type=int, default=32, help="tokens of a text (default 32)")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="where to run (default cpu)")
    parser.add_argument("--only", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.steps, options.length, options.device)))
        return
    found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    for _ in range(options.repeats):
        for case, results in found.items():
            command = [sys.executable, __file__, "--only", case, "--steps", str(options.steps)]
            command += ["--length", str(options.length), "--device", options.device]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, "
          f"{torch.get_num_threads()} threads, {options.device}; median of {options.repeats}\n")  # fmt: skip
    print("| Loss beside the labels | Step, ms | Times the step without | Memory of training, MiB |")
    print("| --- | --- | --- | --- |")
    base = statistics.median(result["ms"] for result in found["forward_kl alone"])
    for case, results in found.items():
        ms, mib = (statistics.median(result[key] for result in results) for key in ("ms", "mib"))
        print(f"| {case} | {ms:.1f} | {ms / base:.2f} | {mib:.0f} |")


if __name__ == "__main__":
    main()
