"""Which layer of the student is held against which of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_distill.features import ModelShape
from hf_distill.layer_stacks import evenly_spaced_layers

Pairs = tuple[tuple[int, int], ...]


def check_layers(layers: Any, words: Sequence[str], where: str) -> str | Pairs:
    """Return the ``layers`` setting of an objective, checked: a word, or pairs as tuples.

    Raises:
        ValueError: neither one of the words nor a list of ``[student, teacher]`` pairs.

    Example:
        >>> check_layers([[1, 2], [2, 4]], ["uniform", "last"], "hidden_states")
        ((1, 2), (2, 4))
    """
    if isinstance(layers, str) and layers in words:
        return layers
    if isinstance(layers, (list, tuple)) and layers:
        pairs = [tuple(pair) if isinstance(pair, (list, tuple)) else () for pair in layers]
        if all(len(pair) == 2 and all(_is_layer(number) for number in pair) for pair in pairs):
            return tuple((pair[0], pair[1]) for pair in pairs)
    raise ValueError(
        f"{where}: layers: expected {', '.join(words)} or a list of [student layer, teacher layer] pairs counted from "
        f"1 (0 is the embeddings), received {layers!r}."
    )


def _is_layer(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


# PKD's two ways, which have no other to turn to, by the words that the user gives.
_GIVEN = {"skip": "skip", "last_before": "last"}


def layer_pairs(layers: str | Pairs, student: ModelShape, teacher: ModelShape, where: str) -> Pairs:
    """Return pairs of hidden states, where number ``i`` is the output of layer ``i`` and 0 the embeddings.

    Formula: ``uniform`` is the map recorded when the student was cut from a teacher, if this one has those layers,
    else layer ``i`` of ``L_s`` beside ``round(i (L_t - 1) / (L_s - 1))``, both counted from 0; ``last`` the
    last of both; ``skip`` is PKD's: every layer but the last, ``i`` beside ``i L_t / L_s``; ``last_before``
    PKD's other: the layers before the last, ``i`` beside ``L_t - L_s + i``.

    Raises:
        ValueError: a layer that a model does not have, or a student deeper than its teacher.

    Example:
        >>> layer_pairs("uniform", ModelShape(3, 8, 1), ModelShape(12, 8, 1), "hidden_states")
        ((1, 1), (2, 7), (3, 12))
        >>> layer_pairs("skip", ModelShape(6, 8, 1), ModelShape(12, 8, 1), "patient")
        ((1, 2), (2, 4), (3, 6), (4, 8), (5, 10))
    """
    if not isinstance(layers, str):
        for pair in layers:
            for number, shape, who in ((pair[0], student, "student"), (pair[1], teacher, "teacher")):
                if number > shape.layers:
                    raise ValueError(
                        f"{where}: layers: expected at most the {who}'s {shape.layers} layers, received {number} in "
                        f"{list(pair)}."
                    )
        return layers
    if layers == "last":
        return ((student.layers, teacher.layers),)
    if student.layers > teacher.layers:
        raise ValueError(
            f"{where}: expected a student of at most the teacher's {teacher.layers} layers for "
            f"layers={_GIVEN.get(layers, layers)!r}, received {student.layers}. Give the pairs"
            f"{'' if layers in _GIVEN else ', or the last layers of both'}."
        )
    if layers == "uniform":
        recorded = student.cut_from
        if recorded is None or max(recorded) >= teacher.layers:
            recorded = tuple(evenly_spaced_layers(teacher.layers, student.layers))
        return tuple((own + 1, other + 1) for own, other in enumerate(recorded))
    if student.layers < 2:
        raise ValueError(
            f"{where}: expected a student of at least 2 layers, because the last one is left out, received "
            f"{student.layers}. Use hidden_states."
        )
    before_last = range(1, student.layers)
    if layers == "skip":
        return tuple((number, number * teacher.layers // student.layers) for number in before_last)
    return tuple((number, teacher.layers - student.layers + number) for number in before_last)
