"""Captures a teacher's answers to files, a Hub data set or a task's built-in data, from the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_distill.cache.command_line import format_of
from hf_distill.cache.errors import CacheError
from hf_distill.cache.formats import FORMATS
from hf_distill.cache.making import capture
from hf_distill.tasks.registry import TASKS
from hf_distill.tasks.task import Task


@dataclass
class CaptureArguments:
    """Which teacher is asked, and how its answers are kept."""

    task: str = field(
        default="text_classification",
        metadata={"help": "What the teacher does; its data has other flags", "choices": list(TASKS)},
    )
    teacher: str | None = field(default=None, metadata={"help": "The teacher: Hub id or folder"})
    folder: str | None = field(default=None, metadata={"help": "Where to put the cache"})
    shard: str = field(
        default="0/1", metadata={"help": "Ask about a part only: 0/4 is the first of four, to be merged"}
    )
    format: str = field(
        default="full", metadata={"help": "What is kept of the logits", "choices": list(FORMATS)}
    )
    dtype: str = field(
        default="float32", metadata={"help": "Of kept logits", "choices": ["float32", "bfloat16"]}
    )
    k: int = field(default=64, metadata={"help": "top_k: classes kept"})
    temperatures: list[float] = field(
        default_factory=lambda: [1.0, 2.0, 4.0], metadata={"help": "top_k: temperatures that can be answered"}
    )
    draws: int = field(default=50, metadata={"help": "sampled: draws kept"})
    draw_seed: int = field(default=0, metadata={"help": "sampled: seed of the draws"})
    id_bits: int | None = field(
        default=None,
        metadata={"help": "Width of a class number: 16, 18, 24 or 32. Default: the narrowest that fits"},
    )
    hidden_states: list[int] = field(
        default_factory=list, metadata={"help": "Hidden states to keep, in bfloat16; 0 is the embeddings'"}
    )
    batch_size: int = field(default=32, metadata={"help": "Examples that the teacher reads at once"})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16"})


def part_of(shard: str) -> tuple[int, int]:
    """Return number and count of ``0/4``.

    Raises:
        CacheError: anything else.

    Example:
        >>> part_of("1/4")
        (1, 4)
    """
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise CacheError(f"--shard: expected a number and a count, like 0/4, received {shard!r}.")
    return int(number), int(count)


def capture_examples(settings: CaptureArguments, task: Task) -> Any:
    """Ask about every split, and return the cache.

    Args:
        settings: what to ask, and where to keep it.
        task: makes examples and batches, as the recipe of its name does.

    Raises:
        CacheError: as :func:`hf_distill.cache.making.capture`; a missing teacher or folder, or a task whose inputs are
            drawn anew.
    """
    for name in ("teacher", "folder"):
        if not getattr(settings, name):
            raise CacheError(f"--{name}: expected one, received none. Give it.")
    if task.uncached_because is not None:
        raise CacheError(
            f"--task {task.name}: expected inputs that are the same each time, but {task.uncached_because}."
        )
    number, count = part_of(settings.shard)
    signals = format_of(settings)
    processor = task.load_processor(str(settings.teacher))
    splits = {name: task.encode(rows, processor).shard(count, number) for name, rows in task.load().items()}
    cache = capture(
        settings.teacher,
        splits,
        str(settings.folder),
        data_collator=task.collator(processor),
        processing_class=processor,
        signals=signals,
        hidden_states=settings.hidden_states,
        batch_size=settings.batch_size,
        bf16=settings.bf16,
    )
    print(f"{settings.folder}: {len(cache):,} examples")
    return cache
