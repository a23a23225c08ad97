"""Calls that are to come."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Timer:
    """A call that is to come; `cancel` before its time leaves it out."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Leave the call out."""
        self.action = None


class Timers:
    """The timers of a loop, on whatever clock that has. For one thread."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    @property
    def first(self) -> float | None:
        """When the next call is due; None if there is none."""
        while self._entries and self._entries[0][2].action is None:
            heapq.heappop(self._entries)
        return self._entries[0][0] if self._entries else None

    def add(self, moment: float, action: Callable[[], None]) -> Timer:
        """Return a timer for `action()` at a moment."""
        timer = Timer(action)
        heapq.heappush(self._entries, (moment, next(self._numbers), timer))
        return timer

    def take_due(self, now: float) -> Callable[[], None] | None:
        """Return the first call that is due, and forget it; None if there is none."""
        first = self.first
        return None if first is None or first > now else heapq.heappop(self._entries)[2].action

    def put_off(self, seconds: float) -> None:
        """Let all of them be due so much later."""
        self._entries = [(moment + seconds, number, timer) for moment, number, timer in self._entries]
