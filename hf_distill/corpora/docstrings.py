"""The embedded default corpus: docstrings of the installed libraries; the label is the library."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import shutil
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

# Raise this when a change below changes the texts, so that a corpus cached by an older version is not used.
BUILDER_VERSION = 2

STANDARD_LIBRARY = "standard library"

# Label -> (import name, distribution name). The standard library has neither.
LIBRARIES: dict[str, tuple[str, str]] = {
    "torch": ("torch", "torch"),
    "transformers": ("transformers", "transformers"),
    "datasets": ("datasets", "datasets"),
    "numpy": ("numpy", "numpy"),
    "pandas": ("pandas", "pandas"),
    "huggingface_hub": ("huggingface_hub", "huggingface_hub"),
    "scikit-learn": ("sklearn", "scikit-learn"),
}
LABELS = [STANDARD_LIBRARY, *LIBRARIES]

# Four of the libraries have several times more text than the other four; without a limit they would be most
# of the corpus, and reading them all takes 45 s where this takes 8 s.
TEXTS_PER_LIBRARY = 2600
# A file with hundreds of docstrings (pandas' frame.py) would otherwise be most of what a split knows of its library.
TEXTS_PER_FILE = 40
SHORTEST_TEXT = 30

# Share of each library's texts that goes to each split, in percent, by whole files.
SPLIT_SHARES = {"train": 62, "validation": 10, "test": 28}

# Test suites say little about the library that they belong to; the other names hold other people's packages.
SKIPPED_FOLDERS = frozenset(
    {"tests", "test", "testing", "site-packages", "dist-packages", "idlelib", "lib2to3"}
)


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
    root = Path(cache_folder) if cache_folder is not None else default_cache_folder()
    folder = root / f"docstrings-{_versions_key()}"
    if not folder.is_dir():
        report(f"Building the docstring corpus in {folder} ...")
        _save_atomically(_build(report), folder)
    # Loaded from disk even when just built: both ways then give the same fingerprint, on which caches are
    # keyed.
    return DatasetDict.load_from_disk(str(folder))


def default_cache_folder() -> Path:
    """The folder for what can be built again: `$HF_DISTILL_CACHE`, else `~/.cache/hf_distill`."""
    return Path(os.environ.get("HF_DISTILL_CACHE") or Path.home() / ".cache" / "hf_distill").expanduser()


def _versions_key() -> str:
    versions = {
        name: importlib.metadata.version(distribution) for name, (_, distribution) in LIBRARIES.items()
    }
    described = {"builder": BUILDER_VERSION, "python": platform.python_version(), **versions}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


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
    root = _root_of_library(label)
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    # By hash and not by name, so that the limit leaves a sample of the whole library and not its first
    # folders.
    order = sorted(
        (_number(f"{label}/{path}"), path) for path in paths if not SKIPPED_FOLDERS & set(path.split("/"))
    )
    texts: dict[str, tuple[str, str]] = {}
    sizes = dict.fromkeys(SPLIT_SHARES, 0)
    for _, path in order:
        found = itertools.islice(_first_paragraphs(root / path), TEXTS_PER_FILE)
        new = {text.casefold(): text for text in found if text.casefold() not in texts}
        # The split that lags most behind its share takes the whole file, so that every split has every
        # library in the same proportion, and no two splits share a file.
        split = min(SPLIT_SHARES, key=lambda name: sizes[name] / SPLIT_SHARES[name])
        sizes[split] += len(new)
        texts |= {key: (text, split) for key, text in new.items()}
        if len(texts) >= TEXTS_PER_LIBRARY:
            break
    if not texts:
        raise FileNotFoundError(
            f"expected the source files of {label} under {root}; found none. Reinstall it."
        )
    return texts


def _root_of_library(label: str) -> Path:
    if label == STANDARD_LIBRARY:
        return Path(sysconfig.get_path("stdlib"))
    import_name, distribution = LIBRARIES[label]
    # For a top-level name this looks the package up without running any of it.
    spec = importlib.util.find_spec(import_name)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"the embedded corpus reads {label}; it is not installed: pip install {distribution}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _number(path: str) -> int:
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")


def _first_paragraphs(path: Path) -> Iterator[str]:
    """The usable first paragraphs of one file's docstrings, in the order of the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Other people's invalid escape sequences are not our news.
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # Templates and files for other Python versions.
        return
    for node in [tree, *_definitions(tree.body)]:
        docstring = ast.get_docstring(node)
        text = " ".join(docstring.split("\n\n")[0].split()) if docstring else ""
        if len(text) >= SHORTEST_TEXT:
            yield text


def _definitions(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Classes and functions of a module, and those in classes; not functions inside functions."""
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node.body)


def _save_atomically(corpus: DatasetDict, folder: Path) -> None:
    """Write beside the final place and rename: a killed or second process never leaves half a corpus."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    try:
        corpus.save_to_disk(str(unfinished))
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():  # Otherwise another process was faster, with the same content.
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
