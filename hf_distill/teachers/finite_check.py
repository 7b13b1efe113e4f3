"""Watches a teacher's logits for NaN, +inf and rows without a finite class, on the device."""

from __future__ import annotations

import torch


class FiniteCheck:
    """Remembers the first bad row that a teacher gave, without waiting for the device.

    The flag and the row stay on the device; :meth:`state` is gathered where the trainer next
    reads the loss, and :meth:`raise_if_bad` turns it into the error.

    Example:
        >>> check = FiniteCheck()
        >>> check.see(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), step=7)
        >>> check.state(torch.device("cpu")).tolist()
        [7, 1]
    """

    def __init__(self) -> None:
        self._first: torch.Tensor | None = None

    def see(self, logits: torch.Tensor, step: int) -> None:
        """Look at ``(rows, classes)`` logits of a step; classes at -inf are fine, a whole row is not."""
        if logits.numel() == 0:
            return
        # One reduction finds all three: amax passes NaN on, is +inf for +inf, and -inf for an empty row.
        bad = ~torch.isfinite(logits.detach().flatten(0, -2).amax(-1))
        found = torch.stack([torch.full_like(bad[0], step, dtype=torch.long), bad.to(torch.int8).argmax()])
        found = torch.where(bad.any(), found, torch.full_like(found, -1))
        if self._first is None:
            self._first = found
        else:
            self._first = torch.where(self._first[0] >= 0, self._first, found)

    def state(self, device: torch.device) -> torch.Tensor:
        """Return ``(step, row)`` of the first bad row, or ``(-1, -1)``."""
        if self._first is None:
            return torch.full((2,), -1, dtype=torch.long, device=device)
        return self._first.to(device)

    def raise_if_bad(self, states: list[list[int]]) -> None:
        """Raise for the first rank that has a bad row; ``states`` holds one ``(step, row)`` per rank.

        Raises:
            FloatingPointError: naming step, row and process.
        """
        for rank, (step, row) in enumerate(states):
            if step >= 0:
                self._first = None
                raise FloatingPointError(
                    f"teacher: expected finite logits, received NaN, +inf or a row without one finite class in "
                    f"row {row} of its batch after step {step} on process {rank}. The student has learnt from it "
                    "since: go back to the last checkpoint. Look at that input, or run the teacher in float32 "
                    "(teacher_dtype='float32')."
                )
