"""The ranks that an agent has started: noticing at once that one has ended, and ending the others."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass

# Where the kernel does not tell, they are looked at so often.
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Ended:
    """A rank that has ended by itself.

    Attributes:
        local_rank: Which.
        pid: Its process id.
        exit_code: Negative for a signal.
    """

    local_rank: int
    pid: int
    exit_code: int


class GroupWatch:
    """Watches processes without collecting them: their exit status stays there for torch's agent.

    Args:
        pids: Process id by local rank. Each leads a process group.
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
        """Wait until one ends, and return all that have ended since the last call: first those that a signal killed.

        Args:
            timeout_s: Most seconds to wait. Where the kernel tells of no ends: a short while, for an empty list.
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
                    del self._pids[local_rank]  # torch collects it while others go on: its number may be reused
        # A rank that loses a peer raises: the one that a signal killed is the cause.
        return sorted(ended, key=lambda one: one.exit_code)

    def end(self, grace_s: float, first: signal.Signals = signal.SIGTERM) -> None:
        """End all that are left, with what they have started. Where the kernel does not tell of ends, torch does it.

        Args:
            grace_s: How long they have after the first signal before they are killed.
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
        """Kill all that are left, and wait for none. From any thread."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Let go of the files."""
        for fd in list(self._pidfds):
            self._forget(fd)

    def _forget(self, fd: int) -> int:
        self._poll.unregister(fd)
        os.close(fd)
        return self._pidfds.pop(fd)

    def _signal(self, number: signal.Signals) -> None:
        # Nobody has collected them, so the numbers are still theirs; and a leader that has ended still has its group.
        for pid in list(self._pids.values()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)


def can_watch() -> bool:
    """Whether this system tells of the end of a process by a file."""
    return hasattr(os, "pidfd_open")
