"""Trainings that are killed with SIGKILL, for test_checkpointing: ``python checkpoint_worker.py plan.json``.

The plan is a list of runs. Each runs in processes forked from this one, so that the libraries are imported once and
the signal still kills a real process; what each run printed and how its processes ended goes beside the plan.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers.modeling_utils
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback, TrainerState, set_seed
from transformers.utils import logging

from hf_distill import DistillationTrainer, DistillationTrainingArguments, projections, whole_checkpoints


class Examples(Dataset):
    """Sixteen random texts and labels, the same in every process."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.texts = torch.randint(5, 60, (16, 6), generator=generator)
        self.labels = torch.randint(0, 3, (16,), generator=generator)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        text = self.texts[index]
        return {"input_ids": text, "attention_mask": torch.ones_like(text), "labels": self.labels[index]}


def tiny_bert(width: int = 16) -> BertForSequenceClassification:
    """A BERT that trains in milliseconds, with dropout."""
    sizes = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(
        BertConfig(vocab_size=64, max_position_embeddings=16, num_labels=3, hidden_dropout_prob=0.2, **sizes)
    )


def kill_now() -> None:
    """End this process as the kernel's out-of-memory killer would."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class KillAfterStep(TrainerCallback):
    """Kill the process when it has trained so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            kill_now()


def kill_while_writing(trainer: DistillationTrainer, step: int, event: int) -> None:
    """Kill the process in the middle of the n-th file that the checkpoint of a step writes, leaving half of it.

    In one process these are: the opened manifest, model, training arguments, optimizer, scheduler, random state,
    trainer's state, the sealed manifest (before it is in its place), and then the deletion of an older checkpoint.
    Projections, where there are any, come after the scheduler.
    """
    seen = 0

    def cut(path: Any) -> None:
        nonlocal seen
        if not trainer.is_saving or trainer.state.global_step != step:
            return
        seen += 1
        if seen != event:
            return
        if os.path.isdir(path):
            for file in sorted(os.listdir(path))[::2]:
                os.remove(os.path.join(path, file))
        else:
            os.truncate(path, os.path.getsize(path) // 2)
        kill_now()

    def after(owner: Any, name: str, position: int) -> None:
        write = getattr(owner, name)

        def write_and_cut(*args: Any, **kwargs: Any) -> None:
            write(*args, **kwargs)
            cut(args[position])

        setattr(owner, name, write_and_cut)

    def before(owner: Any, name: str) -> None:
        act = getattr(owner, name)

        def cut_and_act(*args: Any, **kwargs: Any) -> None:
            cut(args[0])
            act(*args, **kwargs)

        setattr(owner, name, cut_and_act)

    after(transformers.modeling_utils, "safe_save_file", 1)
    after(torch, "save", 1)
    after(projections, "save_file", 1)
    after(TrainerState, "save_to_json", 1)
    before(whole_checkpoints.os, "replace")
    before(shutil, "rmtree")


class WatchedTrainer(DistillationTrainer):
    """The real trainer, which says when it writes a checkpoint."""

    is_saving = False

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.is_saving = True
        super()._save_checkpoint(*args, **kwargs)
        self.is_saving = False


def train(run: dict[str, Any], rank: int) -> None:
    """Train as the plan says, and write down the weights that training ended with."""
    set_seed(11)
    teacher, student = tiny_bert(run.get("teacher_width", 16)), tiny_bert()
    args = DistillationTrainingArguments(
        output_dir=run["output_dir"],
        per_device_train_batch_size=2 // run.get("processes", 1),
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        learning_rate=1e-2,
        save_steps=3,
        dataloader_num_workers=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **run.get("settings", {}),
    )
    trainer = WatchedTrainer(model=student, teacher=teacher, args=args, train_dataset=Examples())
    kill = run.get("kill", {})
    if kill and rank == kill.get("rank", 0):
        if "after_step" in kill:
            trainer.add_callback(KillAfterStep(kill["after_step"]))
        else:
            kill_while_writing(trainer, kill["step"], kill["event"])
    trainer.train(resume_from_checkpoint=run.get("resume"))
    if rank == 0:
        beside = {f"beside:{name}": value for name, value in trainer.projections.state_dict().items()}
        safetensors.torch.save_file({**student.state_dict(), **beside}, run["weights"])
    if torch.distributed.is_initialized():  # forked, so it ends by os._exit
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def forked(run: dict[str, Any], rank: int, port: int) -> int:
    """Start one process of a run, and return its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    with open(run["log"], "a", encoding="utf-8", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            if run.get("processes", 1) > 1:
                world = str(run["processes"])
                os.environ.update(
                    {
                        "RANK": str(rank),
                        "LOCAL_RANK": str(rank),
                        "WORLD_SIZE": world,
                        "LOCAL_WORLD_SIZE": world,
                    }
                )
                os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
            train(run, rank)
            status = 0
        except BaseException:
            logging.get_logger(__name__).exception("the run failed")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def ended(children: list[int]) -> list[int]:
    """Wait for the processes of a run; when one fails, kill the others, as torchrun does."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child] != 0:
            for other in set(children) - set(codes):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
    return [codes[child] for child in children]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(plan_path: Path) -> None:
    """Do all runs of a plan, one after the other."""
    results = []
    for run in json.loads(plan_path.read_text("utf-8")):
        port = free_port()
        results.append(ended([forked(run, rank, port) for rank in range(run.get("processes", 1))]))
    plan_path.with_suffix(".results").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
