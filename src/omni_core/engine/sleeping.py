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

# Seconds that workers which fell asleep have to wake again if another could not fall asleep.
_WAKE_AGAIN_S = 60.0


class Sleeping:
    """What is known of the sleep of all workers. Any thread may use it.

    Args:
        hooks: Of the engine; their observers are told.

    Attributes:
        level: At which level the workers sleep; 0 is awake, and requests wait unless it is 0.
        level_of_new: At which level a worker is put to sleep that replaces another.
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
            # Before they are told: a worker that is replaced meanwhile is to sleep as well.
            before = self.level
            self.level = self.level_of_new = level
            try:
                call("sleep", timeout=deadline.left(), kwargs={"level": level})
            except RPCTimeoutError:
                self._hooks.notify("omni_engine_asleep", level=level)  # requests wait all the same
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
            RPCTimeoutError: A worker was not awake in time; requests wait on.
        """
        deadline = Deadline(timeout)
        with self._turn("wake_up", deadline):
            if self.level == 0:
                return
            # Before they are told: one that is ready from now on is not woken by this call any more.
            self.level_of_new = 0
            call("wake_up", timeout=deadline.left())
            self.level = 0
            self._hooks.notify("omni_engine_awake")

    def close(self) -> None:
        """Let nobody wait for a turn any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @contextlib.contextmanager
    def _turn(self, name: str, deadline: Deadline) -> Iterator[None]:
        """Wait until no other thread puts workers to sleep or wakes them, and let no other meanwhile."""
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
    """Wake the workers that did fall asleep, after another could not: else requests would wait for them forever."""
    try:
        call("wake_up", timeout=_WAKE_AGAIN_S)
    except WorkerDiedError:
        pass  # one that takes its place is awake
    except Exception:
        log.warning("a worker may be asleep, since it could not be woken", exc_info=True)
