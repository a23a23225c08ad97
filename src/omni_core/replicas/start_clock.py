"""How long the start of a replica may take, which does not count while its workers wait for a place to run."""

from __future__ import annotations

from collections.abc import Callable

from omni_core.replicas.loop import Loop
from omni_core.replicas.timers import Timer


class StartClock:
    """Counts the seconds of one start after the other. In the loop's thread, but for `due`.

    Args:
        loop: Whose clock it is.
        seconds: How long a start may take (`startup_timeout_s`).
        on_over: Called when one has taken longer.

    Attributes:
        due: When the start that is under way is over, on the loop's clock; None while that does not count. From any
            thread.
    """

    def __init__(self, loop: Loop, seconds: float, on_over: Callable[[], None]) -> None:
        self.due: float | None = None
        self._loop = loop
        self._seconds = seconds
        self._on_over = on_over
        self._timer: Timer | None = None
        self._is_held = False

    def start(self) -> None:
        """Count from now on."""
        self.stop()
        self.due = self._loop.time() + self._seconds
        self._timer = self._loop.call_later(self._seconds, self._on_over)

    def stop(self) -> None:
        """Count no more: the start has come to its end."""
        self._is_held = False
        self._cancel()

    def hold(self) -> None:
        """Do not count while the workers wait for a place to run, as for a free node of a cluster."""
        if self._timer is not None:
            self._cancel()
            self._is_held = True

    def go_on(self) -> None:
        """Count from now on: the workers have their place. Does nothing if the clock was not held."""
        if self._is_held:
            self.start()

    def _cancel(self) -> None:
        self.due = None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
