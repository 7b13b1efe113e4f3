"""The embedded tagging task: the grammatical role of each identifier in lines of the installed libraries."""

from __future__ import annotations

import ast
import io
import keyword
import os
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

from hf_distill.corpora.library_sources import (
    LABELS,
    SPLIT_SHARES,
    kept_corpus,
    parsed,
    source_paths,
    split_of,
)
from hf_distill.corpora.library_sources import versions_key as _versions

# Raise this when a change below changes the lines, so that a corpus kept by an older version is not used.
BUILDER_VERSION = 1
# What an identifier is in its line, as Python's own grammar says.
ROLES = [
    "annotation", "argument", "assigned", "attribute", "base class", "called", "class", "decorator", "exception",
    "function", "imported", "method", "module", "parameter", "read",
]  # fmt: skip
#: Words that are no identifiers have no role.
NO_ROLE = -1
LINES = {"train": 8000, "validation": 1000, "test": 3000}
LINES_PER_FILE = 25
SHORTEST, LONGEST = 4, 40

Lines = list[tuple[list[str], list[int]]]


def identifier_roles(
    cache_folder: str | os.PathLike[str] | None = None, report: Callable[[str], None] = print
) -> DatasetDict:
    """Lines of code of the installed libraries; the task is to tell what each identifier is in its line.

    A line is a logical one, of 4 to 40 words, as Python's tokenizer gives them, with at least two identifiers of two
    roles; comments are left out, and texts and numbers read ``""`` and ``0``. The roles are those that ``ast`` finds:
    a name that is assigned, read or called, an attribute or a method, an argument's name in a call, a parameter,
    the name of a function or class that is defined, a module, a name imported from one, a base class, a decorator, an
    annotation, an exception that is raised or caught. Words that are no identifiers have the tag -1, which no loss and
    no metric counts. All lines of one source file are in the same split, and no line is there twice. Equal versions
    of the libraries give equal corpora.

    The first call reads the libraries (some seconds) and keeps the result on disk; later calls load it.

    Args:
        cache_folder: where the corpus is kept; by default `$HF_DISTILL_CACHE`, else `~/.cache/hf_distill`.
        report: receives each line of progress while the corpus is built.

    Returns:
        Splits `train` (8,000 lines), `validation` (1,000) and `test` (3,000), with the columns `tokens` (strings) and
        `tags` (ClassLabel with 15 names, -1 for none).

    Raises:
        FileNotFoundError: if one of the libraries has no source files here.

    Example:
        >>> line = identifier_roles(report=lambda line: None)["test"][0]
        >>> len(line["tokens"]) == len(line["tags"])
        True
    """
    return kept_corpus("identifier_roles", _versions(BUILDER_VERSION), _build, cache_folder, report)


def _build(report: Callable[[str], None]) -> DatasetDict:
    known: set[str] = set()
    found: dict[str, Lines] = {name: [] for name in LINES}
    for label in LABELS:
        of_library = _lines_of_library(label, known)
        report(f"  {label}: {sum(map(len, of_library.values()))} lines")
        for name, lines in of_library.items():
            found[name] += lines
    features = Features({"tokens": Sequence(Value("string")), "tags": Sequence(ClassLabel(names=ROLES))})
    splits = {}
    for name, lines in found.items():
        rows = {"tokens": [tokens for tokens, _ in lines], "tags": [tags for _, tags in lines]}
        splits[name] = Dataset.from_dict(rows, features=features)
    return DatasetDict(splits)


def _lines_of_library(label: str, known: set[str]) -> dict[str, Lines]:
    """Return as many lines of a library as are its share, by split."""
    wanted = {name: -(-count // len(LABELS)) for name, count in LINES.items()}
    found: dict[str, Lines] = {name: [] for name in LINES}
    sizes = dict.fromkeys(SPLIT_SHARES, 0)
    for path in source_paths(label):
        split = split_of(sizes)
        lines = _lines_of_file(path, known)
        sizes[split] += len(lines)
        found[split] += lines[: wanted[split] - len(found[split])]
        if all(len(found[name]) >= wanted[name] for name in wanted):
            break
    return found


def _lines_of_file(path: Path, known: set[str]) -> Lines:
    """Return usable lines of a file that were not seen before, evenly from the whole of it."""
    source = path.read_bytes()
    tree = parsed(source)
    if tree is None:
        return []
    try:
        roles = roles_in(tree, source.decode())
        lines = list(_logical_lines(source))
    except (UnicodeDecodeError, tokenize.TokenError, SyntaxError):
        return []
    found: Lines = []
    for words in lines[:: max(len(lines) // (4 * LINES_PER_FILE), 1)]:
        tokens = [text for text, _ in words]
        tags = [ROLES.index(roles[place]) if place in roles else NO_ROLE for _, place in words]
        text = " ".join(tokens)
        identifiers = [tag for tag in tags if tag != NO_ROLE]
        usable = SHORTEST <= len(tokens) <= LONGEST and len(set(identifiers)) > 1
        if usable and text not in known:
            known.add(text)
            found.append((tokens, tags))
        if len(found) == LINES_PER_FILE:
            break
    return found


def _logical_lines(source: bytes) -> Iterator[list[tuple[str, tuple[int, int]]]]:
    """Yield the words of each logical line with their places, texts and numbers made alike."""
    words: list[tuple[str, tuple[int, int]]] = []
    depth = 0  # Python 3.12 gives the parts of an f-string one by one
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "NEWLINE":
            yield words
            words = []
        elif kind == "FSTRING_START":
            depth += 1
            words.append(('""', token.start))
        elif kind == "FSTRING_END":
            depth -= 1
        elif depth == 0 and kind == "STRING":
            words.append(('""', token.start))
        elif depth == 0 and kind == "NUMBER":
            words.append(("0", token.start))
        elif depth == 0 and kind in ("NAME", "OP"):
            words.append((token.string, token.start))


def roles_in(tree: ast.Module, source: str) -> dict[tuple[int, int], str]:
    """Return the role of each identifier by its line, from 1, and column, as ``tokenize`` counts them.

    Example:
        >>> code = "total = sum(values, start=0)"
        >>> sorted(roles_in(ast.parse(code), code).items())
        [((1, 0), 'assigned'), ((1, 8), 'called'), ((1, 12), 'read'), ((1, 20), 'argument')]
    """
    finder = _RoleFinder(source)
    finder.visit(tree)
    return finder.roles


class _RoleFinder(ast.NodeVisitor):
    """Walks a tree, and notes what each name is; ``ast`` counts columns in bytes, ``tokenize`` in characters."""

    def __init__(self, source: str) -> None:
        self.lines = source.split("\n")
        self.roles: dict[tuple[int, int], str] = {}

    def _note(self, line: int, column: int, role: str) -> None:
        before = self.lines[line - 1].encode()[:column].decode(errors="ignore")
        self.roles.setdefault((line, len(before)), role)

    def _after(self, node: ast.stmt, word: str, name: str, role: str) -> None:
        """Note a name that the tree has no place of: it stands behind a word of the node's own line."""
        text = self.lines[node.lineno - 1]
        at = text.find(f"{word} {name}", len(text.encode()[: node.col_offset].decode(errors="ignore")))
        if at >= 0:
            self.roles.setdefault((node.lineno, at + len(word) + 1), role)

    def _mark(self, node: ast.AST | None, role: str) -> None:
        """Note the last name of a dotted one, and look into all else as usual."""
        if isinstance(node, ast.Name):
            self._note(node.lineno, node.col_offset, role)
        elif isinstance(node, ast.Attribute):
            self._attribute(node, role)
            self.visit(node.value)
        elif node is not None:
            self.visit(node)

    def _attribute(self, node: ast.Attribute, role: str) -> None:
        if node.end_lineno is not None and node.end_col_offset is not None:
            self._note(node.end_lineno, node.end_col_offset - len(node.attr.encode()), role)

    def _annotation(self, node: ast.AST | None) -> None:
        for part in () if node is None else ast.walk(node):
            if isinstance(part, (ast.Name, ast.Attribute)):
                self._mark(part, "annotation") if isinstance(part, ast.Name) else self._attribute(
                    part, "annotation"
                )

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Note its name, parameters and decorators."""
        for one in node.decorator_list:
            self._mark(one.func if isinstance(one, ast.Call) else one, "decorator")
        self._after(node, "def", node.name, "function")
        self._annotation(node.returns)
        self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Note its name, bases and decorators."""
        for one in node.decorator_list:
            self._mark(one.func if isinstance(one, ast.Call) else one, "decorator")
        self._after(node, "class", node.name, "class")
        for base in node.bases:
            self._mark(base, "base class")
        self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        """Note a parameter."""
        self._note(node.lineno, node.col_offset, "parameter")
        self._annotation(node.annotation)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Note what is annotated, and how."""
        self._annotation(node.annotation)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Note what is called, and the names of its arguments."""
        self._mark(node.func, "called" if isinstance(node.func, ast.Name) else "method")
        for one in node.keywords:
            if one.arg is not None:
                self._note(one.lineno, one.col_offset, "argument")
        for part in (*node.args, *node.keywords):
            self.visit(part)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Note what is raised."""
        self._mark(node.exc.func if isinstance(node.exc, ast.Call) else node.exc, "exception")
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        """Note what is caught."""
        for one in node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]:
            self._mark(one, "exception")
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note an attribute."""
        self._attribute(node, "attribute")
        self.visit(node.value)

    def visit_Name(self, node: ast.Name) -> None:
        """Note a name that is read or assigned."""
        self._note(node.lineno, node.col_offset, "read" if isinstance(node.ctx, ast.Load) else "assigned")

    def visit_Import(self, node: ast.Import) -> None:
        """Note modules."""
        self._imported(node, "module")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Note a module and what is taken from it."""
        text = self.lines[node.lineno - 1]
        start = text.find("from", node.col_offset) + 5
        for part in (node.module or "").split("."):
            at = text.find(part, start)
            if part and at >= 0:
                self.roles.setdefault((node.lineno, at), "module")
                start = at + len(part)
        self._imported(node, "imported")

    def _imported(self, node: ast.Import | ast.ImportFrom, role: str) -> None:
        for one in node.names:
            at = one.col_offset
            for part in one.name.split("."):
                if not keyword.iskeyword(part) and part != "*":
                    self._note(one.lineno, at, role)
                at += len(part.encode()) + 1
            if one.asname and one.end_lineno and one.end_col_offset:
                self._note(one.end_lineno, one.end_col_offset - len(one.asname.encode()), "assigned")
