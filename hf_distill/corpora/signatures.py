"""The embedded writing task: from the docstring of a function to its signature."""

from __future__ import annotations

import ast
import os
import re
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
BUILDER_VERSION = 2
PAIRS = {"train": 8000, "validation": 800, "test": 1600}
PAIRS_PER_FILE = 40
LONGEST_SUMMARY, LONGEST_KIND, LONGEST_SOURCE, LONGEST_TARGET = 120, 24, 260, 80
_HEADINGS = (b"Parameters\n", b"Args:\n", b"Arguments:\n", b"Parameters:\n")
# NumPy's section of parameters, and Google's.
_HEADED = re.compile(
    r"^(?:Other )?Parameters\n-{3,}\n(.*?)(?=\n\S[^\n]*\n-{3,}|\Z)", re.DOTALL | re.MULTILINE
)
_INDENTED = re.compile(r"^(?:Args|Arguments|Parameters):\n((?:[ \t]+\S[^\n]*\n?|\n)+)", re.MULTILINE)
_NAMED = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*)\s*(?::\s*(.*)|\((.*?)\)\s*:.*|:.*)")


def docstring_signatures(
    cache_folder: str | os.PathLike[str] | None = None, report: Callable[[str], None] = print
) -> DatasetDict:
    """Docstrings of the installed libraries, each with the signature of its function.

    Of a docstring there is the first paragraph, and what it says of parameters: ``Join arrays. Parameters: arrays
    (sequence), axis (int, optional)``. Functions whose docstring names none of their parameters are left out.

    A signature has names, stars and whether there is a default, no annotation and no ``self``: ``zip(*iterables,
    strict=)``. All pairs of one source file are in the same split, and no docstring is there twice. Equal versions of
    the libraries give equal pairs.

    The first call reads the libraries (some seconds) and keeps the result on disk; later calls load it.

    Args:
        cache_folder: where the corpus is kept; by default `$HF_DISTILL_CACHE`, else `~/.cache/hf_distill`.
        report: receives each line of progress while the corpus is built.

    Returns:
        Splits `train` (about 3,400 pairs), `validation` (550) and `test` (1,100), with `prompt` and `completion`.

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


def described(docstring: str) -> str:
    """Return a docstring's first paragraph and the parameters that it names, in one line; nothing where it names none.

    Example:
        >>> described("Join arrays.\\n\\nArgs:\\n    arrays (list): what to join.\\n    axis: the axis.")
        'Join arrays. Parameters: arrays (list), axis'
        >>> described("Join arrays.\\n\\nParameters\\n----------\\na, b : array_like\\n    Both.\\naxis : int, 0 or 1")
        'Join arrays. Parameters: a, b (array_like), axis (int, 0 or 1)'
    """
    summary = " ".join(docstring.split("\n\n")[0].split())
    headed, indented = _HEADED.search(docstring + "\n"), _INDENTED.search(docstring + "\n")
    lines = (headed or indented or re.match("()", ""))[1].splitlines()  # type: ignore[index]
    depth = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    named = []
    for line in lines:
        found = _NAMED.fullmatch(line[depth:].rstrip()) if line[depth : depth + 1].strip() else None
        if found is not None:
            kind = (found[2] if headed else found[3]) or ""
            kind = kind.replace("`", "").strip()
            named.append(found[1] + (f" ({kind[:LONGEST_KIND]})" if kind else ""))
    if not named or not summary or len(summary) > LONGEST_SUMMARY:
        return ""
    return f"{summary} Parameters: {', '.join(named)}"


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
    source_code = path.read_bytes()
    # Most files have no such section, and parsing is what takes the time.
    tree = parsed(source_code) if any(heading in source_code for heading in _HEADINGS) else None
    found: list[tuple[str, str]] = []
    for node in [] if tree is None else definitions(tree.body):
        if isinstance(node, ast.ClassDef) or node.name.startswith("__"):
            continue
        source = described(ast.get_docstring(node) or "")
        target = signature_of(node)
        fits = 0 < len(source) <= LONGEST_SOURCE and len(target) <= LONGEST_TARGET
        # One that begins with the signature itself asks for nothing.
        if fits and source not in known and f"{node.name}(" not in source:
            known.add(source)
            found.append((source, target))
        if len(found) == PAIRS_PER_FILE:
            break
    return found
