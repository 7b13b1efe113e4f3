"""Looking after a cache: what is in it, whether it is whole, setting damage aside, and several made into one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_distill.cache.capture import locked, seal
from hf_distill.cache.errors import CacheError
from hf_distill.cache.index import Index
from hf_distill.cache.manifest import MANIFEST_NAME, Manifest, ShardRecord, file_hash
from hf_distill.cache.shards import Shard

# A damaged shard's file is kept under this, for whoever wants to look at it.
ASIDE = "damaged-"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a cache, and the file that has it."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def inspect(folder: str | Path) -> str:
    """Return what a cache says of itself, a line each.

    Raises:
        CacheError: no cache there.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    source = manifest.source
    rows, size = sum(shard.rows for shard in manifest.shards), sum(shard.bytes for shard in manifest.shards)
    loose = _loose(folder, manifest)
    settings = ", ".join(f"{name} {value}" for name, value in source.signals.items() if name != "name")
    lines = {
        "teacher": f"{source.teacher}{f' @ {source.revision}' if source.revision else ''}, weights {source.weights}",
        "computed in": f"{source.dtype}, attention {source.attention}",
        "answers": f"{source.signals['name']} ({settings}), {source.classes} classes, "
        f"{'one per position' if source.head['positions'] else 'one per example'}, {source.head['kind']}",
        "reads": ", ".join(source.columns),
        "tokenizer": source.tokenizer or "not recorded",
        "hidden states": ", ".join(map(str, source.hidden_states)) or "none",
        "examples": f"{rows:,} in {len(manifest.shards)} shards, {size:,} bytes"
        + (f", {size / rows:.1f} bytes each" if rows else ""),
        "versions": ", ".join(f"{name} {number}" for name, number in sorted(manifest.versions.items())),
    }
    if loose:
        lines["unfinished"] = (
            f"{len(loose)} shards of captures that were cut off; they go on when started again"
        )
    return "\n".join(f"{name + ':':15}{value}" for name, value in lines.items())


def verify(folder: str | Path) -> list[Problem]:
    """Read every byte of a cache, and return what is wrong; an empty list means that it is whole.

    Raises:
        CacheError: no cache there.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    problems = [problem for record in manifest.shards if (problem := _problem(folder, record)) is not None]
    if manifest.index is None:
        problems.append(Problem(MANIFEST_NAME, "the capture was cut off before its end; start it again"))
    else:
        try:
            Index(folder / manifest.index)
        except CacheError as error:
            problems.append(Problem(manifest.index, str(error).split(": ", 1)[-1]))
    return problems


def _problem(folder: Path, record: ShardRecord) -> Problem | None:
    path = folder / record.file
    if not path.is_file():
        return Problem(record.file, f"is missing, with {record.rows:,} examples")
    size = path.stat().st_size
    if size != record.bytes:
        return Problem(record.file, f"has {size:,} bytes instead of {record.bytes:,}")
    if file_hash(path) == record.hash:
        return None
    try:
        damaged = Shard(path).damaged_rows()
    except CacheError as error:
        return Problem(record.file, str(error).split(": ", 1)[-1])
    rows = ", ".join(map(str, damaged[:8])) + (", ..." if len(damaged) > 8 else "")
    return Problem(
        record.file,
        f"holds other bytes than were written ({f'rows {rows}' if damaged else 'outside of the rows'})",
    )


def repair(folder: str | Path) -> list[Problem]:
    """Set damaged shards aside and build the index over the others; a capture then asks for the lost rows alone.

    Returns:
        What was wrong.

    Raises:
        CacheError: no cache there, or another process at work in it.
    """
    folder = Path(folder)
    with locked(folder):
        manifest = Manifest.read(folder)
        problems = verify(folder)
        bad = {problem.file for problem in problems}
        for record in manifest.shards:
            if record.file in bad and (folder / record.file).is_file():
                os.replace(folder / record.file, folder / f"{ASIDE}{record.file}")
        if problems:
            seal(folder, manifest, tuple(record for record in manifest.shards if record.file not in bad))
    return problems


def _loose(folder: Path, manifest: Manifest) -> list[Path]:
    """Return the shards of captures that were not finished."""
    named = {record.file for record in manifest.shards}
    return [
        path
        for path in sorted(folder.glob("*-of-*.arrow"))
        if path.name not in named and ASIDE not in path.name
    ]


def merge(folders: Sequence[str | Path], into: str | Path) -> Manifest:
    """Make one cache of several that the same teacher answered in the same way, in a folder of its own.

    Raises:
        CacheError: caches of other sources, an unfinished or damaged one, or a folder that is not empty.
    """
    into = Path(into)
    parts = [Path(folder) for folder in folders]
    manifests = [Manifest.read(part) for part in parts]
    for part, manifest in zip(parts, manifests, strict=True):
        manifest.source.check_same(manifests[0].source, str(part), str(parts[0]))
        problems = verify(part)
        if problems:
            raise CacheError(
                f"{part}: expected a whole cache to merge, found {len(problems)} problems: {problems[0]}."
            )
    if into.is_dir() and any(path.name != ".lock" for path in into.iterdir()):
        raise CacheError(
            f"{into}: expected a new folder to merge into, found one that is not empty. Give another."
        )
    with locked(into):
        records: dict[str, ShardRecord] = {}
        for part, manifest in zip(parts, manifests, strict=True):
            for record in manifest.shards:
                known = records.get(record.file)
                if known is not None and known.hash == record.hash:
                    continue
                name = record.file if known is None else f"{record.hash}-{record.file}"
                _copy(part / record.file, into / name)
                records[name] = ShardRecord(name, record.rows, record.bytes, record.hash)
        return seal(
            into, Manifest(manifests[0].source, versions=manifests[0].versions), tuple(records.values())
        )


def _copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # no second copy on one disk: shards are never written to again
    except OSError:
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            target.unlink(missing_ok=True)
            raise CacheError(
                f"{target}: expected to copy a shard, but: {error.strerror or error}."
            ) from error
