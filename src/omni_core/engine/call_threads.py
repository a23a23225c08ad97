"""Blocking calls for asyncio programs, each in a separate thread."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class CallThreads:
    """Lets a coroutine wait for a blocking call.

    Each call gets a new thread, which ends with the call. The default pool of the event loop is not used: the program
    shares it, and calls that hang could occupy all its threads, so that the engine could not be closed. The threads
    are daemons, so that a call that never ends does not keep the interpreter from exiting.
    """

    def __init__(self) -> None:
        self._threads: set[threading.Thread] = set()
        self._lock = threading.RLock()

    async def run(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Return what `function(*args, **kwargs)` returns, or raise what it raises.

        If the caller is cancelled, the call continues in its thread.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # a cancelled `close` still closes
        context = contextvars.copy_context()

        def call() -> None:
            try:
                result = context.run(function, *args, **kwargs)
            except BaseException as error:
                self._ended()
                future.set_exception(error)
            else:
                self._ended()
                future.set_result(result)

        thread = threading.Thread(target=call, name="omni-async-call", daemon=True)
        with self._lock:  # a thread that was not started cannot be joined
            thread.start()
            self._threads.add(thread)
        return await asyncio.wrap_future(future)

    def _ended(self) -> None:
        with self._lock:
            self._threads.discard(threading.current_thread())

    def join(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the calls of other threads to end."""
        deadline = time.monotonic() + timeout
        with self._lock:
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
