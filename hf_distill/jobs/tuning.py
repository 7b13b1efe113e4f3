"""``--tune``: alpha, temperature and the teacher's stopping point, chosen on texts that are not reported on."""

from __future__ import annotations

import copy
import gc
import hashlib
import importlib.util
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import DatasetDict

from hf_distill.jobs.command_line import short_errors
from hf_distill.jobs.comparison import Comparison, prepare_comparison
from hf_distill.jobs.own_teacher import first_on_main, kept_teachers
from hf_distill.jobs.tuning_study import (
    Choice,
    Trial,
    as_row,
    best_trial,
    next_choice,
    read_trials,
    write_json,
)
from hf_distill.loss_plan import DEFAULT_ALPHA, DEFAULT_TEMPERATURE
from hf_distill.tasks.model_arguments import last_epoch
from hf_distill.tasks.task import Task
from hf_distill.tasks.text_data import tuning_splits

RESULTS_FILE = "tuning_results.json"
# Arguments that no student's weights depend on: a search goes on under others.
_NO_EFFECT = ("output_dir", "resume_from_checkpoint", "report_to", "run_name", "disable_tqdm", "push_to_hub")
_NO_EFFECT_PREFIXES = ("hub_", "log_", "logging_")


@dataclass
class TuningArguments:
    """Choose alpha, temperature and the teacher's stopping point before the reported run."""

    _argument_group_name = "tuning"  # HfArgumentParser's name for the group in --help

    tune: bool = field(
        default=False,
        metadata={
            "help": "Choose alpha, temperature and, of a teacher trained here, the epoch it stops after, by accuracy "
            "on texts that are not reported on; then run with these. Needs the extra hpo. Goes on where it was killed"
        },
    )
    tune_trials: int = field(
        default=20, metadata={"help": "Students to train at most; the first has the settings given"}
    )
    tune_minutes: float = field(
        default=60.0,
        metadata={
            "help": "Start no trial that would end after so many minutes of trials, earlier runs of the same search "
            "included, the teacher's training not"
        },
    )
    tune_seed: int = field(default=0, metadata={"help": "Seed of the choices to try"})


def check_tuning(tuning: TuningArguments, args: Any) -> None:
    """Raise before anything is trained where the search can't be made as asked.

    Raises:
        ValueError: a bound or a seed out of range, the long form, or a schedule.
        ImportError: optuna is not installed.

    Example:
        >>> from types import SimpleNamespace
        >>> args = SimpleNamespace(objectives=[{"name": "forward_kl"}], alpha=None, temperature=None)
        >>> check_tuning(TuningArguments(tune=True), args)
        Traceback (most recent call last):
            ...
        ValueError: --tune: expected the short form (alpha, temperature), which it chooses, received objectives. ...
    """
    if not tuning.tune:
        return
    if args.objectives is not None:
        raise ValueError(
            "--tune: expected the short form (alpha, temperature), which it chooses, received objectives. Drop "
            "--objectives, or drop --tune and search their weights with trainer.hyperparameter_search."
        )
    for name in ("alpha", "temperature"):
        if isinstance(getattr(args, name), dict):
            raise ValueError(
                f"--tune: expected a number for --{name}, where the search begins, received the schedule "
                f"{getattr(args, name)}. Give a number, or drop --tune."
            )
    for name, least in (("tune_trials", 1), ("tune_minutes", 0), ("tune_seed", 0)):
        if not getattr(tuning, name) >= least:
            raise ValueError(
                f"--{name}: expected a number of at least {least}, received {getattr(tuning, name)}."
            )
    if importlib.util.find_spec("optuna") is None:
        raise ImportError(
            "--tune: expected optuna, which is not installed. pip install 'hf-distill[hpo]', or drop --tune."
        )


def tune(
    tuning: TuningArguments,
    task: Task,
    splits: DatasetDict,
    args: Any,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Search, set what was chosen in ``args`` and ``task.models``, and return what the results say of it.

    Each trial trains one distilled student with the reported run's budget and its first seed. The teacher is
    trained once, and kept as it was at the end of each epoch. Finished trials are kept in
    ``<output_dir>/tuning-<hash of all that their results depend on>``, so the same search goes on where it was
    killed and other settings begin another; a trial that was killed goes on from its checkpoint.

    The best of several trials flatters itself on the texts it was chosen on: report on others. The student alone
    has neither alpha nor temperature and is not tuned, so a gain over it includes the search.

    Args:
        tuning: bounds of the search, which :func:`check_tuning` has passed.
        task: texts of one class each, with the recipe's arguments.
        splits: from :func:`hf_distill.tasks.text_data.load_texts`.
        args: the recipe's training arguments.
        seed: of the students.
        say: tells the user what is being done.
    """
    with short_errors(), first_on_main(PartialState()):
        texts, held_out = tuning_splits(splits, task.data.report_on)
    count = f"{len(texts['validation']):,}"
    say(
        f"Tuning on {count} texts held out of the training texts, since the validation texts are those reported on; "
        "the reported run trains on them too"
        if held_out
        else f"Tuning on {count} validation texts, none of which is reported on"
    )
    on_validation = replace(task, data=replace(task.data, report_on="validation"))
    search = Search(tuning, on_validation, texts, args, seed, say)
    trials = search.run()
    best = best_trial(trials)
    args.alpha, args.temperature = best.choice.alpha, best.choice.temperature
    task.models.teacher_stop_epoch = best.choice.teacher_stop_epoch
    say(
        f"Tuned: {best.choice.flags} ({100 * best.accuracy:.2f} %, the settings given {100 * trials[0].accuracy:.2f} "
        "%). With these flags the reported run is the same without --tune.\n"
        "The student alone has none of these and is not tuned: a gain over it includes this search"
    )
    tuned = {
        **asdict(best.choice),
        "accuracy": best.accuracy,
        "accuracy_of_settings_given": trials[0].accuracy,
        "trials": len(trials),
        "texts": len(texts["validation"]),
        "held_out_of_training_texts": held_out,
    }
    if PartialState().is_main_process:
        rows = {"flags": best.choice.flags, "all_trials": [as_row(trial) for trial in trials]}
        write_json(Path(str(args.output_dir)) / RESULTS_FILE, {**tuned, **rows})
    return tuned


@dataclass
class Search:
    """One search: the arguments of :func:`tune`, with the texts to choose on as ``validation``."""

    tuning: TuningArguments
    task: Task
    texts: DatasetDict
    args: Any
    seed: int
    say: Callable[[str], None]

    def run(self) -> list[Trial]:
        """Train until a bound is reached, and return all trials, those of earlier runs included."""
        start, epochs = self._start()
        folder = self._folder()
        trials: list[Trial] = _from_main(read_trials(folder / "trials.json"))
        if trials:
            self.say(f"Tuning: {len(trials)} trials kept from an earlier run in {folder}")
        while len(trials) < self.tuning.tune_trials:
            if not self._has_time(trials):
                minutes = f"{self.tuning.tune_minutes:g} minutes"
                self.say(f"Tuning: ends after {len(trials)} trials, since the next would pass {minutes}")
                break
            choice = next_choice(start, epochs, self.tuning.tune_seed, trials)
            trials.append(self._trial(choice, folder / f"trial_{len(trials)}"))
            if PartialState().is_main_process:
                write_json(folder / "trials.json", [as_row(trial) for trial in trials])
                for stale in folder.glob("trial_*"):
                    shutil.rmtree(stale)
            PartialState().wait_for_everyone()  # or another process's next folder would be taken for a stale one
            self._report(trials)
        # The bound may be less than an earlier run's.
        return trials[: self.tuning.tune_trials]

    def _start(self) -> tuple[Choice, int | None]:
        """Return the settings given, and the teacher's epochs, which are trained here if it has any to choose."""
        alpha = DEFAULT_ALPHA if self.args.alpha is None else float(self.args.alpha)
        temperature = DEFAULT_TEMPERATURE if self.args.temperature is None else float(self.args.temperature)
        if self.task.models.teacher_model_name_or_path is not None:
            self.say("Tuning: a teacher given by name has no stopping point to choose")
            return Choice(alpha, temperature), None
        whole = replace(self.task.models, teacher_stop_epoch=None)
        kept_teachers(replace(self.task, models=whole), self.texts, self.args, self.say, every_epoch=True)
        return Choice(alpha, temperature, last_epoch(self.task.models)), last_epoch(whole)

    def _has_time(self, trials: list[Trial]) -> bool:
        """Whether another trial of mean length ends in time; the first runs anyway, to have a best one."""
        spent = sum(trial.seconds for trial in trials)
        return not trials or spent + spent / len(trials) <= 60 * self.tuning.tune_minutes

    def _trial(self, choice: Choice, folder: Path) -> Trial:
        """Train one student and measure it; what process 0 measured counts for all."""
        began = time.perf_counter()
        job = self._job(choice.teacher_stop_epoch)
        job.args = self._arguments(choice, folder)
        metrics = job.score(self.seed)
        gc.collect()  # a trainer is a cycle that would hold its models on the device
        measured = metrics["eval_accuracy"], metrics["eval_loss/label"]
        return _from_main(Trial(choice, *measured, time.perf_counter() - began))

    def _job(self, stop_epoch: int | None) -> Comparison:
        models = replace(self.task.models, teacher_stop_epoch=stop_epoch)
        return prepare_comparison(replace(self.task, models=models), self.texts, self.args, lambda line: None)

    def _arguments(self, choice: Choice, folder: Path) -> Any:
        args = copy.deepcopy(self.args)
        args.alpha, args.temperature, args.output_dir = choice.alpha, choice.temperature, str(folder)
        args.resume_from_checkpoint = True
        args.push_to_hub, args.report_to = False, []  # the reported run alone is shown to others
        return args

    def _report(self, trials: list[Trial]) -> None:
        best, last = best_trial(trials), trials[-1]
        left = self.tuning.tune_minutes - sum(trial.seconds for trial in trials) / 60
        self.say(
            f"Trial {len(trials)} of {self.tuning.tune_trials}: {last.choice.flags}: {100 * last.accuracy:.2f} % "
            f"(best {100 * best.accuracy:.2f} %, trial {trials.index(best) + 1}); {max(left, 0):.1f} min left"
        )

    def _folder(self) -> Path:
        """Return the folder of this search: another one for all that a trial's result depends on."""
        job = self._job(None)
        arguments = {
            name: value
            for name, value in self.args.to_dict().items()
            if name not in _NO_EFFECT and not name.startswith(_NO_EFFECT_PREFIXES)
        }
        described = {
            "models": asdict(self.task.models),
            "arguments": arguments,
            "processes": self.args.world_size,
            "seeds": [self.seed, self.tuning.tune_seed],
            **self.task.encoding,
        }
        digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
        for name, rows in sorted(job.encoded.items()):
            for column in sorted(rows.column_names):
                digest.update(json.dumps([name, column, rows[column][:]]).encode())
        for teacher in job.teachers:
            for tensor in teacher.state_dict().values():
                digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
        return _from_main(Path(str(self.args.output_dir)) / f"tuning-{digest.hexdigest()[:12]}")


def _from_main(value: Any) -> Any:
    """Return what process 0 has, on every process."""
    return broadcast_object_list([value])[0]
