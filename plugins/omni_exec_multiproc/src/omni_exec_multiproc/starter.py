"""Starting worker processes: forked from a server that has imported everything, or each from nothing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from omni_core.remote.process_end import describe_exit
from omni_core.remote.reactor import Reactor


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


class ForkServer:
    """A process of its own that forks workers: see `fork_server.py`.

    Args:
        reactor: Where answers are waited for.
        model: What the workers will load, so that the server can import what that needs; None is the small model.
        output: Where it writes what it has to say.
        on_ended: Told of each worker that has ended.
    """

    def __init__(self, reactor: Reactor, model: str | None, output: int, on_ended: OnEnded) -> None:
        self._reactor = reactor
        self._on_ended = on_ended
        self._waiting: list[OnStarted] = []
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = executable_code("omni_exec_multiproc.fork_server:main", theirs.fileno(), model)
            self._process = _popen(command, [theirs.fileno()], output)
        self._socket.setblocking(False)
        reactor.watch(self._socket.fileno(), self._receive)

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def start(self, work: int, control: int, output: int, on_started: OnStarted) -> None:
        """Ask the server to fork a worker."""
        try:
            socket.send_fds(self._socket, [b"fork"], [work, control, output])
        except OSError as error:
            on_started(error)
        else:
            self._waiting.append(on_started)

    def poll(self) -> None:
        """Nothing: the server tells by itself."""

    def close(self) -> None:
        """End the server."""
        self._reactor.unwatch(self._socket.fileno())
        self._socket.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:  # it is still importing
            self._process.kill()
            self._process.wait()

    def _receive(self) -> None:
        try:
            message, fds, _, _ = socket.recv_fds(self._socket, 4096, 1)
        except BlockingIOError:
            return
        except OSError:
            message, fds = b"", []
        if not message:
            self._reactor.unwatch(self._socket.fileno())
            self._fail()
            return
        told: dict[str, int] = json.loads(message)
        if fds:
            self._waiting.pop(0)(Started(told["pid"], fds[0]))
        else:
            self._on_ended(told["pid"], told["exit_code"])

    def _fail(self) -> None:
        status = self._process.wait()
        waiting, self._waiting = self._waiting, []
        for on_started in waiting:
            on_started(OSError(f"the process that starts workers {describe_exit(status)}"))


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
            process = _popen(command, [work, control], output)
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


def _popen(command: list[str], fds: list[int], output: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  # our own interpreter with our own code
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=fds,
        # Out of the terminal's process group: Ctrl-C is the driver's to handle.
        start_new_session=True,
    )
