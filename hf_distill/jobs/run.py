"""What every recipe does: reads flags, checks them, loads data, and compares students on a task."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.utils import logging

from hf_distill.jobs.command_line import fail, parse, resuming, short_errors, use_all_cores
from hf_distill.jobs.comparison import prepare_comparison
from hf_distill.jobs.own_teacher import first_on_main
from hf_distill.jobs.ranges import check_best_metric, check_ranges
from hf_distill.jobs.recipe_settings import RecipeArguments
from hf_distill.jobs.rehearsal import rehearse, rehearse_student
from hf_distill.jobs.tuning import TuningArguments, check_tuning, tune
from hf_distill.launch import check_launch, leave_together
from hf_distill.loss_plan import resolve_loss
from hf_distill.publishing import check_push
from hf_distill.support import check_supported
from hf_distill.tasks.model_arguments import check_models, number_of_teachers, pretrained_models
from hf_distill.tasks.task import Task
from hf_distill.teachers.preparation import check_ensemble_arguments


@dataclass(frozen=True)
class Defaults:
    """What a recipe fills in where the user says nothing.

    Args:
        learning_rate: of a student from random weights, or cut out of a teacher that was: models as small as these.
        pretrained_learning_rate: of one with pretrained weights.
        alpha, temperature: of the loss, where neither these nor objectives are given.
        loss: or the long form, objectives and label_weight.
        quick: the sizes of ``--quick``, by flag; a number of samples only where the user gives none.
        tunes: whether the recipe has ``--tune``.
        recipe: the class of what to run.
    """

    learning_rate: float
    pretrained_learning_rate: float = 5e-5
    alpha: float = 0.7
    temperature: float = 4.0
    loss: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    tunes: bool = False
    recipe: type[RecipeArguments] = RecipeArguments

    def shrink(self, data: Any, models: Any, args: Any) -> None:
        """Set the sizes of ``--quick``."""
        for name, value in self.quick.items():
            for holder in (data, models, args):
                if hasattr(holder, name) and not (name.startswith("max_") and getattr(holder, name)):
                    setattr(holder, name, value)

    def fill_in(self, models: Any, args: Any) -> None:
        """Set what depends on other flags."""
        cut_out_of_pretrained = models.student_num_hidden_layers and pretrained_models(models)
        pretrained = models.student_model_name_or_path or cut_out_of_pretrained
        if args.learning_rate == 0:
            args.learning_rate = self.pretrained_learning_rate if pretrained else self.learning_rate
        if args.alpha is None and args.temperature is None and args.objectives is None:
            chosen = self.loss or {"alpha": self.alpha, "temperature": self.temperature}
            for name, value in chosen.items():
                setattr(args, name, copy.deepcopy(value))


def run_recipe(task_class: type[Task], settings: type, defaults: Defaults, argv: Sequence[str]) -> None:
    """Run a recipe from its command line.

    Args:
        task_class: what it is about.
        settings: its training arguments, a dataclass over :class:`RecipeDefaultsMixin`.
        defaults: what is filled in.
        argv: the command line without the program's name.
    """
    kinds = [task_class.data_arguments, task_class.model_arguments, defaults.recipe, settings]
    tuning = TuningArguments()
    if defaults.tunes:
        *parsed, tuning = parse([*kinds, TuningArguments], argv)
    else:
        parsed = list(parse(kinds, argv))
    data, models, recipe, args = parsed
    task = task_class(data, models)
    logging.set_verbosity_warning()
    with short_errors():
        check_launch(args)  # joins the process group as the arguments say
    state = PartialState()

    def say(line: str) -> None:
        if state.is_main_process:
            print(line, flush=True)

    with short_errors():
        if recipe.quick:
            defaults.shrink(data, models, args)
        task.fill_in()
        defaults.fill_in(models, args)
        if recipe.quick:
            tuning.tune_trials = min(tuning.tune_trials, 3)
        _check(task, recipe, tuning, args)
        use_all_cores()
        with first_on_main(state):
            splits = task.load()
    described = task.describe(splits)
    loaded = task.loaded or task.counted
    say(f"{sizes_line(loaded, splits)}{'; ' + described if described else ''}")

    rehearse(task, splits, args)
    with short_errors():
        check_push(args)  # makes the repository, so only for a run whose data and flags are right
    tuned = tune(tuning, task, splits, args, recipe.seeds[0], say) if tuning.tune else None
    job = prepare_comparison(task, splits, args, say)
    job.tuned = tuned
    if loaded != task.counted:
        say(sizes_line(task.counted, job.encoded))
    for line in limit_lines(task, splits, job.encoded):
        say(line)
    if recipe.cache_teacher:
        rehearse_student(job, recipe.seeds[0])
        job.cache_teachers(len(recipe.seeds))
    job.run(recipe.seeds, recipe.baseline)
    leave_together()


def sizes_line(counted: str, splits: Mapping[str, Any]) -> str:
    """Return how many there are of something in each split.

    Example:
        >>> sizes_line("texts", {"train": [""] * 1200, "test": [""]})
        'Texts: train 1,200, test 1'
    """
    return f"{counted.capitalize()}: " + ", ".join(f"{name} {len(rows):,}" for name, rows in splits.items())


def limit_lines(task: Task, splits: Mapping[str, Any], encoded: Mapping[str, Any]) -> list[str]:
    """Return a line for each length at which examples are cut, and is reached by some: nothing is lost in silence."""
    reached = {name: task.reached(splits[name], rows) for name, rows in encoded.items()}
    return [
        f"Length: --{flag} {getattr(task.data, flag)} is reached by "
        + ", ".join(f"{counts[flag]:,} of {len(splits[name]):,} ({name})" for name, counts in reached.items())
        + "; what is longer is cut"
        for flag in next(iter(reached.values()))
        if any(counts[flag] for counts in reached.values())
    ]


def _check(task: Task, recipe: RecipeArguments, tuning: TuningArguments, args: Any) -> None:
    """Raise for flags that can't be right, and make the folder, before any data is read."""
    check_supported(args)
    plan = resolve_loss(args, "single_label")
    check_ranges(task.data, task.models, args, recipe.seeds)
    check_best_metric(args, [term.key for term in plan.terms], recipe.baseline, task.metrics)
    check_models(task.models)
    check_tuning(tuning, args)
    check_ensemble_arguments(args, number_of_teachers(task.models))
    task.check(args)
    resuming(args)
    if args.push_to_hub and args.hub_model_id is None:
        fail("--push_to_hub: expected --hub_model_id user/name, received none. Name the repository.")
    Path(str(args.output_dir)).mkdir(parents=True, exist_ok=True)
