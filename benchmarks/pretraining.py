"""What pre-training by distillation is worth after fine-tuning, beside MLM alone for as many steps and none at all.

    python recipes/distill_masked_lm.py --seeds 0 1 2
    python benchmarks/pretraining.py runs/distill_masked_lm --seeds 0 1 2 --max_train_samples 500 2000

Each student of the recipe is fine-tuned on labelled texts (built in: which library wrote a docstring), and so is its
architecture from random weights; all with plain Trainer, the same texts, order and steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

import numpy
from datasets import Dataset, DatasetDict
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.results_file import ResultsFile
from hf_distill.corpora.docstrings import docstring_corpus
from hf_distill.corpora.files import read_files
from hf_distill.jobs.command_line import bf16_is_fast
from hf_distill.reporting.results import paired_bootstrap

STARTS = ("random weights", "MLM alone", "distilled")


def model_of(start: str, folder: Path, labels: int, seed: int) -> Any:
    """Return a classifier that starts from random weights, or from a student of the recipe."""
    student = folder / f"seed_{seed}" / ("distilled" if start == "distilled" else "alone")
    config = AutoConfig.from_pretrained(student, num_labels=labels)
    set_seed(seed)
    if start == "random weights":
        return AutoModelForSequenceClassification.from_config(config)
    return AutoModelForSequenceClassification.from_pretrained(student, config=config)


def right_answers(
    model: Any, train: Dataset, test: Dataset, tokenizer: Any, args: Any, seed: int
) -> list[int]:
    """Fine-tune a model, and return 1 for each test text that it knows the class of."""
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, num_train_epochs=args.epochs, learning_rate=args.learning_rate, warmup_steps=0.06,
            per_device_train_batch_size=args.batch_size, per_device_eval_batch_size=128, seed=seed, save_strategy="no",
            report_to="none", disable_tqdm=True, logging_strategy="no", bf16=bf16_is_fast(), use_cpu=args.use_cpu,
        )  # fmt: skip
        trainer = Trainer(
            model, settings, train_dataset=train, data_collator=DataCollatorWithPadding(tokenizer)
        )
        trainer.train()
        found = trainer.predict(test)
    return [int(right) for right in found.predictions.argmax(-1) == found.label_ids]


def splits_of(args: Any) -> DatasetDict:
    """Return the labelled texts."""
    if args.train_file is None:
        return docstring_corpus()
    return read_files({"train": args.train_file, "test": args.test_file}, "text", None, args.label_column)


def compare(args: Any) -> None:
    """Fine-tune every student that is not in the results yet, and print the table."""
    splits = splits_of(args)
    labels = len(splits["train"].features["label"].names)
    results = ResultsFile(args.results, ("folder", "samples", "start", "seed"))
    for samples in args.max_train_samples:
        for seed in args.seeds:
            tokenizer = AutoTokenizer.from_pretrained(args.folder / f"seed_{seed}" / "distilled")

            def encoded(rows: Dataset, tokenizer: Any = tokenizer) -> Dataset:
                return rows.map(
                    lambda batch: tokenizer(batch["text"], truncation=True, max_length=args.max_seq_length),
                    batched=True,
                ).rename_column("label", "labels")

            few = splits["train"].shuffle(seed=seed).select(range(min(samples, len(splits["train"]))))
            train, test = encoded(few), encoded(splits["test"])
            for start in STARTS:
                named = {"folder": str(args.folder), "samples": samples, "start": start, "seed": seed}
                if not results.has(**named):
                    model = model_of(start, args.folder, labels, seed)
                    right = right_answers(model, train, test, tokenizer, args, seed)
                    results.add({**named, "right": "".join(map(str, right))})
    print_table(args, results)


def print_table(args: Any, results: ResultsFile) -> None:
    """Print accuracies, and by how much distilled students are ahead of the others."""
    print(
        "| labelled texts | " + " | ".join(STARTS) + " | distilled - MLM alone | distilled - random weights |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for samples in args.max_train_samples:
        right = {
            start: numpy.array(
                [
                    [int(one) for one in result["right"]]
                    for seed in args.seeds
                    for result in results.results
                    if (result["folder"], result["samples"], result["start"], result["seed"])
                    == (str(args.folder), samples, start, seed)
                ]
            )
            for start in STARTS
        }
        cells = [f"{samples:,}"]
        for start in STARTS:
            values = [100 * float(row.mean()) for row in right[start]]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread} %")
        for other in STARTS[1::-1]:
            gain = paired_bootstrap(right["distilled"], right[other])
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
        "--max_train_samples", type=int, nargs="+", default=[500, 2000], help="labelled texts"
    )
    parser.add_argument("--train_file", help="labelled texts of yours (CSV, JSON lines); default: built in")
    parser.add_argument("--test_file", help="texts to report on")
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
