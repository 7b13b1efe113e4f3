"""Makes a cache: what to say of the teacher, the data sets one after another, and the comparison with what is there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import DataCollatorWithPadding, default_data_collator

from hf_distill import compatibility
from hf_distill.cache.capture import Capture, bytes_of, finish, locked, manifest_for
from hf_distill.cache.errors import CacheError
from hf_distill.cache.formats import FullLogits, SignalFormat
from hf_distill.cache.index import Index
from hf_distill.cache.manifest import Source
from hf_distill.cache.plan import Examples, make_plan
from hf_distill.cache.source import source_of
from hf_distill.cache.teacher_cache import TeacherCache
from hf_distill.columns import LABEL_COLUMNS
from hf_distill.features import FeatureNeeds
from hf_distill.teachers.ensemble import TeacherEnsemble
from hf_distill.teachers.online import OnlineTeacher


def capture(
    teacher: Any,
    dataset: Any,
    folder: str | Path,
    *,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    processing_class: Any = None,
    text_columns: Sequence[str] = ("text", "text_pair"),
    signals: SignalFormat | None = None,
    hidden_states: Sequence[int] = (),
    batch_size: int = 32,
    bf16: bool = False,
    device: str | torch.device | None = None,
    say: Callable[[str], None] = print,
) -> Any:
    """Ask a teacher about every example once, and return the cache of its answers.

    Examples that are there already are not asked again, so a cut-off capture goes on, and another data set can be
    added. Several processes (``accelerate launch``) share the shards.

    Args:
        teacher: a model, a Hub id or a folder; of a list or an ensemble each member gets a folder of its own.
        dataset: anything with a length and an index, or several by name, as a DatasetDict.
        folder: where to put it.
        data_collator: as in training; by default one that pads with ``processing_class``.
        processing_class: the tokenizer, kept in mind to be compared with that of a run. Rows that have text and no
            ``input_ids`` are encoded with it.
        text_columns: the columns that it then encodes.
        signals: :class:`~hf_distill.cache.formats.FullLogits` (default), ``TopKLogits`` or ``SampledLogits``.
        hidden_states: numbers of hidden states to keep in bfloat16, 0 being the embeddings'.
        batch_size: examples that the teacher reads at once.
        bf16: compute in bfloat16.
        device: default: the accelerator if there is one.
        say: is told what will be done, with an estimate of bytes and time, before it is.

    Returns:
        The cache, or a :class:`hf_distill.TeacherEnsemble` of several.

    Raises:
        CacheError: whatever keeps a cache from being right: another teacher's cache in that folder, another capture at
            work, inputs drawn anew whenever they are read, logits that are not finite, a disk that is full.
    """
    options: dict[str, Any] = {
        "data_collator": data_collator, "processing_class": processing_class, "text_columns": text_columns,
        "signals": signals or FullLogits(), "hidden_states": tuple(hidden_states), "batch_size": batch_size,
        "bf16": bf16, "device": _device(device), "say": say,
    }  # fmt: skip
    members, ensemble = _members(teacher)
    if ensemble is None:
        return _capture_one(members[0], dataset, Path(folder), **options)
    folders = [Path(folder) / f"teacher-{number}" for number in range(len(members))]
    caches = [
        _capture_one(one, dataset, place, **options) for one, place in zip(members, folders, strict=True)
    ]
    return TeacherEnsemble(caches, ensemble.weights, ensemble.combine)


def _members(teacher: Any) -> tuple[list[Any], TeacherEnsemble | None]:
    if isinstance(teacher, (list, tuple)):
        teacher = TeacherEnsemble(teacher) if len(teacher) > 1 else teacher[0]
    return (list(teacher.members), teacher) if isinstance(teacher, TeacherEnsemble) else ([teacher], None)


def _device(device: str | torch.device | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _capture_one(
    teacher: Any, dataset: Any, folder: Path, *, device: torch.device, say: Any, **options: Any
) -> Any:
    online, revision = _online(teacher, device, options["bf16"])
    pads_with = options["processing_class"] or getattr(options["data_collator"], "tokenizer", None)
    if pads_with is not None and "input_ids" in online.columns:
        compatibility.align_padding(pads_with, online.model)
    source = source_of(online, revision, **{name: options[name] for name in _OF_SOURCE})
    online.feature_needs = FeatureNeeds(hidden_states=frozenset(source.hidden_states))
    rank, processes = _process()
    with _locked_for_all(folder, rank, processes):
        for name, rows in _by_name(dataset).items():
            collate = _collator(rows, online, options)
            counts = source.counts_from_zero is not False
            examples = Examples(rows, collate, frozenset(source.columns), device, counts)
            _capture_rows(folder, online, examples, source, name, rank, processes, say, options)
    return TeacherCache(folder, online if rank == 0 else None)


_OF_SOURCE = ("processing_class", "signals", "hidden_states", "bf16")


def _capture_rows(
    folder: Path, online: OnlineTeacher, examples: Examples, source: Source, name: str, rank: int, processes: int,
    say: Callable[[str], None], options: Mapping[str, Any],
) -> None:  # fmt: skip
    """Capture one data set: plan, estimate, ask, seal."""
    if rank == 0:
        manifest_for(folder, source, _versions())
    _wait(processes)
    manifest = manifest_for(folder, source, _versions())
    known = None if manifest.index is None else Index(folder / manifest.index)

    def row_bytes(length: int) -> int:
        return bytes_of(source, options["signals"], length)

    plan = make_plan(examples, known, row_bytes, options["batch_size"])
    work = Capture(folder, online, examples, source, options["signals"], plan, rank, processes)
    if rank == 0:
        say(_estimate(work, name, folder))
    work.run()
    _wait(processes)
    if rank == 0:
        finish(folder, manifest, plan)
        if plan.indices:
            say(_taken(work, name))
    _wait(processes)


def _taken(work: Capture, name: str) -> str:
    """Say what the answers take on disk, beside what was said that they would."""
    plan, count = work.plan, len(work.plan.indices)
    size = sum((work.folder / plan.file(number)).stat().st_size for number in range(plan.shards))
    return (
        f"{name}: kept {count:,} answers in {_size(size)}, {size / count:.1f} bytes each "
        f"({work.bytes() / count:.1f} estimated)"
    )


def _estimate(work: Capture, name: str, folder: Path) -> str:
    plan, rows = work.plan, len(work.examples.rows)
    if not plan.indices:
        return f"{name}: the teacher's answers to all {rows:,} examples are in {folder}"
    left = work.missing()
    there = (
        f", {plan.shards - len(left)} of {plan.shards} shards are there" if len(left) < plan.shards else ""
    )
    others = "" if len(plan.indices) == rows else " (the others are there, or the same)"
    return (
        f"{name}: asking the teacher about {len(plan.indices):,} of {rows:,} examples{others}{there}; "
        f"{_size(work.bytes())} in {folder}, about {_duration(work.seconds() / work.processes)}"
    )


def _size(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else (
        f"{seconds / 3600:.1f} h"
    )  # fmt: skip


def _online(teacher: Any, device: torch.device, bf16: bool) -> tuple[OnlineTeacher, str | None]:
    """Return a prepared teacher from a model, a name or a folder."""
    name = None
    if isinstance(teacher, OnlineTeacher):
        if teacher.label_order is None:
            return teacher, None
        name, teacher = teacher.name, teacher.model  # answers are kept in the teacher's own order of classes
    if isinstance(teacher, (str, Path)):
        name = str(teacher)
        config = transformers.AutoConfig.from_pretrained(name)
        kind = getattr(transformers, (config.architectures or [""])[0], None)
        if kind is None:
            raise CacheError(
                f"teacher: expected a model of transformers, received {name!r} ({config.architectures})."
            )
        teacher = kind.from_pretrained(name)
    if not isinstance(teacher, nn.Module) or getattr(teacher, "config", None) is None:
        raise CacheError(
            f"teacher: expected a transformers model, a Hub id or a folder, received {type(teacher).__name__}."
        )

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    return OnlineTeacher(teacher, name, autocast=autocast).to(device), None


def _by_name(dataset: Any) -> dict[str, Any]:
    return dict(dataset) if isinstance(dataset, Mapping) else {"dataset": dataset}


def _collator(rows: Any, online: OnlineTeacher, options: Mapping[str, Any]) -> Callable[[list[Any]], Any]:
    """Return what makes a teacher's batch of rows: the collator given, over the columns that it reads."""
    tokenizer, texts = options["processing_class"], tuple(options["text_columns"])
    first = rows[0] if len(rows) else {}
    encodes = "input_ids" in online.columns and "input_ids" not in first and tokenizer is not None
    if encodes and texts[0] in first:
        longest = compatibility.longest_input(online.model)
        limits = [
            n for n in (longest, getattr(tokenizer, "model_max_length", None)) if n is not None and n < 10**9
        ]

        def encode(examples: list[Any]) -> Any:
            given = [[row[name] for row in examples] for name in texts if name in examples[0]]
            return tokenizer(
                *given,
                padding=True,
                truncation=True,
                max_length=min(limits, default=None),
                return_tensors="pt",
            )

        return encode
    collator = options["data_collator"]
    if collator is None:
        collator = default_data_collator if tokenizer is None else DataCollatorWithPadding(tokenizer)
    accepted = online.columns | LABEL_COLUMNS
    if not (online.columns - LABEL_COLUMNS) & set(first):
        return collator  # which makes the input of images, say
    return lambda examples: collator([{k: v for k, v in row.items() if k in accepted} for row in examples])


def _process() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


@contextlib.contextmanager
def _locked_for_all(folder: Path, rank: int, processes: int) -> Iterator[None]:
    """Lock the folder on process 0; where it can't be locked, every process says so, and none waits in vain."""
    with contextlib.ExitStack() as stack:
        failure: list[str | None] = [None]
        if rank == 0:
            try:
                stack.enter_context(locked(folder))
            except CacheError as error:
                failure = [str(error)]
        if processes > 1:
            torch.distributed.broadcast_object_list(failure)
        if failure[0] is not None:
            raise CacheError(failure[0])
        yield


def _wait(processes: int) -> None:
    if processes > 1:
        torch.distributed.barrier()


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    with contextlib.suppress(PackageNotFoundError):  # a checkout that was not installed
        found["hf_distill"] = version("hf-distill")
    return found
