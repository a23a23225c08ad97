"""A process that has imported torch and diffusers and does nothing but fork workers: the second starts in no time.

It never computes, so it has no threads and no CUDA context, and forking it is safe. It ends with its owner, and takes
the workers along. An engine has one of its own; or several engines, of several processes, share one (`warm.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Any

from omni_core.forking.child import begin_child
from omni_core.forking.import_ahead import import_classes, import_common
from omni_core.forking.messages import FORK, HELLO, MOST_FDS, ChildCall, peer_of, receive
from omni_core.forking.surroundings import NUM_FDS, take_over
from omni_core.wire.process_end import die_with_parent


def serve_owner(fd: int, owner: int) -> None:
    """Serve the process that has started this one, and nobody else.

    Args:
        fd: A SOCK_SEQPACKET socket, for what `messages.py` describes.
        owner: Process id of the owner.
    """
    server = _Server(owner)
    server.add_client(socket.socket(fileno=fd), server.end)
    server.run()


def serve_many(listener: int, lifeline: int, owner: int, folder: str) -> None:
    """Serve each process that connects, provided that it is a process of the same user.

    Args:
        listener: A SOCK_SEQPACKET socket that listens.
        lifeline: A socket whose other end the owner holds: this process ends with it.
        owner: Process id of the owner.
        folder: Where the socket lies; it is removed at the end.
    """
    server = _Server(owner, folder)
    server.watch(socket.socket(fileno=lifeline), server.end)
    server.listen(socket.socket(fileno=listener))
    server.run()


class _Client:
    """Who asks for workers.

    Attributes:
        connection: The socket.
        pidfd: Readable when the process has ended; None if it cannot be told.
        on_gone: Called when it has gone.
        workers: The processes that were forked for it and have not ended.
    """

    def __init__(self, connection: socket.socket, pidfd: int | None, on_gone: Callable[[], None]) -> None:
        self.connection = connection
        self.pidfd = pidfd
        self.on_gone = on_gone
        self.workers: set[int] = set()


class _Server:
    """Forks workers, and tells each client of the end of its own.

    Args:
        owner: Process id of the owner; it ends with that.
        folder: What to remove then.
    """

    def __init__(self, owner: int, folder: str | None = None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._folder = folder
        # All files that this process holds are in here: a worker closes them.
        self._selector = selectors.DefaultSelector()
        self._clients: list[_Client] = []
        # Not only by its socket: a process that the owner has forked would hold that open.
        with contextlib.suppress(OSError):
            self.watch(os.pidfd_open(owner), self.end)
        if os.getppid() != owner:
            self.end()
        import_common()

    def run(self) -> None:
        """Serve until the owner is gone."""
        while True:
            for key, _ in self._selector.select():
                # What was done before in this round may have let go of it.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()

    def watch(self, file: Any, readable: Callable[[], None]) -> None:
        """Call `readable()` whenever a file can be read."""
        self._selector.register(file, selectors.EVENT_READ, readable)

    def listen(self, listener: socket.socket) -> None:
        """Take up clients that connect."""

        def accept() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                pid, uid = peer_of(connection)
                if uid == os.geteuid():
                    self.add_client(connection, lambda: None, pid)
                else:
                    connection.close()

        listener.setblocking(False)
        self.watch(listener, accept)

    def add_client(self, connection: socket.socket, on_gone: Callable[[], None], pid: int = 0) -> None:
        """Take up a client.

        Args:
            connection: The socket.
            on_gone: Called when it has gone.
            pid: Its process id, if anybody has to look after it.
        """
        pidfd = None
        if pid:
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(pid)
        client = _Client(connection, pidfd, on_gone)
        # One that does not read must not hold up the others.
        connection.setblocking(False)
        self._clients.append(client)
        self.watch(connection, lambda: self._receive(client))
        if pidfd is not None:
            self.watch(pidfd, lambda: self._drop(client))

    def end(self) -> None:
        """End this process and all workers."""
        for client in self._clients:
            _kill(client.workers)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(0)

    def _receive(self, client: _Client) -> None:
        try:
            message, fds = receive(client.connection, MOST_FDS)
        except BlockingIOError:
            return
        try:
            if message.startswith(HELLO):
                with contextlib.suppress(Exception):
                    import_classes(os.fsdecode(message.removeprefix(HELLO)) or None)
            elif (call := _call_of(message)) is not None and len(fds) > NUM_FDS:
                self._fork(client, call, fds)
            else:  # its end, or nothing that a client of ours says
                self._drop(client)
        finally:
            for fd in fds:
                os.close(fd)

    def _drop(self, client: _Client) -> None:
        """A client is gone: its workers have nobody to work for."""
        _kill(client.workers)
        self._clients.remove(client)
        self._selector.unregister(client.connection)
        client.connection.close()
        if client.pidfd is not None:
            self._selector.unregister(client.pidfd)
            os.close(client.pidfd)
        client.on_gone()

    def _fork(self, client: _Client, call: ChildCall, fds: list[int]) -> None:
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._tell(client, {"error": f"cannot fork: {error}"})
            return
        if pid == 0:
            self._become_worker(server, call, fds)
        pidfd = os.pidfd_open(pid)
        client.workers.add(pid)
        self.watch(pidfd, lambda: self._note_end(client, pid, pidfd))
        self._tell(client, {"pid": pid}, pidfd)

    def _note_end(self, client: _Client, pid: int, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        client.workers.discard(pid)
        if client in self._clients:
            self._tell(client, {"pid": pid, "exit_code": os.waitstatus_to_exitcode(status)})

    def _tell(self, client: _Client, what: dict[str, Any], *fds: int) -> None:
        try:
            socket.send_fds(client.connection, [json.dumps(what).encode()], [*fds])
        except OSError:  # it is gone, or has not read hundreds of messages
            self._drop(client)

    def _become_worker(self, server: int, call: ChildCall, fds: list[int]) -> None:
        try:
            die_with_parent(server)
            # Closed and not unregistered, which would be so for the server as well.
            for key in [*self._selector.get_map().values()]:
                file: Any = key.fileobj
                os.close(file) if isinstance(file, int) else file.close()
            self._selector.close()
            *files, output = fds[:-NUM_FDS]
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            take_over(fds[-NUM_FDS:])
            begin_child()
            call.make(files)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)


def _call_of(message: bytes) -> ChildCall | None:
    """Return what a message asks a new process to call; None if it asks for none, or was cut off."""
    if not message.startswith(FORK):
        return None
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        return ChildCall.from_json(message.removeprefix(FORK))
    return None


def _kill(workers: set[int]) -> None:
    for pid in workers:  # children that nobody has waited for: their ids are theirs
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
