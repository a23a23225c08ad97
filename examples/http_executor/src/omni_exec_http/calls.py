"""Calls on several workers at once, and the thread that does the steps of one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from omni_core import SchedulerOutput, StepOutput
from omni_exec_http.client import Exchange, wait_readable
from omni_exec_http.link import Link
from omni_exec_http.replica import Replica


class Calls:
    """Calls that were sent and whose replies are waited for together. Those that are left at the end are given up."""

    def __init__(self) -> None:
        self.count = 0
        self._waiting: dict[Exchange, tuple[int, Link]] = {}

    def __enter__(self) -> Calls:
        """Nothing was sent yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give up what is not wanted any more."""
        for exchange, (_, link) in self._waiting.items():
            link.give_up(exchange)

    def begin(
        self, link: Link, method: str | Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Send a call."""
        self._waiting[link.begin(method, args, kwargs)] = self.count, link
        self.count += 1

    def results(self, wanted: Iterable[int], deadline: float | None) -> list[Any] | None:
        """Wait for some of the calls.

        Args:
            wanted: Which, in the order in which they were sent.
            deadline: Until when; None waits as long as it takes.

        Returns:
            Their results; None if the time was up.

        Raises:
            OmniError: What the first of them that failed has raised.
        """
        order, results = list(wanted), {}
        while missing := {exchange for exchange, (index, _) in self._waiting.items() if index in order}:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            ready = wait_readable(missing, left)
            if not ready:
                return None
            for exchange in ready:
                index, link = self._waiting.pop(exchange)
                results[index] = link.finish(exchange)
        return [results[index] for index in order]


class StepThread:
    """Does the steps of a replica one after the other: whoever asks for one does not wait, not even to send it.

    Args:
        replica: The replica.
        limit: Seconds that a step may take.
    """

    def __init__(self, replica: Replica, limit: float | None) -> None:
        self._replica = replica
        self._limit = limit
        self._queue: queue.SimpleQueue[tuple[Future[StepOutput], SchedulerOutput] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"http-steps-{replica.index}", daemon=True)
        self._thread.start()

    def submit(self, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        """Return a future of what the step did."""
        future: Future[StepOutput] = Future()
        self._queue.put((future, scheduler_output))
        return future

    def close(self) -> None:
        """End the thread. The replica was closed before, so that no step is waited for."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            future, scheduler_output = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                output = self._replica.need_link().step(scheduler_output, self._limit)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(output)
            del item, future, scheduler_output  # nothing is kept alive while it waits
