"""How soft a teacher is on the first items of a training: a line, and a warning if it has nothing to teach."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from hf_distill.loss_plan import Term
from hf_distill.objectives.base import HeadKind, Rows, at_least_float32
from hf_distill.teachers.signals import TeacherSignals, label_free

# group_by_length sorts up to 50 batches from long texts to short ones: fewer would show the long ones alone. Of each
# a few rows do: 500 give a share to within 5 points (95 % interval), and a vocabulary of 150,000 stays cheap.
BATCHES = 50
ROWS_PER_BATCH = 10
# What is left for all other classes is below 0.01, so the gradient is the label's to within 0.01 in each logit.
NEAR_ONE_HOT = 0.99
# Nearly all: in the twentieth that is left there may be something to learn, but it hardly moves a mean.
NEARLY_ALL = 0.95
# Two classes at this share are 0.56 and 0.44, eight deviate from 1/8 by a fifth of it.
NEAR_UNIFORM = 0.99
# The same without a temperature: a fresh BERT head is above, a teacher that tells classes apart well below.
NEAR_UNIFORM_AT_1 = 0.95
# Of fewer items "nearly all" means nothing: of 64 it is all but three.
FEWEST_ITEMS_TO_WARN = 64


@dataclass(frozen=True)
class Softness:
    """How soft a teacher's answers are at a temperature, and what that means for its student.

    Args:
        head: ``single_label`` or ``multi_label``, whose entropies and shares are of one class each.
        classes: number of classes.
        temperature: T at which the teacher is distilled.
        items: how many were measured.
        entropy: mean entropy in nats, of an item or, multi-label, of an item's class.
        near_one_hot: share of items whose top class (multi-label: each class) is beyond ``NEAR_ONE_HOT``.
        repeats: share of items that are so, and say what the label says.
        entropy_at_1: mean entropy at T = 1, or None where the teacher gives no logits.

    Example:
        >>> print(Softness("single_label", 8, 4.0, 500, 0.83, 0.03, 0.03, 0.2))
        Teacher: on 500 training items at T = 4, mean entropy 0.83 nats (40 % of log 8), 3 % near one-hot (top
        probability above 0.99)
        >>> Softness("single_label", 8, 4.0, 500, 0.83, 0.03, 0.03, 0.2).warning() is None
        True
        >>> Softness("single_label", 8, 1.0, 500, 0.01, 0.99, 0.98, 0.01).warning()[:74]
        'The teacher only repeats the labels: at T = 1, on 98 % of the first traini'
    """

    head: HeadKind
    classes: int
    temperature: float
    items: int
    entropy: float
    near_one_hot: float
    repeats: float
    entropy_at_1: float | None = None

    @property
    def highest_entropy(self) -> float:
        """The entropy of an answer that says nothing."""
        return math.log(2 if self.head == "multi_label" else max(self.classes, 2))

    def __str__(self) -> str:
        several = self.head == "multi_label"
        return (
            f"Teacher: on {self.items} training items at T = {self.temperature:g}, mean entropy {self.entropy:.2f} "
            f"nats{' per class' if several else ''} ({self.entropy / self.highest_entropy:.0%} of log "
            f"{2 if several else self.classes}), {self.near_one_hot:.0%} near one-hot "
            f"({'each class within 0.01 of 0 or 1' if several else 'top probability above 0.99'})"
        ).replace("%", " %")

    def warning(self) -> str | None:
        """Return why there is nothing to teach and what to do, or None where there is or too little was seen."""
        if self.items < FEWEST_ITEMS_TO_WARN:
            return None
        if self.repeats >= NEARLY_ALL:
            return (
                f"The teacher only repeats the labels: at T = {self.temperature:g}, on {100 * self.repeats:.0f} % of "
                "the first training items, it is within 0.01 of the label, so there is nothing to learn from it that "
                "the labels do not say. Raise the temperature, train the teacher for fewer epochs, or let it teach "
                "texts that it was not trained on; see docs/when_it_helps.md."
            )
        if self.entropy < NEAR_UNIFORM * self.highest_entropy:
            return None
        share = f"{100 * self.entropy / self.highest_entropy:.1f} % of the highest entropy"
        if self.entropy_at_1 is not None and self.entropy_at_1 < NEAR_UNIFORM_AT_1 * self.highest_entropy:
            return (
                f"The temperature {self.temperature:g} leaves the teacher nearly uniform ({share}; "
                f"{100 * self.entropy_at_1 / self.highest_entropy:.0f} % at T = 1). An objective with the factor T^2 "
                "then matches logits, and any other has nearly nothing to learn from. Lower the temperature, unless "
                "that is meant."
            )
        return (
            f"The teacher is nearly uniform on the first training items ({share} at T = {self.temperature:g}): it "
            "tells the classes hardly apart, and has nothing to teach. Is it trained on this task, with these classes "
            "and this preprocessing?"
        )


class SoftnessMeter:
    """Sums up the teacher's answers as the student is taught them, on the device, until it has seen enough.

    It reads what a training computes anyway, some rows of each of the first batches: no example is fetched, no
    forward run and no random number drawn for it, whatever the data set is.

    Example:
        >>> from hf_distill.objectives import build_objective
        >>> from hf_distill.teachers.signals import DenseSignals
        >>> meter = SoftnessMeter("single_label")
        >>> rows = Rows(torch.zeros(2, 2), DenseSignals(torch.tensor([[9.0, 0.0], [0.0, 0.0]])), torch.tensor([0, 1]))
        >>> meter.see(rows, [Term(build_objective("forward_kl", {"temperature": 1.0}), 0.5, "forward_kl")])
        >>> result = meter.result()
        >>> result.items, result.near_one_hot, round(result.entropy, 3)
        (2, 0.5, 0.347)
    """

    def __init__(self, head: HeadKind) -> None:
        self.head = head
        self._temperature: float | None = None
        self._batches = self._items = self._classes = 0
        self._sums: torch.Tensor | None = None
        self._has_logits = True

    @property
    def complete(self) -> bool:
        """Whether enough batches were seen."""
        return self._batches >= BATCHES

    def see(self, rows: Rows, terms: Iterable[Term]) -> None:
        """Look at the items of a batch.

        Args:
            rows: aligned items, ``(items, classes)``.
            terms: those of the step. The temperature is that of the first one that has one, when first seen.
        """
        if self._temperature is None:
            self._temperature = teacher_temperature(terms, self.head)
        if self._temperature is None or self.complete:
            return
        self._batches += 1
        count = rows.student_logits.shape[0]
        if count == 0:
            return
        some = slice(None, None, -(-count // ROWS_PER_BATCH))
        labels = None if rows.labels is None else rows.labels[some]
        with torch.no_grad():
            sums = self._measure(label_free(rows.teacher.select(some)), labels, self._temperature)
        self._items += len(range(count)[some])
        self._classes = rows.student_logits.shape[-1]
        self._sums = sums if self._sums is None else self._sums + sums

    def _measure(
        self, teacher: TeacherSignals, labels: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        """Return the sums of entropies, of near one-hot rows, of those that repeat the label, of entropies at 1."""
        logits = None if teacher.logits is None else at_least_float32(teacher.logits)
        if self.head == "multi_label":
            assert logits is not None, "binary_kl has refused signals without logits"
            probabilities = torch.sigmoid(logits / temperature)
            certain = torch.maximum(probabilities, 1 - probabilities).amin(-1) > NEAR_ONE_HOT
            right = None if labels is None else ((probabilities > 0.5) == labels).all(-1)
        else:
            probabilities = teacher.log_probs(temperature).exp()
            top, choice = probabilities.max(-1)
            certain = top > NEAR_ONE_HOT
            right = None if labels is None else choice == labels
        self._has_logits = self._has_logits and logits is not None
        entropies = _entropies(probabilities, self.head)
        unheated = torch.zeros_like(entropies)
        if logits is not None:
            one = torch.sigmoid(logits) if self.head == "multi_label" else torch.softmax(logits, -1)
            unheated = _entropies(one, self.head)
        repeats = torch.zeros_like(certain) if right is None else certain & right
        return torch.stack([kept.float().sum() for kept in (entropies, certain, repeats, unheated)])

    def result(self) -> Softness | None:
        """Return what was found, or None where there was nothing to measure; waits for the device."""
        if self._sums is None or self._temperature is None:
            return None
        entropy, near, repeats, unheated = (self._sums / self._items).tolist()
        return Softness(
            self.head,
            self._classes,
            self._temperature,
            self._items,
            entropy,
            near,
            repeats,
            unheated if self._has_logits else None,
        )

    def report(self) -> None:
        """Print the line, and warn if there is nothing to teach."""
        result = self.result()
        if result is None:
            return
        tqdm.write(str(result), file=sys.stderr)  # between the progress bars
        warning = result.warning()
        if warning is not None:
            warnings.warn(warning, UserWarning, stacklevel=2)


def teacher_temperature(terms: Iterable[Term], head: HeadKind) -> float | None:
    """Return the temperature that the first objective with one takes the teacher's probabilities at, or None.

    That of ``contrastive`` divides similarities and that of ``standardized_kl`` standardized logits; neither
    is the softness of the teacher. Regression heads have no temperature.

    Example:
        >>> from hf_distill.objectives import build_objective
        >>> plan = [("logit_mse", {}), ("contrastive", {}), ("forward_kl", {"temperature": 3.0})]
        >>> terms = [Term(build_objective(name, settings), 1.0, name) for name, settings in plan]
        >>> teacher_temperature(terms, "single_label")
        3.0
    """
    for term in terms:
        probabilities = "log_probs" in term.objective.needs or head == "multi_label"
        own = getattr(term.objective, "teacher_temperature", None)
        temperature = getattr(term.objective, "temperature", None) if own is None else own
        if probabilities and "features" not in term.objective.needs and temperature is not None:
            return float(temperature)
    return None


def _entropies(probabilities: torch.Tensor, head: HeadKind) -> torch.Tensor:
    """Return the entropy of each row; multi-label, the mean over its classes."""
    if head == "multi_label":
        return (torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)).mean(-1)
    return torch.special.entr(probabilities).sum(-1)
