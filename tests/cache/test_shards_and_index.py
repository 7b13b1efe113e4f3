"""Files of a cache: whole or not there, found by key, and every damage named."""

import os
import resource
from pathlib import Path
from typing import Any

import numpy
import pytest

from hf_distill.cache import shards as shards_module
from hf_distill.cache.errors import CacheError
from hf_distill.cache.index import Index, write_index
from hf_distill.cache.shards import Shard, write_shard


def keys(count: int, seed: int = 0) -> list[bytes]:
    return [
        row.tobytes() for row in numpy.random.default_rng(seed).integers(0, 256, (count, 16), numpy.uint8)
    ]


def answers(count: int, seed: int = 0) -> list[dict[str, numpy.ndarray]]:
    draw = numpy.random.default_rng(100 + seed)  # other bytes than the keys
    return [
        {
            "logits": draw.integers(0, 256, (number % 3 + 1, 12), numpy.uint8),
            "hidden": draw.integers(0, 256, (2, 4), numpy.uint8),
        }
        for number in range(count)
    ]  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "one.arrow"
    write_shard(path, keys(7), answers(7))
    shard = Shard(path)
    assert shard.rows == 7
    assert set(shard.fields) == {"logits", "hidden"}
    for row, (key, expected) in enumerate(zip(keys(7), answers(7), strict=True)):
        assert shard.key(row) == key
        found = shard.answers(row)
        assert all((found[name] == expected[name]).all() for name in expected)
    assert shard.damaged_rows() == []
    assert os.listdir(tmp_path) == ["one.arrow"], "nothing is left beside it"


def test_the_same_answers_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / name, keys(5), answers(5))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_flipped_bit_of_an_answer_is_found(tmp_path: Path) -> None:
    path = tmp_path / "one.arrow"
    write_shard(path, keys(7), answers(7))
    whole = path.read_bytes()
    for row, one in enumerate(answers(7)):
        place = whole.index(one["hidden"].tobytes())
        damaged = bytearray(whole)
        damaged[place + 5] ^= 0x10
        path.write_bytes(damaged)
        shard = Shard(path)
        assert shard.damaged_rows() == [row]
        with pytest.raises(CacheError, match=rf"one.arrow: expected row {row} as it was written"):
            shard.answers(row)


@pytest.mark.parametrize("left", [0, 100, 0.5, 0.99])
def test_a_cut_off_file_is_named(tmp_path: Path, left: float) -> None:
    path = tmp_path / "one.arrow"
    write_shard(path, keys(50), answers(50))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole)) if left < 1 else int(left)])
    with pytest.raises(CacheError, match=r"one.arrow: expected a whole shard"):
        Shard(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"one.arrow: expected a shard of the cache, found no such file"):
        Shard(tmp_path / "one.arrow")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "one.arrow"
    write_shard(path, keys(5), answers(5))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CacheError, match="make room or give another folder"):
            write_shard(path, keys(5000), answers(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["one.arrow"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(shards_module.os, "replace", refuse)
    with pytest.raises(CacheError, match=r"one.arrow: .*Read-only file system"):
        write_shard(tmp_path / "one.arrow", keys(5), answers(5))
    assert os.listdir(tmp_path) == []


def indexed(folder: Path, *parts: list[bytes]) -> Index:
    for number, part in enumerate(parts):
        write_shard(folder / f"{number}.arrow", part, answers(len(part)))
    name = write_index(folder, [Shard(folder / f"{number}.arrow") for number in range(len(parts))])
    return Index(folder / name)


def test_every_key_is_found_where_it_is(tmp_path: Path) -> None:
    parts = keys(500, 1), keys(300, 2)
    index = indexed(tmp_path, *parts)
    assert len(index) == 800
    for number, part in enumerate(parts):
        assert index.find(part) == [(number, row) for row in range(len(part))]
    assert index.find(keys(20, 3)) == [None] * 20


def test_a_key_in_two_shards_is_found_in_the_first(tmp_path: Path) -> None:
    index = indexed(tmp_path, keys(5), keys(5))
    assert len(index) == 5
    assert index.find(keys(5)) == [(0, row) for row in range(5)]


def test_keys_that_share_their_first_half_are_told_apart(tmp_path: Path) -> None:
    alike = [b"8 bytes " + bytes([number]) * 8 for number in range(9)]
    assert indexed(tmp_path, alike).find(alike) == [(0, row) for row in range(9)]


def test_an_empty_index_finds_nothing(tmp_path: Path) -> None:
    assert Index(tmp_path / write_index(tmp_path, [])).find(keys(2)) == [None, None]


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    name = write_index(tmp_path, [])
    data = bytearray((tmp_path / name).read_bytes())
    data[-20] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CacheError, match=f"{name}: .*verify --repair"):
        Index(tmp_path / name)
    with pytest.raises(CacheError, match=r"index-0.arrow: .*no such file"):
        Index(tmp_path / "index-0.arrow")
