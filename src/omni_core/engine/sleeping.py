"""Putting the workers of an engine to sleep and waking them up, while requests wait."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from omni_core.errors import ExecutorError, RPCTimeoutError, ValidationError, WorkerDiedError
from omni_core.hookspecs import Hooks
from omni_core.log import get_logger
from omni_core.timeouts import Deadline

log = get_logger(__name__)

# Seconds to wait for sleeping workers to wake up again after another worker could not be put to sleep.
_WAKE_AGAIN_S = 60.0


class Sleeping:
    """The sleep level of all workers. Any thread may use it.

    Args:
        hooks: The hooks of the engine; observers are notified.

    Attributes:
        level: The sleep level of the workers; 0 is awake. Requests wait unless it is 0.
        level_of_new: The sleep level of workers that replace others.
    """

    def __init__(self, hooks: Hooks) -> None:
        self.level = 0
        self.level_of_new = 0
        self._hooks = hooks
        self._changed = threading.Condition()
        self._has_turn = False
        self._closed = False

    def sleep(self, call: Callable[..., Any], level: int, timeout: float | None) -> None:
        """Put the workers to sleep.

        Args:
            call: The executor's `collective_rpc`.
            level: 1 moves the weights to host memory, 2 drops them.
            timeout: Seconds to wait; None waits until they sleep.

        Raises:
            ValidationError: There is no such level.
            RPCTimeoutError: A worker did not fall asleep in time. It may do so later.
        """
        if isinstance(level, bool) or level not in (1, 2):
            raise ValidationError(f"sleep level {level!r} does not exist: 1 moves weights to host memory, 2 drops them")
        deadline = Deadline(timeout)
        with self._turn("sleep", deadline):
            if self.level >= level:
                return
            # Before the call: a worker that is replaced during it must sleep as well.
            before = self.level
            self.level = self.level_of_new = level
            try:
                call("sleep", timeout=deadline.left(), kwargs={"level": level})
            except RPCTimeoutError:
                self._hooks.notify("omni_engine_asleep", level=level)  # requests wait nevertheless
                raise
            except BaseException:
                self.level = self.level_of_new = before
                if before == 0:
                    _wake_those_asleep(call)
                raise
            self._hooks.notify("omni_engine_asleep", level=level)

    def wake_up(self, call: Callable[..., Any], timeout: float | None) -> None:
        """Wake the workers up.

        Args:
            call: The executor's `collective_rpc`.
            timeout: Seconds to wait; None waits until they are awake.

        Raises:
            RPCTimeoutError: A worker was not awake in time; requests continue to wait.
        """
        deadline = Deadline(timeout)
        with self._turn("wake_up", deadline):
            if self.level == 0:
                return
            # Before the call: it does not reach a worker that becomes ready later.
            self.level_of_new = 0
            call("wake_up", timeout=deadline.left())
            self.level = 0
            self._hooks.notify("omni_engine_awake")

    def close(self) -> None:
        """End all waits for a turn with an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @contextlib.contextmanager
    def _turn(self, name: str, deadline: Deadline) -> Iterator[None]:
        """Wait for the exclusive right to put workers to sleep or to wake them, and hold it."""
        has_turn = False
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: not self._has_turn or self._closed, deadline.left()):
                    raise RPCTimeoutError(
                        f"{name} did not begin within {deadline.seconds:g} s: another sleep or wake_up is at work."
                    )
                if self._closed:
                    raise ExecutorError(f"{name}: the executor was shut down.")
                has_turn = self._has_turn = True
            yield
        finally:
            if has_turn:
                with self._changed:
                    self._has_turn = False
                    self._changed.notify_all()


def _wake_those_asleep(call: Callable[..., Any]) -> None:
    """Wake the sleeping workers after one could not be put to sleep: else requests would wait for them forever."""
    try:
        call("wake_up", timeout=_WAKE_AGAIN_S)
    except WorkerDiedError:
        pass  # its replacement is awake
    except Exception:
        log.warning("a worker may be asleep, since it could not be woken", exc_info=True)
