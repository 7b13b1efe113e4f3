"""What pre-training by distillation is worth after fine-tuning, beside MLM alone for as many steps and none at all.

    python recipes/distill_masked_lm.py --seeds 0 1 2
    python benchmarks/pretraining.py runs/distill_masked_lm --seeds 0 1 2 --max_train_samples 500 2000
    python benchmarks/pretraining.py runs/distill_masked_lm --train_file train.conllu --test_file test.conllu

Each student of the recipe is fine-tuned on labelled texts (built in: which library wrote a docstring) or on tagged
words (CoNLL), and so is its architecture from random weights; all with plain Trainer, the same examples, order and
steps. Students of another run can stand beside them (--other).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

import numpy
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.results_file import ResultsFile
from hf_distill.corpora.docstrings import docstring_corpus
from hf_distill.corpora.files import read_files
from hf_distill.corpora.tagged_words import read_tagged_words
from hf_distill.evaluation.measures import ratio
from hf_distill.jobs.command_line import bf16_is_fast, has_accelerator
from hf_distill.reporting.results import paired_bootstrap
from hf_distill.tasks.token_classification import piece_labels

STARTS = ("random weights", "MLM alone", "distilled")
OTHER = "MLM alone, of --other"
NAMED_BY = ("folder", "data", "samples", "start", "seed")
ACCURACY: Any = SimpleNamespace(value=ratio)  # of sums over examples: what is right, and what was asked


class Texts:
    """Whole texts, each with a class."""

    auto_class: Any = AutoModelForSequenceClassification
    collator: Any = DataCollatorWithPadding

    def __init__(self, args: Any) -> None:
        self.length = args.max_seq_length
        if args.train_file is None:
            self.splits = docstring_corpus()
        else:
            files = {"train": args.train_file, "test": args.test_file}
            self.splits = read_files(files, "text", None, args.label_column)
        self.labels = len(self.splits["train"].features["label"].names)

    def encoded(self, rows: Dataset, tokenizer: Any) -> Dataset:
        return rows.map(
            lambda batch: tokenizer(batch["text"], truncation=True, max_length=self.length), batched=True
        ).rename_column("label", "labels")


class Words:
    """Sentences, each word of which has a tag."""

    auto_class: Any = AutoModelForTokenClassification
    collator: Any = DataCollatorForTokenClassification

    def __init__(self, args: Any) -> None:
        self.length = args.max_seq_length
        files = {"train": args.train_file, "test": args.test_file}
        self.splits = read_tagged_words(files, "tokens", "tags")
        self.labels = len(self.splits["train"].features["tags"].feature.names)

    def encoded(self, rows: Dataset, tokenizer: Any) -> Dataset:
        def pieces(batch: dict[str, list[Any]]) -> dict[str, Any]:
            found = tokenizer(
                batch["tokens"], is_split_into_words=True, truncation=True, max_length=self.length
            )
            labels = [piece_labels(found.word_ids(row), tags) for row, tags in enumerate(batch["tags"])]
            return {**found, "labels": labels}

        return rows.map(pieces, batched=True, remove_columns=rows.column_names)


def folder_of(args: Any, start: str, seed: int) -> Path:
    """Return the student that a start begins from; from random weights, whose architecture it has."""
    if start == OTHER:
        return Path(args.other) / f"seed_{seed}" / args.other_student
    return Path(args.folder) / f"seed_{seed}" / ("distilled" if start == "distilled" else "alone")


def model_of(task: Texts | Words, start: str, folder: Path, seed: int) -> Any:
    """Return a model for a task that starts from random weights, or from a student of the recipe."""
    config = AutoConfig.from_pretrained(folder, num_labels=task.labels)
    set_seed(seed)
    if start == "random weights":
        return task.auto_class.from_config(config)
    return task.auto_class.from_pretrained(folder, config=config)


def right_answers(
    task: Texts | Words, model: Any, train: Dataset, test: Dataset, tokenizer: Any, args: Any, seed: int
) -> tuple[list[int], list[int]]:
    """Fine-tune a model, and return of each test example how many of its classes it knows, and how many it has."""
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, num_train_epochs=args.epochs, learning_rate=args.learning_rate, warmup_steps=0.06,
            per_device_train_batch_size=args.batch_size, per_device_eval_batch_size=128, seed=seed, save_strategy="no",
            report_to="none", disable_tqdm=True, logging_strategy="no", bf16=bf16_is_fast(),
            use_cpu=args.use_cpu or not has_accelerator(),
        )  # fmt: skip
        trainer = Trainer(model, settings, train_dataset=train, data_collator=task.collator(tokenizer))
        trainer.train()
        found = trainer.predict(test)
    labels = found.label_ids.reshape(len(test), -1)
    right = found.predictions.argmax(-1).reshape(len(test), -1) == labels
    return (right & (labels >= 0)).sum(-1).tolist(), (labels >= 0).sum(-1).tolist()


def compare(args: Any) -> None:
    """Fine-tune every student that is not in the results yet, and print the table."""
    tagged = str(args.train_file).endswith((".conll", ".conllu"))
    task = Words(args) if tagged else Texts(args)
    train_rows = task.splits["train"]
    results = ResultsFile(args.results, NAMED_BY)
    for samples in args.max_train_samples:
        for seed in args.seeds:
            few = train_rows.shuffle(seed=seed).select(range(min(samples, len(train_rows))))
            for start in starts_of(args):
                folder = folder_of(args, start, seed)
                named = name_of(args, samples, start, seed)
                if not results.has(**named):
                    tokenizer = AutoTokenizer.from_pretrained(folder)
                    train, test = (task.encoded(rows, tokenizer) for rows in (few, task.splits["test"]))
                    model = model_of(task, start, folder, seed)
                    right, asked = right_answers(task, model, train, test, tokenizer, args, seed)
                    results.add({**named, "right": right, "asked": asked})
    print_table(args, results)


def name_of(args: Any, samples: int, start: str, seed: int) -> dict[str, Any]:
    """Return what a result is found by."""
    folder = f"{args.other} ({args.other_student})" if start == OTHER else str(args.folder)
    return dict(zip(NAMED_BY, (folder, str(args.train_file), samples, start, seed), strict=True))


def starts_of(args: Any) -> list[str]:
    """Return what is compared, "distilled" last."""
    return [*STARTS[:-1], *([OTHER] if args.other else []), STARTS[-1]]


def print_table(args: Any, results: ResultsFile) -> None:
    """Print accuracies, and by how much distilled students are ahead of the others."""
    starts = starts_of(args)
    others = starts[-2::-1]
    print(" | ".join(["| labelled", *starts, *(f"distilled - {other}" for other in others)]) + " |")
    print("| --- " * (1 + len(starts) + len(others)) + "|")
    for samples in args.max_train_samples:
        right = {
            start: numpy.array(
                [
                    [*zip(result["right"], result["asked"], strict=True)]
                    for seed in args.seeds
                    for result in results.results
                    if name_of(args, samples, start, seed).items() <= result.items()
                ],
                dtype=float,
            )
            for start in starts
        }
        cells = [f"{samples:,}"]
        for start in starts:
            values = [100 * float(ratio(of_seed.sum(0))) for of_seed in right[start]]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread} %")
        for other in others:
            gain = paired_bootstrap(right["distilled"], right[other], measure=ACCURACY)
            cells.append(f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})")
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the --output_dir of recipes/distill_masked_lm.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="its seeds")
    parser.add_argument(
        "--max_train_samples", type=int, nargs="+", default=[500, 2000], help="labelled texts or sentences"
    )
    parser.add_argument("--other", type=Path, help="another --output_dir, to compare with")
    parser.add_argument(
        "--other_student", choices=("alone", "distilled"), default="alone", help="which of it"
    )
    parser.add_argument(
        "--train_file",
        help="labelled texts (CSV, JSON lines) or tagged words (.conll, .conllu); default: built in",
    )
    parser.add_argument("--test_file", help="what to report on")
    parser.add_argument("--label_column", default="label", help="the column with the class")
    parser.add_argument("--epochs", type=float, default=10.0, help="of fine-tuning")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="of fine-tuning")
    parser.add_argument("--batch_size", type=int, default=32, help="texts per step")
    parser.add_argument("--max_seq_length", type=int, default=64, help="tokens of a text")
    parser.add_argument(
        "--results", type=Path, default=Path("runs/pretraining.jsonl"), help="kept here one by one"
    )
    parser.add_argument("--use_cpu", action="store_true", help="run on the CPU")
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
