"""Blocking calls for asyncio programs, each in a thread of its own."""

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

    Not the loop's default pool: that is everybody's, it has a few threads, and calls that hang would leave none to
    close the engine with. Here each call has its own, which ends with it; there are as many as calls wait. They are
    daemons, so that a call that never ends does not keep the interpreter from exiting.
    """

    def __init__(self) -> None:
        self._threads: set[threading.Thread] = set()
        self._lock = threading.RLock()

    async def run(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Return what `function(*args, **kwargs)` returns, or raise what it raises.

        A caller that is cancelled leaves the call to itself: it has begun, and goes on.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # so that a cancelled close closes all the same
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
        with self._lock:  # one that has not begun cannot be joined
            thread.start()
            self._threads.add(thread)
        return await asyncio.wrap_future(future)

    def _ended(self) -> None:
        with self._lock:
            self._threads.discard(threading.current_thread())

    def join(self, timeout: float) -> None:
        """Wait for the calls that others have made to end, at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._lock:
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
