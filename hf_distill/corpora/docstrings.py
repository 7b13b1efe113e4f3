"""The embedded default corpus: docstrings of the installed libraries; the label is the library."""

from __future__ import annotations

import ast
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_distill.corpora.library_sources import (
    LABELS,
    SPLIT_SHARES,
    definitions,
    kept_corpus,
    parsed,
    root_of_library,
    source_paths,
    split_of,
    versions_key,
)

# Raise this when a change below changes the texts, so that a corpus cached by an older version is not used.
BUILDER_VERSION = 2

# Four of the libraries have several times more text than the other four; without a limit they would be most
# of the corpus, and reading them all takes 45 s where this takes 8 s.
TEXTS_PER_LIBRARY = 2600
# A file with hundreds of docstrings (pandas' frame.py) would otherwise be most of what a split knows of its library.
TEXTS_PER_FILE = 40
SHORTEST_TEXT = 30


def docstring_corpus(
    cache_folder: str | os.PathLike[str] | None = None, report: Callable[[str], None] = print
) -> DatasetDict:
    """Texts from the docstrings of the installed libraries; the task is to tell which library wrote one.

    Each text is the first paragraph of the docstring of a module, class, function or method, on one line, at
    least 30 characters long. The files are parsed and never imported. All texts of one source file are in the
    same split. A text that a library repeats is kept once; a text that two libraries share is dropped, since
    it has no right answer. Names of libraries inside a text are left as they stand: some texts are easy, and
    some can't be answered at all. The order depends on the paths inside the libraries only, so equal versions
    give equal corpora.

    The first call reads the libraries (about 10 s) and keeps the result on disk under a key made of their
    versions; later calls load it.

    Args:
        cache_folder: where the corpus is kept; by default `$HF_DISTILL_CACHE`, else `~/.cache/hf_distill`.
        report: receives each line of progress while the corpus is built.

    Returns:
        Splits `train` (about 10,000 texts), `validation` (1,500) and `test` (4,500), with the columns `text`
        (string) and `label` (ClassLabel with 8 names).

    Raises:
        FileNotFoundError: if one of the libraries has no source files here.

    Example:
        >>> corpus = docstring_corpus(report=lambda line: None)
        >>> sorted(corpus)
        ['test', 'train', 'validation']
        >>> corpus["train"].features["label"].names[:3]
        ['standard library', 'torch', 'transformers']
    """
    return kept_corpus("docstrings", _versions_key(), _build, cache_folder, report)


def _versions_key() -> str:
    return versions_key(BUILDER_VERSION)


def _build(report: Callable[[str], None]) -> DatasetDict:
    texts: dict[str, dict[str, tuple[str, str]]] = {}
    for label in LABELS:
        texts[label] = _texts_of_library(label)
        report(f"  {label}: {len(texts[label])} texts")
    owners: dict[str, int] = {}
    for of_library in texts.values():
        for key in of_library:
            owners[key] = owners.get(key, 0) + 1
    splits: dict[str, dict[str, list[str]]] = {name: {"text": [], "label": []} for name in SPLIT_SHARES}
    for label, of_library in texts.items():
        for key, (text, split) in of_library.items():
            if owners[key] == 1:
                splits[split]["text"].append(text)
                splits[split]["label"].append(label)
    features = Features({"text": Value("string"), "label": ClassLabel(names=LABELS)})
    corpus = DatasetDict({name: Dataset.from_dict(rows, features=features) for name, rows in splits.items()})
    report("  " + ", ".join(f"{name}: {len(split)} texts" for name, split in corpus.items()))
    return corpus


def _texts_of_library(label: str) -> dict[str, tuple[str, str]]:
    """Key for finding duplicates -> (text, split), for one library."""
    texts: dict[str, tuple[str, str]] = {}
    sizes = dict.fromkeys(SPLIT_SHARES, 0)
    for path in source_paths(label):
        found = itertools.islice(_first_paragraphs(path), TEXTS_PER_FILE)
        new = {text.casefold(): text for text in found if text.casefold() not in texts}
        split = split_of(sizes)  # every split has every library in the same proportion
        sizes[split] += len(new)
        texts |= {key: (text, split) for key, text in new.items()}
        if len(texts) >= TEXTS_PER_LIBRARY:
            break
    if not texts:
        raise FileNotFoundError(
            f"expected the source files of {label} under {root_of_library(label)}; found none. Reinstall it."
        )
    return texts


def _first_paragraphs(path: Path) -> Iterator[str]:
    """The usable first paragraphs of one file's docstrings, in the order of the file."""
    tree = parsed(path.read_bytes())
    if tree is None:
        return
    for node in [tree, *definitions(tree.body)]:
        docstring = ast.get_docstring(node)
        text = " ".join(docstring.split("\n\n")[0].split()) if docstring else ""
        if len(text) >= SHORTEST_TEXT:
            yield text
