"""The values of a YAML file, which argparse would take as defaults and so without its checks."""

from __future__ import annotations

import argparse
from datetime import date
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

_CALLED = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping",
}  # fmt: skip


def checked_value(value: Any, action: argparse.Action, hint: Any) -> Any:
    """Return a value as its flag would have given it.

    Args:
        value: what the file says.
        action: the flag's entry in the parser, with its choices and the type that reads text.
        hint: the annotation of the dataclass's field.

    Raises:
        ValueError: a value that the flag would not take.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> rate = parser.add_argument("--rate", type=float)
        >>> checked_value("1e-3", rate, float)  # YAML reads a number without a point as text
        0.001
        >>> checked_value("fast", rate, float)
        Traceback (most recent call last):
            ...
        ValueError: expected a number, received 'fast'.
    """
    kinds = _kinds(hint)
    if value is None or action.nargs != "+":
        return _checked(value, action, kinds)
    items = [item for part in (hint, *get_args(hint)) if get_origin(part) is list for item in get_args(part)]
    of_items = (kinds | set(items)) - {list, NoneType}
    return [_checked(item, action, of_items) for item in (value if isinstance(value, list) else [value])]


def _kinds(hint: Any) -> set[type]:
    """Return what an annotation is made of: the types of a union, and dict for ``dict[str, Any]``."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return {get_origin(part) or part for part in parts}


def _checked(value: Any, action: argparse.Action, kinds: set[type]) -> Any:
    if isinstance(value, bool) and str in kinds and bool not in kinds and action.choices is None:
        return str(value).lower()  # --resume_from_checkpoint takes true, but as text
    taken = _as_is(value, kinds)
    if isinstance(value, str) and callable(action.type):
        try:
            value, taken = action.type(value), True
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            taken = taken and not action.choices
    if taken and action.choices is not None and value is not None:
        taken = value in action.choices
    if not taken:
        raise ValueError(f"expected {_expected(action, kinds)}, received {value!r}.{_remedy(value, kinds)}")
    return float(value) if isinstance(value, int) and int not in kinds and float in kinds else value


def _as_is(value: Any, kinds: set[type]) -> bool:
    """Whether a value is of a kind already; a whole number is a number, true and false are none."""
    return type(value) in kinds or (type(value) is int and float in kinds)


def _expected(action: argparse.Action, kinds: set[type]) -> str:
    if action.choices is not None:
        return f"one of {', '.join(map(str, action.choices))}"
    return " or ".join(name for kind, name in _CALLED.items() if kind in kinds and kind is not NoneType)


def _remedy(value: Any, kinds: set[type]) -> str:
    if isinstance(value, bool) and str in kinds:
        return " YAML reads no, off, yes and on as true and false: put it into quotes."
    return " Put it into quotes." if isinstance(value, (int, float, date)) and str in kinds else ""
