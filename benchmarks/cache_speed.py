"""What a teacher cache saves: a cached step beside a plain one, ten epochs, the break-even, and the capture's speed.

    OMP_NUM_THREADS=2 python benchmarks/cache_speed.py step
    OMP_NUM_THREADS=2 python benchmarks/cache_speed.py epochs --plot docs/images/cache_break_even.svg
    OMP_NUM_THREADS=2 python benchmarks/cache_speed.py capture

Each prints medians and ratios of one run, in which what is compared takes turns. Texts are random ids, of 16 to 64
tokens; 32 to a batch; 8 classes.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

import torch
import transformers
from datasets.utils.logging import disable_progress_bar
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments, TeacherCache
from hf_distill.tasks.wordpiece import train_tokenizer

BATCH = 32


@dataclass(frozen=True)
class Pair:
    """Layers and widths of a teacher and its student."""

    teacher_layers: int
    teacher_width: int
    student_layers: int
    student_width: int

    def __str__(self) -> str:
        """Name it by its sizes."""
        return (
            f"{self.teacher_layers} x {self.teacher_width} into {self.student_layers} x {self.student_width}"
        )

    def models(self) -> tuple[Any, Any]:
        """Return teacher and student."""
        return bert(self.teacher_layers, self.teacher_width), bert(self.student_layers, self.student_width)


# The first is the pair of which a step was measured to be 80 % the teacher's.
PAIRS = (Pair(6, 384, 2, 128), Pair(4, 256, 2, 128), Pair(4, 256, 4, 256))


def bert(layers: int, width: int) -> BertForSequenceClassification:
    """Return a BERT classifier of 8 classes with random weights."""
    torch.manual_seed(layers)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=8000,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
            num_labels=8,
        )
    )


def texts(count: int, shortest: int = 16, longest: int = 64) -> list[dict[str, Any]]:
    """Return random texts with labels."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    rows = [torch.randint(5, 8000, (length,), generator=generator).tolist() for length in lengths]
    return [
        {"input_ids": row, "attention_mask": [1] * len(row), "labels": index % 8}
        for index, row in enumerate(rows)
    ]


def collator() -> DataCollatorWithPadding:
    """Return what pads a batch."""
    return DataCollatorWithPadding(train_tokenizer(["a text"], 30))


def settings(folder: str, **more: Any) -> dict[str, Any]:
    """Return training arguments."""
    return {
        "output_dir": folder, "report_to": "none", "save_strategy": "no", "logging_strategy": "no",
        "disable_tqdm": True, "use_cpu": True, "per_device_train_batch_size": BATCH, **more,
    }  # fmt: skip


def distil(student: Any, teacher: Any, data: Any, folder: str, **more: Any) -> DistillationTrainer:
    """Return a trainer that distils."""
    args = DistillationTrainingArguments(**settings(folder, **more))
    return DistillationTrainer(student, teacher, args, train_dataset=data, data_collator=collator())


def capture(teacher: Any, data: Any, folder: str, **more: Any) -> TeacherCache:
    """Return a cache of the teacher's answers."""
    found: TeacherCache = TeacherCache.capture(
        teacher, data, folder, data_collator=collator(), batch_size=BATCH, device="cpu",
        say=lambda line: None, **more,
    )  # fmt: skip
    return found


def seconds(function: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def middle(values: list[float], form: str = ".3f") -> str:
    """Return the median and the range."""
    return f"{statistics.median(values):{form}} (from {min(values):{form}} to {max(values):{form}})"


def step(options: Any) -> None:
    """A step of plain Trainer, of a cached teacher and of the teacher online, in turns."""
    data = texts(BATCH * options.steps)
    teacher, student = PAIRS[0].models()
    times: dict[str, list[float]] = {"plain": [], "cached": [], "online": []}
    with tempfile.TemporaryDirectory() as folder:
        cache = capture(teacher, data, folder + "/cache")
        cases = {
            "plain": Trainer(
                student,
                TrainingArguments(**settings(folder, max_steps=options.steps)),
                train_dataset=data,
                data_collator=collator(),
            ),
            "cached": distil(PAIRS[0].models()[1], cache, data, folder, max_steps=options.steps),
            "online": distil(PAIRS[0].models()[1], teacher, data, folder, max_steps=options.steps),
        }
        for repeat in range(options.repeats + 1):
            for name, trainer in cases.items():
                taken = seconds(trainer.train)
                if repeat:  # the first round warms up
                    times[name].append(1000 * taken / options.steps)
    print(f"{PAIRS[0]}, {options.steps} steps, median of {options.repeats}")
    for name, values in times.items():
        print(f"{name} step, ms: {middle(values, '.1f')}")
    print(f"cached / plain: {middle(ratios(times['cached'], times['plain']))}")
    print(f"online / cached: {middle(ratios(times['online'], times['cached']))}")


def ratios(over: list[float], under: list[float]) -> list[float]:
    """Return the ratio of each round."""
    return [one / other for one, other in zip(over, under, strict=True)]


def epochs(options: Any) -> None:
    """Whole trainings online and cached, capture included, and from how many epochs on a cache pays."""
    data = texts(BATCH * options.steps)
    found: dict[Pair, dict[str, list[float]]] = {}
    for pair in PAIRS:
        times: dict[str, list[float]] = {"capture": [], "cached": [], "online": []}
        for _ in range(options.repeats):
            teacher, student = pair.models()
            with tempfile.TemporaryDirectory() as folder:
                times["capture"].append(seconds(lambda: capture(teacher, data, folder + "/cache")))  # noqa: B023
                cached = distil(
                    student, TeacherCache(folder + "/cache"), data, folder, num_train_epochs=options.epochs
                )
                times["cached"].append(seconds(cached.train))
                online = distil(pair.models()[1], teacher, data, folder, num_train_epochs=options.epochs)
                times["online"].append(seconds(online.train))
        found[pair] = times
        whole = [a + b for a, b in zip(times["capture"], times["cached"], strict=True)]
        pays = [
            taken / ((online - cached) / options.epochs)
            for taken, cached, online in zip(*times.values(), strict=True)
        ]
        print(f"{pair}: capture {middle(times['capture'], '.1f')} s; {options.epochs} epochs of {options.steps} steps "
              f"cached {middle(times['cached'], '.1f')} s, online {middle(times['online'], '.1f')} s")  # fmt: skip
        print(f"    online / (capture + cached): {middle(ratios(times['online'], whole), '.2f')}; "
              f"break-even after {middle(pays, '.2f')} epochs", flush=True)  # fmt: skip
    if options.plot:
        plot(found, options)


def plot(found: dict[Pair, dict[str, list[float]]], options: Any) -> None:
    """Draw the time of a training over its epochs, online and cached."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(11, 3.2))
    for axis, (pair, times) in zip(axes, found.items(), strict=True):
        taken = {name: statistics.median(values) for name, values in times.items()}
        span = [0, options.epochs]
        axis.plot(span, [0, taken["online"]], label="teacher online")
        axis.plot(span, [taken["capture"], taken["capture"] + taken["cached"]], label="capture, then cached")
        pays = taken["capture"] / ((taken["online"] - taken["cached"]) / options.epochs)
        axis.axvline(pays, color="grey", linestyle=":", label=f"break-even: {pays:.2f} epochs")
        axis.set(title=str(pair), xlabel="epochs", ylabel="seconds", xlim=(0, options.epochs), ylim=(0, None))
        axis.legend(fontsize="small")
    figure.tight_layout()
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.plot, metadata={"Date": None})


def capturing(options: Any) -> None:
    """A capture beside a bare evaluation loop, with batches sorted by length and not, in float32 and bfloat16."""
    data = texts(BATCH * options.steps)
    teacher = PAIRS[0].models()[0].eval()
    by_length = sorted(data, key=lambda row: -len(row["input_ids"]))
    times: dict[str, list[float]] = {
        name: [] for name in ("bare", "unsorted", "bare bf16", "capture", "capture bf16")
    }
    for repeat in range(options.repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            taken = {
                "bare": seconds(lambda: ask(teacher, by_length)),
                "unsorted": seconds(lambda: ask(teacher, data)),
                "bare bf16": seconds(lambda: ask(teacher, by_length, bf16=True)),
                "capture": seconds(lambda: capture(teacher, data, folder + "/a")),
                "capture bf16": seconds(lambda: capture(teacher, data, folder + "/b", bf16=True)),
            }
        if repeat:  # the first round warms up
            for name, value in taken.items():
                times[name].append(value)
    print(f"teacher of {PAIRS[0]}, {len(data):,} texts, median of {options.repeats}")
    for name, values in times.items():
        print(f"{name}: {middle(values, '.2f')} s")
    print(
        f"throughput of a capture / bare loop sorted by length: {middle(ratios(times['bare'], times['capture']))}"
    )
    print(f"sorted by length, times as fast: {middle(ratios(times['unsorted'], times['bare']))}")
    print(f"bfloat16, times as fast: {middle(ratios(times['bare'], times['bare bf16']))}")


def ask(teacher: Any, data: list[dict[str, Any]], bf16: bool = False) -> None:
    """Run the teacher over texts in their order, and keep its logits."""
    pad, kept = collator(), []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for start in range(0, len(data), BATCH):
            batch = pad(data[start : start + BATCH])
            batch.pop("labels")
            kept.append(teacher(**batch).logits.float())
    torch.cat(kept)


def main(arguments: list[str] | None = None) -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    steps = {"step": 64, "epochs": 32, "capture": 64}
    for name, function in (("step", step), ("epochs", epochs), ("capture", capturing)):
        one = kinds.add_parser(name, help=str(function.__doc__).splitlines()[0])
        one.add_argument(
            "--steps",
            type=int,
            default=steps[name],
            help=f"batches of {BATCH} texts (default {steps[name]})",
        )
        one.add_argument("--repeats", type=int, default=5, help="measurements of each (default 5)")
        one.set_defaults(run=function)
        if name == "epochs":
            one.add_argument("--epochs", type=int, default=10, help="epochs of a training (default 10)")
            one.add_argument(
                "--plot", type=Path, help="also draw the times into this file (needs matplotlib)"
            )
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    options.run(options)


if __name__ == "__main__":
    main()
