"""Makes a teacher of what the user gave, a model, a name, a Teacher or several, checked against the student."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_distill import compatibility
from hf_distill.cache.manifest import MANIFEST_NAME
from hf_distill.cache.teacher_cache import TeacherCache
from hf_distill.columns import TEACHER_PREFIX, TeacherEncoding, member_prefix
from hf_distill.items import Head
from hf_distill.teachers.ensemble import TeacherEnsemble
from hf_distill.teachers.online import OnlineTeacher, load_teacher_model
from hf_distill.teachers.signals import Teacher
from hf_distill.teachers.weighting import check_combine, check_weights

TeacherLike = str | Path | nn.Module | Teacher


@dataclass(frozen=True)
class TeacherPreparation:
    """What a teacher is checked against, and where it goes.

    Args:
        student: the student, unwrapped.
        head: what its outputs mean.
        args: arguments; fields of :class:`hf_distill.DistillationArgumentsMixin` that they lack take the defaults.
        device: where the teacher runs.
        autocast: makes the context that its forward runs in.
    """

    student: nn.Module
    head: Head
    args: Any
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]

    def prepare(self, teacher: Any, processing_class: Any = None) -> Teacher:
        """Return the teacher, or the ensemble of several, ready to be asked.

        Args:
            teacher: a model, a Hub id, a folder, a Teacher, or a list of those.
            processing_class: as :func:`own_processing_classes` takes it.

        Raises:
            ValueError: a teacher that doesn't fit the student, named by its place where there are several.
        """
        if isinstance(teacher, (list, tuple)) and len(teacher) == 1:
            teacher = teacher[0]
        if isinstance(teacher, (list, tuple)):
            check_ensemble_arguments(self.args, len(teacher))
            teacher = TeacherEnsemble(
                teacher,
                getattr(self.args, "teacher_weights", None),
                getattr(self.args, "teacher_combine", None) or "probabilities",
                bool(getattr(self.args, "offload_teachers", False)),
            )
        check_settings(teacher, self.args)
        if not isinstance(teacher, TeacherEnsemble):
            return self._one(teacher)
        members = []
        for index, member in enumerate(teacher.members):
            with naming(teacher, index):
                members.append(self._one(member, teacher.offload))
        separate = isinstance(processing_class, (list, tuple))
        own = own_processing_classes(processing_class, len(members))
        prefixes = [member_prefix(i) if separate and own[i] is not None else "" for i in range(len(own))]
        return teacher.prepared(members, self.head, self.device, prefixes)

    def _one(self, teacher: Any, offload: bool = False) -> Teacher:
        """Return one teacher, checked; its weights on the device, or where they are to wait for their turn."""
        if teacher is None:
            raise ValueError(
                "teacher: expected a model, a Hub id, a folder or a Teacher, received None. Give teacher=; to train "
                "without one use transformers.Trainer."
            )
        name = None
        if isinstance(teacher, (str, Path)) and (Path(teacher) / MANIFEST_NAME).is_file():
            teacher = TeacherCache(teacher)
        if isinstance(teacher, TeacherCache):
            return teacher.prepared(self.student, self.head)
        if isinstance(teacher, (str, Path)):
            name = str(teacher)
            teacher = load_teacher_model(
                name,
                self.student,
                getattr(self.args, "teacher_revision", None),
                getattr(self.args, "teacher_dtype", None),
                getattr(self.args, "teacher_attn_implementation", None),
            )
        if isinstance(teacher, nn.Module):
            teacher = self._of_model(teacher, name)
            return teacher.to(torch.device("cpu") if offload else self.device)
        if isinstance(teacher, Teacher):
            return teacher
        raise ValueError(
            f"teacher: expected a model, a Hub id, a folder or a Teacher, received {type(teacher).__name__}."
        )

    def _of_model(self, model: Any, name: str | None) -> OnlineTeacher:
        own = {id(parameter) for parameter in self.student.parameters()}
        if any(id(parameter) in own for parameter in model.parameters()):
            raise ValueError(
                "teacher: expected a model of its own, received one that shares parameters with the student; freezing "
                "the teacher would freeze the student. Make the student with student_from_teacher, or copy.deepcopy."
            )
        if getattr(model, "config", None) is None:
            raise ValueError(
                f"teacher: expected a transformers model, whose config tells its labels, received "
                f"{type(model).__name__} without a config. Set teacher.config = student.config if the classes are "
                "the same, or give an object that answers teacher(batch) -> TeacherSignals."
            )
        placed = (
            getattr(model, "hf_device_map", None) is not None
        )  # whose offloaded weights come when they are needed
        if not placed and any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError(
                "teacher: expected a model with weights, received one on the meta device, which has none. Load it with "
                "from_pretrained."
            )
        compatibility.check_heads(self.student, model, self.head)
        order = None
        if compatibility.predicts_tokens(self.student):
            compatibility.check_outputs(self.student, model)
        elif compatibility.has_named_classes(self.student):
            order = compatibility.label_order(self.student.config, model.config)
        return OnlineTeacher(model, name, order, self.autocast)


@contextmanager
def naming(teacher: Any, index: int) -> Iterator[None]:
    """Say in an error which of several teachers it is about.

    Example:
        >>> with naming(TeacherEnsemble(["a", "b"]), 1):
        ...     raise ValueError("labels: expected 3, received 2.")
        Traceback (most recent call last):
            ...
        ValueError: teacher[1]: labels: expected 3, received 2.
    """
    try:
        yield
    except ValueError as error:
        if not isinstance(teacher, TeacherEnsemble):
            raise
        raise ValueError(f"teacher[{index}]: {str(error).removeprefix('teacher: ')}") from error


def check_ensemble_arguments(args: Any, teachers: int) -> None:
    """Raise for settings of an ensemble that a number of teachers can't have.

    Args:
        args: any arguments.
        teachers: how many there are.

    Raises:
        ValueError: an ensemble's settings for one teacher, or settings that are no ensemble's.

    Example:
        >>> from types import SimpleNamespace
        >>> check_ensemble_arguments(SimpleNamespace(teacher_combine="logits"), 1)
        Traceback (most recent call last):
            ...
        ValueError: teacher_combine: expected several teachers, received one. Give teacher=[a, b], or drop
        teacher_combine.
    """
    for name in ("teacher_weights", "teacher_combine", "offload_teachers"):
        value = getattr(args, name, None)
        if teachers == 1 and value not in (None, False):
            raise ValueError(
                f"{name}: expected several teachers, received one. Give teacher=[a, b], or drop {name}."
            )
    if teachers > 1:
        check_weights(getattr(args, "teacher_weights", None), teachers)
        check_combine(getattr(args, "teacher_combine", None) or "probabilities")


def check_settings(teacher: Any, args: Any) -> None:
    """Raise where the arguments say another ensemble than the one that is there.

    Raises:
        ValueError: an ensemble's settings for one teacher, or settings that differ from its own.
    """
    if not isinstance(teacher, TeacherEnsemble):
        check_ensemble_arguments(args, 1)
        return
    given = getattr(args, "teacher_weights", None)
    wanted = {
        "teacher_weights": None if given is None else check_weights(given, len(teacher.members)),
        "teacher_combine": getattr(args, "teacher_combine", None),
        "offload_teachers": getattr(args, "offload_teachers", None) or None,
    }
    own = {
        "teacher_weights": teacher.weights,
        "teacher_combine": teacher.combine,
        "offload_teachers": teacher.offload,
    }
    for name, value in wanted.items():
        if value is not None and value != own[name]:
            raise ValueError(
                f"{name}: expected one value, received {own[name]!r} from the ensemble and {value!r} in the arguments. "
                "Set it in TeacherEnsemble(...) or in the arguments, and before the trainer is made."
            )


def own_processing_classes(given: Any, teachers: int) -> list[Any]:
    """Return each teacher's own tokenizer, or None where it reads the student's encoding.

    Args:
        given: None, one tokenizer for all teachers, or a list with one or None for each.
        teachers: how many there are.

    Raises:
        ValueError: a list of another length.

    Example:
        >>> own_processing_classes([None, "tokenizer"], 2), own_processing_classes("tokenizer", 2)
        ([None, 'tokenizer'], ['tokenizer', 'tokenizer'])
    """
    if not isinstance(given, (list, tuple)):
        return [given] * teachers
    if len(given) != teachers:
        raise ValueError(
            f"teacher_processing_class: expected {teachers} entries, one for each teacher (None where it reads the "
            f"student's encoding), received {len(given)}."
        )
    return list(given)


def members_of(teacher: Any) -> list[Any]:
    """Return the teachers of an ensemble, or the only one.

    Example:
        >>> members_of("teacher")
        ['teacher']
    """
    return list(teacher.members) if isinstance(teacher, TeacherEnsemble) else [teacher]


def teacher_encodings(teacher: Teacher, given: Any) -> tuple[TeacherEncoding, ...]:
    """Return how the collator is to encode the text for the teachers that read it in their own way.

    Args:
        teacher: a prepared teacher or ensemble.
        given: as :func:`own_processing_classes` takes it; one tokenizer for several teachers encodes once.
    """
    members = members_of(teacher)
    own = own_processing_classes(given, len(members))
    if not isinstance(given, (list, tuple)) or len(members) == 1:
        return () if own[0] is None else (_encoding(own[0], TEACHER_PREFIX, members),)
    return tuple(
        _encoding(own[index], member_prefix(index), [member])
        for index, member in enumerate(members)
        if own[index] is not None
    )


def _encoding(processing_class: Any, prefix: str, readers: list[Any]) -> TeacherEncoding:
    if getattr(processing_class, "pad_token", "") is None:
        raise ValueError(
            "teacher_processing_class: expected a tokenizer that can pad, received one without a pad token. Set "
            "tokenizer.pad_token, usually to tokenizer.eos_token."
        )
    limits = [getattr(processing_class, "model_max_length", None)]
    limits += [compatibility.longest_input(getattr(reader, "model", None)) for reader in readers]
    limits += [getattr(reader, "longest_input", None) for reader in readers]  # of a cache, which has no model
    longest = min((limit for limit in limits if limit is not None and limit < 10**9), default=None)
    return TeacherEncoding(processing_class, prefix, longest)
