"""The driver's side of HTTP: signed requests over connections that are kept, and genuine replies."""

from __future__ import annotations

import contextlib
import http.client
import selectors
import socket
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from omni_exec_http.body import Part, digest_of, num_bytes
from omni_exec_http.signing import NONCE, SIGNATURE, NotAuthenticError, Signer

CONNECT_TIMEOUT_S = 5.0
SLOWEST_BYTES_PER_S = 2**20
TRANSFER_S = 30.0


class TransportError(Exception):
    """A request did not reach the server, or no genuine reply came back."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A genuine reply.

    Attributes:
        status: Of HTTP: 200, or what went wrong.
        body: One value, see `body`; words if the status is not 200.
    """

    status: int
    body: bytearray


class Exchange:
    """A request that was sent, and its connection while its reply is waited for.

    Attributes:
        nonce: The number by which it was signed.
    """

    def __init__(self, client: Client, connection: http.client.HTTPConnection, nonce: str) -> None:
        self._client = client
        self._connection = connection
        self.nonce = nonce

    def fileno(self) -> int:
        """The file on which the reply comes."""
        descriptor: int = self._connection.sock.fileno()
        return descriptor

    def finish(self, *, keep: bool = False) -> Reply:
        """Read the reply.

        Args:
            keep: Leave the connection to this exchange, until `drop`.

        Raises:
            TransportError: It does not come whole, is too large, or is not genuine.
        """
        try:
            reply, last = self._read()
        except NotAuthenticError as error:
            self.drop()
            raise TransportError(f"The reply cannot be trusted: {error}.") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.drop()
            raise TransportError(f"No reply came: {type(error).__name__}: {error}") from error
        if last:
            self.drop()
        elif not keep:
            self._client.put_back(self._connection)
        return reply

    def _read(self) -> tuple[Reply, bool]:
        response = self._connection.getresponse()
        length = response.length or 0
        if length > self._client.max_body_bytes:
            raise ValueError(f"it has {length:,} bytes, and max_body_bytes is {self._client.max_body_bytes:,}")
        body = bytearray(length)
        view = memoryview(body)
        while view and (count := response.readinto(view)):
            view = view[count:]
        if view:
            raise ConnectionError(f"it ended {len(view)} bytes early")
        response.read()  # lets go of the response
        if response.status == http.HTTPStatus.UNAUTHORIZED and SIGNATURE not in response.headers:
            raise NotAuthenticError(f"the server refused ours, which says: {body.decode(errors='replace')[:200]}")
        self._client.signer.check_reply(self.nonce, response.status, digest_of([body]), response.headers.get(SIGNATURE))
        return Reply(response.status, body), response.will_close

    def finish_when_ready(self) -> Reply:
        """Wait for the reply, for as long as it takes, and read it.

        Raises:
            TransportError: As `finish`.
        """
        try:
            wait_readable([self], None)
        except (OSError, ValueError, AttributeError) as error:  # the connection is closed
            self.drop()
            raise TransportError("The connection was given up.") from error
        return self.finish()

    def drop(self) -> None:
        """Close the connection; a reply that comes later goes nowhere."""
        self._client.forget(self._connection)


class Client:
    """Sends requests to one server. All methods may be called from any thread.

    Args:
        host: Its name or address.
        port: Its port.
        signer: With the secret of that server.
        max_body_bytes: Largest body that is sent or read.
    """

    def __init__(self, host: str, port: int, signer: Signer, max_body_bytes: int) -> None:
        self._host, self._port = host, port
        self.signer = signer
        self.max_body_bytes = max_body_bytes
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._busy: set[http.client.HTTPConnection] = set()
        self._closed = False

    def begin(self, method: str, path: str, parts: Sequence[Part] = (), *, timeout: float | None = None) -> Exchange:
        """Send a request.

        Args:
            method: GET or POST.
            path: What is asked for.
            parts: The body.
            timeout: Seconds that sending may take. None: as long as a slow network needs.

        Raises:
            TransportError: It could not be sent.
        """
        size = num_bytes(parts)
        headers = self.signer.sign_request(method, path, size, digest_of(parts))
        try:
            connection = self._take(timeout)
        except OSError as error:
            raise TransportError(f"{self._host}:{self._port} cannot be reached: {error}") from error
        try:
            connection.sock.settimeout(timeout or TRANSFER_S + size / SLOWEST_BYTES_PER_S)
            connection.request(method, path, body=parts or None, headers=headers)
            connection.sock.settimeout(TRANSFER_S)
        except (OSError, AttributeError, http.client.HTTPException) as error:  # `sock` is None once it was closed
            self.forget(connection)
            raise TransportError(f"The request could not be sent: {type(error).__name__}: {error}") from error
        return Exchange(self, connection, headers[NONCE])

    def _take(self, timeout: float | None) -> http.client.HTTPConnection:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
            if connection is not None:
                self._busy.add(connection)
        if connection is not None:
            if not wait_readable([connection.sock], 0):
                return connection
            self.forget(connection)  # the server has closed it
        connection = http.client.HTTPConnection(
            self._host, self._port, timeout=min(timeout or CONNECT_TIMEOUT_S, CONNECT_TIMEOUT_S)
        )
        connection.connect()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with self._lock:
            if not self._closed:
                self._busy.add(connection)
                return connection
        connection.close()
        raise ConnectionError("the connection was given up")

    def put_back(self, connection: http.client.HTTPConnection) -> None:
        """Keep a connection for the next request."""
        with self._lock:
            self._busy.discard(connection)
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def forget(self, connection: http.client.HTTPConnection) -> None:
        """Close a connection."""
        with self._lock:
            self._busy.discard(connection)
        connection.close()

    def close(self) -> None:
        """Close all connections; whoever waits for a reply is told by a TransportError."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for connection in self._busy:
                with contextlib.suppress(OSError, AttributeError):
                    connection.sock.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it
        for connection in idle:
            connection.close()


Waited = TypeVar("Waited", bound="Exchange | socket.socket")


def wait_readable(files: Iterable[Waited], timeout: float | None) -> list[Waited]:
    """Wait until one of the exchanges has its reply, or has lost its connection; the same for sockets.

    Returns:
        Those that do; none if `timeout` seconds have passed.
    """
    with selectors.PollSelector() as selector:
        for file in files:
            selector.register(file.fileno(), selectors.EVENT_READ, file)
        return [key.data for key, _ in selector.select(timeout)]
