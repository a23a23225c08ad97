"""A connection: uvicorn's, which also ends where a client does not send its headers, and answers what is no HTTP."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from omni_serve.errors import ApiError

# Seconds from the beginning of a connection, or from the first byte of a further request, to the end of its headers.
HEADERS_S = 30.0


class Connection(HttpToolsProtocol):
    """One connection.

    uvicorn waits for ever for headers that were begun, so that clients that send half of them, by the thousand, would
    leave no descriptors for others.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take a connection."""
        super().connection_made(transport)
        self._expect_headers()

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        super().on_message_begin()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        """Begin to answer a request."""
        self._have_headers()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection has ended."""
        self._have_headers()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, as all errors are answered."""
        answer = ApiError(400, msg, code="invalid_http", headers={"connection": "close"}).response()
        head = b"".join(b"%b: %b\r\n" % header for header in answer.raw_headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n%b\r\n%b" % (head, bytes(answer.body)))
        self.transport.close()

    def _expect_headers(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADERS_S, self._give_up)

    def _have_headers(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.cycle is not None and not self.cycle.response_complete:  # an earlier request is being answered
            self._expect_headers()
        else:
            self.transport.close()
