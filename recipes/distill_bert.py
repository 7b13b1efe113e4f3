"""Distil a BERT classifier: the teacher, the student alone and the student distilled, in one table.

    accelerate launch recipes/distill_bert.py                      # built-in text, nothing to download
    accelerate launch recipes/distill_bert.py --train_file train.csv --validation_file test.csv
    accelerate launch recipes/distill_bert.py settings.yaml --alpha 0.7
    accelerate launch recipes/distill_bert.py --tune               # alpha, T and the teacher's epoch first

Without a teacher's name one is trained on the same texts and kept for the next run. Several names, or
--teachers_from_seeds 3, make an ensemble.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.utils import logging

from hf_distill import DistillationTrainingArguments
from hf_distill.jobs.command_line import (
    bf16_is_fast,
    fail,
    has_accelerator,
    parse,
    resuming,
    short_errors,
    use_all_cores,
)
from hf_distill.jobs.comparison import prepare_comparison
from hf_distill.jobs.own_teacher import first_on_main
from hf_distill.jobs.ranges import check_best_metric, check_ranges
from hf_distill.jobs.rehearsal import rehearse, rehearse_student
from hf_distill.jobs.text_data import TextDataArguments, load_texts
from hf_distill.jobs.text_models import TextModelArguments, check_models, number_of_teachers
from hf_distill.jobs.tuning import TuningArguments, check_tuning, tune
from hf_distill.launch import check_launch, leave_together
from hf_distill.loss_plan import resolve_loss
from hf_distill.publishing import check_push
from hf_distill.support import check_supported
from hf_distill.teachers.preparation import check_ensemble_arguments


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
            "help": "Ask the teacher about each text once, and keep its answers in --output_dir for all runs; a loss "
            "that looks inside it asks at every step all the same"
        },
    )
    quick: bool = field(
        default=False, metadata={"help": "The whole path in about a minute, whose numbers mean nothing"}
    )


@dataclass
class TrainingSettings(DistillationTrainingArguments):
    """TrainingArguments with defaults for a small model from random weights."""

    output_dir: str | None = field(default="runs/distill_bert", metadata={"help": "Where everything is put"})
    num_train_epochs: float = field(default=5.0, metadata={"help": "Epochs of the student. Default: 5"})
    learning_rate: float = field(
        default=0.0, metadata={"help": "Default: 7e-4, or 5e-5 for a student with pretrained weights"}
    )
    alpha: float | str | dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Weight of the teacher's term in [0, 1], or its schedule. Default: 0.7 with T = 4 here"
        },
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Texts per step and process"})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Texts per evaluation step"})
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


def set_defaults(
    models: TextModelArguments,
    data: TextDataArguments,
    recipe: RecipeArguments,
    tuning: TuningArguments,
    args: Any,
) -> None:
    """Fill in what depends on other flags."""
    if recipe.quick:
        data.max_train_samples, data.max_eval_samples = data.max_train_samples or 600, 600
        data.max_unlabeled_samples = data.max_unlabeled_samples or 600
        models.teacher_width, models.teacher_epochs = 64, 1.0
        models.student_layers, models.student_width, args.num_train_epochs = 1, 64, 1.0
        tuning.tune_trials = min(tuning.tune_trials, 3)
    pretrained = models.student_model_name_or_path or models.student_num_hidden_layers
    if args.learning_rate == 0:
        args.learning_rate = 5e-5 if pretrained else 7e-4
    if args.alpha is None and args.temperature is None and args.objectives is None:
        args.alpha, args.temperature = 0.7, 4.0  # tuned on the validation split of the built-in text


def main() -> None:
    """Run the job."""
    kinds = [TextDataArguments, TextModelArguments, RecipeArguments, TuningArguments, TrainingSettings]
    data, models, recipe, tuning, args = parse(kinds, sys.argv[1:])
    logging.set_verbosity_warning()
    with short_errors():
        check_launch(args)  # joins the process group as the arguments say
    state = PartialState()

    def say(line: str) -> None:
        if state.is_main_process:
            print(line, flush=True)

    with short_errors():
        set_defaults(models, data, recipe, tuning, args)
        check_supported(args)
        plan = resolve_loss(args, "single_label")
        check_ranges(data, models, args, recipe.seeds)
        check_best_metric(args, [term.key for term in plan.terms], recipe.baseline)
        check_models(models)
        check_tuning(tuning, args)
        check_ensemble_arguments(args, number_of_teachers(models))
        resuming(args)
        if args.push_to_hub and args.hub_model_id is None:
            fail("--push_to_hub: expected --hub_model_id user/name, received none. Name the repository.")
        Path(str(args.output_dir)).mkdir(parents=True, exist_ok=True)
        use_all_cores()
        with first_on_main(state):
            splits = load_texts(data)
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in splits.items())
    say(f"Texts: {sizes}; {splits['train'].features['label'].num_classes} classes")

    rehearse(splits, data, models, args)
    with short_errors():
        check_push(args)  # makes the repository, so only for a run whose data and flags are right
    tuned = tune(tuning, splits, data, models, args, recipe.seeds[0], say) if tuning.tune else None
    job = prepare_comparison(splits, data, models, args, say)
    job.tuned = tuned
    if recipe.cache_teacher:
        rehearse_student(job, recipe.seeds[0])
        job.cache_teachers(len(recipe.seeds))
    job.run(recipe.seeds, recipe.baseline)
    leave_together()


if __name__ == "__main__":
    main()
