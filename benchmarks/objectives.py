"""What each objective is worth on the built-in text, and what its step costs, beside forward_kl.

    python benchmarks/objectives.py quality --teacher runs/distill_bert/teacher-*   # after make demo
    python benchmarks/objectives.py time

Quality: the recipe's student and budget (2 layers, width 128, random weights, 5 epochs), label loss with weight 0.5 and
one objective with its default settings (but 4 heads for `relations`), whose weight makes its gradient half as long as
the label loss's when training starts: the same rule for all, nothing tuned. `derivative` needs the teacher's
embeddings, so it has a student of its own, the teacher's first layer, and so have two runs to compare it with. Time:
training steps in turns in one process, the median.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

import torch
import transformers
from datasets import Sequence, Value
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed

from benchmarks.results_file import ResultsFile
from hf_distill import DistillationTrainer, DistillationTrainingArguments, student_from_teacher
from hf_distill.corpora import docstring_corpus
from hf_distill.jobs.command_line import bf16_is_fast
from hf_distill.objectives import objective_classes
from hf_distill.tasks.bert_models import new_bert
from hf_distill.tasks.text_data import encode

# A regression head has no accuracy on this task: python recipes/learn_function.py shows that objective.
LEFT_OUT = ("regression",)
CUT = "cut: "
SETTINGS: dict[str, dict[str, Any]] = {
    "relations": {"relation_heads": 4}
}  # its default 12 divides no width here
LABEL_WEIGHT = 0.5


def names() -> list[str]:
    """Return what is compared: the student alone, each objective, and the three with the cut student."""
    plain = [name for name in objective_classes() if name not in (*LEFT_OUT, "derivative")]
    return ["alone", *plain, *(CUT + name for name in ("alone", "forward_kl", "derivative"))]


class Setting:
    """Texts, teacher and students of all runs."""

    def __init__(self, teacher: str, train_texts: int | None, test_texts: int | None) -> None:
        self.splits = docstring_corpus()
        self.tokenizer = AutoTokenizer.from_pretrained(teacher)
        self.teacher = AutoModelForSequenceClassification.from_pretrained(teacher)
        limits = {"train": train_texts, "test": test_texts}
        self.rows = {
            split: encode(
                self.splits[split].shuffle(seed=0).select(range(limit or len(self.splits[split]))),
                self.tokenizer,
                64,
            )
            for split, limit in limits.items()
        }

    def trainer(self, name: str, seed: int, epochs: float, weight: float | None) -> DistillationTrainer:
        """Return a trainer of one objective; without a weight, of that objective and no labels."""
        objective = name.removeprefix(CUT)
        set_seed(seed)
        student = (
            student_from_teacher(self.teacher, num_hidden_layers=1)
            if name.startswith(CUT)
            else new_bert(2, 128, self.splits, self.tokenizer, 64)
        )
        loss: dict[str, Any] = {"alpha": 0.0}
        if objective != "alone":
            label = 0.0 if weight is None else LABEL_WEIGHT
            given = {"name": objective, "weight": weight or 1.0, **SETTINGS.get(objective, {})}
            loss = {"label_weight": label, "objectives": [given]}
        rows = self.rows
        self.teacher.config.problem_type = student.config.problem_type = "single_label_classification"
        if objective == "binary_kl":  # the same task as one yes or no for each class
            self.teacher.config.problem_type = student.config.problem_type = "multi_label_classification"
            rows = {split: one_hot(given, student.config.num_labels) for split, given in rows.items()}
        args = DistillationTrainingArguments(
            tempfile.mkdtemp(), **loss, seed=seed, num_train_epochs=epochs, learning_rate=7e-4,
            per_device_train_batch_size=64, per_device_eval_batch_size=128, warmup_steps=0.1, weight_decay=0.01,
            bf16=bf16_is_fast(), train_sampling_strategy="group_by_length", report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        return DistillationTrainer(
            student, self.teacher, args, data_collator=DataCollatorWithPadding(self.tokenizer),
            train_dataset=rows["train"], eval_dataset=rows["test"], processing_class=self.tokenizer,
        )  # fmt: skip


def one_hot(rows: Any, classes: int) -> Any:
    """Return rows whose label is a number for each class."""
    changed = rows.map(lambda row: {"targets": [float(row["labels"] == i) for i in range(classes)]})
    changed = changed.remove_columns("labels").rename_column("targets", "labels")
    return changed.cast_column("labels", Sequence(Value("float32")))


def gradient_length(trainer: DistillationTrainer, batches: int = 8) -> float:
    """Return the mean length of the student's gradient over the first batches."""
    model: Any = trainer.model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    lengths = []
    for batch, _ in zip(trainer.get_train_dataloader(), range(batches), strict=False):
        model.train()
        count = torch.tensor(len(batch["labels"]))
        loss = trainer.compute_loss(model, trainer._prepare_inputs(batch), num_items_in_batch=count)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        lengths.append(
            torch.stack([gradient.norm() for gradient in found if gradient is not None]).norm().item()
        )
    return statistics.mean(lengths)


def balanced_weight(setting: Setting, name: str) -> float:
    """Return the weight that makes an objective's gradient half as long as the label loss's at the start."""
    alone = (CUT if name.startswith(CUT) else "") + "alone"
    label = gradient_length(setting.trainer(alone, 0, 1, None))
    return LABEL_WEIGHT * label / gradient_length(setting.trainer(name, 0, 1, None))


def quality(options: Any) -> None:
    """Train what the results lack, and print the table."""
    file = ResultsFile(options.results, ("objective", "seed"))
    setting = None if options.table else Setting(options.teacher, options.train_texts, options.test_texts)
    for name in names() if setting else ():
        weight: float | None = None
        for seed in options.seeds:
            if setting is None or file.has(objective=name, seed=seed) or name not in (options.only or [name]):
                continue
            if weight is None and not name.endswith("alone"):
                weight = balanced_weight(setting, name)
            trainer = setting.trainer(
                name, seed, options.cut_epochs if name.startswith(CUT) else options.epochs, weight
            )
            trainer.train()
            reached = accuracy(trainer)
            file.add({"objective": name, "seed": seed, "weight": weight, "accuracy": reached})
    print(quality_table(file.results))


def accuracy(trainer: DistillationTrainer) -> float:
    """Return the student's accuracy on the test texts; the teacher, whose forwards cost most, is not asked."""
    student: Any = trainer.model
    student.eval()
    right = seen = 0
    for batch in trainer.get_eval_dataloader():
        batch = trainer._prepare_inputs(batch)
        labels = batch.pop("labels")
        labels = labels.argmax(-1) if labels.dim() == 2 else labels  # one yes or no for each class
        with torch.no_grad():
            predicted = trainer.student_outputs(student, batch).logits.argmax(-1)
        right, seen = right + int((predicted == labels).sum()), seen + len(labels)
    return right / seen


def quality_table(results: list[dict[str, Any]]) -> str:
    """Return mean and deviation over seeds as Markdown, the best first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["objective"], []).append(result)
    alone = {
        (r["objective"].startswith(CUT), r["seed"]): r["accuracy"]
        for r in results
        if r["objective"].endswith("alone")
    }
    lines = ["| Objective | Weight | Accuracy, % | Minus alone, points |", "| --- | --- | --- | --- |"]

    def order(name: str) -> tuple[bool, float]:
        return name.startswith(CUT), -statistics.mean(run["accuracy"] for run in groups[name])

    for name in sorted(groups, key=order):
        values = [100 * run["accuracy"] for run in groups[name]]
        gains = [100 * (run["accuracy"] - alone[name.startswith(CUT), run["seed"]]) for run in groups[name]]
        weight = groups[name][0]["weight"]
        lines.append(
            f"| {name} | {'' if weight is None else f'{weight:.3g}'} | {spread(values, '.1f')} | "
            f"{'' if name.endswith('alone') else spread(gains, '+.1f')} |"
        )
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    """Return mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{deviation}"


def timed(options: Any) -> None:
    """Measure a training step of each objective in turns, and print the table."""
    warnings.simplefilter("ignore")
    cases: dict[str, Any] = {}
    for name in objective_classes():
        set_seed(0)
        trainer = timing_trainer(name, options.steps)
        trainer.train()  # warms up
        cases[name] = trainer
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.repeats):
        for name, trainer in cases.items():
            start = time.perf_counter()
            trainer.train()
            found[name].append(1000 * (time.perf_counter() - start) / options.steps)
    base = statistics.median(found["forward_kl"])
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, "
          f"{torch.get_num_threads()} threads; median of {options.repeats} times {options.steps} steps\n")  # fmt: skip
    print("| Objective | Step, ms | Times the step of forward_kl |\n| --- | --- | --- |")
    for name in sorted(found, key=lambda name: statistics.median(found[name])):
        middle = statistics.median(found[name])
        print(f"| {name} | {middle:.1f} | {middle / base:.2f} |")


def timing_trainer(name: str, steps: int) -> DistillationTrainer:
    """Return a trainer of one objective without labels: 32 random texts of 32 tokens, 4 x 256 into 2 x 256."""
    head = {"regression": "regression", "binary_kl": "multi_label_classification"}.get(
        name, "single_label_classification"
    )
    config = transformers.BertConfig(
        vocab_size=8000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
        num_labels=1 if name == "regression" else 8, problem_type=head,
    )  # fmt: skip
    teacher = transformers.BertForSequenceClassification(config)
    student = student_from_teacher(teacher, num_hidden_layers=2)
    generator = torch.Generator().manual_seed(0)
    labels: Any = {"regression": 0.5, "binary_kl": [1.0] + 7 * [0.0]}.get(name, 3)
    rows = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        for ids in torch.randint(5, 8000, (32 * steps, 32), generator=generator)
    ]
    args = DistillationTrainingArguments(
        tempfile.mkdtemp(), label_weight=0.5, objectives=[{"name": name, **SETTINGS.get(name, {})}], max_steps=steps,
        per_device_train_batch_size=32, report_to="none", save_strategy="no", logging_strategy="no",
        disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    return DistillationTrainer(student, teacher, args, train_dataset=rows)


def main(arguments: list[str] | None = None) -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("quality", help="accuracy of a student by objective")
    one.add_argument("--teacher", help="folder of the recipe's teacher")
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="runs of each (default 0 1 2)")
    one.add_argument("--epochs", type=float, default=5.0, help="epochs of the student (default 5)")
    one.add_argument("--cut_epochs", type=float, default=2.0, help="epochs of the cut student (default 2)")
    one.add_argument("--train_texts", type=int, help="train on N texts only")
    one.add_argument("--test_texts", type=int, help="report on N texts only")
    one.add_argument(
        "--only", nargs="+", choices=names(), help="these alone; the others are left as they are"
    )
    one.add_argument(
        "--results", type=Path, default=Path("runs/objectives.jsonl"), help="where results are kept"
    )
    one.add_argument("--table", action="store_true", help="print the results that are there, and stop")
    other = kinds.add_parser("time", help="cost of a step by objective")
    other.add_argument("--steps", type=int, default=20, help="steps of a measurement (default 20)")
    other.add_argument("--repeats", type=int, default=5, help="measurements of each (default 5)")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    if options.kind == "time":
        timed(options)
    else:
        quality(options)


if __name__ == "__main__":
    main()
