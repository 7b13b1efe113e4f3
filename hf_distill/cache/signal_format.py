"""What every format of kept logits is, and how numbers become bytes and come back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import numpy
import torch

from hf_distill.cache.id_packing import ID_BITS, bits_for
from hf_distill.teachers.signals import TeacherSignals

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class SignalFormat(ABC):
    """One way to keep logits: a frozen dataclass whose fields are in the manifest.

    Attributes:
        name: in the manifest and on the command line.
        provides: what its signals give; objectives say which of those they take.
        parts: the names of the tensors that :meth:`decode` returns.
    """

    name: ClassVar[str]
    provides: ClassVar[frozenset[str]]
    parts: ClassVar[tuple[str, ...]]

    @abstractmethod
    def row_bytes(self, classes: int) -> int:
        """Return the bytes of one row of logits."""

    @abstractmethod
    def encode(self, logits: torch.Tensor, key: bytes) -> numpy.ndarray:
        """Return ``(rows, classes)`` logits of one example as ``(rows, bytes)``.

        Args:
            logits: of the example with this key.
            key: seeds what is random, so that a second capture draws the same.
        """

    @abstractmethod
    def decode(self, raw: numpy.ndarray, classes: int) -> dict[str, torch.Tensor]:
        """Return ``(rows, bytes)`` as tensors with a row for each."""

    @abstractmethod
    def signals(
        self, parts: Mapping[str, torch.Tensor], classes: int, order: torch.Tensor | None
    ) -> TeacherSignals:
        """Return the signals of decoded tensors.

        Args:
            parts: from :meth:`decode`, with any leading dimensions.
            classes: how many there are.
            order: the teacher's index of each of the student's classes, or None where they agree.
        """

    @abstractmethod
    def differs(self, raw: numpy.ndarray, logits: torch.Tensor, key: bytes, tolerance: float) -> bool:
        """Whether a teacher now answers otherwise than it did.

        Args:
            raw: what is kept of an example's logits, ``(rows, bytes)``.
            logits: what it says now, ``(rows, classes)``.
            key: of the example.
            tolerance: how far both may differ, relative to the largest logit.
        """

    def describe(self) -> dict[str, Any]:
        """Return name and settings as plain values."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


def apart(kept: torch.Tensor, now: torch.Tensor, tolerance: float) -> bool:
    """Whether two answers differ by more than a share of the largest number; classes ruled out in both are equal."""
    if not kept.numel():
        return False
    largest = now[now.isfinite()].abs().max().clamp(min=1.0) if bool(now.isfinite().any()) else 1.0
    gaps = torch.where(kept == now, 0.0, (kept.float() - now.float()).abs())
    return not bool((gaps <= tolerance * largest).all())


def bytes_of_floats(values: torch.Tensor, dtype: str) -> numpy.ndarray:
    """Return ``(rows, n)`` numbers as ``(rows, bytes)``."""
    kept = values.detach().to("cpu", DTYPES[dtype]).contiguous()
    width = kept.shape[-1] * kept.element_size()  # said, since an example may have no positions
    return kept.view(torch.uint8).numpy().reshape(len(kept), width)


def floats_of_bytes(raw: numpy.ndarray, dtype: str) -> torch.Tensor:
    """Return ``(rows, bytes)`` as ``(rows, n)`` numbers."""
    if not len(raw):  # of an example without positions, whose strides torch can't see as numbers
        return torch.empty(0, raw.shape[1] // DTYPES[dtype].itemsize, dtype=DTYPES[dtype])
    return torch.from_numpy(numpy.array(raw)).view(DTYPES[dtype])  # a copy: mapped files are read-only


def reordered(ids: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Return the student's numbers of the teacher's classes."""
    return ids if order is None else torch.argsort(order)[ids]


def fitting_bits(bits: int | None, classes: int) -> int:
    """Return the width of a class number: the one asked for, or the narrowest that fits."""
    if bits is not None and classes > 1 << bits:
        raise ValueError(
            f"cache: id_bits: expected a width that holds {classes} classes, received {bits}. Use {bits_for(classes)}."
        )
    return bits or bits_for(classes)


def check_bits(bits: int | None) -> None:
    """Raise for a width that there is not."""
    if bits is not None and bits not in ID_BITS:
        raise ValueError(f"cache: id_bits: expected 16, 18, 24 or 32, received {bits!r}.")


def check_dtype(dtype: str) -> None:
    """Raise for a dtype that numbers are not kept in."""
    if dtype not in DTYPES:
        raise ValueError(f"cache: dtype: expected {' or '.join(DTYPES)}, received {dtype!r}.")


def check_count(setting: str, value: Any) -> None:
    """Raise for what is no count."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"cache: {setting}: expected a whole number of at least 1, received {value!r}.")
