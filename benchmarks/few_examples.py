"""What values, derivatives and both are worth with few labelled examples per class, and against input noise.

    python benchmarks/few_examples.py digits            # scikit-learn's; mnist and banking77 from --data
    python benchmarks/few_examples.py digits --table    # prints what the results file holds

A teacher trained on all training examples teaches a student on few of them, in as many steps with every loss. Each
seed draws its own examples, starting weights and order. Results are appended to --results one by one, so a
stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

import numpy
import torch
import transformers
from sklearn.datasets import load_digits
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from benchmarks.results_file import ResultsFile
from hf_distill import DistillationTrainer, DistillationTrainingArguments, student_from_teacher
from hf_distill.tasks.wordpiece import train_tokenizer

PER_CLASS = (5, 10, 20, 100)
MAX_LENGTH = 32


@dataclass
class Task:
    """Data, models and noise of one data set; ``train`` and ``test`` are tensors by column, labels included."""

    train: dict[str, torch.Tensor]
    test: dict[str, torch.Tensor]
    new_teacher: Callable[[], Any]
    new_student: Callable[[Any], Any]
    noisy: Callable[[dict[str, torch.Tensor], float], dict[str, torch.Tensor]]
    noises: tuple[float, ...]
    derivative_weight: float


def vit(layers: int, width: int, size: int, patch: int, classes: int = 10) -> ViTForImageClassification:
    """Return a small vision transformer with random weights."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4}
    picture = {"image_size": size, "patch_size": patch, "num_channels": 1, "num_labels": classes}
    return ViTForImageClassification(ViTConfig(**sizes, **picture, intermediate_size=2 * width))


def noisy_pixels(columns: dict[str, torch.Tensor], deviation: float) -> dict[str, torch.Tensor]:
    """Add normal noise, the same for every model; pixels have deviation 1 over the training set."""
    generator = torch.Generator().manual_seed(99)
    pixels = columns["pixel_values"]
    return columns | {"pixel_values": pixels + deviation * torch.randn(pixels.shape, generator=generator)}


def images(train: Any, test: Any, patch: int, derivative_weight: float) -> Task:
    """Return the task of two pairs of images (count, height, width) and labels."""
    mean, deviation = train[0].mean(), train[0].std()

    def columns(pixels: Any, labels: Any) -> dict[str, torch.Tensor]:
        scaled = (torch.tensor(pixels, dtype=torch.float32)[:, None] - mean) / deviation
        return {"pixel_values": scaled, "labels": torch.tensor(labels, dtype=torch.long)}

    size = train[0].shape[1]
    return Task(
        columns(*train), columns(*test),
        lambda: vit(4, 64, size, patch), lambda teacher: vit(2, 32, size, patch),
        noisy_pixels, (0.5, 1.0), derivative_weight,
    )  # fmt: skip


def digits(folder: Path) -> Task:
    """Return scikit-learn's 8 x 8 digits, every third one for testing."""
    pixels, labels = load_digits().images.astype("float32"), load_digits().target
    test = numpy.arange(len(labels)) % 3 == 0
    return images((pixels[~test], labels[~test]), (pixels[test], labels[test]), 2, 0.1)


def mnist(folder: Path) -> Task:
    """Return MNIST's 28 x 28 digits: 20,000 for the teacher, 5,000 for testing."""
    stored = numpy.load(folder / "mnist" / "mnist.npz")
    train = stored["x_train"][:20000].astype("float32"), stored["y_train"][:20000]
    return images(train, (stored["x_test"][:5000].astype("float32"), stored["y_test"][:5000]), 7, 0.1)


def banking77(folder: Path) -> Task:
    """Return Banking77's texts; the student is the teacher's first layer and embeddings, as they were trained."""
    texts, categories = {}, {}
    for split in ("train", "test"):
        with (folder / "banking77" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        texts[split] = [row["text"] for row in rows]
        categories[split] = [row["category"] for row in rows]
    names = sorted(set(categories["train"]))
    tokenizer = train_tokenizer(texts["train"], 4000)

    def columns(split: str) -> dict[str, torch.Tensor]:
        encoded = tokenizer(
            texts[split], truncation=True, max_length=MAX_LENGTH, padding="max_length", return_tensors="pt"
        )
        labels = torch.tensor([names.index(category) for category in categories[split]])
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": labels,
        }

    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=MAX_LENGTH, num_labels=len(names),
    )  # fmt: skip

    def new_student(teacher: Any) -> Any:
        """Return a model of one layer that has nothing of the teacher's but its word embeddings."""
        student = student_from_teacher(teacher, num_hidden_layers=1)
        fresh = BertForSequenceClassification(student.config)
        fresh.bert.embeddings.load_state_dict(teacher.bert.embeddings.state_dict())
        return fresh

    def noisy_words(given: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(99)
        ids = given["input_ids"]
        hit = (torch.rand(ids.shape, generator=generator) < share) & (ids > 4)  # 0 to 4 are special tokens
        others = torch.randint(5, len(tokenizer), ids.shape, generator=generator)
        return given | {"input_ids": torch.where(hit, others, ids)}

    return Task(
        columns("train"), columns("test"), lambda: BertForSequenceClassification(config), new_student,
        noisy_words, (0.1, 0.2), 0.01,
    )  # fmt: skip


def held_out(task: Task) -> Task:
    """Return the task with a fifth of its training examples in the place of the test examples."""
    fifth = torch.arange(len(task.train["labels"])) % 5 == 0
    return replace(
        task,
        train={name: values[~fifth] for name, values in task.train.items()},
        test={name: values[fifth] for name, values in task.train.items()},
    )


TASKS: dict[str, Callable[[Path], Task]] = {"digits": digits, "mnist": mnist, "banking77": banking77}


def losses(weight: float) -> dict[str, list[dict[str, Any]]]:
    """Return what stands beside the label loss in each run; the label loss has weight 1 in all."""
    value, derivative = {"name": "forward_kl", "temperature": 2.0}, {"name": "derivative", "weight": weight}
    return {"alone": [], "values": [value], "derivatives": [derivative], "both": [value, derivative]}


def rows(columns: dict[str, torch.Tensor], index: Any) -> list[dict[str, torch.Tensor]]:
    """Return examples as the Trainer takes them, texts without their padding."""
    return [unpadded({name: values[i] for name, values in columns.items()}) for i in index]


def unpadded(example: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cut a text to its tokens."""
    if "attention_mask" not in example:
        return example
    length = int(example["attention_mask"].sum())
    return {name: value if name == "labels" else value[:length] for name, value in example.items()}


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Make a batch; texts are padded with 0, which is also the padding's id, to the longest of them."""
    return {
        name: torch.nn.utils.rnn.pad_sequence([one[name] for one in examples], batch_first=True)
        if examples[0][name].dim() == 1
        else torch.stack([one[name] for one in examples])
        for name in examples[0]
    }


def common(folder: str, seed: int, by_length: bool) -> dict[str, Any]:
    """Return the arguments that teacher and students share; texts of a length go together, images have none."""
    return {
        "train_sampling_strategy": "group_by_length" if by_length else "random",
        "output_dir": folder, "seed": seed, "per_device_train_batch_size": 32, "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "report_to": "none", "save_strategy": "no",
        "logging_strategy": "no", "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip


def accuracy(model: Any, columns: dict[str, torch.Tensor]) -> float:
    """Return the share of examples whose likeliest class is the label."""
    model.eval()
    inputs = {name: values for name, values in columns.items() if name != "labels"}
    right = 0
    with torch.no_grad():
        for start in range(0, len(columns["labels"]), 500):
            part = {name: values[start : start + 500] for name, values in inputs.items()}
            predicted = model(**part).logits.argmax(-1)
            right += int((predicted == columns["labels"][start : start + 500]).sum())
    return right / len(columns["labels"])


def trained_teacher(task: Task, epochs: int, kept: Path) -> Any:
    """Return a teacher that has seen all training examples, kept from an earlier run where there is one."""
    set_seed(0)
    if kept.is_dir():
        return type(task.new_teacher()).from_pretrained(kept)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(**common(folder, 0, "input_ids" in task.train), num_train_epochs=epochs)
        trainer = Trainer(
            task.new_teacher(),
            args,
            data_collator=collate,
            train_dataset=rows(task.train, range(len(task.train["labels"]))),
        )
        trainer.train()
    unfinished = kept.with_name(f"_{kept.name}-{os.getpid()}")
    trainer.model.save_pretrained(unfinished)
    unfinished.rename(kept)
    return trainer.model


def few(labels: torch.Tensor, per_class: int, seed: int) -> list[int]:
    """Return the indices of this many examples of each class, or all where there are fewer."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    kept: dict[int, list[int]] = {}
    for index in order:
        chosen = kept.setdefault(int(labels[index]), [])
        if len(chosen) < per_class:
            chosen.append(index)
    return sorted(index for chosen in kept.values() for index in chosen)


def run(task: Task, teacher: Any, loss: list[Any], per_class: int, seed: int, steps: int) -> dict[str, float]:
    """Train one student, and return its accuracy by noise."""
    set_seed(seed)
    student = task.new_student(teacher)
    with tempfile.TemporaryDirectory() as folder:
        form = {"objectives": loss, "label_weight": 1.0} if loss else {"alpha": 0.0}
        args = DistillationTrainingArguments(
            **common(folder, seed, "input_ids" in task.train), max_steps=steps, **form
        )
        examples = rows(task.train, few(task.train["labels"], per_class, seed))
        DistillationTrainer(student, teacher, args, data_collator=collate, train_dataset=examples).train()
    return by_noise(task, student)


def by_noise(task: Task, model: Any) -> dict[str, float]:
    """Return the accuracy on the test examples as they are, and with noise."""
    found = {"0": accuracy(model, task.test)}
    return found | {str(noise): accuracy(model, task.noisy(task.test, noise)) for noise in task.noises}


def table(results: list[dict[str, Any]]) -> str:
    """Return mean and deviation over the seeds by number of examples, loss and noise, as Markdown."""
    noises = list(results[0]["accuracy"])
    heads = ["no noise" if noise == "0" else f"noise {noise}" for noise in noises]
    lines = [f"| Per class | Loss | {' | '.join(heads)} | Minus alone |", "| --- " * (len(noises) + 3) + "|"]
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for result in sorted(results, key=lambda result: (result["per_class"], result["seed"])):
        groups.setdefault((result["per_class"], result["loss"]), []).append(result)
    alone = {(r["per_class"], r["seed"]): r["accuracy"]["0"] for r in results if r["loss"] == "alone"}
    for (per_class, loss), runs in groups.items():
        cells = []
        for noise in noises:
            values = [100 * one["accuracy"][noise] for one in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        gains = [100 * (one["accuracy"]["0"] - alone[per_class, one["seed"]]) for one in runs
                 if (per_class, one["seed"]) in alone]  # fmt: skip
        better = "" if loss == "alone" or not gains else (
            f"{statistics.mean(gains):+.1f} ({sum(gain > 0 for gain in gains)} of {len(gains)} seeds)"
        )  # fmt: skip
        lines.append(f"| {per_class} | {loss} | {' | '.join(cells)} | {better} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run what is not in the results file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=list(TASKS), help="the data set")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder of mnist and banking77"
    )
    parser.add_argument("--per_class", type=int, nargs="+", default=list(PER_CLASS), help="labelled examples")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="runs of each")
    names = list(losses(1.0))
    parser.add_argument("--losses", nargs="+", choices=names, default=names, help="what is compared")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of a student (default 1000)")
    parser.add_argument("--teacher_epochs", type=int, default=20, help="epochs of the teacher (default 20)")
    parser.add_argument("--derivative_weight", type=float, help="default 0.1 for images, 0.01 for texts")
    parser.add_argument(
        "--held_out",
        action="store_true",
        help="report on a fifth of the training examples, to choose settings",
    )
    parser.add_argument("--results", type=Path, help="default runs/few_examples_TASK.jsonl")
    parser.add_argument("--table", action="store_true", help="print the results that are there, and stop")
    options = parser.parse_args(arguments)
    path = options.results or Path("runs") / f"few_examples_{options.task}.jsonl"
    file = ResultsFile(path, ("per_class", "loss", "seed"))
    if not options.table:
        warnings.simplefilter("ignore")  # random starts and few examples are the point here
        transformers.logging.set_verbosity_error()
        train_all(options, file)
    print(table(file.results))


def train_all(options: Any, file: ResultsFile) -> None:
    """Train every student that the results lack, and add it to them."""
    task = TASKS[options.task](options.data)
    if options.held_out:
        task = held_out(task)
    name = f"{options.task}{'_held_out' if options.held_out else ''}_{options.teacher_epochs}_epochs"
    teacher = trained_teacher(task, options.teacher_epochs, file.path.parent / f"few_examples_teacher_{name}")
    print(f"teacher: {by_noise(task, teacher)}", flush=True)
    weight = options.derivative_weight or task.derivative_weight
    for per_class in options.per_class:
        for seed in options.seeds:
            for loss, terms in losses(weight).items():
                if loss in options.losses and not file.has(per_class=per_class, loss=loss, seed=seed):
                    found = run(task, teacher, terms, per_class, seed, options.steps)
                    file.add({"per_class": per_class, "loss": loss, "seed": seed, "accuracy": found})


if __name__ == "__main__":
    main()
