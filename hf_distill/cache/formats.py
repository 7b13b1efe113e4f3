"""What a cache keeps of a teacher's logits, in how many bytes: all classes, the top k, or draws."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
import torch

from hf_distill.cache.id_packing import pack_ids, packed_bytes, unpack_ids
from hf_distill.cache.signal_format import (
    DTYPES,
    SignalFormat,
    apart,
    bytes_of_floats,
    check_bits,
    check_count,
    check_dtype,
    fitting_bits,
    floats_of_bytes,
    reordered,
)
from hf_distill.objectives.base import at_least_float32, check_temperature
from hf_distill.teachers.signals import DenseSignals, TeacherSignals
from hf_distill.teachers.sparse import SampledSignals, SparseSignals

# The share of draws that rounding may move.
_MOVED_DRAWS = 0.2


@dataclass(frozen=True)
class FullLogits(SignalFormat):
    """Every class's logit.

    Args:
        dtype: ``float32``, or ``bfloat16`` at half the bytes and 3 digits.

    Example:
        >>> kept = FullLogits("bfloat16")
        >>> kept.row_bytes(77)
        154
        >>> kept.decode(kept.encode(torch.tensor([[1.5, -2.0]]), b""), 2)["logits"]
        tensor([[ 1.5000, -2.0000]], dtype=torch.bfloat16)
    """

    dtype: str = "float32"

    name: ClassVar[str] = "full"
    provides: ClassVar[frozenset[str]] = frozenset({"logits", "log_probs"})
    parts: ClassVar[tuple[str, ...]] = ("logits",)

    def __post_init__(self) -> None:
        """Check the settings."""
        check_dtype(self.dtype)

    def row_bytes(self, classes: int) -> int:
        """Return the bytes of one row of logits."""
        return classes * DTYPES[self.dtype].itemsize

    def encode(self, logits: torch.Tensor, key: bytes) -> numpy.ndarray:
        """Return logits as bytes."""
        return bytes_of_floats(logits, self.dtype)

    def decode(self, raw: numpy.ndarray, classes: int) -> dict[str, torch.Tensor]:
        """Return the logits."""
        return {"logits": floats_of_bytes(raw, self.dtype)}

    def signals(
        self, parts: Mapping[str, torch.Tensor], classes: int, order: torch.Tensor | None
    ) -> TeacherSignals:
        """Return dense signals."""
        logits = parts["logits"]
        return DenseSignals(logits if order is None else logits.index_select(-1, order))

    def differs(self, raw: numpy.ndarray, logits: torch.Tensor, key: bytes, tolerance: float) -> bool:
        """Compare all logits."""
        return apart(self.decode(raw, logits.shape[-1])["logits"], logits, tolerance)


@dataclass(frozen=True)
class TopKLogits(SignalFormat):
    """The k largest logits, and the log-sum-exp of all others at some temperatures (the ghost bucket).

    Args:
        k: classes kept of each row; all of them where there are fewer.
        temperatures: those that can be answered, exactly; 1 is always among them, for what is measured.
        dtype: of the kept logits.
        id_bits: width of a class number: 16, 18, 24 or 32; the narrowest that fits if None.

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> kept = TopKLogits(k=2, temperatures=(1.0, 2.0))
        >>> kept.row_bytes(77)
        20
        >>> parts = kept.decode(kept.encode(torch.tensor([[0.0, 3.0, 1.0]]), b""), 3)
        >>> parts["ids"], parts["kept_logits"]
        (tensor([[1, 2]]), tensor([[3., 1.]]))
    """

    k: int = 64
    temperatures: Sequence[float] = (1.0, 2.0, 4.0)
    dtype: str = "float32"
    id_bits: int | None = None

    name: ClassVar[str] = "top_k"
    provides: ClassVar[frozenset[str]] = frozenset({"top_k"})
    parts: ClassVar[tuple[str, ...]] = ("ids", "kept_logits", "rest")

    def __post_init__(self) -> None:
        """Check the settings, and put the temperatures in order."""
        check_count("k", self.k)
        check_dtype(self.dtype)
        check_bits(self.id_bits)
        for temperature in self.temperatures:
            check_temperature(temperature, "cache: temperatures")
        ordered = tuple(sorted({1.0, *map(float, self.temperatures)}))
        object.__setattr__(self, "temperatures", ordered)

    def kept(self, classes: int) -> int:
        """Return how many classes are kept."""
        return min(self.k, classes)

    def _bits(self, classes: int) -> int:
        return fitting_bits(self.id_bits, classes)

    def row_bytes(self, classes: int) -> int:
        """Return the bytes of one row: ids, logits, and a float32 for each temperature."""
        kept = self.kept(classes)
        ids = packed_bytes(kept, self._bits(classes))
        return ids + kept * DTYPES[self.dtype].itemsize + 4 * len(self.temperatures)

    def encode(self, logits: torch.Tensor, key: bytes) -> numpy.ndarray:
        """Return the largest logits and the others' log-sum-exps as bytes."""
        classes = logits.shape[-1]
        logits = at_least_float32(logits)
        values, ids = logits.topk(self.kept(classes), dim=-1)
        others = logits.scatter(-1, ids, -torch.inf)
        rest = [torch.logsumexp(others / temperature, -1) for temperature in self.temperatures]
        parts = [
            pack_ids(ids.cpu().numpy(), self._bits(classes)),
            bytes_of_floats(values, self.dtype),
            bytes_of_floats(torch.stack(rest, -1), "float32"),
        ]
        return numpy.concatenate(parts, axis=-1)

    def decode(self, raw: numpy.ndarray, classes: int) -> dict[str, torch.Tensor]:
        """Return ids, logits and the others' log-sum-exps."""
        kept, bits = self.kept(classes), self._bits(classes)
        first = packed_bytes(kept, bits)
        second = first + kept * DTYPES[self.dtype].itemsize
        return {
            "ids": torch.from_numpy(unpack_ids(raw[:, :first], bits, kept)),
            "kept_logits": floats_of_bytes(raw[:, first:second], self.dtype),
            "rest": floats_of_bytes(raw[:, second:], "float32"),
        }

    def signals(
        self, parts: Mapping[str, torch.Tensor], classes: int, order: torch.Tensor | None
    ) -> TeacherSignals:
        """Return signals over the kept classes and the ghost bucket."""
        ids = reordered(parts["ids"], order)
        return SparseSignals(ids, parts["kept_logits"], parts["rest"], tuple(self.temperatures), classes)

    def differs(self, raw: numpy.ndarray, logits: torch.Tensor, key: bytes, tolerance: float) -> bool:
        """Compare the logits of the kept classes, and the others' log-sum-exps."""
        parts = self.decode(raw, logits.shape[-1])
        logits = at_least_float32(logits)
        others = logits.scatter(-1, parts["ids"], -torch.inf)
        rest = [torch.logsumexp(others / temperature, -1) for temperature in self.temperatures]
        now = torch.cat([logits.gather(-1, parts["ids"]), torch.stack(rest, -1)], -1)
        return apart(torch.cat([parts["kept_logits"].float(), parts["rest"]], -1), now, tolerance)


@dataclass(frozen=True)
class SampledLogits(SignalFormat):
    """Classes drawn from the teacher's distribution at T = 1, the only temperature that it answers then.

    Args:
        draws: N, for each row.
        seed: of the draws, beside the example's own key.
        id_bits: width of a class number: 16, 18, 24 or 32; the narrowest that fits if None.

    Raises:
        ValueError: a setting out of range.

    Source: Anshumann et al., arXiv 2503.16870; :class:`hf_distill.teachers.sparse.SampledSignals`.

    Example:
        >>> kept = SampledLogits(draws=4)
        >>> kept.row_bytes(77)
        8
        >>> kept.decode(kept.encode(torch.tensor([[9.0, -9.0]]), b"any key"), 2)["ids"]
        tensor([[0, 0, 0, 0]])
    """

    draws: int = 50
    seed: int = 0
    id_bits: int | None = None

    name: ClassVar[str] = "sampled"
    provides: ClassVar[frozenset[str]] = frozenset({"sampled"})
    parts: ClassVar[tuple[str, ...]] = ("ids",)

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("draws", self.draws)
        check_bits(self.id_bits)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The temperatures that can be answered."""
        return (1.0,)

    def row_bytes(self, classes: int) -> int:
        """Return the bytes of one row: as many ids as draws."""
        return packed_bytes(self.draws, fitting_bits(self.id_bits, classes))

    def encode(self, logits: torch.Tensor, key: bytes) -> numpy.ndarray:
        """Return draws, which depend on the key and the seed alone, as bytes."""
        classes = logits.shape[-1]
        digest = hashlib.blake2b(key + self.seed.to_bytes(8, "little", signed=True), digest_size=8).digest()
        uniform = numpy.random.default_rng(int.from_bytes(digest, "little")).random(
            (logits.shape[0], self.draws)
        )
        shares = torch.softmax(logits.detach().cpu().double(), -1).cumsum(-1)
        places = torch.from_numpy(uniform) * shares[:, -1:]
        ids = torch.searchsorted(shares, places.sort(-1).values, right=True).clamp(max=classes - 1)
        return pack_ids(ids.numpy(), fitting_bits(self.id_bits, classes))

    def decode(self, raw: numpy.ndarray, classes: int) -> dict[str, torch.Tensor]:
        """Return the drawn ids."""
        bits = fitting_bits(self.id_bits, classes)
        return {"ids": torch.from_numpy(unpack_ids(raw, bits, self.draws))}

    def signals(
        self, parts: Mapping[str, torch.Tensor], classes: int, order: torch.Tensor | None
    ) -> TeacherSignals:
        """Return signals of the draws."""
        return SampledSignals.of_draws(reordered(parts["ids"], order), classes)

    def differs(self, raw: numpy.ndarray, logits: torch.Tensor, key: bytes, tolerance: float) -> bool:
        """Draw anew by the same numbers: a little rounding moves few draws, another answer moves many."""
        kept = self.decode(raw, logits.shape[-1])["ids"]
        now = self.decode(self.encode(logits, key), logits.shape[-1])["ids"]
        return bool(len(kept)) and float((kept != now).float().mean()) > _MOVED_DRAWS


FORMATS: dict[str, type[SignalFormat]] = {kind.name: kind for kind in (FullLogits, TopKLogits, SampledLogits)}


def build_format(settings: Mapping[str, Any]) -> SignalFormat:
    """Return a format from what :meth:`SignalFormat.describe` gave.

    Raises:
        ValueError: an unknown name or setting.

    Example:
        >>> build_format({"name": "full", "dtype": "bfloat16"})
        FullLogits(dtype='bfloat16')
    """
    given = dict(settings)
    name = given.pop("name", None)
    if name not in FORMATS:
        raise ValueError(f"cache: format: expected one of {', '.join(FORMATS)}, received {name!r}.")
    try:
        return FORMATS[name](**given)
    except TypeError as error:
        raise ValueError(f"cache: format {name}: {error}.") from error
