"""Limits the time of a replica's start. The clock stands still while its workers wait for a place to run."""

from __future__ import annotations

from collections.abc import Callable

from omni_core.replicas.loop import Loop
from omni_core.replicas.timers import Timer


class StartClock:
    """Measures one start after the other. In the loop's thread, except `due`.

    Args:
        loop: The loop whose clock is used.
        seconds: How long a start may take (`startup_timeout_s`).
        on_over: Called when a start has taken longer.

    Attributes:
        due: The deadline of the current start, on the loop's clock; None while the clock does not run. From any thread.
    """

    def __init__(self, loop: Loop, seconds: float, on_over: Callable[[], None]) -> None:
        self.due: float | None = None
        self._loop = loop
        self._seconds = seconds
        self._on_over = on_over
        self._timer: Timer | None = None
        self._is_held = False

    def start(self) -> None:
        """Start the clock."""
        self.stop()
        self.due = self._loop.time() + self._seconds
        self._timer = self._loop.call_later(self._seconds, self._on_over)

    def stop(self) -> None:
        """Stop the clock: the start is over."""
        self._is_held = False
        self._cancel()

    def hold(self) -> None:
        """Pause the clock while the workers wait for a place to run, such as a free node of a cluster."""
        if self._timer is not None:
            self._cancel()
            self._is_held = True

    def go_on(self) -> None:
        """Start the clock again: the workers have a place to run. Does nothing if the clock was not paused."""
        if self._is_held:
            self.start()

    def _cancel(self) -> None:
        self.due = None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
