"""The processes of a run: how many train, a stop where a launcher fell back to fewer in silence, and their end."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import TrainingArguments

# What was seen (accelerate 1.15, transformers 5.23, torch 2.13, a machine without GPU); "world" is args.world_size:
#
# | command                                                          | set for the script                 | world |
# | ---------------------------------------------------------------- | ---------------------------------- | ----- |
# | python script.py                                                 | nothing                            | 1     |
# | accelerate launch script.py                                      | ACCELERATE_USE_CPU                 | 1     |
# | accelerate launch [--cpu] --num_processes 2 script.py            | ACCELERATE_USE_CPU, MASTER_ADDR    | 1 (!) |
# | accelerate launch --multi_gpu --num_processes 2 script.py --use_cpu | MASTER_ADDR, RANK, WORLD_SIZE=2 | 2     |
# | accelerate launch --multi_gpu --num_processes 2 script.py        | MASTER_ADDR, RANK, WORLD_SIZE=2    | 1 (!) |
# | torchrun --nproc_per_node 2 script.py --use_cpu                  | MASTER_ADDR, RANK, WORLD_SIZE=2    | 2     |
# | torchrun --nproc_per_node 2 script.py                            | MASTER_ADDR, RANK, WORLD_SIZE=2    | 1 (!) |
#
# The third starts one process where two were asked for; the last ones start two that never meet. Under mpirun,
# Accelerate itself sets WORLD_SIZE. ACCELERATE_USE_CPU is set by Accelerate's one-process launcher alone, and that
# launcher sets MASTER_ADDR only where more than one process was asked for: so the pair is its signature, and a
# MASTER_ADDR that a shell or a cluster exports without any launcher is no reason to stop.
_ONE_PROCESS_LAUNCHER = "ACCELERATE_USE_CPU"


def check_launch(args: TrainingArguments) -> str:
    """Say how many processes train, or stop where the launcher meant more than came.

    Args:
        args: the run's training arguments, which hold the processes that really joined.

    Returns:
        The line to log, such as ``hf_distill trains on 2 processes (gloo, cpu)``.

    Raises:
        RuntimeError: ``accelerate launch --num_processes N`` started one process only, or the launcher started
            processes that do not know of each other.

    Example:
        >>> from transformers import TrainingArguments
        >>> check_launch(TrainingArguments(output_dir="out", use_cpu=True, report_to="none"))
        'hf_distill trains on 1 process (cpu)'
    """
    world_size = args.world_size
    launched = os.environ.get("WORLD_SIZE")
    if launched is not None and launched.strip() != str(world_size):
        raise RuntimeError(_unconnected(launched, world_size, args.device.type))
    if (
        launched is None
        and world_size == 1
        and _ONE_PROCESS_LAUNCHER in os.environ
        and "MASTER_ADDR" in os.environ
    ):
        raise RuntimeError(_one_process_only())
    return _describe(args)


def leave_together() -> None:
    """End a script whose work is done: with the others of its group, and without a crash on the way out.

    In a process that is alone it does nothing. One of several waits for the others, leaves the group, and ends
    here, with exit code 0, after all that is registered to run at exit; so call it last.

    Python's own way out is not taken: threads of gloo and DistributedDataParallel outlive the group, and one that asks
    for the interpreter while that is taken down ends the process by SIGABRT ("terminate called without an active
    exception"), seen once in some dozen runs on a busy machine. The launcher then calls a finished run failed.

    Example:
        >>> leave_together()
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # What multiprocessing does for the processes it forked, which end in the same way.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _describe(args: TrainingArguments) -> str:
    """The line that says on what the run trains."""
    state = args.distributed_state
    backend = state.backend if state is not None and args.world_size > 1 else None
    where = [part for part in (backend, args.device.type) if part]
    if args.n_gpu > 1:
        where.append(f"{args.n_gpu} GPUs by DataParallel")
    count = "1 process" if args.world_size == 1 else f"{args.world_size} processes"
    return f"hf_distill trains on {count} ({', '.join(where)})"


def _command(processes: str) -> str:
    """The launch command that gives so many processes on CPU, with the running script's own name."""
    script = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0].endswith(".py") else "script.py"
    return f"accelerate launch --multi_gpu --num_processes {processes} {script} --use_cpu"


def _unconnected(launched: str, world_size: int, device: str) -> str:
    """What to say where WORLD_SIZE differs from the processes that joined."""
    cause = (
        "Without a GPU they connect only where the training arguments have use_cpu=True"
        if device == "cpu"
        else "Each of them trains by itself"
    )
    return (
        f"Expected {launched} connected processes (WORLD_SIZE={launched} is set), but this one trains in a group of "
        f"{world_size} (args.world_size): that would be unconnected trainings that write into one folder. {cause}. "
        f"For {launched} processes on CPU use:\n"
        f"    {_command(launched)}\n"
        "For one process, start the script with `python`, and `unset WORLD_SIZE` if the shell exports it."
    )


def _one_process_only() -> str:
    """What to say where Accelerate's one-process launcher was asked for more than one process."""
    address = os.environ["MASTER_ADDR"]
    return (
        f"Expected more than one process (Accelerate's launcher set MASTER_ADDR={address}), but only one was started: "
        "WORLD_SIZE is not set. `accelerate launch --num_processes 2`, with --cpu or a MULTI_CPU configuration or no "
        "GPU, runs a single process unless it goes through MPI. For two processes on CPU use:\n"
        f"    {_command('2')}\n"
        "For one process, pass `--num_processes 1`, and `unset MASTER_ADDR` if the shell exports it."
    )
