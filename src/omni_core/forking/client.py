"""The driver's side of a fork server: one of its own, or one that it shares with others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from omni_core.forking.messages import FORK, HELLO, LONGEST, ChildCall, receive
from omni_core.forking.starter import OnEnded, OnStarted, Started
from omni_core.forking.surroundings import Surroundings
from omni_core.log import get_logger
from omni_core.wire.output import WorkerOutput
from omni_core.wire.process_end import describe_exit, end_process
from omni_core.wire.reactor import Reactor
from omni_core.wire.start import start_python

log = get_logger(__name__)

SERVE_OWNER = "omni_core.forking.server:serve_owner"


class Connection(Protocol):
    """A connection to a server that forks workers."""

    socket: socket.socket

    def close(self) -> None:
        """Close it."""

    def describe_end(self) -> str:
        """Say how the server ended, once the socket has."""


class OwnServer:
    """A server for one engine, which ends with the connection.

    Args:
        reactor: Where its output is read.
    """

    def __init__(self, reactor: Reactor) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as stack:
            stack.callback(self.socket.close)
            with theirs:
                output = WorkerOutput(reactor, {"process": "fork server"})
                stack.callback(output.close)
                fd = theirs.fileno()
                self._process = start_python(SERVE_OWNER, (fd, os.getpid()), fds=(fd,), output=output.write_fd)
            stack.pop_all()
        output.close_write_end()
        self._output = output

    def close(self) -> None:
        """End the server."""
        self.socket.close()
        end_process(self._process)
        self._output.close()

    def describe_end(self) -> str:
        """Say how the server ended, and what it said last."""
        status = end_process(self._process)
        said = self._output.tail()
        return describe_exit(status) + (f", having written: {said}" if said else "")


class SharedConnection:
    """A connection to a server of `warm_fork_server`.

    Args:
        connection: The socket, which becomes this object's.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def close(self) -> None:
        """Close the connection; the server stays."""
        self.socket.close()

    def describe_end(self) -> str:
        """Say how the server ended."""
        return "has ended"  # how is for its owner to know


class ForkClient:
    """Has workers forked.

    Args:
        reactor: Where answers are waited for.
        call: What each worker calls.
        model: What the workers will load, so that the server can import what that needs; None is the small model.
        on_ended: Told of each worker that has ended.
        shared: A connection to a server that others use as well, which becomes this object's. Without one, and once
            that server is gone, the engine has a server of its own.
    """

    def __init__(
        self,
        reactor: Reactor,
        call: ChildCall,
        model: str | None,
        on_ended: OnEnded,
        shared: socket.socket | None = None,
    ) -> None:
        self._reactor = reactor
        self._call = call
        self._model = model
        self._on_ended = on_ended
        self._waiting: list[OnStarted] = []
        self._running: set[int] = set()
        self._surroundings = Surroundings()
        self._connection: Connection | None = None
        if shared is not None:
            self._open(SharedConnection(shared))

    def start(self, files: Sequence[int], output: int, on_started: OnStarted) -> None:
        """Ask the server to fork a worker."""
        try:
            message = FORK + self._call.to_json()
            if len(message) > LONGEST:
                raise OSError(f"what the process is told has {len(message)} bytes, and at most {LONGEST} can be sent")
            connection = self._connection or self._open(OwnServer(self._reactor))
            socket.send_fds(connection.socket, [message], [*files, output, *self._surroundings.fds])
        except OSError as error:
            if self._connection is not None:
                self._lose()
            on_started(error)
        else:
            self._waiting.append(on_started)

    def poll(self) -> None:
        """Nothing: the server tells by itself."""

    def close(self) -> None:
        """Let go of the server; one of its own ends."""
        self._disconnect()
        self._surroundings.close()

    def _open(self, connection: Connection) -> Connection:
        connection.socket.setblocking(False)
        self._reactor.watch(connection.socket.fileno(), self._receive)
        self._connection = connection
        model = self._model or ""
        with contextlib.suppress(OSError):  # it is gone: heard of soon
            connection.socket.send(HELLO + os.fsencode(Path(model).absolute() if Path(model).is_dir() else model))
        return connection

    def _disconnect(self) -> Connection | None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._reactor.unwatch(connection.socket.fileno())
            connection.close()
        return connection

    def _receive(self) -> None:
        assert self._connection is not None
        try:
            message, fds = receive(self._connection.socket, 1)
        except BlockingIOError:
            return
        if not message:
            self._lose()
            return
        told: dict[str, Any] = json.loads(message)
        if "exit_code" in told:
            self._running.discard(told["pid"])
            self._on_ended(told["pid"], told["exit_code"])
            return
        on_started = self._waiting.pop(0)
        if "error" in told:
            on_started(OSError(told["error"]))
        else:
            self._running.add(told["pid"])
            on_started(Started(told["pid"], fds[0]))

    def _lose(self) -> None:
        """The server is gone, and the kernel has killed its workers. The next that is wanted comes from another."""
        connection = self._disconnect()
        assert connection is not None
        what = f"the process that starts workers {connection.describe_end()}"
        log.error("the fork server is gone; there will be another", reason=what)
        waiting, self._waiting = self._waiting, []
        running, self._running = self._running, set()
        for on_started in waiting:
            on_started(OSError(what))
        for pid in running:
            self._on_ended(pid, -signal.SIGKILL)
