"""Checkpoints are whole or not there: after SIGKILL, after a crash, with limits, best models and early stopping."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.training_args import ParallelMode

from hf_distill import checkpointing
from hf_distill.checkpointing import CheckpointingMixin, last_whole_checkpoint, missing_parts
from hf_distill.whole_checkpoints import MANIFEST_NAME
from tests import checkpoint_worker
from tests.checkpoint_worker import Examples, tiny_bert
from tests.tiny import arguments, bert, distiller, examples, teacher_of

# ---- killed with SIGKILL ---------------------------------------------------------------

KILLED = -9
ONE = [f"while_writing_{event}" for event in (1, 2, 4, 6, 7, 8, 9)]
TWO_SLOW = {"two_after_step": {"after_step": 5, "rank": 1}} | {
    f"two_while_writing_{event}": {"step": 6, "event": event, "rank": 0} for event in (4, 7, 8)
}

# A teacher of another width, so that a matrix is trained beside the student.
PROJECTED: dict[str, Any] = {
    "teacher_width": 24,
    "settings": {"save_total_limit": 1, "objectives": [{"name": "hidden_states"}], "weight_decay": 0.1},
}


class KilledRuns:
    """What the worker's runs left behind: weights, folders, logs and exit codes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan: list[dict[str, Any]] = []

    def add(self, name: str, **run: Any) -> None:
        paths = {key: str(self.folder / f"{name}.{key}") for key in ("output_dir", "weights", "log")}
        self.plan.append({"name": name, **paths, "settings": {"save_total_limit": 1}, **run})

    def add_killed_and_resumed(self, name: str, kill: dict[str, int], **run: Any) -> None:
        self.add(name, kill=kill, **run)
        self.add(name, resume=True, **run)

    def go(self) -> None:
        plan = self.folder / "plan.json"
        plan.write_text(json.dumps(self.plan))
        root = Path(__file__).parent.parent
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        subprocess.run([sys.executable, checkpoint_worker.__file__, str(plan)], check=True, env=environment)
        codes = json.loads(plan.with_suffix(".results").read_text())
        for run, ended in zip(self.plan, codes, strict=True):
            expected = KILLED if "kill" in run else 0
            assert set(ended) == {expected}, (run["name"], ended, Path(run["log"]).read_text()[-3000:])

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.weights")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def checkpoints(self, name: str) -> set[str]:
        return {path.name for path in (self.folder / f"{name}.output_dir").glob("*checkpoint*")}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> KilledRuns:
    runs = KilledRuns(tmp_path_factory.mktemp("killed"))
    runs.add("uninterrupted")
    runs.add_killed_and_resumed("after_step", {"after_step": 5})
    for name in ONE:
        runs.add_killed_and_resumed(name, {"step": 6, "event": int(name.rsplit("_", 1)[1])})
    runs.add("projected_uninterrupted", **PROJECTED)
    runs.add_killed_and_resumed("projected_after_step", {"after_step": 5}, **PROJECTED)
    runs.add_killed_and_resumed("projected_while_writing", {"step": 6, "event": 6}, **PROJECTED)
    runs.add("two_uninterrupted", processes=2)
    # Process 1 writes nothing but its random state: process 0 has written all it has to by then.
    runs.add_killed_and_resumed("two_while_writing", {"step": 6, "event": 1, "rank": 1}, processes=2)
    runs.go()
    return runs


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("name", ["after_step", *ONE])
def test_killed_run_ends_with_the_weights_of_one_that_was_not(killed: KilledRuns, name: str) -> None:
    assert_same(killed.weights(name), killed.weights("uninterrupted"))
    assert killed.checkpoints(name) == {"checkpoint-8"}


@pytest.mark.parametrize("name", ONE[:-1])
def test_checkpoint_being_written_is_skipped_by_name(killed: KilledRuns, name: str) -> None:
    assert "checkpoint-6 is incomplete: " in killed.log(name)
    assert "; resuming from checkpoint-3" in killed.log(name)


def test_killed_while_deleting_the_old_resumes_from_the_new(killed: KilledRuns) -> None:
    assert "checkpoint-6 is incomplete" not in killed.log(ONE[-1])
    assert "checkpoint-3 is removed: it is incomplete" in killed.log(ONE[-1])


@pytest.mark.parametrize("name", ["projected_after_step", "projected_while_writing"])
def test_what_is_trained_beside_the_student_survives_as_well(killed: KilledRuns, name: str) -> None:
    assert_same(killed.weights(name), killed.weights("projected_uninterrupted"))
    assert "beside:key:hidden_states.weight" in killed.weights(name)


def test_a_checkpoint_with_half_of_the_projections_is_skipped(killed: KilledRuns) -> None:
    log = killed.log("projected_while_writing")
    # The optimizer and the scheduler, written before them, are there.
    assert "the run stopped while writing it, trainer_state.json is missing, rng_state.pth is missing" in log
    assert "; resuming from checkpoint-3" in log


def test_two_processes_killed_while_writing(killed: KilledRuns) -> None:
    assert_same(killed.weights("two_while_writing"), killed.weights("two_uninterrupted"))
    assert (
        killed.log("two_while_writing").count("rng_state_1.pth is cut off; resuming from checkpoint-3") == 1
    )


@pytest.mark.slow
def test_two_processes_killed_at_other_moments(killed: KilledRuns, tmp_path: Path) -> None:
    runs = KilledRuns(tmp_path)
    for name, kill in TWO_SLOW.items():
        runs.add_killed_and_resumed(name, kill, processes=2)
    runs.add("one_goes_on", kill={"step": 6, "event": 4}, processes=2)
    runs.add("one_goes_on", resume=True)
    runs.go()
    for name in TWO_SLOW:
        assert_same(runs.weights(name), killed.weights("two_uninterrupted"))
    assert "checkpoint-3 was written by 2 process(es) and this run has 1" in runs.log("one_goes_on")


# ---- in this process -------------------------------------------------------------------


class CheckpointingTrainer(CheckpointingMixin, Trainer):
    """The mixin alone."""


class Stop(Exception):
    """Stands for a crash."""


class StopAt(TrainerCallback):
    """Crash when so many steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Stop


def make_trainer(folder: Path, trainer_class: type[Trainer] = CheckpointingTrainer, **settings: Any) -> Any:
    callbacks = settings.pop("callbacks", None)
    settings = {"max_steps": 3, "save_steps": 1, "per_device_train_batch_size": 2} | settings
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        learning_rate=1e-2,
        **settings,
    )
    set_seed(3)
    data = Examples()
    return trainer_class(
        model=tiny_bert(), args=args, train_dataset=data, eval_dataset=data, callbacks=callbacks
    )


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    make_trainer(folder, Trainer).train()
    return folder


@pytest.fixture(scope="module")
def our_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    make_trainer(folder).train()
    return folder


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("model.safetensors", Path.unlink, "model.safetensors is missing"),
    ("optimizer.pt", Path.unlink, "optimizer.pt is missing"),
    ("scheduler.pt", Path.unlink, "scheduler.pt is missing"),
    ("rng_state.pth", Path.unlink, "rng_state.pth is missing"),
    ("trainer_state.json", Path.unlink, "trainer_state.json is missing"),
    ("model.safetensors", halve, "model.safetensors is cut off"),
    ("optimizer.pt", halve, "optimizer.pt is cut off"),
    ("scheduler.pt", halve, "scheduler.pt is cut off"),
    ("rng_state.pth", halve, "rng_state.pth is cut off"),
    ("trainer_state.json", halve, "trainer_state.json cannot be read"),
]


@pytest.mark.parametrize(("file", "damage", "missing"), DAMAGES)
def test_damaged_checkpoint_of_a_plain_trainer_is_skipped_by_name(
    plain_run: Path, tmp_path: Path, caplog: Any, file: str, damage: Callable[[Path], None], missing: str
) -> None:
    folder = shutil.copytree(plain_run, tmp_path / "run")
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-3")
    damage(folder / "checkpoint-3" / file)
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-2")
    assert f"checkpoint-3 is incomplete: {missing}; resuming from checkpoint-2" in caplog.text
    with pytest.raises(
        ValueError, match=f"checkpoint-3 is incomplete: {missing}; the last whole one .*checkpoint-2"
    ):
        make_trainer(folder).train(resume_from_checkpoint=str(folder / "checkpoint-3"))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "rng_state.pth", "config.json"])
def test_changed_size_is_found_by_the_manifest(our_run: Path, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(our_run, tmp_path / "run")
    with (folder / "checkpoint-3" / file).open("ab") as added:
        added.write(b" ")
    (missing,) = missing_parts(folder / "checkpoint-3")
    assert missing.startswith(f"{file} has ")
    with pytest.raises(ValueError, match=f"on purpose, delete its {MANIFEST_NAME}"):
        make_trainer(folder).train(resume_from_checkpoint=str(folder / "checkpoint-3"))


def test_manifest_leaves_out_what_a_push_leaves_out(our_run: Path) -> None:
    manifest = json.loads((our_run / "checkpoint-3" / MANIFEST_NAME).read_text())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"} < manifest[
        "files"
    ].keys()
    assert "training_args.bin" not in manifest["files"]


@pytest.mark.parametrize("run", ["plain_run", "our_run"])
def test_resume_true_takes_the_one_before_and_writes_the_incomplete_one_anew(
    request: Any, tmp_path: Path, caplog: Any, run: str
) -> None:
    original = request.getfixturevalue(run)
    folder = shutil.copytree(original, tmp_path / "run")
    (folder / "checkpoint-3" / "optimizer.pt").unlink()
    (folder / "checkpoint-3" / "left_over.txt").write_text("from the crash")
    trainer = make_trainer(folder)
    trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-3 is incomplete: optimizer.pt is missing; resuming from checkpoint-2" in caplog.text
    assert missing_parts(folder / "checkpoint-3") == []
    assert not (folder / "checkpoint-3" / "left_over.txt").exists()
    assert_same(weights_of(trainer), load_file(original / "checkpoint-3" / "model.safetensors"))


def test_none_whole_is_an_error_that_names_them(our_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(our_run, tmp_path / "run")
    for step in (1, 2, 3):
        (folder / f"checkpoint-{step}" / "scheduler.pt").unlink()
    assert last_whole_checkpoint(folder) is None
    with pytest.raises(
        ValueError, match=r"checkpoint-3 is incomplete: scheduler.pt.*checkpoint-1.*from the start"
    ):
        make_trainer(folder).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="none beside it is whole"):
        make_trainer(folder).train(resume_from_checkpoint=str(folder / "checkpoint-1"))


@pytest.mark.parametrize("there", [True, False])
def test_empty_folder_is_an_error_as_with_trainer(tmp_path: Path, there: bool) -> None:
    trainer = make_trainer(tmp_path / "run")
    if there:
        (tmp_path / "run").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="No valid checkpoint found in output directory"):
        trainer.train(resume_from_checkpoint=True)


def test_resume_false_and_a_missing_path(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1)
    with pytest.raises(ValueError, match="checkpoint-9 is incomplete: the folder does not exist"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert trainer.train(resume_from_checkpoint=False).global_step == 1


# ---- what a checkpoint holds -----------------------------------------------------------


def test_every_shard_must_be_there(plain_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain_run / "checkpoint-3", tmp_path / "checkpoint-3")
    (folder / "model.safetensors").unlink()
    tiny_bert().save_pretrained(folder, max_shard_size="8KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert missing_parts(folder) == []
    halve(shards[1])
    shards[0].unlink()
    assert missing_parts(folder) == [f"{shards[0].name} is missing", f"{shards[1].name} is cut off"]
    halve(folder / "model.safetensors.index.json")
    assert missing_parts(folder) == ["model.safetensors.index.json cannot be read"]


def test_random_state_of_every_process_must_be_there(plain_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain_run / "checkpoint-3", tmp_path / "checkpoint-3")
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    assert missing_parts(folder) == ["rng_state_1.pth is missing"]
    shutil.copy(folder / "rng_state_0.pth", folder / "rng_state_1.pth")
    assert missing_parts(folder) == missing_parts(folder, world_size=2) == []
    assert missing_parts(folder, world_size=3) == ["rng_state_2.pth is missing"]


@pytest.mark.parametrize(
    ("files", "removed"),
    [
        (["adapter_model.safetensors"], ["model.safetensors"]),
        (["policy/adapter_model.safetensors"], ["model.safetensors"]),
        (["pytorch_model_fsdp.bin", "optimizer.bin"], ["model.safetensors", "optimizer.pt"]),
        (["pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata"], ["model.safetensors", "optimizer.pt"]),
        (["global_step3/state.pt"], ["model.safetensors", "optimizer.pt", "scheduler.pt"]),
    ],
)
def test_layouts_of_peft_fsdp_and_deepspeed(
    plain_run: Path, tmp_path: Path, files: list[str], removed: list[str]
) -> None:
    folder = shutil.copytree(plain_run / "checkpoint-3", tmp_path / "checkpoint-3")
    weights = (folder / "model.safetensors").read_bytes()
    for name in removed:
        (folder / name).unlink()
    assert missing_parts(folder)
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(weights)
    if files[0].startswith("global_step"):
        assert missing_parts(folder)  # DeepSpeed names its folder last
        (folder / "latest").write_text("global_step3")
    assert missing_parts(folder) == []


def test_mark_of_transformers_sigterm_callback(plain_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain_run / "checkpoint-3", tmp_path / "checkpoint-3")
    (folder / "checkpoint-is-incomplete.txt").write_text("in progress")
    assert missing_parts(folder) == ["checkpoint-is-incomplete.txt says that it was still being written"]


def test_sigterm_checkpoint_at_a_step_already_saved(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, enable_jit_checkpoint=True, max_steps=2)
    (callback,) = [c for c in trainer.callback_handler.callbacks if hasattr(c, "jit_manager")]
    callback.jit_manager.is_checkpoint_requested = True
    trainer.train()
    assert trainer.state.global_step < 2
    for checkpoint in tmp_path.glob("*checkpoint*"):
        assert missing_parts(checkpoint) == []


def test_save_only_model(tmp_path: Path) -> None:
    make_trainer(tmp_path, save_only_model=True, max_steps=2).train()
    assert last_whole_checkpoint(tmp_path, save_only_model=True) == str(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="optimizer, scheduler and random state are missing"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)
    assert make_trainer(tmp_path, save_only_model=True).train(resume_from_checkpoint=True).global_step == 3


# ---- limits, pushes, crashes -----------------------------------------------------------


def test_torn_checkpoint_does_not_count_in_save_total_limit(our_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(our_run, tmp_path / "run")
    shutil.rmtree(folder / "checkpoint-1")
    (folder / "checkpoint-3" / "model.safetensors").unlink()
    (folder / "checkpoint-3").rename(folder / "checkpoint-7")  # a step that the resumed run does not come to
    make_trainer(folder, save_total_limit=2).train(resume_from_checkpoint=True)
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}


def test_checkpoint_of_another_trainer_is_not_removed_for_what_it_lacks(
    plain_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(plain_run, tmp_path / "run")
    weights = folder / "checkpoint-1" / "model.safetensors"
    weights.rename(weights.with_name("weights_in_another_form.bin"))
    make_trainer(folder, save_total_limit=5, max_steps=4).train(resume_from_checkpoint=True)
    assert weights.with_name("weights_in_another_form.bin").is_file()


class PushingTrainer(Trainer):
    """Notes what a checkpoint lacks, and which others are there, when it would be pushed."""

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        self.pushed: list[tuple[str, list[str], set[str]]] = []

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        folder = Path(checkpoint_folder)
        others = {path.name for path in folder.parent.glob("*checkpoint-*")}
        self.pushed.append((folder.name, missing_parts(folder), others))

    def _finish_current_push(self) -> None: ...


class CheckpointingPushingTrainer(CheckpointingMixin, PushingTrainer): ...


def test_pushed_when_whole_and_before_older_ones_go(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, CheckpointingPushingTrainer, push_to_hub=True, save_total_limit=1, max_steps=2
    )
    trainer.train()
    both = {"checkpoint-1", "checkpoint-2"}
    assert trainer.pushed == [("checkpoint-1", [], {"checkpoint-1"}), ("checkpoint-2", [], both)]
    assert {path.name for path in tmp_path.glob("*checkpoint-*")} == {"checkpoint-2"}


def test_checkpoint_written_twice_stays_whole_until_the_second_is(tmp_path: Path, caplog: Any) -> None:
    trainer = make_trainer(tmp_path, save_total_limit=1, max_steps=2)
    trainer.train()
    trainer._save_optimizer_and_scheduler = raise_stop
    with pytest.raises(Stop):
        trainer._save_checkpoint(trainer.model, trial=None)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "_replaced-checkpoint-2")
    resumed = make_trainer(tmp_path, save_total_limit=1, max_steps=3)
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=True)
    assert "resuming from _replaced-checkpoint-2" in caplog.text
    assert resumed.state.global_step == 3
    assert {path.name for path in tmp_path.glob("*checkpoint-*")} == {"checkpoint-3"}


def test_checkpoint_put_back_is_kept(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.train()
    (tmp_path / "checkpoint-2").rename(tmp_path / "_replaced-checkpoint-2")  # killed before it wrote anything
    make_trainer(tmp_path, max_steps=3).train(resume_from_checkpoint=True)
    names = {path.name for path in tmp_path.glob("*checkpoint-*")}
    assert names == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}


def raise_stop(*args: Any, **kwargs: Any) -> None:
    raise Stop


def test_before_checkpoint_stops_before_anything_is_written(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.before_checkpoint = raise_stop
    with pytest.raises(Stop):
        trainer.train()
    assert list(tmp_path.glob("*checkpoint-*")) == []


def test_state_saves_as_before_after_a_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert "save_to_json" not in vars(trainer.state)
    trainer.save_state()
    assert (tmp_path / "trainer_state.json").is_file()


def test_processes_agree_on_what_all_of_them_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_trainer(tmp_path).train()
    trainer = make_trainer(tmp_path)
    other = {"checkpoint-3": ["rng_state_1.pth is missing"], "checkpoint-1": []}
    monkeypatch.setattr(TrainingArguments, "parallel_mode", ParallelMode.DISTRIBUTED)
    monkeypatch.setattr(checkpointing, "gather_object", lambda reports: [*reports, other])
    assert trainer._last_whole_checkpoint() == tmp_path / "checkpoint-1"
    with pytest.raises(ValueError, match="checkpoint-2 is incomplete: process 1 does not see it"):
        trainer._checked_checkpoint(tmp_path / "checkpoint-2")


# ---- best model and early stopping -----------------------------------------------------

SCORES = [0.5, 0.6, 0.5, 0.5, 0.5, 0.9, 0.9, 0.9]


class ScoredTrainer(CheckpointingTrainer):
    """Whose scores at each step are known: best at step 2, and with a patience of 3 it stops after step 5."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = {"eval_score": SCORES[self.state.global_step - 1]}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def make_scored(folder: Path, *callbacks: TrainerCallback, patience: int = 3, **settings: Any) -> Any:
    settings = {
        "max_steps": 8,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
        "save_total_limit": 1,
        "callbacks": [EarlyStoppingCallback(patience), *callbacks],
    } | settings
    return make_trainer(folder, ScoredTrainer, **settings)


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("crash_at", [2, 4])
def test_best_model_limit_and_early_stopping_go_on_after_a_crash(
    tmp_path: Path, crash_at: int, restore: bool
) -> None:
    whole = make_scored(tmp_path / "whole")
    whole.train()
    crashed = make_scored(tmp_path / "crashed", StopAt(crash_at))
    with pytest.raises(Stop):
        crashed.train()
    resumed = make_scored(tmp_path / "crashed", restore_callback_states_from_checkpoint=restore)
    resumed.train(resume_from_checkpoint=True)
    assert whole.state.global_step == resumed.state.global_step == 5
    assert Path(resumed.state.best_model_checkpoint).name == "checkpoint-2"
    assert {path.name for path in (tmp_path / "crashed").glob("checkpoint-*")} == {"checkpoint-2"}
    assert_same(weights_of(resumed), weights_of(whole))


def test_run_that_had_stopped_early_is_not_trained_further(tmp_path: Path, caplog: Any) -> None:
    whole = make_scored(tmp_path, save_total_limit=2)
    whole.train()
    resumed = make_scored(tmp_path, save_total_limit=2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 5
    assert "early stopping had ended this run at step 5" in caplog.text
    assert_same(weights_of(resumed), weights_of(whole))
    more_patient = make_scored(tmp_path, save_total_limit=2, patience=5)
    more_patient.train(resume_from_checkpoint=True)
    assert more_patient.state.global_step == 8


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_zeros_of_the_right_size_are_found(our_run: Path, tmp_path: Path, caplog: Any, file: str) -> None:
    """What a loss of power may leave."""
    folder = shutil.copytree(our_run, tmp_path / "run")
    path = folder / "checkpoint-3" / file
    path.write_bytes(bytes(path.stat().st_size))
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-2")
    assert f"checkpoint-3 is incomplete: {file} cannot be read" in caplog.text


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"whole"'])
def test_a_manifest_that_says_nothing_is_named(our_run: Path, tmp_path: Path, content: str) -> None:
    folder = shutil.copytree(our_run, tmp_path / "run")
    (folder / "checkpoint-3" / MANIFEST_NAME).write_text(content)
    assert missing_parts(folder / "checkpoint-3") == [f"{MANIFEST_NAME} cannot be read"]


def test_going_on_with_another_loss_is_said(tmp_path: Path, caplog: Any) -> None:
    logging.getLogger("hf_distill").propagate = True
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    distiller(bert(), teacher_of(), arguments(tmp_path, alpha=0.2, **options), examples(16)).train()
    again = {**options, "max_steps": 3}
    trainer = distiller(bert(), teacher_of(), arguments(tmp_path, alpha=0.2, **again), examples(16))
    trainer.train(resume_from_checkpoint=True)
    assert "another loss" not in caplog.text
    trainer = distiller(
        bert(), teacher_of(), arguments(tmp_path, alpha=0.9, **{**again, "max_steps": 4}), examples(16)
    )
    trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-3 was trained with another loss: {'label_weight': 0.8" in caplog.text
