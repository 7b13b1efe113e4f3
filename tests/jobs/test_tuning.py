"""The search before the reported run: what it chooses on, what it tries, its bounds, and that a kill loses nothing."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoModelForSequenceClassification

from hf_distill import DistillationTrainingArguments
from hf_distill.corpora.files import DataError
from hf_distill.jobs import tuning as tuning_module
from hf_distill.jobs.comparison import Comparison, prepare_comparison
from hf_distill.jobs.own_teacher import kept_teacher
from hf_distill.jobs.tuning import Search, TuningArguments, check_tuning, tune
from hf_distill.jobs.tuning_study import Choice, Trial, best_trial, next_choice, read_trials
from hf_distill.tasks.bert_models import TextModelArguments
from hf_distill.tasks.model_arguments import check_models
from hf_distill.tasks.text_classification import TextClassification
from hf_distill.tasks.text_data import TextDataArguments, tuning_splits

pytest.importorskip("optuna")

# A teacher of a few steps on a few texts tells them hardly apart, and the trainer says so.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The teacher is nearly uniform", "ignore:The temperature .* leaves the teacher nearly uniform"
)

SOUNDS = {"cat": "meow purr hiss".split(), "dog": "bark growl wag".split()}


def rows(names: str, count: int) -> Dataset:
    """Return texts that one word labels, each with a word of its own."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(SOUNDS))})
    labels = [index % 2 for index in range(count)]
    texts = [
        f"{names}{index} the {list(SOUNDS.values())[label][index // 2 % 3]}"
        for index, label in enumerate(labels)
    ]
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


@pytest.fixture
def splits() -> DatasetDict:
    return DatasetDict(train=rows("a", 40), validation=rows("b", 12), test=rows("c", 10))


@pytest.fixture
def models() -> TextModelArguments:
    return TextModelArguments(
        vocabulary_size=60, teacher_layers=1, teacher_width=16, teacher_epochs=3, teacher_learning_rate=1e-2,
        teacher_word_dropout=0.0, student_layers=1, student_width=8,
    )  # fmt: skip


def arguments(folder: Path, **settings: Any) -> DistillationTrainingArguments:
    options = {
        "alpha": 0.7, "temperature": 4.0, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "num_train_epochs": 2, "learning_rate": 1e-2, "logging_strategy": "no", "save_total_limit": 1,
    }  # fmt: skip
    return DistillationTrainingArguments(str(folder), **{**options, **settings})


@pytest.fixture
def args(tmp_path: Path) -> DistillationTrainingArguments:
    return arguments(tmp_path / "out")


def task_of(models: TextModelArguments) -> TextClassification:
    return TextClassification(TextDataArguments(max_seq_length=8), models)


def planted(monkeypatch: pytest.MonkeyPatch, best: Choice, killed_at: int | None = None) -> list[Choice]:
    """Replace training by a landscape with one peak, and note what is asked of it; perhaps die on the way."""
    asked: list[Choice] = []

    def trial(self: Search, choice: Choice, folder: Path) -> Trial:
        if len(asked) == killed_at:
            raise KeyboardInterrupt
        folder.mkdir(parents=True)
        asked.append(choice)
        distance = abs(choice.alpha - best.alpha) + abs(choice.temperature - best.temperature) / 10
        distance += abs((choice.teacher_stop_epoch or 0) - (best.teacher_stop_epoch or 0)) / 3
        return Trial(choice, 1 - distance / 3, 1.0, 60.0)

    monkeypatch.setattr(Search, "_trial", trial)
    return asked


# ---- what it chooses on ----------------------------------------------------------------------


def test_a_validation_split_of_its_own_is_taken_without_texts_reported_on(splits: DatasetDict) -> None:
    splits["validation"] = rows("c", 14)  # ten of which are the test texts
    chosen, held_out = tuning_splits(splits, "test")
    assert held_out, "the texts reported on are among the validation texts"
    splits["test"] = Dataset.from_dict({"text": ["c1 the bark", "x"], "label": [1, 0]})
    chosen, held_out = tuning_splits(splits, "test")
    assert not held_out
    assert len(chosen["validation"]) == 13
    assert "c1 the bark" not in chosen["validation"]["text"][:]
    assert chosen["train"]["text"][:] == splits["train"]["text"][:]


@pytest.mark.parametrize("report_on", ["test", "validation"])
def test_training_texts_are_held_out_where_validation_is_reported_on(
    splits: DatasetDict, report_on: str
) -> None:
    splits["test"] = splits["validation"].shuffle(seed=0).select(range(8))  # as with --max_eval_samples
    splits["unlabeled"] = rows("d", 4).remove_columns("label")
    chosen, held_out = tuning_splits(splits, report_on)
    assert held_out
    assert set(chosen) == {"train", "validation", "unlabeled"}
    assert (len(chosen["train"]), len(chosen["validation"])) == (36, 4)
    texts = set(chosen["validation"]["text"])
    assert not texts & set(chosen["train"]["text"])
    assert not texts & set(splits[report_on]["text"])
    assert texts <= set(splits["train"]["text"])
    assert len(splits["train"]) == 40, "given back"


def test_nothing_to_choose_on_is_an_error(splits: DatasetDict) -> None:
    same = splits["train"]
    with pytest.raises(DataError, match="expected texts to choose on that are not among those reported on"):
        tuning_splits(DatasetDict(train=same, validation=same, test=same), "test")


# ---- what it tries ---------------------------------------------------------------------------


def test_the_first_trial_is_the_command_line_and_none_is_tried_twice() -> None:
    start, trials = Choice(0.05, 12.0, 3), []
    for _ in range(15):
        choice = next_choice(start, 3, 0, trials)
        trials.append(Trial(choice, 0.5, 1.0, 1.0))
    assert trials[0].choice == start
    assert len({trial.choice for trial in trials}) == 15
    assert {trial.choice.teacher_stop_epoch for trial in trials} == {1, 2, 3}
    assert all(0.05 <= trial.choice.alpha <= 1 and 1 <= trial.choice.temperature <= 12 for trial in trials)
    other = next_choice(start, 3, 1, trials)
    assert other != next_choice(start, 3, 0, trials), "the seed counts"


def test_it_climbs_a_planted_peak(
    monkeypatch: pytest.MonkeyPatch, splits: DatasetDict, models: Any, args: Any
) -> None:
    peak = Choice(1.0, 2.0, 1)
    planted(monkeypatch, peak)
    said: list[str] = []
    tuned = tune(TuningArguments(True, tune_trials=40), task_of(models), splits, args, 0, said.append)
    assert tuned["teacher_stop_epoch"] == 1
    assert tuned["alpha"] >= 0.85
    assert abs(tuned["temperature"] - 2) < 1
    assert (args.alpha, args.temperature) == (tuned["alpha"], tuned["temperature"])
    assert models.teacher_stop_epoch == 1
    assert tuned["accuracy"] > tuned["accuracy_of_settings_given"]
    results = json.loads((Path(args.output_dir) / "tuning_results.json").read_text())
    assert results["flags"] in said[-1]
    assert results["all_trials"][0]["alpha"] == 0.7
    assert len(results["all_trials"]) == 40
    assert not list(Path(args.output_dir).glob("tuning-*/trial_*")), "trials leave no folder"


def test_the_best_is_the_most_accurate_then_the_surest_then_the_first() -> None:
    trials = [Trial(Choice(0.1 * n, 1.0), *measured, 1.0) for n, measured in enumerate(
        [(0.5, 1.0), (0.6, 1.2), (0.6, 1.1), (0.6, 1.1)]
    )]  # fmt: skip
    assert best_trial(trials) is trials[2]


# ---- bounds and refusals ---------------------------------------------------------------------


def test_time_and_trials_are_bounds(
    monkeypatch: pytest.MonkeyPatch, splits: DatasetDict, models: Any, args: Any
) -> None:
    asked, said = planted(monkeypatch, Choice(1.0, 2.0, 1)), list[str]()

    def search(**bounds: Any) -> None:
        tuning, given = TuningArguments(True, **bounds), copy.deepcopy(args)
        tune(tuning, task_of(copy.deepcopy(models)), splits, given, 0, said.append)

    search(tune_minutes=3)
    assert len(asked) == 3, "each counts as a minute"
    assert any("ends after 3 trials, since the next would pass 3 minutes" in line for line in said)
    search(tune_minutes=4.5)
    assert len(asked) == 4, "the minutes of earlier runs count"
    search(tune_trials=6)
    assert len(asked) == 6
    asked.clear()
    search(tune_trials=2)
    assert not asked
    assert len(json.loads((Path(args.output_dir) / "tuning_results.json").read_text())["all_trials"]) == 2
    args.learning_rate = 2e-2
    search(tune_minutes=0)
    assert len(asked) == 1, "other settings are another search; its first trial runs anyway"


@pytest.mark.parametrize(
    ("settings", "flags", "message"),
    [
        (
            {"objectives": [{"name": "forward_kl"}], "alpha": None},
            {},
            "received objectives. Drop --objectives",
        ),
        ({"alpha": {"schedule": "linear", "start": 0, "end": 1}}, {}, "expected a number for --alpha"),
        ({"temperature": {"schedule": "constant", "value": 2}}, {}, "expected a number for --temperature"),
        ({}, {"tune_trials": 0}, "--tune_trials: expected a number of at least 1, received 0"),
        ({}, {"tune_minutes": -1.0}, "--tune_minutes: expected a number of at least 0, received -1.0"),
    ],
)
def test_what_it_cannot_tune_is_refused(
    settings: dict[str, Any], flags: dict[str, Any], message: str
) -> None:
    args = SimpleNamespace(**{"objectives": None, "alpha": 0.7, "temperature": 4.0, **settings})
    with pytest.raises(ValueError, match=message):
        check_tuning(TuningArguments(tune=True, **flags), args)
    check_tuning(TuningArguments(tune=False, **flags), args)


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, args: Any) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name))
    with pytest.raises(ImportError, match=r"pip install 'hf-distill\[hpo\]', or drop --tune"):
        check_tuning(TuningArguments(tune=True), args)
    check_tuning(TuningArguments(), args)


# ---- the teacher's stopping point ------------------------------------------------------------


def test_one_training_keeps_each_epoch_as_a_stopped_one_would_be(
    splits: DatasetDict, models: Any, tmp_path: Path
) -> None:
    said: list[str] = []
    kept, alone = arguments(tmp_path / "kept"), arguments(tmp_path / "alone")
    whole = kept_teacher(task_of(models), splits, kept, said.append, every_epoch=True)
    trained = len([line for line in said if "training" in line])
    assert trained == 1
    folders = [
        kept_teacher(task_of(replace(models, teacher_stop_epoch=epoch)), splits, kept, said.append)
        for epoch in (1, 2, 3)
    ]
    assert all("kept from an earlier run" in line for line in said[1:])
    assert folders[2] == whole
    assert len(set(folders)) == 3
    stopped = kept_teacher(task_of(replace(models, teacher_stop_epoch=2)), splits, alone, said.append)
    assert "to epoch 2 of 3" in said[-1]

    def weights(folder: Path) -> torch.Tensor:
        return AutoModelForSequenceClassification.from_pretrained(folder).classifier.weight

    assert torch.equal(weights(stopped), weights(folders[1]))
    assert not torch.equal(weights(folders[0]), weights(folders[1]))
    assert not torch.equal(weights(folders[1]), weights(folders[2]))
    assert {path.name for path in stopped.iterdir()} == {path.name for path in whole.iterdir()}
    assert not [path for path in whole.parent.iterdir() if path.name.startswith("_")]


def test_an_epoch_that_is_not_trained_is_refused(models: Any) -> None:
    for epoch in (0, 4):
        with pytest.raises(ValueError, match=f"expected an epoch from 1 to 3 .*received {epoch}"):
            check_models(replace(models, teacher_stop_epoch=epoch))


def test_a_named_teacher_has_none_and_is_told_apart_by_its_weights(
    monkeypatch: pytest.MonkeyPatch, splits: DatasetDict, models: Any, args: Any, tmp_path: Path
) -> None:
    asked, said = planted(monkeypatch, Choice(1.0, 2.0)), list[str]()
    folder = kept_teacher(task_of(models), splits, args, lambda line: None)
    named = replace(models, teacher_model_name_or_path=[str(folder)])
    few = TuningArguments(True, tune_trials=2)
    tuned = tune(few, task_of(named), splits, args, 0, said.append)
    assert tuned["teacher_stop_epoch"] is None
    assert any("has no stopping point to choose" in line for line in said)
    assert len(asked) == 2
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    args.alpha, args.temperature = 0.7, 4.0
    tune(few, task_of(named), splits, args, 0, said.append)
    assert len(asked) == 4, "other weights under the same name are another search"


# ---- real trials -----------------------------------------------------------------------------


def test_a_trial_is_a_run_of_its_own_and_the_flags_give_the_reported_run(
    splits: DatasetDict, models: Any, args: Any, tmp_path: Path
) -> None:
    said: list[str] = []
    given = copy.deepcopy(models)
    tuned = tune(TuningArguments(True, tune_trials=3), task_of(models), splits, args, 0, said.append)
    trials = json.loads((Path(args.output_dir) / "tuning_results.json").read_text())["all_trials"]
    assert len({trial["cross_entropy"] for trial in trials}) == 3, "the choice reaches the student"
    assert [line for line in said if line.startswith("Trial ")][-1].startswith("Trial 3 of 3: --alpha ")
    job = prepare_comparison(task_of(models), splits, args, said.append)
    assert "kept from an earlier run" in said[-1], "the reported run takes the teacher that was tuned"
    job.tuned = tuned
    results = job.run([0], baseline=False)
    assert results["settings"]["tuned"] == tuned
    assert results["settings"]["test_texts"] == 10

    words = json.loads((Path(args.output_dir) / "tuning_results.json").read_text())["flags"].split()
    flags = dict(zip(words[::2], words[1::2], strict=True))
    by_hand = replace(given, teacher_stop_epoch=int(flags["--teacher_stop_epoch"]))
    elsewhere = arguments(
        tmp_path / "by_hand", alpha=float(flags["--alpha"]), temperature=float(flags["--temperature"])
    )
    again = prepare_comparison(task_of(by_hand), splits, elsewhere, said.append).run([0], baseline=False)
    for name in ("accuracy", "calibration_error", "agreement"):
        assert again["student_distilled"][name] == results["student_distilled"][name]
    assert "tuned" not in again["settings"]


def test_no_reported_text_reaches_a_trial(
    monkeypatch: pytest.MonkeyPatch, splits: DatasetDict, models: Any, args: Any
) -> None:
    seen: list[Comparison] = []
    score = Comparison.score

    def spied(self: Comparison, seed: int) -> dict[str, float]:
        seen.append(self)
        return score(self, seed)

    monkeypatch.setattr(Comparison, "score", spied)
    tune(TuningArguments(True, tune_trials=1), task_of(models), splits, args, 0, lambda line: None)
    (job,) = seen
    assert set(job.encoded) == {"train", "validation"}
    assert set(job.splits) == {"train", "validation"}


# ---- resuming --------------------------------------------------------------------------------


def test_a_search_that_was_killed_proposes_what_it_would_have(
    monkeypatch: pytest.MonkeyPatch, splits: DatasetDict, models: Any, tmp_path: Path
) -> None:
    bounds, peak = TuningArguments(True, tune_trials=12), Choice(1.0, 2.0, 1)
    whole = planted(monkeypatch, peak)
    tune(bounds, task_of(copy.deepcopy(models)), splits, arguments(tmp_path / "whole"), 0, lambda line: None)
    args = arguments(tmp_path / "killed")
    first = planted(monkeypatch, peak, killed_at=7)
    with pytest.raises(KeyboardInterrupt):
        tune(bounds, task_of(copy.deepcopy(models)), splits, args, 0, lambda line: None)
    second, said = planted(monkeypatch, peak), list[str]()
    tune(bounds, task_of(copy.deepcopy(models)), splits, args, 0, said.append)
    assert any("7 trials kept from an earlier run" in line for line in said)
    assert (len(first), len(second)) == (7, 5)
    assert first + second == whole


def run_search(folder: Path) -> None:
    """Search with real trials; started in a process of its own, to be killed."""
    splits = DatasetDict(train=rows("a", 40), validation=rows("b", 12), test=rows("c", 10))
    models = TextModelArguments(
        vocabulary_size=60, teacher_layers=1, teacher_width=16, teacher_epochs=2, teacher_learning_rate=1e-2,
        student_layers=1, student_width=8,
    )  # fmt: skip
    tune(TuningArguments(True, tune_trials=4), task_of(models), splits, arguments(folder), 0, print)


@pytest.mark.slow
def test_sigkill_in_the_middle_of_a_trial_loses_no_finished_one(tmp_path: Path) -> None:
    code = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('searching', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "module.run_search(pathlib.Path(sys.argv[2]))"
    )
    folder = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(Path(tuning_module.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", code, __file__, str(folder)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    # The third trial's folder: two are finished, and this one is being trained.
    until = time.monotonic() + 300
    while not list(folder.glob("tuning-*/trial_2/seed_0/distilled")) and time.monotonic() < until:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (path,) = folder.glob("tuning-*/trials.json")
    kept = read_trials(path)
    assert len(kept) == 2
    run_search(folder)
    run_search(tmp_path / "whole")
    resumed = read_trials(path)
    assert resumed[:2] == kept, "finished trials are not trained again"
    (other,) = (tmp_path / "whole").glob("tuning-*/trials.json")
    assert other.parent.name == path.parent.name
    assert [(t.choice, t.accuracy, t.cross_entropy) for t in resumed] == [
        (t.choice, t.accuracy, t.cross_entropy) for t in read_trials(other)
    ]
    assert not list(folder.glob("tuning-*/trial_*"))
