"""Connections for the messages of SPMD ranks, outside the collectives of the model: a star with rank 0 in the center.

Unlike a collective, a connection shows at once when the other side is gone, and has no timeout for the next message.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import threading
import time
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Protocol

from omni_core.errors import StartupError
from omni_core.serialization import dumps, loads
from omni_core.wire import authentication
from omni_core.wire.address import format_address
from omni_core.wire.authentication import AuthenticationError, ServerHandshake, tune
from omni_core.worker.parallel.rank_group import RankGroup

_COUNT = struct.Struct("<I")
# Maximum seconds of the handshake of a peer.
_HANDSHAKE_S = 5.0
# Seconds between two ticks.
_TICK_S = 1.0
_CLOSE_S = 5.0
_SEND_TIMEOUT = struct.pack("ll", 10, 0)


class Listener(Protocol):
    """Callbacks of `RankConnections`. All are called in its thread and must return quickly."""

    def receive(self, rank: int, message: Any) -> None:
        """Handle a message from `rank`."""

    def lost(self, rank: int) -> None:
        """Handle the end of the connection to `rank`."""

    def tick(self) -> None:
        """Called regularly, about once a second."""


class RankConnections:
    """Connects this rank with rank 0, or rank 0 with all others.

    Args:
        connections: By rank.
        listener: Receives the messages.
        tick_s: Seconds between two ticks.
    """

    def __init__(self, connections: dict[int, Connection], listener: Listener, tick_s: float = _TICK_S) -> None:
        self._by_rank = connections
        self._listener = listener
        self._tick_s = tick_s
        self._locks = {rank: threading.Lock() for rank in connections}
        self._woken, self._wake = Pipe(duplex=False)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="omni-spmd-connections", daemon=True)

    def start(self) -> None:
        """Begin to receive messages and notify the listener."""
        self._thread.start()

    def send(self, message: Any, rank: int | None = None) -> None:
        """Send a message to one rank, or to all.

        If a rank is gone, the message is dropped, and the listener is notified.

        Raises:
            RPCError: It cannot be pickled; nothing was sent.
        """
        data, buffers = dumps(message)
        ranks = list(self._by_rank) if rank is None else [rank]
        for one in ranks:
            connection = self._by_rank[one]
            with self._locks[one]:
                try:
                    connection.send_bytes(_COUNT.pack(len(buffers)) + data)
                    for buffer in buffers:
                        connection.send_bytes(buffer.raw())
                except OSError:  # the rank is gone, or reads nothing: half a message may have been sent
                    _hang_up(connection)

    def hang_up(self, rank: int) -> None:
        """Close the connection to one rank."""
        _hang_up(self._by_rank[rank])

    def close(self) -> None:
        """Close all connections. May be repeated."""
        if self._closing:
            return
        self._closing = True
        self._wake.send_bytes(b"x")
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_S)
        for rank, connection in self._by_rank.items():
            with self._locks[rank]:
                connection.close()
        self._wake.close()
        self._woken.close()

    def _run(self) -> None:
        ranks = {connection: rank for rank, connection in self._by_rank.items()}
        next_tick = time.monotonic() + self._tick_s
        while not self._closing:
            for ready in wait([*ranks, self._woken], max(0.0, next_tick - time.monotonic())):
                if ready is self._woken or not isinstance(ready, Connection):
                    return
                try:
                    message = _receive(ready)
                except (OSError, EOFError):
                    self._listener.lost(ranks.pop(ready))
                else:
                    self._listener.receive(ranks[ready], message)
                    del message
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + self._tick_s
                self._listener.tick()


def _receive(connection: Connection) -> Any:
    first = memoryview(connection.recv_bytes())
    (count,) = _COUNT.unpack(first[: _COUNT.size])
    # Writable, since received arrays and tensors are views of them.
    buffers = [bytearray(connection.recv_bytes()) for _ in range(count)]
    return loads(first[_COUNT.size :], buffers)


def _hang_up(connection: Connection) -> None:
    """Shut a connection down, so that the thread that waits on it also sees the end."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as ours:
        ours.shutdown(socket.SHUT_RDWR)


def connect(group: RankGroup, host: str, timeout_s: float) -> dict[int, Connection]:
    """Connect rank 0 with all others.

    Args:
        group: The ranks; all must call this.
        host: The address on which rank 0 listens.
        timeout_s: Maximum seconds.

    Returns:
        The connections of this rank, by the rank at the other end.

    Raises:
        StartupError: They could not be made in time.
    """
    try:
        if group.rank == 0:
            with socket.create_server((host, 0), backlog=group.world_size) as server:
                secret = secrets.token_bytes(32)
                group.broadcast_object((server.getsockname()[1], secret))
                return _accept_all(server, secret, group.world_size, time.monotonic() + timeout_s)
        port, secret = group.broadcast_object()
        with authentication.connect(format_address(host, port), secret, {"rank": group.rank}, timeout_s) as client:
            return {0: _connection(client)}
    except (OSError, AuthenticationError) as error:
        raise StartupError(f"Rank {group.rank} could not connect to the others at {host}: {error}") from error


def _accept_all(server: socket.socket, secret: bytes, world_size: int, deadline: float) -> dict[int, Connection]:
    connections: dict[int, Connection] = {}
    while len(connections) < world_size - 1:
        server.settimeout(max(0.01, deadline - time.monotonic()))
        client, _ = server.accept()
        # A peer without the secret is dropped, without effect on the others.
        with client, contextlib.suppress(OSError, AuthenticationError):
            client.settimeout(_HANDSHAKE_S)
            handshake = ServerHandshake(secret)
            while handshake.hello is None:
                data = client.recv(handshake.wanted)
                if not data:
                    raise ConnectionError("the other side hung up")
                client.sendall(handshake.receive(data))
            connections[int(handshake.hello["rank"])] = _connection(client)
    return connections


def _connection(client: socket.socket) -> Connection:
    client.settimeout(None)
    tune(client)
    # The thread of the other side always reads. If it reads nothing for this time, its process is stopped.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
    return Connection(os.dup(client.fileno()))
