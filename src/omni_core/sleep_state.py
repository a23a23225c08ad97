"""At which level an executor's workers sleep, and whose turn it is to change that."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from omni_core.errors import ExecutorError, RPCTimeoutError
from omni_core.timeouts import Deadline


class SleepState:
    """What is known of the sleep of all workers. Any thread may use it.

    Attributes:
        level: At which level they sleep; 0 is awake. Set only by the thread whose turn it is.
    """

    def __init__(self) -> None:
        self.level = 0
        self._changed = threading.Condition()
        self._caller: int | None = None
        self._closed = False

    @property
    def is_caller(self) -> bool:
        """Whether it is this thread's turn."""
        return self._caller == threading.get_ident()

    @contextlib.contextmanager
    def turn(self, name: str, deadline: Deadline) -> Iterator[None]:
        """Wait for this thread's turn to put workers to sleep or to wake them, and hold it.

        Args:
            name: What is to be done, for the error.
            deadline: Until when to wait.

        Raises:
            RPCTimeoutError: It did not come in time.
            ExecutorError: The executor was shut down.
        """
        has_turn = False
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: self._caller is None or self._closed, deadline.left()):
                    raise RPCTimeoutError(
                        f"{name} did not begin within {deadline.seconds:g} s: another sleep or wake_up is at work."
                    )
                if self._closed:
                    raise ExecutorError(f"{name}: the executor was shut down.")
                has_turn, self._caller = True, threading.get_ident()
            yield
        finally:
            if has_turn:
                with self._changed:
                    self._caller = None
                    self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait for a turn any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
