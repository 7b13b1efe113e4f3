"""The embedded corpus: what it holds, that it is cached whole, that nothing but the libraries decides it."""

import sys
from pathlib import Path

import pytest

from hf_distill.corpora import docstring_corpus, docstrings, library_sources


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    """A corpus over two libraries of ours, so that each test builds in no time."""
    first, second = tmp_path / "first", tmp_path / "second"
    for root, word in ((first, "alpha"), (second, "beta")):
        (root / "tests").mkdir(parents=True)
        for number in range(30):
            (root / f"file_{number}.py").write_text(
                f'"""The {word} module with the number {number}, as it stands."""\n'
                f'def function():\n    """A function of {word} in the file {number}.\n\n    Second."""\n'
                '"""Not a docstring, though it is long enough for one."""\n'
                'class Shared:\n    """A text that both of the libraries have."""\n'
                f'    def method(self):\n        """Repeated within the {word} library."""\n'
            )
        (root / "broken.py").write_text("def (:\n")
        (root / "tests" / "skipped.py").write_text('"""A test file, which nobody wants to see here."""\n')
    roots = {library_sources.STANDARD_LIBRARY: first, "torch": second}
    monkeypatch.setattr(docstrings, "LABELS", list(roots))
    monkeypatch.setattr(library_sources, "root_of_library", roots.__getitem__)
    return tmp_path


def test_texts_are_first_paragraphs_without_duplicates(small_library):
    corpus = docstring_corpus(small_library / "cache", report=lambda line: None)
    texts = [text for split in corpus.values() for text in split["text"]]
    assert len(texts) == len(set(texts)) == 2 * (30 + 30 + 1)
    assert "A function of alpha in the file 3." in texts
    assert texts.count("Repeated within the beta library.") == 1
    assert not [text for text in texts if "both" in text or "Second" in text or "test file" in text]
    for split in corpus.values():
        for row in split:
            assert ("alpha" in row["text"]) == (row["label"] == 0)


def test_no_source_file_is_in_two_splits(small_library):
    corpus = docstring_corpus(small_library / "cache", report=lambda line: None)
    split_of = {row["text"]: name for name, split in corpus.items() for row in split}
    for number in range(30):
        for word in ("alpha", "beta"):
            module = f"The {word} module with the number {number}, as it stands."
            assert split_of[module] == split_of[f"A function of {word} in the file {number}."]
    assert set(split_of.values()) == {"train", "validation", "test"}


def test_second_call_loads_and_leaves_nothing_else_behind(small_library):
    lines: list[str] = []
    first = docstring_corpus(small_library / "cache", report=lines.append)
    assert lines
    lines.clear()
    second = docstring_corpus(small_library / "cache", report=lines.append)
    assert not lines
    assert first["train"]._fingerprint == second["train"]._fingerprint
    assert len(list((small_library / "cache").iterdir())) == 1


def test_failed_write_leaves_no_corpus(small_library, monkeypatch):
    from datasets import DatasetDict

    def fail(self, folder):
        Path(folder, "half").write_text("")
        raise OSError("disk full")

    monkeypatch.setattr(DatasetDict, "save_to_disk", fail)
    with pytest.raises(OSError, match="disk full"):
        docstring_corpus(small_library / "cache", report=lambda line: None)
    assert not list((small_library / "cache").iterdir())


def test_cache_folder_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DISTILL_CACHE", str(tmp_path))
    assert library_sources.default_cache_folder() == tmp_path
    monkeypatch.delenv("HF_DISTILL_CACHE")
    assert library_sources.default_cache_folder() == Path.home() / ".cache" / "hf_distill"


def test_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(library_sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install torch"):
        library_sources.root_of_library("torch")


def test_libraries_are_read_without_being_imported(monkeypatch, tmp_path):
    package = tmp_path / "stubborn_library"
    package.mkdir()
    (package / "__init__.py").write_text(
        '"""A library that refuses to be imported at all."""\nraise SystemExit\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(library_sources.LIBRARIES, "stubborn", ("stubborn_library", "stubborn-library"))
    texts = docstrings._texts_of_library("stubborn")
    assert [text for text, _ in texts.values()] == ["A library that refuses to be imported at all."]
    assert "stubborn_library" not in sys.modules


def test_real_corpus_is_large_enough():
    corpus = docstring_corpus()
    assert len(corpus["train"]) > 9000
    assert len(corpus["validation"]) > 1000
    assert len(corpus["test"]) >= 4000
    for split in corpus.values():
        assert set(split["label"]) == set(range(8))
