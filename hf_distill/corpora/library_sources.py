"""The installed libraries as material for corpora: their source files, and a place where what was built is kept."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets import DatasetDict

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

# Share of each library's texts that goes to each split, in percent, by whole files.
SPLIT_SHARES = {"train": 62, "validation": 10, "test": 28}

# Test suites say little about the library that they belong to; the other names hold other people's packages.
SKIPPED_FOLDERS = frozenset(
    {"tests", "test", "testing", "site-packages", "dist-packages", "idlelib", "lib2to3"}
)


def default_cache_folder() -> Path:
    """The folder for what can be built again: `$HF_DISTILL_CACHE`, else `~/.cache/hf_distill`."""
    return Path(os.environ.get("HF_DISTILL_CACHE") or Path.home() / ".cache" / "hf_distill").expanduser()


def versions_key(builder: int) -> str:
    """Return a hash of all that a corpus depends on: the libraries' versions, and that of what builds it.

    Args:
        builder: raised when the building changes the corpus.
    """
    versions = {
        name: importlib.metadata.version(distribution) for name, (_, distribution) in LIBRARIES.items()
    }
    described = {"builder": builder, "python": platform.python_version(), **versions}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def kept_corpus(
    name: str,
    key: str,
    build: Callable[[Callable[[str], None]], DatasetDict],
    cache_folder: str | os.PathLike[str] | None,
    report: Callable[[str], None],
) -> DatasetDict:
    """Return a corpus from disk, built first where it is not there.

    Args:
        name: of the corpus, in its folder's name.
        key: a hash of all that it depends on.
        build: makes it, given what receives lines of progress.
        cache_folder: where it is kept; :func:`default_cache_folder` if None.
        report: receives each line of progress.
    """
    root = Path(cache_folder) if cache_folder is not None else default_cache_folder()
    folder = root / f"{name}-{key}"
    if not folder.is_dir():
        report(f"Building the {name} corpus in {folder} ...")
        _save_atomically(build(report), folder)
    # Loaded from disk even when just built: both ways then give the same fingerprint, on which caches are
    # keyed.
    return DatasetDict.load_from_disk(str(folder))


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


def root_of_library(label: str) -> Path:
    """Return the folder of a library's source files.

    Raises:
        FileNotFoundError: a library that is not installed.
    """
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


def number_of(path: str) -> int:
    """Return a number that a name always has, and that says nothing of it."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")


def source_paths(label: str) -> list[Path]:
    """Return the source files of a library, tests and other people's packages left out.

    The order is by hash and not by name, so that a limit leaves a sample of the whole library and not its first
    folders.
    """
    root = root_of_library(label)
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    order = sorted(
        (number_of(f"{label}/{path}"), path) for path in paths if not SKIPPED_FOLDERS & set(path.split("/"))
    )
    return [root / path for _, path in order]


def parsed(source: bytes) -> ast.Module | None:
    """Return the tree of a file, or None for templates and files for other Python versions."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escape sequences are not our news
            return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def split_of(sizes: dict[str, int]) -> str:
    """Return the split that lags most behind its share: it takes the whole next file, so that no two share one."""
    return min(SPLIT_SHARES, key=lambda name: sizes[name] / SPLIT_SHARES[name])


def definitions(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield classes and functions of a module, and those in classes; not functions inside functions."""
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body)
