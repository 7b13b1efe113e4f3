"""The trainer says on how many processes it runs, and stops where a launcher fell back to fewer in silence."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainingArguments

from hf_distill import launch
from hf_distill.launch import check_launch

ACCELERATE = ["-m", "accelerate.commands.launch"]
TORCHRUN = ["-m", "torch.distributed.run"]
LAUNCHER_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "ACCELERATE_USE_CPU")
# The module by itself: in each of many processes, importing the whole package would take most of the time.
SCRIPT = f"""
import importlib.util, sys
from transformers import TrainingArguments
spec = importlib.util.spec_from_file_location("launch", {launch.__file__!r})
launch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launch)
arguments = TrainingArguments(output_dir=sys.argv[1], use_cpu="--use_cpu" in sys.argv, report_to="none")
print(launch.check_launch(arguments), flush=True)
launch.leave_together()
"""
# Its object is taken down with the interpreter, and takes the process with it.
CRASHES_ON_THE_WAY_OUT = """
import atexit, os
import torch
from tests.processes import leave_together

class Crash:
    def __del__(self, abort=os.abort):
        abort()

crash = Crash()
atexit.register(print, "registered to run at exit")
torch.distributed.init_process_group("gloo")
print("done")
leave_together()
"""


# ---- real launches ---------------------------------------------------------------------


def launched(folder: Path, launcher: list[str], *flags: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    # Its own home: an Accelerate configuration of the developer's would change what the launcher does.
    environment |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "HF_HOME": str(folder),
    }
    command = [sys.executable, *launcher, str(script), str(folder / "out"), *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def launch_cases() -> list[Any]:
    two = ["--num_processes", "2"]
    connected = "hf_distill trains on 2 processes (gloo, cpu)"
    one_only = "Expected more than one process"
    unconnected = "Expected 2 connected processes (WORLD_SIZE=2 is set)"
    free_port = ["--main_process_port", "0"]
    slow = pytest.mark.slow
    return [
        pytest.param(
            [*ACCELERATE, "--multi_gpu", *two, *free_port], ["--use_cpu"], connected, id="the right way"
        ),
        pytest.param([*ACCELERATE, "--cpu", *two], ["--use_cpu"], one_only, id="multi_cpu without MPI"),
        pytest.param([*ACCELERATE, "--multi_gpu", *two, *free_port], [], unconnected, id="without use_cpu"),
        pytest.param([*ACCELERATE, *two], ["--use_cpu"], one_only, id="without multi_gpu", marks=slow),
        pytest.param([*ACCELERATE, "--num_processes", "1"], [], "1 process (", id="one process", marks=slow),
        pytest.param(
            [*TORCHRUN, "--nproc_per_node", "2"], ["--use_cpu"], connected, id="torchrun", marks=slow
        ),
        pytest.param(
            [*TORCHRUN, "--nproc_per_node", "2"], [], unconnected, id="torchrun unconnected", marks=slow
        ),
        pytest.param([], ["--use_cpu"], "1 process (cpu)", id="python", marks=slow),
    ]


@pytest.mark.parametrize(("launcher", "flags", "expected"), launch_cases())
def test_real_launch(tmp_path: Path, launcher: list[str], flags: list[str], expected: str) -> None:
    import torch

    if torch.cuda.is_available() and not flags:
        pytest.skip("without use_cpu the processes connect over the GPU")
    ended = launched(tmp_path, launcher, *flags)
    refused = expected.startswith("Expected")
    assert expected in (ended.stderr if refused else ended.stdout), ended.stdout + ended.stderr
    assert (ended.returncode != 0) == refused
    if refused:
        assert "accelerate launch --multi_gpu --num_processes 2 script.py --use_cpu" in ended.stderr


@pytest.mark.slow
def test_two_nodes_by_torchrun(tmp_path: Path) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    nodes = []
    for rank in ("0", "1"):
        where = ["--nnodes", "2", "--node_rank", rank, "--master_addr", "127.0.0.1", "--master_port", port]
        command = [
            sys.executable,
            *TORCHRUN,
            "--nproc_per_node",
            "1",
            *where,
            str(script),
            str(tmp_path),
            "--use_cpu",
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
        nodes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    for node in nodes:
        output, _ = node.communicate(timeout=120)
        assert "hf_distill trains on 2 processes (gloo, cpu)" in output
        assert node.returncode == 0


def test_what_is_taken_down_with_the_interpreter_fails_no_finished_run(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, *TORCHRUN, "--standalone", "--nproc_per_node", "2", str(script)]
    endings = {}
    for name, leaves in (("with", "leave_together()"), ("without", "pass")):
        script.write_text(CRASHES_ON_THE_WAY_OUT.replace("\nleave_together()\n", f"\n{leaves}\n"))
        endings[name] = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    ended = endings["with"]
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("done") == ended.stdout.count("registered to run at exit") == 2
    assert "SIGABRT" in endings["without"].stderr, "the script does not crash without it"


# ---- the environment alone -------------------------------------------------------------


def arguments(world_size: int = 1, backend: str | None = None, device: str = "cpu", n_gpu: int = 0) -> Any:
    return SimpleNamespace(
        world_size=world_size,
        n_gpu=n_gpu,
        device=SimpleNamespace(type=device),
        distributed_state=SimpleNamespace(backend=backend),
    )


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "run", "line"),
    [
        ({}, arguments(), "1 process (cpu)"),
        ({"ACCELERATE_USE_CPU": "False"}, arguments(device="cuda"), "1 process (cuda)"),
        ({}, arguments(device="cuda", n_gpu=2), "1 process (cuda, 2 GPUs by DataParallel)"),
        ({"MASTER_ADDR": "node7"}, arguments(), "1 process (cpu)"),  # exported by a shell or a cluster
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, arguments(2, "gloo"), "2 processes (gloo, cpu)"),
        (
            {"WORLD_SIZE": "16", "MASTER_ADDR": "node0"},
            arguments(16, "nccl", "cuda"),
            "16 processes (nccl, cuda)",
        ),
        ({"WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}, arguments(1, "gloo"), "1 process (cpu)"),
        (
            {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "host", "WORLD_SIZE": "4"},
            arguments(4, "mpi"),
            "4 processes",
        ),
    ],
)
def test_passes(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], run: Any, line: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert check_launch(run).startswith(f"hf_distill trains on {line}")


def test_one_process_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setattr(sys, "argv", ["recipes/distill_bert.py"])
    with pytest.raises(
        RuntimeError, match=r"only one was started(.|\n)*--num_processes 2 distill_bert.py --use_cpu"
    ):
        check_launch(arguments())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_unconnected_processes(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RuntimeError, match=r"Expected 4 connected(.|\n)*group of 1(.|\n)*--num_processes 4"):
        check_launch(arguments(device=device))


def test_real_arguments(tmp_path: Path) -> None:
    run = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert check_launch(run) == "hf_distill trains on 1 process (cpu)"
