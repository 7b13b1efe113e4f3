"""Where texts come from: the embedded default corpus, and the user's own files."""

from hf_distill.corpora.docstrings import docstring_corpus
from hf_distill.corpora.files import DataError, read_files

__all__ = ["DataError", "docstring_corpus", "read_files"]
