"""Watches the ranks of an agent: detects at once that a rank has exited, and ends the others."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass

# Seconds between two polls on systems without pidfds.
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Ended:
    """A rank that has exited by itself.

    Attributes:
        local_rank: The local rank.
        pid: Its process id.
        exit_code: Its exit code; negative for a signal.
    """

    local_rank: int
    pid: int
    exit_code: int


class GroupWatch:
    """Watches processes without reaping them, so that torch's agent can read their exit status.

    Args:
        pids: Process id by local rank. Each process leads a process group.
    """

    def __init__(self, pids: dict[int, int]) -> None:
        self._pids = dict(pids)
        self._poll = select.poll()
        self._pidfds: dict[int, int] = {}  # local rank by file
        if can_watch():
            for local_rank, pid in pids.items():
                fd = os.pidfd_open(pid)
                self._pidfds[fd] = local_rank
                self._poll.register(fd, select.POLLIN)

    def wait(self, timeout_s: float) -> list[Ended]:
        """Wait until a process exits. Return all that have exited since the last call, those killed by a signal first.

        Args:
            timeout_s: Maximum seconds to wait. Without pidfds it waits a short time and returns an empty list.
        """
        if not can_watch():
            time.sleep(min(timeout_s, _POLL_S))
            return []
        ended = []
        for fd, _ in self._poll.poll(timeout_s * 1e3):
            local_rank = self._forget(fd)
            pid = self._pids[local_rank]
            result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if result is not None:
                was_killed = result.si_code != os.CLD_EXITED
                ended.append(Ended(local_rank, pid, -result.si_status if was_killed else result.si_status))
                if not was_killed and result.si_status == 0:
                    del self._pids[local_rank]  # torch reaps it while others run, and its pid may be reused
        # A rank that loses a peer raises, so the rank killed by a signal is the cause.
        return sorted(ended, key=lambda one: one.exit_code)

    def end(self, grace_s: float, first: signal.Signals = signal.SIGTERM) -> None:
        """End all remaining processes and their process groups. Without pidfds it does nothing, and torch ends them.

        Args:
            grace_s: Seconds between the first signal and SIGKILL.
            first: The first signal.
        """
        if not can_watch():
            return
        self._signal(first)
        deadline = time.monotonic() + grace_s
        while self._pidfds and (left := deadline - time.monotonic()) > 0:
            for fd, _ in self._poll.poll(left * 1e3):
                self._forget(fd)
        self._signal(signal.SIGKILL)

    def kill(self) -> None:
        """Kill all remaining processes, without waiting. From any thread."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Close the pidfds."""
        for fd in list(self._pidfds):
            self._forget(fd)

    def _forget(self, fd: int) -> int:
        self._poll.unregister(fd)
        os.close(fd)
        return self._pidfds.pop(fd)

    def _signal(self, number: signal.Signals) -> None:
        # They were not reaped, so their pids are not reused, and the group of a dead leader still exists.
        for pid in list(self._pids.values()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)


def can_watch() -> bool:
    """Whether this system has pidfds."""
    return hasattr(os, "pidfd_open")
