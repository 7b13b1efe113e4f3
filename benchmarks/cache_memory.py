"""Memory and start of a cache over its size: 10,000 and 1,000,000 rows.

    OMP_NUM_THREADS=1 python benchmarks/cache_memory.py

Captures texts of 4 tokens with a tiny teacher of 8 classes, then opens each cache in a process of its own, looks up
20,000 rows drawn from all of it, and prints the seconds to open and the memory beside that of the process before it:
its own (anonymous), and the pages of mapped files that the system keeps in memory as long as nobody else needs it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

from hf_distill import TeacherCache

TOKENS, VOCABULARY, BATCH, LOOKED_UP = 4, 1000, 250, 20_000


class Texts:
    """Row ``i`` is the number ``i`` in digits of base 1,000 and a constant: no two are alike."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        """Return how many there are."""
        return self.rows

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """Return one."""
        return {"input_ids": [7, index // 1_000_000, index // 1000 % 1000, index % 1000]}


def stack(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Make a batch."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def capture(rows: int, folder: Path) -> float:
    """Capture so many texts, and return the seconds it took."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        num_labels=8,
    )  # fmt: skip
    start = time.perf_counter()
    TeacherCache.capture(
        BertForSequenceClassification(config),
        Texts(rows),
        folder,
        data_collator=stack,
        batch_size=1000,
        device="cpu",
    )
    return time.perf_counter() - start


def memory() -> dict[str, int]:
    """Return this process's kilobytes, of its own and of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon", "RssFile")))
    return {name: int(value.split()[0]) for name, value in found.items()}


def read(rows: int, folder: Path) -> dict[str, Any]:
    """Open a cache and look up rows of it, in this process."""
    before = memory()
    start = time.perf_counter()
    cache = TeacherCache(folder)
    opened = time.perf_counter() - start
    texts = Texts(rows)
    order = torch.randint(rows, (LOOKED_UP,), generator=torch.Generator().manual_seed(0)).tolist()
    most = dict(before)
    start = time.perf_counter()
    for first in range(0, LOOKED_UP, BATCH):
        cache(stack([texts[index] for index in order[first : first + BATCH]]))
        most = {name: max(value, most[name]) for name, value in memory().items()}
    taken = time.perf_counter() - start
    return {
        "rows": len(cache),
        "open_seconds": opened,
        "lookup_microseconds_a_row": 1e6 * taken / LOOKED_UP,
        **{f"{name}_more_MB": (most[name] - before[name]) / 1000 for name in before},
    }


def main(words: list[str] | None = None) -> None:
    """Capture, then read each in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000], help="sizes to compare")
    parser.add_argument("--repeats", type=int, default=5, help="processes for each size (default 5)")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    if options.read is not None:
        print(json.dumps(read(options.rows[0], options.read)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for rows in options.rows:
            place = Path(folder) / str(rows)
            taken = capture(rows, place)
            size = sum(file.stat().st_size for file in place.iterdir())
            command = [sys.executable, __file__, "--rows", str(rows), "--read", str(place)]
            found = [
                json.loads(
                    subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[
                        -1
                    ]
                )
                for _ in range(options.repeats)
            ]
            print(
                f"{rows:,} rows, {size / 1e6:.1f} MB, captured in {taken:.0f} s; medians of {options.repeats}:"
            )
            for name in found[0]:
                print(f"    {name}: {statistics.median(one[name] for one in found):.4g}", flush=True)


if __name__ == "__main__":
    main()
