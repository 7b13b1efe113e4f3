"""Which of several teachers an objective on one model's inside follows, and how that teacher is reached."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from hf_distill.columns import BatchColumns
from hf_distill.teachers.ensemble import TeacherEnsemble
from hf_distill.teachers.preparation import naming
from hf_distill.teachers.signals import Teacher, TeacherSignals, member_signals

# An objective's setting: the number of a teacher, or the mean of the objective's values against all of them.
Follows = int | Literal["average"]


@dataclass(frozen=True)
class Followed:
    """One teacher that an objective follows: the only one, or a member of an ensemble.

    Args:
        teacher: it.
        weight: of the objective's value against it.
        place: its number among several, or None.
        ensemble: the ensemble that it is a member of, or None.
    """

    teacher: Teacher
    weight: float = 1.0
    place: int | None = None
    ensemble: TeacherEnsemble | None = None

    def signals(self, signals: TeacherSignals) -> TeacherSignals:
        """Return its own signals out of those of all."""
        return member_signals(signals)[self.place or 0]

    def columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return what it is given of the teachers' part of a batch."""
        return batch if self.ensemble is None else self.ensemble.columns_of(self.place or 0, batch)

    def has_own_encoding(self, columns: BatchColumns) -> bool:
        """Whether it reads other tokens than the student."""
        own_prefix = self.ensemble is not None and self.ensemble.prefixes[self.place or 0] != ""
        return columns.own_encoding or own_prefix

    def at_work(self) -> AbstractContextManager[None]:
        """Have its weights on the device for a while, where they are kept off it."""
        return nullcontext() if self.ensemble is None else self.ensemble.at_work(self.teacher)

    def naming(self) -> AbstractContextManager[None]:
        """Say in an error which of several teachers it is about."""
        return nullcontext() if self.ensemble is None else naming(self.ensemble, self.place or 0)


def followed(teacher: Teacher, setting: Follows | None, key: str) -> tuple[Followed, ...]:
    """Return the teachers that an objective follows, with weights that sum to 1.

    ``average`` takes the weights of the ensemble where they are numbers, of which those that are 0 are
    left out, and equal ones where they are set per row: the rows of features are no rows of logits.

    Args:
        teacher: a prepared teacher or ensemble.
        setting: a number, counted from 0, ``average``, or None, which does for a single teacher.
        key: the objective's name in the logs.

    Raises:
        ValueError: several teachers and no setting, or the number of a teacher that is not there.

    Example:
        >>> ensemble = TeacherEnsemble(["a", "b", "c"], weights=[1, 0, 3])
        >>> [(one.place, one.weight) for one in followed(ensemble, "average", "rkd")]
        [(0, 0.25), (2, 0.75)]
        >>> [(one.place, one.weight) for one in followed(ensemble, 1, "rkd")]
        [(1, 1.0)]
        >>> followed(ensemble, None, "rkd")
        Traceback (most recent call last):
            ...
        ValueError: objective 'rkd': expected teacher: 0 to 2 or average, as there are 3 teachers, received nothing.
    """
    ensemble = teacher if isinstance(teacher, TeacherEnsemble) else None
    count = 1 if ensemble is None else len(ensemble.members)
    if setting is None and count == 1:
        setting = 0
    if setting is None or (setting != "average" and setting >= count):
        choice = f"0 to {count - 1} or average, as there are {count} teachers"
        choice = choice if count > 1 else "0, average or nothing, as there is one teacher"
        raise ValueError(
            f"objective {key!r}: expected teacher: {choice}, received {'nothing' if setting is None else setting}."
        )
    if ensemble is None:
        return (Followed(teacher),)
    weights = dict(enumerate(ensemble.fixed_weights)) if setting == "average" else {setting: 1.0}
    return tuple(
        Followed(ensemble.members[place], weight, place, ensemble)
        for place, weight in weights.items()
        if weight > 0
    )
