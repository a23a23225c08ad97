"""The handshake of a new connection: both ends prove that they know the secret, before anything else is read.

    client: mark, nonce
    server: mark, nonce, proof
    client: proof, length of the hello
    client: hello (JSON), code over it
    server: code that confirms the hello

A proof is HMAC-SHA256 over the role of the sender and both nonces. So a recorded proof is useless on another
connection, and the proofs of the two sides differ. Before a side has proved itself, only lengths are parsed.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import struct
import sys
import time
from typing import Any

from omni_core.errors import ExecutorError
from omni_core.wire.address import parse_address
from omni_core.wire.secret import check_secret

MARK = b"omniwire"
_NONCE = 32
_CODE = 32
_LENGTH = struct.Struct(">I")
LONGEST_HELLO = 16384
# Bytes of each message of the client; the third one also has the bytes of the hello.
FIRST_SIZE = len(MARK) + _NONCE
SECOND_SIZE = _CODE + _LENGTH.size
SERVER_SIZE = len(MARK) + _NONCE + _CODE

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class AuthenticationError(ExecutorError):
    """The other side of a connection does not know the secret, or does not speak this protocol."""


class ServerHandshake:
    """The server's side, without a socket: pass it the received bytes, and send what it returns.

    Args:
        secret: The shared secret.

    Attributes:
        wanted: How many bytes to read next; never read more.
        hello: The hello of the client, once everything was checked.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = check_secret(secret, "the control port")
        self._received = b""
        self._size = FIRST_SIZE
        self._nonces = b""
        self._step = 0
        self.hello: dict[str, Any] | None = None

    @property
    def wanted(self) -> int:
        """How many bytes to read next."""
        return 0 if self.hello is not None else self._size - len(self._received)

    @property
    def has_begun(self) -> bool:
        """Whether the client has sent anything."""
        return self._step > 0 or bool(self._received)

    def receive(self, data: bytes) -> bytes:
        """Take received bytes, at most `wanted`, and return the bytes to send.

        Raises:
            AuthenticationError: The client must be refused.
        """
        if len(data) > self.wanted:
            raise AuthenticationError("it sent more than was asked for")
        self._received += data
        if self.wanted:
            return b""
        message, self._received = self._received, b""
        step = (self._first, self._second, self._third)[self._step]
        self._step += 1
        return step(message)

    def _first(self, message: bytes) -> bytes:
        if message[: len(MARK)] != MARK:
            raise AuthenticationError("what it sent is not the beginning of a handshake")
        own = secrets.token_bytes(_NONCE)
        self._nonces = message[len(MARK) :] + own
        self._size = SECOND_SIZE
        return MARK + own + _code(self._secret, b"server", self._nonces)

    def _second(self, message: bytes) -> bytes:
        proof, length = message[:_CODE], message[_CODE:]
        if not hmac.compare_digest(proof, _code(self._secret, b"client", self._nonces)):
            raise AuthenticationError("it does not know the secret")
        (size,) = _LENGTH.unpack(length)
        if size > LONGEST_HELLO:
            raise AuthenticationError(f"its hello has {size} bytes, more than {LONGEST_HELLO}")
        self._size = size + _CODE
        return b""

    def _third(self, message: bytes) -> bytes:
        text, code = message[:-_CODE], message[-_CODE:]
        if not hmac.compare_digest(code, _code(self._secret, b"hello", self._nonces, text)):
            raise AuthenticationError("its hello was changed on the way")
        try:
            hello = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise AuthenticationError(f"its hello is not JSON: {error}") from None
        if not isinstance(hello, dict):
            raise AuthenticationError("its hello is not a JSON object")
        self.hello = hello
        return _code(self._secret, b"taken", self._nonces, text)


def connect(address: str, secret: bytes, hello: dict[str, Any], timeout_s: float) -> socket.socket:
    """Connect to a control port; retry until the timeout if it cannot be reached.

    Args:
        address: `host:port`.
        secret: The shared secret.
        hello: The data by which the client identifies itself; sent as JSON.
        timeout_s: Seconds until it gives up.

    Returns:
        A blocking socket without a time limit.

    Raises:
        AuthenticationError: The server does not know the secret, or does not speak this protocol.
        TimeoutError: There was no connection in time; the message names the last error.
        ConfigError: The address or the secret is invalid.
        ValueError: The hello is too long, or not JSON.
    """
    host, port = parse_address(address)
    check_secret(secret, "the client")
    text = json.dumps(hello).encode()
    if len(text) > LONGEST_HELLO:
        raise ValueError(f"the hello has {len(text)} bytes, more than {LONGEST_HELLO}")
    deadline = time.monotonic() + timeout_s
    pause = _FIRST_PAUSE_S
    while True:
        left = max(deadline - time.monotonic(), 1e-3)
        try:
            connection = socket.create_connection((host, port), left)
            try:
                tune(connection)
                _prove(connection, secret, text, deadline)
            except BaseException:
                connection.close()
                raise
        except OSError as error:
            if time.monotonic() + pause >= deadline:
                reason = f"nobody at {address} took the connection within {timeout_s:g} s: {error}"
                raise TimeoutError(reason) from error
        else:
            connection.settimeout(None)
            return connection
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def tune(connection: socket.socket, silent_s: int = 20) -> None:
    """Have small messages leave at once, and a peer that is cut off be noticed.

    Args:
        connection: A TCP socket.
        silent_s: Seconds without any sign of life of the peer's machine after which the connection breaks.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        quarter = max(1, silent_s // 4)
        with contextlib.suppress(OSError):  # a kernel that does not know one of them
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, quarter)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, quarter)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            # The same for what was sent and is not acknowledged; the kernel's own limit is a quarter of an hour.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silent_s * 1000)


def _prove(connection: socket.socket, secret: bytes, text: bytes, deadline: float) -> None:
    """Do the client's side. The server proves itself first, so that an impostor learns nothing."""
    own = secrets.token_bytes(_NONCE)
    connection.sendall(MARK + own)
    message = _receive(connection, SERVER_SIZE, deadline)
    if message[: len(MARK)] != MARK:
        raise AuthenticationError("who listens there is not an omni driver of this version")
    nonces = own + message[len(MARK) : -_CODE]
    if not hmac.compare_digest(message[-_CODE:], _code(secret, b"server", nonces)):
        raise AuthenticationError("the driver has another secret: both sides need the same one")
    connection.sendall(_code(secret, b"client", nonces) + _LENGTH.pack(len(text)))
    connection.sendall(text + _code(secret, b"hello", nonces, text))
    if not hmac.compare_digest(_receive(connection, _CODE, deadline), _code(secret, b"taken", nonces, text)):
        raise AuthenticationError("the driver's last answer was changed on the way")


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it does not answer")
        connection.settimeout(left)
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionResetError(f"it ended the connection after {len(data)} of {size} bytes")
        data += piece
    return data


def _code(secret: bytes, what: bytes, nonces: bytes, text: bytes = b"") -> bytes:
    # Both nonces have a fixed size, and no word is a prefix of another: no two inputs are equal.
    return hmac.new(secret, b"omni wire " + what + b"\0" + nonces + text, hashlib.sha256).digest()
