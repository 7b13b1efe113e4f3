"""`hf-distill cache capture | inspect | verify | merge`: a teacher cache made and looked after apart from training."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_distill.cache.errors import CacheError
from hf_distill.cache.formats import FORMATS, FullLogits, SampledLogits, SignalFormat, TopKLogits
from hf_distill.cache.upkeep import inspect, merge, repair, verify
from hf_distill.jobs.command_line import fail, has_accelerator, parse, short_errors


def main(words: Sequence[str] | None = None) -> None:
    """Run one command; an error is a line or two and exit code 2, problems found by verify are exit code 1."""
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] != ["cache"]:
        fail("expected `hf-distill cache capture | inspect | verify | merge`. See hf-distill cache --help.")
    if words[1:2] == ["capture"]:
        return _capture(words[2:])
    parser = argparse.ArgumentParser(prog="hf-distill cache", description=__doc__)
    kinds = parser.add_subparsers(dest="command", required=True)
    kinds.add_parser("capture", help="ask a teacher about examples, and keep its answers (capture --help)")
    one = kinds.add_parser("inspect", help="say what a cache holds")
    one.add_argument("folder", type=Path)
    two = kinds.add_parser("verify", help="read every byte, and say what is damaged")
    two.add_argument("folder", type=Path)
    two.add_argument(
        "--repair", action="store_true", help="set damaged shards aside, and build the index anew"
    )
    three = kinds.add_parser("merge", help="make one cache of several of the same teacher")
    three.add_argument("into", type=Path, help="a new folder")
    three.add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args(words[1:])
    try:
        _run(options)
    except CacheError as error:
        fail(str(error))


def _run(options: Any) -> None:
    if options.command == "inspect":
        print(inspect(options.folder))
    elif options.command == "merge":
        manifest = merge(options.folders, options.into)
        rows = sum(shard.rows for shard in manifest.shards)
        print(f"{options.into}: {rows:,} examples of {len(options.folders)} caches")
    else:
        problems = repair(options.folder) if options.repair else verify(options.folder)
        for problem in problems:
            print(problem)
        if problems and options.repair:
            print(f"{options.folder}: set aside; capture again to ask the teacher for the lost examples")
        elif problems:
            print(f"{options.folder}: {len(problems)} problems; --repair sets the damaged shards aside")
            raise SystemExit(1)
        else:
            print(f"{options.folder}: whole")


def _capture(words: list[str]) -> None:
    from hf_distill.cache.capture_examples import CaptureArguments, capture_examples
    from hf_distill.tasks.registry import TASKS, task_named

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--task", default=TASKS[0])
    with short_errors():
        kind = task_named(first.parse_known_args(words)[0].task)  # it says which flags there are
    settings, data = parse([CaptureArguments, kind.data_arguments], words)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # accelerate launch: the processes share the shards
        PartialState(cpu=not has_accelerator())
    with short_errors():
        capture_examples(settings, kind(data, kind.model_arguments()))


def format_of(settings: Any) -> SignalFormat:
    """Return the format that flags ask for.

    Raises:
        CacheError: an unknown one.
    """
    if settings.format == "top_k":
        return TopKLogits(settings.k, tuple(settings.temperatures), settings.dtype, settings.id_bits)
    if settings.format == "sampled":
        return SampledLogits(settings.draws, settings.draw_seed, settings.id_bits)
    if settings.format == "full":
        return FullLogits(settings.dtype)
    raise CacheError(f"--format: expected one of {', '.join(FORMATS)}, received {settings.format!r}.")
