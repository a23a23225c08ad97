"""Starting worker processes, each as a new interpreter; `client.py` has them forked."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from omni_core.forking.messages import ChildCall
from omni_core.wire.start import start_python

RUN_SPAWNED = "omni_core.forking.child:run_spawned"


@dataclass(slots=True)
class Started:
    """A process that was started.

    Attributes:
        pid: Its process id.
        pidfd: Readable once it has ended; None where the system has no such thing.
    """

    pid: int
    pidfd: int | None


# Gets the process, or what went wrong.
OnStarted = Callable[[Started | OSError], None]
# Gets the process id and the exit code; negative for a signal.
OnEnded = Callable[[int, int], None]


class Starter(Protocol):
    """Starts processes. Everything happens in the reactor's thread."""

    def start(self, files: Sequence[int], output: int, on_started: OnStarted) -> None:
        """Start a worker.

        Args:
            files: Its ends of the connections, which its function is called with; they stay the caller's to close.
            output: Where it writes; the caller's to close, too.
            on_started: Told what became of it.
        """

    def close(self) -> None:
        """Let go of what is held. Workers have ended before."""

    def poll(self) -> None:
        """Look for processes that have ended, where nothing tells by itself."""


def can_fork() -> bool:
    """Whether forking from a server is possible and safe here: Linux, where Python can watch processes by a file."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


class Spawner:
    """Starts each worker as a new interpreter.

    Args:
        call: What each worker calls.
        on_ended: Told of each worker that has ended, by `poll`.
    """

    def __init__(self, call: ChildCall, on_ended: OnEnded) -> None:
        self._call = call
        self._on_ended = on_ended
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, files: Sequence[int], output: int, on_started: OnStarted) -> None:
        """Start an interpreter."""
        try:
            process = start_python(
                RUN_SPAWNED, (os.getpid(), self._call.to_json().decode(), *files), fds=files, output=output
            )
            pidfd = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
        except OSError as error:
            on_started(error)
            return
        self._processes.append(process)
        on_started(Started(process.pid, pidfd))

    def poll(self) -> None:
        """Collect those that have ended."""
        for process in list(self._processes):
            status = process.poll()
            if status is not None:
                self._processes.remove(process)
                self._on_ended(process.pid, status)

    def close(self) -> None:
        """Collect what is left; all were killed."""
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5.0)
        self._processes.clear()
