"""Starting worker processes, each from nothing; `fork_client.py` has them forked."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


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

    def start(self, work: int, control: int, output: int, on_started: OnStarted) -> None:
        """Start a worker with these files, which stay the caller's to close."""

    def close(self) -> None:
        """Let go of what is held. Workers have ended before."""

    def poll(self) -> None:
        """Look for processes that have ended, where nothing tells by itself."""


def has_fork_server() -> bool:
    """Whether forking from a server is possible and safe here: Linux, where Python can watch processes by a file."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


def executable_code(function: str, *arguments: Any) -> list[str]:
    """Return the command that calls `pkg.mod:function` in a new interpreter with this one's `sys.path`.

    The script's own module is not imported again, so scripts need no `if __name__ == "__main__"`.
    """
    module, _, name = function.partition(":")
    text = ", ".join(map(repr, arguments))
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import {name}; {name}({text})"
    return [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", code]  # type: ignore[attr-defined]


class Spawner:
    """Starts each worker as a new interpreter.

    Args:
        on_ended: Told of each worker that has ended, by `poll`.
    """

    def __init__(self, on_ended: OnEnded) -> None:
        self._on_ended = on_ended
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, work: int, control: int, output: int, on_started: OnStarted) -> None:
        """Start an interpreter."""
        command = executable_code("omni_exec_multiproc.worker_process:run_spawned", work, control, os.getpid())
        try:
            process = start_process(command, [work, control], output)
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


def start_process(command: list[str], fds: list[int], output: int) -> subprocess.Popen[bytes]:
    """Start a process of this plugin's own.

    Args:
        command: What to run.
        fds: Files that it is given besides.
        output: Where it writes what it has to say.
    """
    return subprocess.Popen(  # noqa: S603  # our own interpreter with our own code
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=fds,
        # Out of the terminal's process group: Ctrl-C is the driver's to handle.
        start_new_session=True,
    )
