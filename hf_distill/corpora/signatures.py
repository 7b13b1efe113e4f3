"""The embedded writing task: from the docstring of a function to its signature."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, DatasetDict

from hf_distill.corpora.library_sources import (
    LABELS,
    SPLIT_SHARES,
    definitions,
    kept_corpus,
    parsed,
    source_paths,
    split_of,
    versions_key,
)

# Raise this when a change below changes the pairs, so that what an older version kept is not used.
BUILDER_VERSION = 1
PAIRS = {"train": 8000, "validation": 800, "test": 1600}
PAIRS_PER_FILE = 40
LONGEST_SOURCE, LONGEST_TARGET, SHORTEST_SOURCE = 160, 80, 20


def docstring_signatures(
    cache_folder: str | os.PathLike[str] | None = None, report: Callable[[str], None] = print
) -> DatasetDict:
    """First paragraphs of docstrings of the installed libraries, each with the signature of its function.

    A signature has names, stars and whether there is a default, no annotation and no ``self``: ``zip(*iterables,
    strict=)``. All pairs of one source file are in the same split, and no docstring is there twice. Equal versions of
    the libraries give equal pairs.

    The first call reads the libraries (some seconds) and keeps the result on disk; later calls load it.

    Args:
        cache_folder: where the corpus is kept; by default `$HF_DISTILL_CACHE`, else `~/.cache/hf_distill`.
        report: receives each line of progress while the corpus is built.

    Returns:
        Splits `train` (about 6,500 pairs), `validation` (800) and `test` (1,600), with `prompt` and `completion`.

    Raises:
        FileNotFoundError: if one of the libraries has no source files here.

    Example:
        >>> "(" in docstring_signatures(report=lambda line: None)["test"][0]["completion"]
        True
    """
    return kept_corpus("signatures", versions_key(BUILDER_VERSION), _build, cache_folder, report)


def signature_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return a function's signature in one line.

    Example:
        >>> signature_of(ast.parse("def f(self, a: int, b=2, *c, d=None, **e) -> str: ...").body[0])
        'f(a, b=, *c, d=, **e)'
    """
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    without = len(plain) - len(arguments.defaults)
    names = [one.arg + ("=" if place >= without else "") for place, one in enumerate(plain)]
    names = names[1:] if names and names[0] in ("self", "cls") else names
    if arguments.vararg is not None:
        names.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        names.append("*")
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    names += [one.arg + ("" if default is None else "=") for one, default in pairs]
    if arguments.kwarg is not None:
        names.append(f"**{arguments.kwarg.arg}")
    return f"{function.name}({', '.join(names)})"


def _build(report: Callable[[str], None]) -> DatasetDict:
    known: set[str] = set()
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in PAIRS}
    for label in LABELS:
        of_library = _pairs_of_library(label, known)
        report(f"  {label}: {sum(map(len, of_library.values()))} pairs")
        for name, pairs in of_library.items():
            found[name] += pairs
    return DatasetDict(
        {
            name: Dataset.from_dict(
                {"prompt": [prompt for prompt, _ in pairs], "completion": [end for _, end in pairs]}
            )
            for name, pairs in found.items()
        }
    )


def _pairs_of_library(label: str, known: set[str]) -> dict[str, list[tuple[str, str]]]:
    wanted = {name: -(-count // len(LABELS)) for name, count in PAIRS.items()}
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in wanted}
    sizes = dict.fromkeys(SPLIT_SHARES, 0)
    for path in source_paths(label):
        split = split_of(sizes)
        pairs = _pairs_of_file(path, known)
        sizes[split] += len(pairs)
        found[split] += pairs[: wanted[split] - len(found[split])]
        if all(len(found[name]) >= wanted[name] for name in wanted):
            break
    return found


def _pairs_of_file(path: Path, known: set[str]) -> list[tuple[str, str]]:
    tree = parsed(path.read_bytes())
    found: list[tuple[str, str]] = []
    for node in [] if tree is None else definitions(tree.body):
        if isinstance(node, ast.ClassDef) or node.name.startswith("__"):
            continue
        source = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
        target = signature_of(node)
        fits = SHORTEST_SOURCE <= len(source) <= LONGEST_SOURCE and len(target) <= LONGEST_TARGET
        if fits and source not in known:
            known.add(source)
            found.append((source, target))
        if len(found) == PAIRS_PER_FILE:
            break
    return found
