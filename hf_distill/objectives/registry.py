"""Finds objective files by name and builds an objective from a plain dict of settings."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import hf_distill.objectives
from hf_distill.objectives.base import Objective

_NOT_OBJECTIVES = {"base", "registry"}


@functools.cache
def objective_classes() -> dict[str, type[Objective]]:
    """Return every objective in the package, by name.

    Raises:
        ImportError: a file without exactly one objective, or named otherwise than its objective.

    Example:
        >>> sorted(objective_classes())[:3]
        ['binary_kl', 'derivative', 'forward_kl']
    """
    found = {}
    for module_info in pkgutil.iter_modules(hf_distill.objectives.__path__):
        if module_info.name in _NOT_OBJECTIVES:
            continue
        module = importlib.import_module(f"hf_distill.objectives.{module_info.name}")
        classes = [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, Objective)
            and value.__module__ == module.__name__
        ]
        if len(classes) != 1 or classes[0].name != module_info.name:
            raise ImportError(
                f"objectives/{module_info.name}.py: expected one Objective named {module_info.name!r}, "
                f"received {[(c.__name__, getattr(c, 'name', None)) for c in classes]}."
            )
        found[module_info.name] = classes[0]
    return found


def build_objective(name: str, settings: Mapping[str, Any]) -> Objective:
    """Build an objective from its name, or a dotted path to a class, and its settings.

    Args:
        name: a name in :func:`objective_classes`, or ``mypackage.losses.MyLoss``.
        settings: the fields of that dataclass.

    Raises:
        ValueError: an unknown name or setting (the valid ones are listed), or a value out of range.

    Example:
        >>> build_objective("forward_kl", {"temperature": 4.0})
        ForwardKL(temperature=4.0)
        >>> build_objective("forward_kl", {"temprature": 4.0})
        Traceback (most recent call last):
            ...
        ValueError: objective 'forward_kl' has no setting 'temprature'. Valid settings: temperature.
    """
    objective_class = _find(name)
    valid = [field.name for field in fields(objective_class)]  # type: ignore[arg-type]
    for key in settings:
        if key not in valid:
            raise ValueError(
                f"objective {name!r} has no setting {key!r}. Valid settings: {', '.join(valid) or 'none'}."
            )
    return objective_class(**settings)


def _find(name: str) -> type[Objective]:
    """Return the class of a name or dotted path."""
    known = objective_classes()
    if name in known:
        return known[name]
    if "." not in name:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown objective {name!r}.{hint} Valid objectives: {', '.join(sorted(known))}.")
    module_name, _, class_name = name.rpartition(".")
    try:
        value = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"objective {name!r}: expected the dotted path of an importable class, but: {error}."
        ) from error
    if not (isinstance(value, type) and issubclass(value, Objective) and is_dataclass(value)):
        raise ValueError(
            f"objective {name!r}: expected a dataclass derived from hf_distill.objectives.Objective, "
            f"received {value!r}."
        )
    return value
