"""What is wrong with a cache, said so that a user can mend it."""

from __future__ import annotations


class CacheError(RuntimeError):
    """A cache that can't be written or read, or that does not fit the run; it names the file or both sides."""
