"""One daemon thread that runs calls in the order in which they were handed over."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

T = TypeVar("T")


class ThreadClosedError(RuntimeError):
    """The thread takes no more calls, or did not end this one in time when it was closed."""


class SerialThread:
    """Runs calls one after another in one thread of its own.

    Unlike `concurrent.futures.ThreadPoolExecutor` its thread is a daemon, so that a call which never ends cannot
    keep the interpreter from exiting, and a call made from within the thread runs at once instead of waiting for
    itself.

    Args:
        name: Name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._lock = threading.RLock()  # a signal handler may call in the middle of a call of its own thread
        self._last: Callable[[], Any] = _nothing
        self._running: Future[Any] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.current_thread() is self._thread

    @property
    def ident(self) -> int | None:
        """Identifier of this thread."""
        return self._thread.ident

    @property
    def is_alive(self) -> bool:
        """Whether the thread still takes calls."""
        return self._thread.is_alive() and not self._closed.is_set()

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `function(*args, **kwargs)` after all calls before it.

        Returns:
            A future of its result. Cancelling it before its turn leaves the call out.

        Raises:
            ThreadClosedError: The thread was closed, or is that of the process that this one was forked from.
        """
        future: Future[T] = Future()

        def call() -> T:
            return function(*args, **kwargs)

        if self.is_current:
            _settle(future, call)
            return future
        with self._lock:
            if not self.is_alive:
                raise ThreadClosedError(f"the thread {self._thread.name} is closed")
            self._calls.put((future, call))
            if self._closed.is_set():  # by a signal handler, just now: nobody may take it any more
                future.cancel()
        return future

    def close(self, timeout: float | None = None, last: Callable[[], Any] | None = None) -> bool:
        """Take no more calls, wait for the running one, and cancel those that wait, at the latest after `timeout`.

        Nobody waits behind a call that never ends: after `timeout` its future fails with `ThreadClosedError`. The call
        itself runs on, and its result is dropped.

        Args:
            timeout: Seconds to wait; None waits until it is done.
            last: What the thread does before it ends. Only the first call of `close` sets it.

        Returns:
            Whether the thread has ended.
        """
        with self._lock:
            if not self._closed.is_set():
                self._last = last or _nothing
                self._closed.set()
                self._wake()
        if not self.is_current:
            self._thread.join(timeout)
            if self._thread.is_alive():
                self._give_up_running()
                self._cancel_waiting()
                self._wake()
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._closed.is_set():
            future, call = self._calls.get()
            if self._closed.is_set():
                future.cancel()
            else:
                self._running = future
                _settle(future, call)
                self._running = None
            del future, call  # an idle thread must not keep the last call's result alive
        self._cancel_waiting()
        _settle(Future(), self._last)

    def _wake(self) -> None:
        """Let the thread see that it is closed, if it is idle."""
        self._calls.put((Future(), _nothing))

    def _give_up_running(self) -> None:
        running = self._running
        if running is not None:
            with contextlib.suppress(InvalidStateError):  # it has ended just now
                running.set_exception(
                    ThreadClosedError(f"the thread {self._thread.name} was closed, and the call had not ended by then")
                )

    def _cancel_waiting(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()[0].cancel()


def _nothing() -> None:
    pass


def _settle(future: Future[T], call: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # the future carries it to the caller
        with contextlib.suppress(InvalidStateError):  # given up
            future.set_exception(error)
    else:
        with contextlib.suppress(InvalidStateError):
            future.set_result(result)
