"""Libraries of metrics that not every user has: imported where they are used, with the command that installs them."""

from __future__ import annotations

import importlib
from typing import Any


def needed(module: str, distribution: str) -> Any:
    """Import a module of the extra ``metrics``.

    Raises:
        ImportError: where it is not installed, with the command that installs it.

    Example:
        >>> needed("no_such_module", "no-such-thing")
        Traceback (most recent call last):
            ...
        ImportError: expected no-such-thing, which measures this task, to be installed: pip install ...
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"expected {distribution}, which measures this task, to be installed: pip install 'hf-distill[metrics]'."
        ) from error
