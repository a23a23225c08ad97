"""What drivers and fork servers say to each other, over sockets that keep messages apart.

The first message of a driver is HELLO with the model that its workers will load, so that the server can import what
that needs. FORK with a `ChildCall`, and the files of a worker, asks for one. The answer is `{"pid": …}` with a pidfd,
or `{"error": …}`. The end of a worker comes as `{"pid": …, "exit_code": …}`, negative for a signal.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

HELLO = b"hello "
FORK = b"fork "
# The files that come with FORK, at most: the worker's own, its output, and its surroundings.
MOST_FDS = 16
LONGEST = 65536
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class ChildCall:
    """What a new process calls, with the files that it was given as its first arguments.

    Attributes:
        function: `pkg.mod:function`.
        arguments: Further arguments, which JSON can hold.
    """

    function: str
    arguments: tuple[Any, ...] = ()

    def to_json(self) -> bytes:
        """Return it as text."""
        return json.dumps([self.function, self.arguments]).encode()

    @classmethod
    def from_json(cls, text: bytes) -> ChildCall:
        """Return what `to_json` has written."""
        function, arguments = json.loads(text)
        return cls(function, tuple(arguments))

    def make(self, files: Sequence[int]) -> None:
        """Make the call."""
        module, _, name = self.function.partition(":")
        getattr(importlib.import_module(module), name)(*files, *self.arguments)


def receive(connection: socket.socket, most_fds: int) -> tuple[bytes, list[int]]:
    """Return a message and the files that came with it; an empty one if the other side is gone.

    Raises:
        BlockingIOError: There is none.
    """
    try:
        message, fds, _, _ = socket.recv_fds(connection, LONGEST, most_fds)
    except BlockingIOError:
        raise
    except OSError:
        return b"", []
    for fd in fds:
        os.set_inheritable(fd, False)
    return message, fds


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return process id and user id of who is at the other end of a connection."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return pid, uid
