"""Two gloo processes, through accelerate launch, give the gradient and the evaluation of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.worker import CASES

WORKER = Path(__file__).with_name("worker.py")


def launch(folder: Path, processes: int, batch_size: int, accumulation: int) -> None:
    """Run the worker on a number of processes."""
    command = [sys.executable, str(WORKER)]
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command += [
            "--master_port",
            "0",
            "--rdzv_backend",
            "c10d",
            "--rdzv_endpoint",
            "localhost:0",
            str(WORKER),
        ]
    folder.mkdir()
    command += [str(folder), str(batch_size), str(accumulation), json.dumps(list(CASES))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=WORKER.parents[2])
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run 1 process x 8, and 2 processes x 1 x 4 micro-batches."""
    root = tmp_path_factory.mktemp("two")
    launch(root / "one", 1, 8, 1)
    launch(root / "two", 2, 1, 4)
    return {"one": root / "one", "two": root / "two"}


@pytest.mark.parametrize("case", CASES)
def test_one_batch_has_one_gradient(results: dict[str, Path], case: str) -> None:
    one, two = (torch.load(results[name] / f"{case}.pt", weights_only=False) for name in ("one", "two"))
    assert one["gradient"].abs().max() > 0
    # Float32's rounding in another order; with one thread a process it was seen to be 1.01e-6.
    assert (one["gradient"] - two["gradient"]).abs().max() <= 2e-6 * one["gradient"].abs().max()
    assert set(one["logs"]) == set(two["logs"])
    for key in ("loss", *(key for key in one["logs"] if key.startswith("loss/"))):
        assert two["logs"][key] == pytest.approx(one["logs"][key], rel=1e-5)
    if case == "bert_scheduled":
        assert {"loss/reverse_kl", "schedule/reverse_kl/weight"} <= set(two["logs"])


@pytest.mark.parametrize("case", CASES)
def test_evaluation_is_the_same(results: dict[str, Path], case: str) -> None:
    one, two = (
        torch.load(results[name] / f"{case}.pt", weights_only=False)["evaluation"] for name in ("one", "two")
    )
    ignored = ("runtime", "per_second", "preparation_time")
    compared = [key for key in one if not any(word in key for word in ignored)]
    assert {"eval_loss", "eval_loss/label", "eval_agreement"} <= set(compared)
    assert any(key.startswith("eval_teacher") for key in compared)

    def close(a: Any, b: Any) -> bool:
        return a == pytest.approx(b, rel=1e-5, abs=1e-8)

    assert {key: one[key] for key in compared if not close(one[key], two.get(key))} == {}
