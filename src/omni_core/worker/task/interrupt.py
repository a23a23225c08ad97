"""Ending a long `execute_step` early."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Interrupt:
    """Lets another thread end a long `execute_step` at its next step, and wakes one that waits for the side thread."""

    def __init__(self) -> None:
        self._wanted = False
        self._changed = threading.Condition()

    def set(self) -> None:
        """Ask for an early return."""
        with self._changed:
            self._wanted = True
            self._changed.notify_all()

    def notify(self) -> None:
        """Wake `wait_for` so that it looks at its condition again."""
        with self._changed:
            self._changed.notify_all()

    def take(self) -> bool:
        """Return whether an early return was asked for, and forget it."""
        with self._changed:
            wanted, self._wanted = self._wanted, False
            return wanted

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition()` holds or an early return is asked for."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted or condition())
