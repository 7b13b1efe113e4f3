"""What a cache says of itself: which teacher answered, how, and which files hold it; compared before it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from hf_distill.cache.errors import CacheError
from hf_distill.cache.shards import write_whole

MANIFEST_NAME = "teacher_cache.json"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class Source:
    """Whose answers a cache holds, and in which form. Two caches with the same source can be merged.

    Args:
        teacher: Hub id, folder or class name: for a reader, since the same weights may lie at several places.
        revision: branch, tag or commit it was loaded from, where known; for a reader too.
        weights: hash of all parameters and buffers.
        tokenizer: hash of the vocabulary that its ids are of; None where no tokenizer was given.
        columns: what it reads of a batch.
        labels: the names of its classes; None where the classes are tokens.
        classes: how many there are.
        head: kind, whether each position has an answer, and whether it is to the next position.
        signals: name and settings of the format.
        hidden_states: the kept hidden states by number; 0 is the embeddings'.
        shape: sizes of the model, where hidden states are kept.
        dtype: what it computed in.
        attention: its attention implementation.
        longest: the most positions it can read; None without a limit.
        settings: of its config, those that its answer may depend on: activations, numbers of heads, pooling.
        counts_from_zero: its own positions are 0, 1, 2, ...; None where it reads no text.
        isolates: a document of a packed row has the answer that it has alone; None where it can't be packed.
    """

    teacher: str
    revision: str | None
    weights: str
    tokenizer: str | None
    columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    classes: int
    head: Mapping[str, Any]
    signals: Mapping[str, Any]
    hidden_states: tuple[int, ...]
    shape: Mapping[str, Any] | None
    dtype: str
    attention: str | None
    longest: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    counts_from_zero: bool | None = None
    isolates: bool | None = None

    def check_same(self, other: Source, where: str, elsewhere: str) -> None:
        """Raise where two sources differ, naming both sides.

        Raises:
            CacheError: with the first value that differs.
        """
        theirs = other.identity()
        for name, own in self.identity().items():
            if name == "settings" and own != theirs[name]:
                check_same_settings(own, theirs[name], where, elsewhere)
            if own != theirs[name]:
                of = f" (of {self.teacher} and {other.teacher})" if name == "weights" else ""
                raise CacheError(
                    f"{name}: expected {where} and {elsewhere} to have the same, received {own!r} and "
                    f"{theirs[name]!r}{of}. Give each teacher, and each way of asking it, a folder of its own."
                )

    def identity(self) -> dict[str, Any]:
        """Return all that an answer depends on, as plain values: everything but the teacher's names."""
        names = [one.name for one in fields(self) if one.name not in ("teacher", "revision")]
        return {name: _plain(getattr(self, name)) for name in names}


@dataclass(frozen=True)
class ShardRecord:
    """A file of a finished capture."""

    file: str
    rows: int
    bytes: int
    hash: str


@dataclass(frozen=True)
class Manifest:
    """The source, the shards of all finished captures, and the index over them."""

    source: Source
    shards: tuple[ShardRecord, ...] = ()
    index: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def write(self, folder: Path) -> None:
        """Put the manifest in its place, whole, with a checksum of its own."""
        held = _plain(asdict(self))
        held["checksum"] = _checksum(held)
        text = json.dumps(held, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        write_whole(folder / MANIFEST_NAME, lambda file: file.write(text.encode()))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Return the manifest of a folder.

        Raises:
            CacheError: none there, a damaged one, or one of a newer version.
        """
        path = folder / MANIFEST_NAME
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CacheError(
                f"{folder}: expected a teacher cache, found no {MANIFEST_NAME} there. Make one with "
                "TeacherCache.capture(...) or `hf-distill cache capture`."
            ) from error
        except ValueError as error:
            raise CacheError(
                f"{path}: expected JSON, found a damaged file: {error}. Fetch it again, or capture again, into another "
                "folder."
            ) from error
        version = held.get("format_version") if isinstance(held, dict) else None
        if version != FORMAT_VERSION:
            raise CacheError(
                f"{path}: expected format version {FORMAT_VERSION}, received {version!r}. Use the hf_distill that "
                "wrote it, or capture again, into another folder."
            )
        written, now = held.pop("checksum", None), _checksum(held)
        if written != now:
            raise CacheError(
                f"{path}: expected the manifest as it was written (checksum {written}), found another (checksum "
                f"{now}): it is damaged, or was edited. Fetch it again, or capture again, into another folder."
            )
        source = {name: _tuple(value) for name, value in held.pop("source").items()}
        shards = tuple(ShardRecord(**shard) for shard in held.pop("shards"))
        return cls(source=Source(**source), shards=shards, **held)

    def with_shards(self, shards: tuple[ShardRecord, ...], index: str) -> Manifest:
        """Return the manifest with other files."""
        return replace(self, shards=shards, index=index)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _checksum(held: Mapping[str, Any]) -> str:
    text = json.dumps({name: value for name, value in held.items() if name != "checksum"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def check_same_settings(
    own: Mapping[str, Any], theirs: Mapping[str, Any], where: str, elsewhere: str
) -> None:
    """Raise where two configs differ in what an answer may depend on, naming both sides.

    Raises:
        CacheError: with the settings that differ.
    """
    differing = [name for name in sorted({*own, *theirs}) if own.get(name) != theirs.get(name)]
    if differing:
        of = [", ".join(f"{name} {side.get(name)!r}" for name in differing[:4]) for side in (own, theirs)]
        raise CacheError(
            f"config: expected {where} and {elsewhere} to have the same settings, received {of[0]} and {of[1]}. Give "
            "the teacher as it was, or a folder of its own."
        )


def file_hash(path: Path) -> str:
    """Return a hash of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def weights_hash(model: torch.nn.Module) -> str:
    """Return a hash of a model's parameters and buffers, names included.

    Example:
        >>> weights_hash(torch.nn.Linear(1, 1)) == weights_hash(torch.nn.Linear(1, 1))
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str | None:
    """Return a hash of a tokenizer's tokens and their ids, or None for what has no vocabulary."""
    vocabulary = getattr(tokenizer, "get_vocab", None)
    if vocabulary is None:
        return None
    text = json.dumps(sorted(vocabulary().items()), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
