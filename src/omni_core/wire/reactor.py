"""The event loop that watches workers: replies, exits, output and timers, in one thread."""

from __future__ import annotations

import collections
import contextlib
import os
import selectors
import threading
import time
from collections.abc import Callable

from omni_core.log import get_logger
from omni_core.own_threads import begin_own_thread
from omni_core.replicas.loop import Loop
from omni_core.replicas.timers import Timer, Timers
from omni_core.timeouts import wait_seconds
from omni_core.wire.start import occupy_standard_files

log = get_logger(__name__)

# If the thread is late by more than these seconds, timers and limits are extended by the delay.
_LATE_S = 1.0


class Reactor(Loop):
    """Runs callbacks when a file is readable, when a timer is due, or when another thread asks for it.

    All callbacks run in its one thread, so that their data needs no lock. The thread sleeps while nothing happens.

    Args:
        name: Name of the thread.
        owner: The owner of the thread, for `omni_core.own_threads`; None: the reactor.
    """

    def __init__(self, name: str, owner: object = None) -> None:
        self._owner = self if owner is None else owner
        occupy_standard_files()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._drain_wake)
        self._soon: collections.deque[Callable[[], None]] = collections.deque()
        self._timers = Timers()
        self._stopped = False
        self._late_listeners: list[Callable[[float], None]] = []
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether the current thread is the reactor's."""
        return threading.current_thread() is self._thread

    @property
    def is_running(self) -> bool:
        """Whether the thread has not ended."""
        return self._thread.is_alive()

    def watch(self, fd: int, readable: Callable[[], object]) -> None:
        """Call `readable()` whenever `fd` is readable or at its end. In the thread only."""
        self._selector.register(fd, selectors.EVENT_READ, readable)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`, if it is watched. In the thread only, and before `fd` is closed."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def call_soon(self, action: Callable[[], None]) -> None:
        """Call `action()` in the thread. From any thread."""
        self._soon.append(action)
        with contextlib.suppress(OSError):  # full: the thread wakes anyway; closed: the thread has ended
            os.write(self._wake_write, b"\0")

    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Call `action()` in the thread after `seconds`. In the thread only."""
        return self._timers.add(time.monotonic() + seconds, action)

    def on_late(self, listener: Callable[[float], None]) -> None:
        """Call `listener(seconds)` in the thread after it could not run for that time.

        The process was stopped, or the machine is too busy. Pending timers are delayed by the same time.
        """
        self._late_listeners.append(listener)

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread after the running callback. Call it once, and not from the thread itself."""
        self.call_soon(self._stop)
        self._thread.join(timeout)
        if not self._thread.is_alive():
            self._selector.close()
            wake_read, wake_write = self._wake_read, self._wake_write
            self._wake_read = self._wake_write = -1  # other files may get these numbers
            os.close(wake_read)
            os.close(wake_write)

    def _stop(self) -> None:
        self._stopped = True

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _run(self) -> None:
        begin_own_thread("watches the workers", self._owner)
        awake_since = time.monotonic()
        while not self._stopped:
            timeout = self._timeout()
            asleep_since = time.monotonic()
            ready = self._selector.select(timeout)
            now = time.monotonic()
            late = asleep_since - awake_since + (0.0 if timeout is None else max(0.0, now - asleep_since - timeout))
            awake_since = now
            if late > _LATE_S:
                self._note_late(late)
            for key, _ in ready:
                # An earlier callback of this round may have unwatched this file.
                if self._selector.get_map().get(key.fd) is key:
                    _guarded(key.data)
            while (action := self._timers.take_due(time.monotonic())) is not None:
                _guarded(action)
            for _ in range(len(self._soon)):
                _guarded(self._soon.popleft())

    def _note_late(self, seconds: float) -> None:
        self._timers.put_off(seconds)
        for listener in self._late_listeners:
            _guarded(lambda listener=listener: listener(seconds))  # type: ignore[misc]

    def _timeout(self) -> float | None:
        if self._soon:
            return 0.0
        first = self._timers.first
        return None if first is None else wait_seconds(first - time.monotonic())


def _guarded(action: Callable[[], object]) -> None:
    try:
        action()
    except BaseException:  # an error of one worker, or `sys.exit` of a plugin, must not end this thread
        log.error("a callback of the workers' watch raised; please report this", exc_info=True)
