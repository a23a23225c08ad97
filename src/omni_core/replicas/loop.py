"""The thread that watches the workers of an engine, with its clock and timers."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future

from omni_core.errors import ExecutorError
from omni_core.replicas.timers import Timer
from omni_core.timeouts import is_done_within

# Seconds between two checks of `run_in` that the thread still runs.
_LOOK_S = 1.0


class Loop(ABC):
    """Runs calls in one thread, one after another, so that the data of these calls needs no lock.

    `omni_core.wire.reactor.Reactor` also waits for sockets and pipes. Tests use a loop with a simulated clock.
    """

    @property
    @abstractmethod
    def is_current(self) -> bool:
        """Whether the current thread is the loop's."""

    @property
    @abstractmethod
    def is_running(self) -> bool:
        """Whether the thread has not ended."""

    def time(self) -> float:
        """Return the seconds on the loop's monotonic clock. From any thread."""
        return time.monotonic()

    @abstractmethod
    def call_soon(self, action: Callable[[], None]) -> None:
        """Call `action()` in the thread. From any thread."""

    @abstractmethod
    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Call `action()` in the thread after `seconds`. In the thread only."""

    @abstractmethod
    def on_late(self, listener: Callable[[float], None]) -> None:
        """Call `listener(seconds)` in the thread after it could not run for that time.

        The process was stopped, or the machine is too busy. Pending timers are delayed by the same time.
        """

    @abstractmethod
    def stop(self) -> None:
        """End the thread after the running callback. Call it once, and not from the thread itself."""


def run_in(loop: Loop, action: Callable[[], object]) -> None:
    """Run a function in the loop's thread, wait for it, and raise what it raises.

    Raises:
        ExecutorError: The thread has ended.
    """
    if loop.is_current:
        action()
        return
    done: Future[None] = Future()

    def run() -> None:
        try:
            action()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    loop.call_soon(run)
    is_running = True
    while not is_done_within(done, _LOOK_S):
        if not is_running:
            raise ExecutorError("The thread that watches the workers has ended.")
        is_running = loop.is_running  # check the future once more: the action may have run before the end
    done.result()
