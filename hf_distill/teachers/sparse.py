"""What is left of a teacher's distribution when only some classes are kept, and the objectives' rows over them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from hf_distill.objectives.base import FAR, Objective, Rows, student_log_probs
from hf_distill.teachers.signals import DenseSignals


@dataclass(frozen=True)
class SparseSignals:
    """Some classes of a teacher, and how likely all others are together (the ghost bucket).

    Formula: with the kept classes S, their logits z and ``r_T = log sum_{c not in S} exp(z_c / T)`` stored at some
    temperatures, ``log p_c = z_c / T - n`` and ``log p_rest = r_T - n`` with ``n = log(sum_S exp(z_c / T) + exp r_T)``.
    So a stored temperature is answered exactly, and no other one at all.

    Shapes: ``ids`` and ``kept_logits`` ``(..., kept)``, ``rest`` ``(..., temperatures)``.

    Args:
        ids: the kept classes, each once, the likeliest first.
        kept_logits: their logits.
        rest: the others' log-sum-exp at each temperature; -inf where every class is kept.
        temperatures: the stored ones.
        classes: how many there are in all.

    Example:
        >>> z = torch.tensor([[2.0, 1.0, 0.0]])
        >>> kept = SparseSignals(torch.tensor([[0]]), z[:, :1], z[:, 1:].logsumexp(-1, keepdim=True), (1.0,), 3)
        >>> kept.coarse_log_probs(1.0).exp()
        tensor([[0.6652, 0.3348]])
    """

    ids: torch.Tensor
    kept_logits: torch.Tensor
    rest: torch.Tensor
    temperatures: tuple[float, ...]
    classes: int

    logits = None

    def coarse_log_probs(self, temperature: float) -> torch.Tensor:
        """Return ``(..., kept + 1)`` log-probabilities: of the kept classes, and of all others together.

        Raises:
            ValueError: a temperature that was not stored.
        """
        rest = self.rest[..., self._place(temperature)].unsqueeze(-1)
        both = torch.cat([self.kept_logits.to(rest.dtype) / temperature, rest], -1)
        return torch.log_softmax(both, -1)

    def _place(self, temperature: float) -> int:
        if temperature not in self.temperatures:
            raise ValueError(
                f"temperature: expected one that the cache was captured for ({_listed(self.temperatures)}), received "
                f"{temperature:g}. Capture with it among the temperatures, or use one of those."
            )
        return self.temperatures.index(temperature)

    def log_probs(self, temperature: float) -> torch.Tensor:
        """Return ``(..., classes)`` log-probabilities with the rest shared out evenly, for what only measures.

        Objectives are taken over :meth:`coarse_log_probs`, which makes up nothing.
        """
        coarse = self.coarse_log_probs(temperature)
        others = max(self.classes - self.ids.shape[-1], 1)
        even = coarse[..., -1:] - torch.log(torch.tensor(float(others), device=coarse.device))
        dense = even.expand(*self.ids.shape[:-1], self.classes).clone()
        return dense.scatter(-1, self.ids, coarse[..., :-1])

    def select(self, index: Any) -> SparseSignals:
        """Return the signals of some rows: a boolean mask over the leading dimensions, or slices."""
        return replace(self, ids=self.ids[index], kept_logits=self.kept_logits[index], rest=self.rest[index])


@dataclass(frozen=True)
class SampledSignals:
    """Classes drawn from a teacher's distribution, each as often as it came (random sampling distillation).

    Formula: ``p_c`` is estimated by ``n_c / N``, the share of N draws from ``softmax(z)``, which is right on
    average for every class; so whatever is linear in p, as the gradient of forward KL, has no bias. The value of
    ``forward_kl`` is larger by how far the draws' entropy falls below the teacher's.

    Shapes: both ``(..., draws)``.

    Args:
        ids: the drawn classes in order, repeats and all.
        log_shares: ``log(n_c / N)`` at the first place of each class, and far below any logarithm at its repeats.
        classes: how many there are in all.

    Source: Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", arXiv 2503.16870.

    Example:
        >>> drawn = SampledSignals.of_draws(torch.tensor([[0, 0, 2, 0]]), 3)
        >>> drawn.log_probs(1.0).exp()
        tensor([[0.7500, 0.0000, 0.2500]])
    """

    ids: torch.Tensor
    log_shares: torch.Tensor
    classes: int

    logits = None

    @classmethod
    def of_draws(cls, draws: torch.Tensor, classes: int) -> SampledSignals:
        """Return the signals of ``(..., draws)`` class numbers in any order."""
        ids = draws.sort(-1).values
        counts = (ids.unsqueeze(-1) == ids.unsqueeze(-2)).sum(-1)
        repeat = torch.zeros_like(ids, dtype=torch.bool)
        repeat[..., 1:] = ids[..., 1:] == ids[..., :-1]
        shares = (counts / ids.shape[-1]).log().masked_fill(repeat, FAR)
        return cls(ids, shares, classes)

    def coarse_log_probs(self, temperature: float) -> torch.Tensor:
        """Return ``(..., draws + 1)`` log-shares: of the drawn classes, and of the others, which have none.

        Raises:
            ValueError: a temperature other than 1, that of the draws.
        """
        if temperature != 1:
            raise ValueError(f"temperature: expected 1, that of the cache's draws, received {temperature:g}.")
        return torch.cat([self.log_shares, torch.full_like(self.log_shares[..., :1], FAR)], -1)

    def log_probs(self, temperature: float) -> torch.Tensor:
        """Return ``(..., classes)`` log-shares, for what only measures; far below any logarithm where never drawn."""
        shares = self.coarse_log_probs(temperature)[..., :-1]
        dense = torch.full((*self.ids.shape[:-1], self.classes), FAR, device=shares.device)
        return dense.scatter_reduce(-1, self.ids, shares, "amax")

    def select(self, index: Any) -> SampledSignals:
        """Return the signals of some rows: a boolean mask over the leading dimensions, or slices."""
        return replace(self, ids=self.ids[index], log_shares=self.log_shares[index])


def _listed(temperatures: tuple[float, ...]) -> str:
    return ", ".join(f"{temperature:g}" for temperature in temperatures)


def coarsened(rows: Rows, temperature: float, student_temperature: float | None = None) -> Rows:
    """Return rows over the kept classes and the ghost bucket, whose softmax at T is that of both models at T.

    A divergence over these is at most that over all classes, and equal to it where every class is kept.

    Args:
        rows: whose teacher may be sparse; those of any other are returned as they are.
        temperature: that the objective takes the teacher at.
        student_temperature: that it takes the student at, where that is another.

    Example:
        >>> z = torch.tensor([[2.0, 1.0, 0.0]])
        >>> whole = SparseSignals(torch.tensor([[0, 1, 2]]), z, torch.full((1, 1), -torch.inf), (2.0,), 3)
        >>> from hf_distill.objectives.forward_kl import ForwardKL
        >>> student = torch.tensor([[0.0, 0.0, 1.0]])
        >>> dense = ForwardKL(2.0)(Rows(student, DenseSignals(z)))
        >>> torch.allclose(ForwardKL(2.0)(coarsened(Rows(student, whole), 2.0)), dense)
        True
    """
    teacher = rows.teacher
    if not isinstance(teacher, (SparseSignals, SampledSignals)):
        return rows
    of_student = temperature if student_temperature is None else student_temperature
    log_q = student_log_probs(rows.student_logits, of_student)
    coarse_p = teacher.coarse_log_probs(temperature).to(log_q.dtype).clamp(min=FAR)
    kept = log_q.gather(-1, teacher.ids)
    if isinstance(teacher, SampledSignals):
        kept = kept.masked_fill(teacher.log_shares == FAR, FAR)  # a repeat's class is there already
    # FAR and not -inf: where every class is kept, a log-sum-exp over none has no gradient.
    rest = torch.logsumexp(log_q.scatter(-1, teacher.ids, FAR), -1, keepdim=True)
    coarse_q = torch.cat([kept, rest], -1)
    return replace(rows, student_logits=coarse_q * of_student, teacher=DenseSignals(coarse_p * temperature))


def rows_for(objective: Objective, rows: Rows) -> Rows:
    """Return the rows that an objective is taken over: coarser ones where the teacher kept a part of the classes."""
    if not isinstance(rows.teacher, (SparseSignals, SampledSignals)):
        return rows
    return coarsened(rows, *temperatures_of(objective))


def temperatures_of(objective: Objective) -> tuple[float, float]:
    """Return the temperatures that an objective takes teacher and student at.

    Example:
        >>> from hf_distill.objectives import build_objective
        >>> temperatures_of(build_objective("soft_cross_entropy", {"temperature": 2.0, "teacher_temperature": 1.0}))
        (1.0, 2.0)
    """
    shared = getattr(objective, "temperature", 1.0)
    own = [getattr(objective, f"{who}_temperature", None) for who in ("teacher", "student")]
    return tuple(shared if one is None else one for one in own)  # type: ignore[return-value]


SPARSE = frozenset({"top_k", "sampled"})


def check_sparse(key: str, objective: Objective, scheduled: bool, teacher: Any) -> None:
    """Raise where an objective can't be taken over the classes that a teacher kept.

    Args:
        key: the objective's name in the logs.
        objective: it.
        scheduled: whether its temperature moves while training goes on.
        teacher: one that provides ``top_k`` or ``sampled``, with ``signals.temperatures``.

    Raises:
        ValueError: an objective that needs every class, or a temperature that was not captured.
    """
    given = teacher.provides & SPARSE
    kept = ", ".join(sorted(given))
    if not objective.sparse & given:
        from hf_distill.objectives import objective_classes  # which import this module's users

        able = [name for name, one in objective_classes().items() if one.sparse & given]
        raise ValueError(
            f"objective {key!r}: expected a teacher that gives every class's probability, received {teacher.name} from "
            f"a cache of {kept} classes. Use one of {', '.join(able)}, or capture full logits."
        )
    stored = tuple(teacher.signals.temperatures)
    wanted = temperatures_of(objective)[0]
    if scheduled or wanted not in stored:
        received = "a schedule" if scheduled else f"{wanted:g}"
        raise ValueError(
            f"objective {key!r}: temperature: expected one that the cache was captured for ({_listed(stored)}), "
            f"received {received}. Capture with it among the temperatures, or use one of those."
        )
