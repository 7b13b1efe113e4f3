"""Watches a teacher's logits for NaN, +inf and rows without a finite class, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class FiniteCheck:
    """Remembers the first bad row that a teacher gave, without waiting for the device.

    Step, row and teacher stay on the device; :meth:`state` is gathered where the trainer next
    reads the loss, and :meth:`raise_if_bad` turns it into the error.

    Example:
        >>> check = FiniteCheck()
        >>> check.see(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), step=7)
        >>> check.state(torch.device("cpu")).tolist()
        [7, 1, 0]
    """

    def __init__(self) -> None:
        self._first: torch.Tensor | None = None

    def see(self, logits: torch.Tensor, step: int, teacher: int = 0) -> None:
        """Look at ``(rows, classes)`` logits of a step; classes at -inf are fine, a whole row is not.

        Args:
            logits: what the teacher gave.
            step: the optimizer step.
            teacher: which of several teachers gave them.
        """
        if logits.numel() == 0:
            return
        # One reduction finds all three: amax passes NaN on, is +inf for +inf, and -inf for an empty row.
        bad = ~torch.isfinite(logits.detach().flatten(0, -2).amax(-1))
        row = bad.to(torch.int8).argmax()
        found = torch.stack([torch.full_like(row, step), row, torch.full_like(row, teacher)])
        found = torch.where(bad.any(), found, torch.full_like(found, -1))
        if self._first is None:
            self._first = found
        else:
            self._first = torch.where(self._first[0] >= 0, self._first, found)

    def state(self, device: torch.device) -> torch.Tensor:
        """Return ``(step, row, teacher)`` of the first bad row, or -1 for each."""
        if self._first is None:
            return torch.full((3,), -1, dtype=torch.long, device=device)
        return self._first.to(device)

    def raise_if_bad(self, states: list[list[int]], names: Sequence[str] = ()) -> None:
        """Raise for the first rank that has a bad row.

        Args:
            states: one ``(step, row, teacher)`` per rank.
            names: those of several teachers, to tell which it was.

        Raises:
            FloatingPointError: naming step, row and process, and the teacher where there are several.
        """
        for rank, (step, row, teacher) in enumerate(states):
            if step >= 0:
                self._first = None
                who = f"teacher[{teacher}] ({names[teacher]})" if len(names) > 1 else "teacher"
                raise FloatingPointError(
                    f"{who}: expected finite logits, received NaN, +inf or a row without one finite class in "
                    f"row {row} of its batch after step {step} on process {rank}. The student has learnt from it "
                    "since: go back to the last checkpoint. Look at that input, or run the teacher in float32 "
                    "(teacher_dtype='float32')."
                )
