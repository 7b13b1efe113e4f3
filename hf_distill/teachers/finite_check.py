"""Watches both models' logits, on the device: NaN, +inf and empty rows of the teacher, -inf in one model alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_NOT_FINITE, _TEACHER_ALONE, _STUDENT_ALONE = 0, 1, 2


class FiniteCheck:
    """Remembers the first bad row, without waiting for the device.

    What was found stays on the device; :meth:`state` is gathered where the trainer next reads the
    loss, and :meth:`raise_if_bad` turns it into the error.

    Example:
        >>> check = FiniteCheck()
        >>> check.see(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), step=7)
        >>> check.state(torch.device("cpu")).tolist()
        [7, 1, 0, 0, 0]
    """

    def __init__(self) -> None:
        self._first: torch.Tensor | None = None

    def see(
        self, logits: torch.Tensor, step: int, student: torch.Tensor | None = None, teacher: int = 0
    ) -> None:
        """Look at ``(rows, classes)`` logits of a step.

        A class at -inf is fine in both models and bad in one alone; the teacher needs a finite one per row.

        Args:
            logits: what the teacher gave.
            step: the optimizer step.
            student: what the student gave for the same rows.
            teacher: which of several teachers it was.
        """
        if logits.numel() == 0:
            return
        logits = logits.detach().flatten(0, -2)
        student = logits if student is None else student.detach().flatten(0, -2)
        # One reduction finds all three: amax passes NaN on, is +inf for +inf, and -inf for an empty row.
        not_finite = ~torch.isfinite(logits.amax(-1))
        alone = (logits == -torch.inf).logical_xor_(student == -torch.inf)
        bad = not_finite | alone.any(-1)
        # Indices stay vectors of one: indexing with a bare number would wait for the device.
        row = bad.to(torch.int8).argmax().unsqueeze(0)
        column = alone.index_select(0, row).to(torch.int8).argmax(-1)
        closed = logits.index_select(0, row).index_select(1, column).squeeze(0) == -torch.inf
        kind = torch.where(closed, _TEACHER_ALONE, _STUDENT_ALONE)
        kind = kind.masked_fill(not_finite.index_select(0, row), _NOT_FINITE)
        found = torch.cat([torch.full_like(row, step), row, kind, column, torch.full_like(row, teacher)])
        found = torch.where(bad.any(), found, torch.full_like(found, -1))
        if self._first is None:
            self._first = found
        else:
            self._first = torch.where(self._first[0] >= 0, self._first, found)

    def state(self, device: torch.device) -> torch.Tensor:
        """Return ``(step, row, kind, class, teacher)`` of the first bad row, or -1 for each."""
        if self._first is None:
            return torch.full((5,), -1, dtype=torch.long, device=device)
        return self._first.to(device)

    def raise_if_bad(self, states: list[list[int]], names: Sequence[str] = ()) -> None:
        """Raise for the first rank that has a bad row.

        Args:
            states: one :meth:`state` per rank.
            names: those of several teachers, to tell which it was.

        Raises:
            FloatingPointError: naming step, row and process, the teacher where there are several, and the
                class that one model alone rules out.
        """
        for rank, (step, row, kind, column, teacher) in enumerate(states):
            if step < 0:
                continue
            self._first = None
            where = f"in row {row} of its batch after step {step} on process {rank}"
            since = "The student has learnt from it since: go back to the last checkpoint."
            named = f"teacher[{teacher}] ({names[teacher]})" if len(names) > 1 else "teacher"
            if kind == _NOT_FINITE:
                raise FloatingPointError(
                    f"{named}: expected finite logits, received NaN, +inf or a row without one finite class "
                    f"{where}. {since} Look at that input, or run the teacher in float32 (teacher_dtype='float32')."
                )
            who = named if kind == _TEACHER_ALONE else "student"
            raise FloatingPointError(
                f"logits: expected a class at -inf in both models or in neither, received class {column} at -inf in "
                f"the {who} alone, {where}. {since} Rule out the same classes in both models, or lower them by a "
                "finite number such as -1e4 in place of -inf; in half precision -inf may be an overflow."
            )
