"""Measures how the gradient depends on the way a batch is split: plain Trainer against DistillationTrainer.

    python docs/normalisation.py                  # four accumulation steps, and two gloo processes
    python docs/normalisation.py --processes 1    # without the second process

CPU only, no network: random tiny models, SGD without clipping. Every number is the norm of the gradient that the
optimizer receives over that of the same 16 examples in one step on one process.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PrinterCallback,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments

EXAMPLES, CLASSES, VOCABULARY = 16, 3, 50
_TEXT = {"vocab_size": VOCABULARY, "num_labels": CLASSES, "pad_token_id": 0}
_ENCODER = {
    **_TEXT,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(**_ENCODER, **_NO_DROPOUT))


def distilbert() -> nn.Module:
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    return DistilBertForSequenceClassification(DistilBertConfig(**_TEXT, **sizes, **rates))


def roberta() -> nn.Module:
    return RobertaForSequenceClassification(RobertaConfig(**_ENCODER, **_NO_DROPOUT))


def modernbert() -> nn.Module:
    return ModernBertForSequenceClassification(ModernBertConfig(**_ENCODER))


def gpt2() -> nn.Module:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2}
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2ForSequenceClassification(GPT2Config(**_TEXT, **sizes, **rates))


def llama() -> nn.Module:
    return LlamaForSequenceClassification(LlamaConfig(**_ENCODER))


def vit(problem_type: str | None = None) -> nn.Module:
    sizes = {key: value for key, value in _ENCODER.items() if key not in ("vocab_size", "pad_token_id")}
    config = ViTConfig(**sizes, **_NO_DROPOUT, image_size=8, patch_size=4, problem_type=problem_type)
    return ViTForImageClassification(config)


def vit_multi_label() -> nn.Module:
    return vit("multi_label_classification")


def mean_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """A ``compute_loss_func`` as many write it: a plain mean that ignores the count."""
    return nn.functional.cross_entropy(outputs.logits, labels)


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    model: Callable[[], nn.Module]
    images: bool = False
    multi_label: bool = False
    unlabelled: tuple[int, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("BERT", bert),
    Case("DistilBERT", distilbert),
    Case("RoBERTa", roberta),
    Case("ModernBERT", modernbert),
    Case("GPT-2 sequence classification", gpt2),
    Case("Llama sequence classification", llama),
    Case("ViT single-label", vit, images=True),
    Case("ViT multi-label", vit_multi_label, images=True, multi_label=True),
    Case("BERT, label smoothing 0.1", bert, arguments={"label_smoothing_factor": 0.1}),
    Case("BERT, mean `compute_loss_func`", bert, trainer={"compute_loss_func": mean_loss}),
    Case("BERT, 6 of 16 labels are -100", bert, unlabelled=(0, 3, 5, 6, 11, 12)),
)


def examples(case: Case) -> list[dict[str, Any]]:
    """Return 16 random examples, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    data = []
    for index in range(EXAMPLES):
        label = (
            torch.randint(2, (CLASSES,), generator=generator).float().tolist()
            if case.multi_label
            else -100
            if index in case.unlabelled
            else index % CLASSES
        )
        if case.images:
            data.append({"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": label})
        else:
            data.append(
                {"input_ids": torch.randint(3, VOCABULARY, (8,), generator=generator), "labels": label}
            )
    return data


def student_and_teacher(case: Case) -> tuple[nn.Module, nn.Module]:
    """Return one model twice, the teacher moved away from the student so that there is something to learn."""
    torch.manual_seed(0)
    student = case.model()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student, teacher


class KeepGradient(TrainerCallback):
    """Keeps the gradient that the optimizer is about to apply."""

    gradient: torch.Tensor

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())
        self.gradient = torch.cat([gradient.detach().flatten().double() for gradient in gradients])


def gradient(
    case: Case, alpha: float | None, batch_size: int, accumulation: int = 1
) -> tuple[torch.Tensor, str]:
    """Return the gradient of one optimizer step, and what the probe answered.

    Args:
        case: what is trained.
        alpha: None for plain Trainer.
        batch_size: examples in one micro-batch of one process.
        accumulation: micro-batches in one optimizer step.
    """
    student, teacher = student_and_teacher(case)
    keeper = KeepGradient()
    arguments_class = TrainingArguments if alpha is None else DistillationTrainingArguments
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about toy data and random weights
        arguments = arguments_class(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            max_grad_norm=0.0,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **({} if alpha is None else {"alpha": alpha}),
            **case.arguments,
        )
        common = {"args": arguments, "train_dataset": examples(case), "callbacks": [keeper], **case.trainer}
        trainer = (
            Trainer(student, **common)
            if alpha is None
            else DistillationTrainer(student, teacher=teacher, **common)
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    answer = "" if alpha is None else trainer._normalisation.name.lower()
    return keeper.gradient, answer


TRAINERS: dict[str, float | None] = {"Trainer": None, "alpha=0": 0.0, "alpha=0.5": 0.5}


@dataclass(frozen=True)
class Row:
    """What was measured of one case: what the probe said, and the ratios, by column."""

    case: Case
    probe: str
    ratios: dict[str, float]
    difference: float

    def __str__(self) -> str:
        cells = [self.case.name, self.probe, *(f"{value:.2f}" for value in self.ratios.values())]
        return f"| {' | '.join(cells)} |"


def measure(case: Case, two_processes: dict[str, torch.Tensor] | None = None) -> Row:
    """Return the ratios of the three trainers, and how far DistillationTrainer's gradients lie apart at most."""
    ratios, differences, probe = {}, [0.0], ""
    wholes = {label: gradient(case, alpha, EXAMPLES)[0] for label, alpha in TRAINERS.items()}
    for label, alpha in TRAINERS.items():
        split, answer = gradient(case, alpha, EXAMPLES // 4, accumulation=4)
        probe = answer or probe
        ratios[f"{label}, 4 steps"] = float(split.norm() / wholes[label].norm())
        if alpha is not None:
            differences.append(apart(split, wholes[label]))
    for label, alpha in TRAINERS.items() if two_processes is not None else ():
        split = two_processes[f"{case.name}/{label}"]
        ratios[f"{label}, 2 processes"] = float(split.norm() / wholes[label].norm())
        if alpha is not None:
            differences.append(apart(split, wholes[label]))
    return Row(case, probe, ratios, max(differences))


def apart(split: torch.Tensor, whole: torch.Tensor) -> float:
    """Return the largest difference of two gradients over the largest entry."""
    return float((split - whole).abs().max() / whole.abs().max())


def run_two_processes(folder: str) -> dict[str, torch.Tensor]:
    """Run every case on two connected gloo processes, and return the gradients."""
    path = Path(folder) / "gradients.pt"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *(str(Path(__file__).resolve()), "--worker", str(path)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the two processes failed:\n{done.stderr[-3000:]}")
    return torch.load(path)


def work(path: str) -> None:
    """Be one of two processes: half of the examples each, in one step."""
    found = {
        f"{case.name}/{label}": gradient(case, alpha, EXAMPLES // 2)[0]
        for case in CASES
        for label, alpha in TRAINERS.items()
    }
    if int(os.environ["RANK"]) == 0:
        torch.save(found, path)


def processor() -> str:
    """Return the processor's name, as far as it is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    """Print a markdown table, and what it was measured with."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if options.worker:
        return work(options.worker)
    start = time.time()
    two_processes = None
    if options.processes == 2:
        with tempfile.TemporaryDirectory() as folder:
            two_processes = run_two_processes(folder)
    rows: list[Row] = []
    for case in CASES:
        rows.append(measure(case, two_processes))
        if len(rows) == 1:
            header = ["Model", "The probe says", *rows[0].ratios]
            print(f"| {' | '.join(header)} |\n| {' | '.join(['---'] * len(header))} |")
        print(rows[-1], flush=True)
    print(
        "\nDistillationTrainer's gradients differ from those of the unsplit batch by at most "
        f"{max(row.difference for row in rows):.0e} of the largest entry."
    )
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}, "
        f"{processor()}, {os.cpu_count()} cores: {time.time() - start:.0f} s, of which {sum(os.times()[:4]):.0f} s of "
        "processor time."
    )


if __name__ == "__main__":
    main()
