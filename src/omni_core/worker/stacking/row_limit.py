"""How many rows one forward pass may have where memory has run out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from omni_core.error_text import said

# How torch and its libraries say in a plain RuntimeError that memory ran out.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

# Turns for which fewer rows are run, once it is known that memory runs out; doubled each time that it does again.
_TURNS = 16
_MOST_TURNS = 1024


@dataclass(slots=True)
class RowLimit:
    """The most rows of one kind of call. None at first; learned from what fails.

    Memory may be short for a moment only, since others use it too: so the limit is lifted after some turns, and comes
    back for longer if memory runs out again. Counted in turns, not in seconds, so that all ranks do the same.

    Attributes:
        rows: The limit; None if there is none.
    """

    rows: int | None = None
    _worked: int = 0
    _turns: int = 0
    _left: int = 0

    def allows(self, rows: int) -> bool:
        """Whether so many rows may be tried."""
        return self.rows is None or rows <= self.rows

    def begin_turn(self, rows: int) -> None:
        """Count a turn in which so many rows are wanted."""
        if self.allows(rows):
            return
        if self._left == 0:
            self.rows = None
        else:
            self._left -= 1

    def note_success(self, rows: int) -> None:
        """Learn that so many rows fit into memory."""
        self._worked = max(self._worked, rows)

    def note_out_of_memory(self, rows: int, is_known: bool) -> None:
        """Learn that so many rows did not fit.

        Args:
            rows: How many.
            is_known: Whether any number was known to be right to stack. If not, that is still to be found out, so the
                next turn may try as many again.
        """
        if self._worked >= rows:
            self._worked = 0
        self.rows = max(1, rows // 2, self._worked)
        self._turns = min(2 * self._turns or (_TURNS if is_known else 1), _MOST_TURNS)
        self._left = self._turns - 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a device or of the host: the same work in smaller parts may succeed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in said(error) for words in _OUT_OF_MEMORY)
