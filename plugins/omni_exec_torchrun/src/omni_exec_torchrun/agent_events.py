"""The events that the launcher process reports to the driver: one JSON object per line.

started: the ranks of this node run.
    restart, world_size, group_rank, workers (a list of rank, local_rank, pid)
worker_ended: a rank has exited by itself.
    rank, local_rank, pid, exit_code (negative for a signal)
restarting: the ranks are stopped and will be started again.
    restart (number of restarts after a death, this one included)
membership: a node was lost, or the others consider this one lost; the ranks are started again.
    nodes (number of remaining nodes)
failed: the launcher gives up.
    reason, and if a rank was the cause: rank, local_rank, pid, exit_code
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from typing import Any

_LONGEST_LINE = 1 << 20


class EventWriter:
    """Writes events. May be called from any thread.

    Args:
        fd: The pipe to the driver.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def __call__(self, event: str, **fields: object) -> None:
        """Write one event."""
        line = json.dumps({"event": event, **fields}).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):  # the driver is gone
            os.write(self._fd, line)


class EventReader:
    """Reads events from a non-blocking pipe.

    Args:
        fd: The pipe; the caller closes it.

    Attributes:
        has_ended: Whether the other side has closed the pipe.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self.has_ended = False

    def read(self) -> list[dict[str, Any]]:
        """Return the events that have come. Invalid lines are ignored."""
        events: list[dict[str, Any]] = []
        while not self.has_ended:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                break
            if not data:
                self.has_ended = True
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > _LONGEST_LINE:
                self._rest = b""
            for line in lines:
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        events.append(event)
        return events
