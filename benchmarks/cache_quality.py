"""What a cached teacher is worth beside the same one online, and what each format keeps of it.

    python benchmarks/cache_quality.py parity                  # losses along a run, and predictions after it
    python benchmarks/cache_quality.py banking77               # 77 classes, an answer for each text
    python benchmarks/cache_quality.py shakespeare             # 2,000 tokens, an answer for each position

The last two train one student for each format and seed, with the same data, seeds and budget, and print accuracy (or
perplexity) and the bytes of an answer. Results are appended to runs/cache_quality_<task>.jsonl, and what is there is
not run again. They need ../shared/data.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

import numpy
import torch
import transformers
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from tokenizers import ByteLevelBPETokenizer
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from benchmarks.results_file import ResultsFile
from hf_distill import DistillationTrainer, DistillationTrainingArguments, TeacherCache
from hf_distill.cache.formats import FullLogits, SampledLogits, SignalFormat, TopKLogits
from hf_distill.jobs.command_line import has_accelerator
from hf_distill.tasks.bert_models import new_bert
from hf_distill.tasks.text_classification import summed_loss
from hf_distill.tasks.text_data import TextDataArguments, encode, load_texts
from hf_distill.tasks.word_dropout import WordDropout
from hf_distill.tasks.wordpiece import train_tokenizer

DATA = Path("../shared/data")
TEMPERATURE = 4.0


@dataclass
class Task:
    """Data, teacher and students of one task.

    Args:
        rows: ``train`` and ``test``, encoded.
        collator: makes a batch.
        teacher: trained.
        student: makes one from the global seed.
        options: of a student's training.
        classes: how many there are.
    """

    rows: Mapping[str, Any]
    collator: Any
    teacher: Any
    student: Any
    options: dict[str, Any]
    classes: int


def arguments(folder: str, **more: Any) -> dict[str, Any]:
    """Return what all trainings here have in common."""
    return {
        "output_dir": folder, "report_to": "none", "save_strategy": "no", "logging_strategy": "no",
        "disable_tqdm": True, "use_cpu": not has_accelerator(), "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64, "warmup_steps": 0.06, "weight_decay": 0.01, **more,
    }  # fmt: skip


def trained(name: str, model: Any, rows: Any, collator: Any, folder: Path, **more: Any) -> Any:
    """Return a trained teacher, kept from an earlier run where there is one."""
    kept = folder / f"cache_quality_{name}_teacher"
    if not kept.is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            trainer = Trainer(
                model, TrainingArguments(**arguments(scratch, **more)), train_dataset=rows,
                data_collator=collator, compute_loss_func=summed_loss if name == "banking77" else None,
            )  # fmt: skip
            trainer.train()
        model.save_pretrained(kept)
    return type(model).from_pretrained(kept)


def banking77(options: Any) -> Task:
    """Return the intents of Banking77: a 2-layer 256-wide teacher, a 2-layer 64-wide student."""
    file = str(DATA / "banking77" / "train.csv")
    splits = load_texts(
        TextDataArguments(
            train_file=file, test_file=str(DATA / "banking77" / "test.csv"), label_column="category"
        )
    )
    tokenizer = train_tokenizer(splits["train"]["text"][:], 4000)
    rows = {name: encode(splits[name], tokenizer, 32) for name in ("train", "test")}
    if options.tiny:
        rows = {name: given.select(range(64)) for name, given in rows.items()}
    set_seed(0)
    teacher = trained(
        "banking77", new_bert(2, 32 if options.tiny else 256, splits, tokenizer, 32), rows["train"],
        WordDropout(tokenizer, 0.2), options.folder, learning_rate=5e-4, num_train_epochs=1 if options.tiny else 12,
    )  # fmt: skip
    return Task(
        rows, DataCollatorWithPadding(tokenizer), teacher, lambda: new_bert(2, 64, splits, tokenizer, 32),
        {"learning_rate": 1e-3, "num_train_epochs": 1 if options.tiny else 5}, 77,
    )  # fmt: skip


def shakespeare(options: Any) -> Task:
    """Return Tiny Shakespeare in blocks of 64 tokens: a 3-layer 192-wide GPT-2, a 2-layer 64-wide student."""
    text = (DATA / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([text[: 9 * len(text) // 10]], vocab_size=2000, show_progress=False)
    ids = tokenizer.encode(text).ids
    blocks = [ids[start : start + 64] for start in range(0, len(ids) - 64, 64)][
        : 40 if options.tiny else None
    ]
    cut = 9 * len(blocks) // 10
    rows = {
        name: Dataset.from_dict({"input_ids": part, "labels": part})
        for name, part in (("train", blocks[:cut]), ("test", blocks[cut:]))
    }

    def gpt2(layers: int, width: int) -> GPT2LMHeadModel:
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=2000, n_positions=64, n_layer=layers, n_embd=width, n_head=width // 32,
                       bos_token_id=0, eos_token_id=0)
        )  # fmt: skip

    set_seed(0)
    epochs, of_student = (1, 1) if options.tiny else (5, 2)
    teacher = trained(
        "shakespeare", gpt2(3, 32 if options.tiny else 192), rows["train"], default_data_collator, options.folder,
        learning_rate=1e-3, num_train_epochs=epochs,
    )  # fmt: skip
    return Task(
        rows, default_data_collator, teacher, lambda: gpt2(2, 64),
        {"learning_rate": 2e-3, "num_train_epochs": of_student}, 2000,
    )  # fmt: skip


def settings(name: str) -> dict[str, tuple[SignalFormat | None, float | None]]:
    """Return what is compared: format and temperature; no format is the teacher online, no temperature none at all."""
    counts = (1, 2, 5, 10, 20, 50) if name == "banking77" else (1, 5, 20, 50, 200)
    warm = TEMPERATURE if name == "banking77" else 2.0
    kept = {f"top {k}": TopKLogits(k, (warm,)) for k in counts}
    found: dict[str, tuple[SignalFormat | None, float | None]] = {"alone": (None, None)}
    found |= {f"online, T = {warm:g}": (None, warm), f"float32, T = {warm:g}": (FullLogits(), warm)}
    found |= {f"bfloat16, T = {warm:g}": (FullLogits("bfloat16"), warm)}
    found |= {f"{label}, T = {warm:g}": (one, warm) for label, one in kept.items()}
    found |= {"float32, T = 1": (FullLogits(), 1.0)}
    found |= {f"top {k}, T = 1": (TopKLogits(k, (1.0,)), 1.0) for k in (5, 50)}
    found |= {f"{n} draws, T = 1": (SampledLogits(n), 1.0) for n in (5, 20, 50)}
    return found


def student_of(task: Task, teacher: Any, temperature: float | None, seed: int) -> DistillationTrainer:
    """Return the trainer of one student."""
    set_seed(seed)
    loss = {"alpha": 0.0} if temperature is None else {"alpha": 0.7, "temperature": temperature}
    args = DistillationTrainingArguments(**arguments(tempfile.mkdtemp(), seed=seed, **loss, **task.options))
    return DistillationTrainer(
        task.student(), teacher, args, data_collator=task.collator, train_dataset=task.rows["train"],
        eval_dataset=task.rows["test"],
    )  # fmt: skip


def capture(task: Task, signals: SignalFormat, folder: Path) -> TeacherCache:
    """Return a cache of the teacher's answers, kept from an earlier student where there is one."""
    cache: TeacherCache = TeacherCache.capture(
        task.teacher, dict(task.rows), folder, data_collator=task.collator, signals=signals, batch_size=64,
        say=lambda line: None,
    )  # fmt: skip
    return TeacherCache(cache.folder)


@torch.no_grad()
def measure(task: Task, model: Any) -> dict[str, float]:
    """Return accuracy and perplexity of a model on the test rows, an item for each answer."""
    model.eval()
    right = items = 0
    total = 0.0
    for batch in DataLoader(task.rows["test"], 64, collate_fn=task.collator):
        batch = {name: values.to(model.device) for name, values in batch.items()}
        read = {
            name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch
        }
        logits, labels = model(**read).logits, batch["labels"]
        if logits.dim() == 3:
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        right, items = right + int((logits.argmax(-1) == labels).sum()), items + len(labels)
    return {"accuracy": right / items, "perplexity": math.exp(total / items)}


def formats(options: Any) -> None:
    """Train what the results lack, and print the table."""
    name = options.kind
    file = ResultsFile(options.folder / f"cache_quality_{name}.jsonl", ("setting", "seed"))
    task: Task = globals()[name](options)
    if not file.has(setting="teacher", seed=0):
        file.add({"setting": "teacher", "seed": 0, **measure(task, task.teacher)})
    for seed in options.seeds:
        for setting, (signals, temperature) in settings(name).items():
            if file.has(setting=setting, seed=seed):
                continue
            folder = options.folder / f"cache_quality_{name}" / setting.replace(" ", "_")
            teacher = task.teacher if signals is None else capture(task, signals, folder)
            trainer = student_of(task, teacher, temperature, seed)
            trainer.train()
            size = 0 if signals is None else signals.row_bytes(task.classes)
            file.add({"setting": setting, "seed": seed, "bytes": size, **measure(task, trainer.model)})
    print(table(file.results))


def table(results: list[dict[str, Any]]) -> str:
    """Return mean and deviation over seeds as Markdown."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["setting"], []).append(result)
    lines = ["| Teacher's answers | Bytes an item | Accuracy, % | Perplexity |", "| --- | --- | --- | --- |"]
    for setting, runs in groups.items():
        accuracy = spread([100 * run["accuracy"] for run in runs])
        size = runs[0].get("bytes") or ""
        lines.append(f"| {setting} | {size} | {accuracy} | {spread([run['perplexity'] for run in runs])} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Return mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


class Losses(TrainerCallback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.values.append(float(logs["loss"]))


def parity(options: Any) -> None:
    """Compare the losses along a run of a cached teacher with those online, and the predictions after it."""
    task = banking77(options)
    task.options = {**task.options, "logging_strategy": "steps", "logging_steps": 1}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, teacher in (
            ("online", task.teacher),
            ("cached", capture(task, FullLogits(), Path(folder))),
        ):
            trainer = student_of(task, teacher, TEMPERATURE, 0)
            losses = Losses()
            trainer.add_callback(losses)
            trainer.train()
            found[name] = numpy.array(losses.values), trainer.predict(task.rows["test"]).predictions
    (online, one), (cached, other) = found["online"], found["cached"]
    print(
        f"{len(online)} steps; largest relative difference of a loss: {numpy.max(numpy.abs(cached / online - 1)):.2e}"
    )
    print(f"test predictions that differ: {int((one.argmax(-1) != other.argmax(-1)).sum())} of {len(one)}")
    print(f"largest difference of a test logit: {numpy.abs(one - other).max():.2e}")


def main(words: list[str] | None = None) -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["parity", "banking77", "shakespeare"])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the students (default 0 1 2)"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs"), help="where results are kept (default runs)"
    )
    parser.add_argument("--tiny", action="store_true", help="a test of the way, whose numbers mean nothing")
    options = parser.parse_args(words)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    parity(options) if options.kind == "parity" else formats(options)


if __name__ == "__main__":
    main()
