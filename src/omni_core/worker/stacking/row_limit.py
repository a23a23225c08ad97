"""Limits the rows of a forward pass after memory has run out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from omni_core.error_text import said

# Texts of the RuntimeErrors of torch and its libraries that mean that memory ran out.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

# Number of turns for which the limit holds after memory ran out; doubled each time that it runs out again.
_TURNS = 16
_MOST_TURNS = 1024


@dataclass(slots=True)
class RowLimit:
    """The maximum rows of one kind of call. There is no limit until memory runs out.

    Memory may be short only for a while, so the limit is removed after some turns, and returns for longer if memory
    runs out again. It counts turns and not seconds, so that all ranks do the same.

    Attributes:
        rows: The limit; None if there is none.
    """

    rows: int | None = None
    _worked: int = 0
    _turns: int = 0
    _left: int = 0

    def allows(self, rows: int) -> bool:
        """Whether a forward pass may have so many rows."""
        return self.rows is None or rows <= self.rows

    def begin_turn(self, rows: int) -> None:
        """Count a turn in which a forward pass of so many rows is requested."""
        if self.allows(rows):
            return
        if self._left == 0:
            self.rows = None
        else:
            self._left -= 1

    def note_success(self, rows: int) -> None:
        """Record that so many rows fit into memory."""
        self._worked = max(self._worked, rows)

    def note_out_of_memory(self, rows: int, is_known: bool) -> None:
        """Record that so many rows did not fit into memory.

        Args:
            rows: Number of rows.
            is_known: Whether the kind has a verified plan. If not, verification is still due, and the next turn may try
                as many rows again.
        """
        if self._worked >= rows:
            self._worked = 0
        self.rows = max(1, rows // 2, self._worked)
        self._turns = min(2 * self._turns or (_TURNS if is_known else 1), _MOST_TURNS)
        self._left = self._turns - 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether device or host memory ran out: the same work in smaller parts may succeed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in said(error) for words in _OUT_OF_MEMORY)
