"""The server's side of HTTP: one thread per connection, which believes nobody before the signature was checked."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

from omni_exec_http.body import Part, digest_of, num_bytes
from omni_exec_http.session import Session, SessionOverError
from omni_exec_http.signing import SIGNATURE, NotAuthenticError

if TYPE_CHECKING:
    from omni_exec_http.server import HttpServer

log = logging.getLogger("omni_exec_http")

HEADER_TIMEOUT_S = 10.0
SLOWEST_BYTES_PER_S = 2**20
CALL = re.compile(r"/session/(?P<session>[0-9a-f]{32})/(?P<what>call|step)/(?P<number>[0-9]{1,18})")
INTERRUPT = re.compile(r"/session/(?P<session>[0-9a-f]{32})/interrupt")


class DeadlineReader(io.RawIOBase):
    """Reads a socket up to a moment, so that sending byte by byte wins no time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline: float | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read what is there, or wait for it."""
        left = None if self.deadline is None else self.deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("what was sent took too long to come")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, one after the other."""

    server: HttpServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "omni-exec-http", ""
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Give a stranger some seconds."""
        self._is_known = False
        self._session: Session | None = None
        try:
            super().setup()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError:
            self.server.strangers.release()
            raise
        self._reader = DeadlineReader(self.connection)
        self.rfile.close()
        self.rfile = io.BufferedReader(self._reader, 2**16)

    def handle_one_request(self) -> None:
        """Wait for a request: for as long as it takes from a driver that is known, else for seconds."""
        self._reader.deadline = None if self._is_known else time.monotonic() + HEADER_TIMEOUT_S
        try:
            if not self.rfile.peek(1):  # type: ignore[attr-defined]
                self.close_connection = True
                return
            self._reader.deadline = time.monotonic() + HEADER_TIMEOUT_S
            super().handle_one_request()
        except OSError as error:
            log.debug("a connection was lost: %s", error)
            self.close_connection = True

    def finish(self) -> None:
        """End the session whose driver has hung up."""
        if self._session is not None:
            self.server.end_session(self._session)
        if not self._is_known:
            self.server.strangers.release()
        super().finish()

    def do_GET(self) -> None:
        """Answer."""
        self._answer()

    def do_POST(self) -> None:
        """Answer."""
        self._answer()

    def _answer(self) -> None:
        try:
            claim = self.server.signer.check_request(self.command, self.path, self.headers)
        except NotAuthenticError as error:
            self._refuse(str(error))
            return
        if not self._is_known:
            self._is_known = True
            self.server.strangers.release()
        if claim.length > self.server.max_body_bytes:
            self.close_connection = True
            self._send(413, [b"the body is larger than max_body_bytes of the server"], claim.nonce)
            return
        body = bytearray(claim.length)
        self._reader.deadline = time.monotonic() + HEADER_TIMEOUT_S + claim.length / SLOWEST_BYTES_PER_S
        if self.rfile.readinto(body) < claim.length:
            self.close_connection = True
            return
        if digest_of([body]) != claim.digest:
            self._refuse("its body is not the one that was signed")
            return
        status, parts = self._route(body, claim.nonce)
        self._send(status, parts, claim.nonce)

    def _route(self, body: bytearray, nonce: str) -> tuple[int, list[Part]]:
        if (self.command, self.path) == ("GET", "/health"):
            return 200, [json.dumps({"pid": os.getpid(), **self.server.health()}).encode()]
        if (self.command, self.path) == ("POST", "/session"):
            session = self.server.begin_session(nonce, body)
            if session is None:
                return 409, [b"the server works for another driver; each server has one at a time"]
            self._session = session  # it lasts as long as this connection
            return 200, session.loaded.result()
        if self.command == "POST" and (match := CALL.fullmatch(self.path)):
            session = self.server.session_of(match["session"])
            try:
                if session is not None:
                    return 200, session.call(int(match["number"]), body, is_step=match["what"] == "step")
            except SessionOverError:
                pass
            return 410, [b"the session is over"]
        if self.command == "POST" and (match := INTERRUPT.fullmatch(self.path)):
            session = self.server.session_of(match["session"])
            if session is not None:
                session.interrupt()
            return 200, []
        return 404, [b"there is nothing of that name"]

    def _send(self, status: int, parts: list[Part], nonce: str) -> None:
        size = num_bytes(parts)
        self.connection.settimeout(HEADER_TIMEOUT_S + size / SLOWEST_BYTES_PER_S)
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(size))
        self.send_header(SIGNATURE, self.server.signer.sign_reply(nonce, status, digest_of(parts)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        for part in parts:
            self.wfile.write(part)

    def _refuse(self, why: str) -> None:
        log.warning("refused a request from %s: %s", self.client_address[0], why)
        self.close_connection = True
        self.connection.settimeout(HEADER_TIMEOUT_S)
        self.send_response(401)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(why.encode())))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(why.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log to the program's log and not to standard error."""
        log.debug(format, *args)
