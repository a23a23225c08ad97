"""Waiting for the replies of several workers."""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any

from omni_core.wire.worker import WorkerLink
from omni_core.timeouts import Deadline


@contextlib.contextmanager
def reading(links: Sequence[WorkerLink]) -> Iterator[object | None]:
    """Let the calling thread read the replies of all workers itself, or of none if one's are not to be had.

    Of some alone would not do: one that is not read may be the last to reply, and nobody would wake the caller.

    Yields:
        What to give `WorkerLink.call` and `read_until_done` as the reader; None if the reactor's thread reads.
    """
    reader = object()
    try:
        yield reader if all(link.begin_reading(reader) for link in links) else None
    finally:
        for link in links:
            link.end_reading(reader)


def read_until_done(links: Sequence[WorkerLink], futures: Sequence[Future[Any]], deadline: Deadline) -> None:
    """Read replies until the futures are done, or one has failed, or the rest must be waited for in another way.

    Args:
        links: Workers whose replies the calling thread reads.
        futures: What it waits for, one for each.
        deadline: When to return at the latest.
    """
    if len(links) == 1 and deadline.seconds is None:
        links[0].read()
        return
    poll = select.poll()
    waiting = {link.lane_fileno(): link for link in links}
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    while waiting and not any(future.done() and future.exception() is not None for future in futures):
        left = deadline.left()
        ready = poll.poll(None if left is None else left * 1e3)
        if not ready:
            return
        for fd, _ in ready:
            if not waiting.pop(fd).read():
                return
            poll.unregister(fd)


def wait_for_all(futures: Sequence[Future[Any]], deadline: Deadline) -> tuple[list[Any], list[int]]:
    """Wait until all are done.

    Returns:
        The results, and the numbers of those that are not done when the time has come.

    Raises what the first of them that failed holds.
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
    """Return a future of what `collective_rpc` returns."""
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
