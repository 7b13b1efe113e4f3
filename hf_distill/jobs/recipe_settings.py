"""The flags that all recipes share beside data and models: what to run, and how to train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_distill.arguments import DistillationTrainingArguments
from hf_distill.jobs.command_line import bf16_is_fast, has_accelerator


@dataclass
class RecipeArguments:
    """What to run."""

    baseline: bool = field(
        default=True, metadata={"help": "Train the student alone as well, under the same budget"}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Repeat with these seeds, e.g. --seeds 0 1 2"}
    )
    cache_teacher: bool = field(
        default=True,
        metadata={
            "help": "Ask the teacher about each example once, and keep its answers in --output_dir for all runs; a "
            "loss that looks inside it asks at every step all the same"
        },
    )
    quick: bool = field(
        default=False,
        metadata={
            "help": "The whole path in about a minute, whose numbers mean nothing: sizes and epochs are its own, "
            "whatever else is said"
        },
    )


@dataclass
class OnlineRecipeArguments(RecipeArguments):
    """What to run, of a teacher with an answer for each token of a vocabulary."""

    cache_teacher: bool = field(
        default=False,
        metadata={
            "help": "Ask the teacher about each example once, and keep its answers in --output_dir: 4 bytes for each "
            "token of the vocabulary at each position"
        },
    )


@dataclass
class RecipeDefaultsMixin:
    """Defaults for a small model from random weights, over any ``TrainingArguments``."""

    output_dir: str | None = field(default=None, metadata={"help": "Where everything is put"})
    learning_rate: float = field(
        default=0.0, metadata={"help": "Default: by the recipe, lower for a student with pretrained weights"}
    )
    alpha: float | str | dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Weight of the teacher's term in [0, 1], or its schedule. Default: 0.7 with T = 4 here"
        },
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Examples per step and process"})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Examples per evaluation step"})
    warmup_steps: float = field(default=0.06, metadata={"help": "Steps, or share of all steps if below 1"})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay"})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "group_by_length pads least",
            "choices": ["group_by_length", "random", "sequential"],
        },
    )
    bf16: bool = field(
        default=bf16_is_fast(), metadata={"help": "bfloat16. Default: where this machine is fast at it"}
    )
    use_cpu: bool = field(
        default=not has_accelerator(),
        metadata={"help": "Run on the CPU. Default: where there is nothing else"},
    )
    save_strategy: str = field(
        default="epoch",
        metadata={
            "help": "When to write a checkpoint to resume from",
            "choices": ["no", "steps", "epoch", "best"],
        },
    )
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep"})
    logging_strategy: str = field(
        default="epoch", metadata={"help": "When to log", "choices": ["no", "steps", "epoch"]}
    )
    report_to: list[str] | str | None = field(
        default="none", metadata={"help": "Trackers: tensorboard, wandb, ... or all"}
    )

    def __post_init__(self) -> None:
        """Take fp16 where it is asked for: bf16 is only the default."""
        if getattr(self, "fp16", False):
            self.bf16 = False
        super().__post_init__()  # type: ignore[misc]


@dataclass
class RecipeTrainingArguments(RecipeDefaultsMixin, DistillationTrainingArguments):
    """``DistillationTrainingArguments`` with the recipes' defaults."""
