"""The files in accelerate_configs/: Accelerate parses each into what its name says, and a real launch obeys."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

CONFIGS = Path(__file__).resolve().parent.parent / "accelerate_configs"
EXPECTED = {  # name -> (distributed type, processes)
    "cpu": (DistributedType.NO, 1),
    "single_gpu": (DistributedType.NO, 1),
    "ddp": (DistributedType.MULTI_GPU, 2),
    "fsdp": (DistributedType.FSDP, 2),
    "zero2": (DistributedType.DEEPSPEED, 2),
    "zero3": (DistributedType.DEEPSPEED, 2),
}
PRINTS_ITS_WORLD = """
import os, sys
from transformers import TrainingArguments
from tests.processes import leave_together

use_cpu = sys.argv[1] == "use_cpu"
args = TrainingArguments(output_dir=sys.argv[2], use_cpu=use_cpu, report_to="none")
line = f"launched={os.environ.get('WORLD_SIZE')} world={args.world_size} rank={args.process_index}"
print(f"{line} device={args.device.type} threads={os.environ.get('OMP_NUM_THREADS')}\\n", end="", flush=True)
leave_together()
"""


def parsed(name, *flags):
    """What `accelerate launch --config_file NAME.yaml FLAGS` resolves to, without the launch."""
    command = ["--config_file", str(CONFIGS / f"{name}.yaml"), *flags, "script.py"]
    return _validate_launch_command(launch_command_parser().parse_args(command))[0]


def launch(tmp_path, *words, **environment):
    script = tmp_path / "prints_its_world.py"
    script.write_text(PRINTS_ITS_WORLD)
    # Neither a developer's own settings nor those of an outer launch.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "OMP_"))}
    where = words.index("SCRIPT")
    command = [*words[:where], str(script), *words[where + 1 :], str(tmp_path)]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *command],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
        env={**inherited, "PYTHONPATH": str(CONFIGS.parent), **environment},
    )


def worlds(process):
    """The lines that the script printed, sorted by rank."""
    lines = [line.split() for line in process.stdout.splitlines() if line.startswith("launched=")]
    return sorted((dict(word.split("=") for word in line) for line in lines), key=lambda line: line["rank"])


def test_every_file_is_expected():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_the_file(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert (config.distributed_type, config.num_processes) == EXPECTED[name]
    assert config.use_cpu is (name == "cpu")


@pytest.mark.parametrize("name", EXPECTED)
def test_launch_resolves_to_the_file(name, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args = parsed(name)
    kind, processes = EXPECTED[name]
    assert args.num_processes == processes
    assert args.num_machines == 1
    assert args.use_cpu is (name == "cpu")
    assert args.multi_gpu is (kind == DistributedType.MULTI_GPU)
    assert args.use_fsdp is (kind == DistributedType.FSDP)
    assert args.use_deepspeed is (kind == DistributedType.DEEPSPEED)
    # Transformers reads --bf16 and --fp16; under DeepSpeed a precision here that differs from theirs is an error.
    assert args.mixed_precision == "no"


@pytest.mark.parametrize("name", EXPECTED)
def test_launch_knows_every_nested_key(name):
    # Accelerate refuses an unknown key at the top, but lets one in fsdp_config or deepspeed_config pass in silence.
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    known = vars(launch_command_parser().parse_args(["script.py"]))
    for section in ("fsdp_config", "deepspeed_config", "dynamo_config"):
        assert set(settings.get(section, {})) <= set(known)


def test_fsdp_plugin_reads_the_file(monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    args = parsed("fsdp", "--main_process_port", "0")
    for name, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is False
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_deepspeed_environment_follows_the_file(name):
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    args = parsed(name, "--main_process_port", "0")
    args.deepspeed_fields_from_accelerate_config = ""  # launch_command sets it, and then asks for DeepSpeed
    _, environment = prepare_deepspeed_cmd_env(args)
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == name[-1]
    assert environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "auto"
    assert environment["ACCELERATE_GRADIENT_CLIPPING"] == "auto"
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"


def test_cpu_is_one_process_and_says_nothing(tmp_path):
    cpu = str(CONFIGS / "cpu.yaml")
    process = launch(tmp_path, "--config_file", cpu, "SCRIPT", "use_cpu", OMP_NUM_THREADS="2")
    (world,) = worlds(process)
    assert (world["world"], world["device"], world["threads"]) == ("1", "cpu", "2")
    assert "had defaults used instead" not in process.stdout + process.stderr


def test_ddp_with_use_cpu_is_a_world_of_two(tmp_path):
    ddp = str(CONFIGS / "ddp.yaml")
    process = launch(tmp_path, "--config_file", ddp, "--main_process_port", "0", "SCRIPT", "use_cpu")
    assert [(line["launched"], line["world"], line["rank"]) for line in worlds(process)] == [
        ("2", "2", "0"),
        ("2", "2", "1"),
    ]
