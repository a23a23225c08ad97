"""Timers of a loop."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Timer:
    """A scheduled call, which can be cancelled."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Cancel the call."""
        self.action = None


class Timers:
    """The pending timers of a loop, on the loop's clock. For one thread."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    @property
    def first(self) -> float | None:
        """The moment of the next call; None if there is none."""
        while self._entries and self._entries[0][2].action is None:
            heapq.heappop(self._entries)
        return self._entries[0][0] if self._entries else None

    def add(self, moment: float, action: Callable[[], None]) -> Timer:
        """Schedule `action()` at a moment, and return its timer."""
        timer = Timer(action)
        heapq.heappush(self._entries, (moment, next(self._numbers), timer))
        return timer

    def take_due(self, now: float) -> Callable[[], None] | None:
        """Remove and return the first call that is due; None if there is none."""
        first = self.first
        return None if first is None or first > now else heapq.heappop(self._entries)[2].action

    def put_off(self, seconds: float) -> None:
        """Delay all timers."""
        self._entries = [(moment + seconds, number, timer) for moment, number, timer in self._entries]
