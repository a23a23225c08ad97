"""Waiting for the replies of several workers.

A caller that waits reads the replies itself. Were they read by the reactor's thread, each would wake two threads, one
after the other, and a small call would take twice as long.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any

from omni_core.remote.worker_link import WorkerLink


@contextlib.contextmanager
def reading(handles: Sequence[WorkerLink]) -> Iterator[list[WorkerLink]]:
    """Take over the replies of all the workers, or of none if somebody else reads one's; give them back at the end.

    Of some alone would not do: one that is not read may be the last to reply, and nobody would wake up for it.
    """
    taken: list[WorkerLink] = []
    try:
        for handle in handles:
            if not handle.begin_reading():
                break
            taken.append(handle)
        yield taken if len(taken) == len(handles) else []
    finally:
        for handle in taken:
            handle.end_reading()


def read_until_done(readers: Sequence[WorkerLink], futures: Sequence[Future[Any]], deadline: float | None) -> None:
    """Read replies until the futures are done, one has failed, the time has come, or a worker has ended.

    Args:
        readers: Workers whose replies the calling thread reads.
        futures: What it waits for.
        deadline: On `time.monotonic`'s clock; None for none.
    """
    if not readers:
        return
    poll = select.poll()
    by_fd = {handle.fileno(): handle for handle in readers}
    if -1 in by_fd:
        return  # closed meanwhile
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    while not _is_settled(futures):
        timeout_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1e3
        ready = poll.poll(timeout_ms)
        if not ready:
            return
        for fd, _ in ready:
            if not by_fd[fd].read():
                return


def wait_for_all(futures: Sequence[Future[Any]], deadline: float | None) -> list[int]:
    """Wait until all are done.

    Returns:
        The numbers of those that are not done when the time has come.

    Raises what the first of them that failed holds.
    """
    if not all(future.done() for future in futures):
        wait(futures, None if deadline is None else max(0.0, deadline - time.monotonic()), FIRST_EXCEPTION)
    for future in futures:
        if future.done():
            future.result()
    return [number for number, future in enumerate(futures) if not future.done()]


def _is_settled(futures: Sequence[Future[Any]]) -> bool:
    is_done = True
    for future in futures:
        if not future.done():
            is_done = False
        elif future.exception() is not None:
            return True
    return is_done


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
