"""What the launcher process reports to the driver: one JSON object a line.

started: the ranks of this node run.
    restart, world_size, group_rank, workers (a list of rank, local_rank, pid)
worker_ended: one has ended by itself.
    rank, local_rank, pid, exit_code (negative for a signal)
restarting: the group is being stopped, and will be started again.
    restart (how often it will have been after a death)
membership: a node was lost, or this one was taken for lost; the group is started again.
    nodes (how many are left)
failed: the launcher gives up.
    reason, and where a rank was the cause: rank, local_rank, pid, exit_code
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from typing import Any

_LONGEST_LINE = 1 << 20


class EventWriter:
    """Writes events. From any thread.

    Args:
        fd: Pipe to the driver.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def __call__(self, event: str, **fields: object) -> None:
        """Report that something happened."""
        line = json.dumps({"event": event, **fields}).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):  # nobody reads any more: the driver is gone
            os.write(self._fd, line)


class EventReader:
    """Takes events off a pipe that does not block.

    Args:
        fd: The pipe; stays the caller's to close.

    Attributes:
        has_ended: Whether the other side has closed it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self.has_ended = False

    def read(self) -> list[dict[str, Any]]:
        """Return the events that are there. A line that is none is left out."""
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
