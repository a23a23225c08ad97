"""Space that is kept for the removal of jobs: to forget one, SQLite writes, which a full disk does not allow."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

RESERVE_NAME = "reserve"
# Some sixty pages of SQLite: removing a job writes three or four to the log of the database.
_SIZE = 256 << 10


class Reserve:
    """A file without use, which is removed when a disk is full.

    Args:
        folder: Where it is. None: there is none, as where jobs do not outlive the process.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / RESERVE_NAME

    def renew(self) -> None:
        """Make the file if it is not there; where there is no room for it yet, do nothing."""
        if self._path is None or self._path.exists():
            return
        try:
            with open(self._path, "xb", opener=_open_private) as file:
                file.write(bytes(_SIZE))
        except OSError:
            self.release()

    def release(self) -> bool:
        """Remove the file; return whether that gave space free."""
        if self._path is None or not self._path.exists():
            return False
        with contextlib.suppress(OSError):
            self._path.unlink()
            return True
        return False


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
