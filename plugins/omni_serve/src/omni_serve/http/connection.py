"""A connection: uvicorn's, with bounds on what a client can hold by not sending, not reading, or sending too much."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from omni_serve.errors import ApiError

# Seconds from the beginning of a connection, or from the first byte of a further request, to the end of its headers.
HEADERS_S = 30.0
# Bytes of the headers of a request.
_MOST_HEADER_BYTES = 64 << 10
# Seconds in which a client reads nothing of an answer, after which it is taken for gone.
STALL_S = 60.0
# Requests that a client may send before the first of them is answered.
_MOST_PIPELINED = 16


class Connection(HttpToolsProtocol):
    """One connection.

    uvicorn waits for ever for headers that were begun and for clients that do not read, and reads headers of any size.
    After a request that was sent before the answer to an earlier one it reads no more, and so does not see the client
    go away.
    """

    _deadline: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _cycles: tuple[RequestResponseCycle, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take a connection."""
        super().connection_made(transport)
        with contextlib.suppress(AttributeError, OSError):  # a socket of another kind
            # A machine that vanished is noticed though nothing is sent.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Take what the client has sent."""
        was_expecting = self._deadline is not None
        super().data_received(data)
        if was_expecting and self._deadline is not None:
            self._header_bytes += len(data)
            if self._header_bytes > _MOST_HEADER_BYTES:
                self._refuse(431, f"The headers have more than {_MOST_HEADER_BYTES} bytes.")

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        super().on_message_begin()
        self._expect_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. What follows a chunked body is none (RFC 9110, 6.5.1), and is only counted."""
        if self._deadline is not None:
            super().on_header(name, value)
            return
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > _MOST_HEADER_BYTES:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        """Begin to answer a request, or queue it behind earlier ones."""
        self._have_headers()
        if self.parser.should_upgrade() and any(
            name in (b"content-length", b"transfer-encoding") and value != b"0" for name, value in self.headers
        ):
            # The parser would take the body for what follows the upgrade, or for a further request.
            self._refuse(400, "A request with a body cannot ask for an upgrade: send it without the header Upgrade.")
            return
        super().on_headers_complete()
        self._cycles = (*(one for one in self._cycles if not one.response_complete), self.cycle)
        if len(self._cycles) > _MOST_PIPELINED:
            self.transport.abort()
        elif len(self._cycles) > 1:
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        """Note that the client does not read as fast as the answer is made."""
        super().pause_writing()
        self._watch_writing(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Note that it has read."""
        self._end_watch()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the work for what was not answered."""
        self._have_headers()
        self._end_watch()
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, as all errors are answered."""
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        answer = ApiError(status, message, code="invalid_http", headers={"connection": "close"}).response()
        head = b"".join(b"%b: %b\r\n" % header for header in answer.raw_headers)
        self.transport.write(b"HTTP/1.1 %d \r\n%b\r\n%b" % (status, head, bytes(answer.body)))
        self.transport.close()

    def _expect_headers(self) -> None:
        if self._deadline is None:
            self._header_bytes = 0
            self._deadline = self.loop.call_later(HEADERS_S, self._give_up)

    def _have_headers(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if any(not cycle.response_complete for cycle in self._cycles):  # an earlier request is being answered
            self._expect_headers()
        else:
            self.transport.close()

    def _watch_writing(self, unsent: int) -> None:
        self._end_watch()
        self._stall = self.loop.call_later(STALL_S, self._look_at_writing, unsent)

    def _look_at_writing(self, before: int) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent >= before:
            self.transport.abort()
        else:
            self._watch_writing(unsent)

    def _end_watch(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
