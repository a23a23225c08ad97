"""The thread in which everything happens that concerns the workers of an engine, and its clock."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future

from omni_core.errors import ExecutorError
from omni_core.replicas.timers import Timer
from omni_core.timeouts import is_done_within

# Seconds after which `run_in` checks whether the thread still runs.
_LOOK_S = 1.0


class Loop(ABC):
    """Makes calls in one thread, one after another, so that what only these touch needs no lock.

    `omni_core.wire.reactor.Reactor` is one that also waits for sockets and pipes. Tests use one with its own clock.
    """

    @property
    @abstractmethod
    def is_current(self) -> bool:
        """Whether the caller runs in the thread."""

    @property
    @abstractmethod
    def is_running(self) -> bool:
        """Whether the thread has not ended."""

    def time(self) -> float:
        """Return the seconds on its clock, which never goes back. From any thread."""
        return time.monotonic()

    @abstractmethod
    def call_soon(self, action: Callable[[], None]) -> None:
        """Call `action()` in the thread. From any thread."""

    @abstractmethod
    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Call `action()` in the thread after `seconds`. In the thread only."""

    @abstractmethod
    def on_late(self, listener: Callable[[float], None]) -> None:
        """Call `listener(seconds)` in the thread when it could not run for so long.

        The process was stopped, or the machine is too busy. Timers that wait are put off by as much.
        """

    @abstractmethod
    def stop(self) -> None:
        """End the thread once its callback has returned. Not called from the thread itself, and once only."""


def run_in(loop: Loop, action: Callable[[], object]) -> None:
    """Run something in the loop's thread, and wait for it. What it raises comes out.

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
        is_running = loop.is_running  # once more, for what it did before its end
    done.result()
