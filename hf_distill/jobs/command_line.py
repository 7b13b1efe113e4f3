"""A recipe's command line: flags, or one YAML file and overriding flags; errors in a line or two."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import torch
import yaml
from transformers import HfArgumentParser

from hf_distill.jobs.settings_file import checked_value


class _ShortParser(HfArgumentParser):
    """HfArgumentParser whose errors are a line, without the usage of two hundred flags."""

    def error(self, message: str) -> NoReturn:
        """Leave with the message alone."""
        fail(f"{message}. See --help.")


def fail(message: str) -> NoReturn:
    """Leave with exit code 2 and a message on standard error; process 0 alone speaks.

    Example:
        >>> fail("no such file")
        Traceback (most recent call last):
            ...
        SystemExit: 2
    """
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


@contextlib.contextmanager
def short_errors() -> Iterator[None]:
    """Turn what a user can mend into a line or two and exit code 2; for the set-up, before training.

    Example:
        >>> with short_errors():
        ...     raise ValueError("alpha: expected a number in [0, 1], received 2.0.")
        Traceback (most recent call last):
            ...
        SystemExit: 2
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        fail(str(error).strip() or type(error).__name__)


def parse(kinds: Sequence[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """Parse flags, or a YAML file followed by flags that override it, into dataclasses.

    Args:
        kinds: the dataclasses, filled by name.
        argv: the command line without the program's name.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Settings:
        ...     layers: int = 2
        >>> parse([Settings], ["--layers", "3"])[0].layers
        3
    """
    # Exact names only: an abbreviation that is one flag today may be two tomorrow.
    parser = _ShortParser(list(kinds), allow_abbrev=False)  # type: ignore[arg-type]
    flags = list(argv)
    if flags and flags[0].endswith((".yaml", ".yml")):
        _take_defaults(parser, kinds, Path(flags.pop(0)))
    known = {name for action in parser._actions for name in action.option_strings}
    for flag in flags:
        name = flag.split("=")[0]
        if name.startswith("--") and name not in known:
            fail(f"unknown flag {name}.{_near(name, known)} See --help.")
    with short_errors():
        return tuple(parser.parse_args_into_dataclasses(flags))


def _take_defaults(parser: HfArgumentParser, kinds: Sequence[type], path: Path) -> None:
    """Let a YAML file set the flags' defaults, each checked as its flag would be."""
    if not path.is_file():
        fail(f"no such file: {path}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: expected YAML in UTF-8, which can't be read: {error}")
    except yaml.YAMLError as error:
        fail(f"{path} is not YAML: {' '.join(str(error).split())}")
    if not isinstance(values, dict):
        fail(f"{path}: expected a mapping of flags to values, received {type(values).__name__}.")
    names = {action.dest for action in parser._actions}
    for name in values:
        if name not in names:
            fail(f"{path}: unknown setting {name}.{_near(str(name), names)}")
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    for action in parser._actions:
        # A flag that is on has a second one that turns it off, which reads no value.
        if action.dest in values and action.nargs != 0:
            action.required = False
            try:
                values[action.dest] = checked_value(values[action.dest], action, hints[action.dest])
            except ValueError as error:
                fail(f"{path}: {action.dest}: {error}")
    parser.set_defaults(**values)


def _near(name: str, names: set[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def resuming(args: Any) -> bool:
    """Whether ``--resume_from_checkpoint`` asks a recipe to go on; each of its runs finds its own checkpoint.

    Raises:
        ValueError: a path, which can't be that of several runs.

    Example:
        >>> from types import SimpleNamespace
        >>> [resuming(SimpleNamespace(resume_from_checkpoint=asked)) for asked in ("False", True)]
        [False, True]
    """
    asked = str(args.resume_from_checkpoint).lower()
    if asked not in ("true", "false", "none", "1", "0", "yes", "no"):
        raise ValueError(
            f"--resume_from_checkpoint: expected True or False, received {args.resume_from_checkpoint!r}. Each student "
            "goes on from the last whole checkpoint of its own folder in --output_dir."
        )
    return asked in ("true", "1", "yes")


def use_all_cores() -> None:
    """Use all cores where ``accelerate launch`` set one thread for want of OMP_NUM_THREADS.

    It can't be told from a user's own ``OMP_NUM_THREADS=1``, so what is done is said.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if alone and "ACCELERATE_USE_CPU" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(cores)
        if cores > 1:
            print(f"Using {cores} threads; accelerate launch had set OMP_NUM_THREADS=1.")


def bf16_is_fast() -> bool:
    """Whether this machine computes in bfloat16 faster than in float32.

    Example:
        >>> isinstance(bf16_is_fast(), bool)
        True
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = [
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return any(bool(check()) for check in checks if check is not None)


def has_accelerator() -> bool:
    """Whether PyTorch sees anything but a CPU.

    Example:
        >>> isinstance(has_accelerator(), bool)
        True
    """
    return bool(getattr(torch, "accelerator", torch.cuda).is_available())
