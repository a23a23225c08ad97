"""The replies of several workers to one call."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any

from omni_core.outputs import OmniRequestOutput, StepOutput
from omni_core.timeouts import Deadline


def wait_for_all(futures: Sequence[Future[Any]], deadline: Deadline) -> tuple[list[Any], list[int]]:
    """Wait until all futures are done.

    Returns:
        The results, and the indices of the futures that are not done at the deadline.

    Raises the error of the first future that failed.
    """
    if not all(future.done() for future in futures):
        wait(futures, deadline.left(), FIRST_EXCEPTION)
    results: list[Any] = []
    late: list[int] = []
    for number, future in enumerate(futures):
        if future.done():
            results.append(future.result())
        else:
            late.append(number)
    return results, late


def gather(futures: list[Future[Any]], unique_reply_rank: int | None) -> Future[Any]:
    """Combine the futures of all workers into one future of the result of `collective_rpc`."""
    gathered: Future[Any] = Future()
    lock = threading.Lock()
    missing = len(futures)

    def note(future: Future[Any]) -> None:
        nonlocal missing
        with lock:
            missing -= 1
            if gathered.done():
                return
            if (error := future.exception()) is not None:
                gathered.set_exception(error)
            elif missing == 0:
                results = [one.result() for one in futures]
                gathered.set_result(results if unique_reply_rank is None else results[unique_reply_rank])

    for future in futures:
        future.add_done_callback(note)
    return gathered


def with_refused(future: Future[StepOutput], refused: list[OmniRequestOutput]) -> Future[StepOutput]:
    """Return a future of a step's output, with the outputs of requests that were not sent added."""
    completed: Future[StepOutput] = Future()

    def add(done: Future[StepOutput]) -> None:
        error = done.exception()
        if error is not None:
            completed.set_exception(error)
            return
        step_output = done.result()
        step_output.finished.extend(refused)
        completed.set_result(step_output)

    future.add_done_callback(add)
    return completed
