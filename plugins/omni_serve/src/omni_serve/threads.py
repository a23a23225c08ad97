"""Threads for what would hold up the event loop."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait


def thread_pool(number: int, name: str) -> ThreadPoolExecutor:
    """Return a pool whose threads are there from the beginning: what cannot be started is known before it is needed.

    Args:
        number: How many.
        name: What their names begin with.
    """
    pool = ThreadPoolExecutor(number, name)
    together = threading.Barrier(number)
    wait([pool.submit(together.wait) for _ in range(number)])
    return pool
