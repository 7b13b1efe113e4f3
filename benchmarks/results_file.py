"""A file of results, a JSON line each, that a stopped benchmark goes on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class ResultsFile:
    """Results known by some of their values; each is on disk as soon as it is there.

    Args:
        path: the file, made with its folder where it is missing.
        keys: the names of the values that tell results apart.
    """

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        self.path, self.keys = path, keys
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.results: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def has(self, **values: Any) -> bool:
        """Whether a result with these values is there."""
        return any(all(result[key] == values[key] for key in self.keys) for result in self.results)

    def add(self, result: dict[str, Any]) -> None:
        """Keep a result, and print it."""
        print(result, flush=True)
        self.results.append(result)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
