"""What the reading of bodies may cost: bytes of one, bytes of all, and time.

Starlette's own limit answers in plain text, which OpenAI's clients do not read.
"""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omni_serve.errors import OVERLOADED, ApiError, retry_after
from omni_serve.service import Service
from omni_serve.tasks import end_tasks

# So many of the largest bodies may be held at a time.
_BODIES_AT_ONCE = 8
_FULL_RETRY_S = 5.0
# Seconds in which no byte of a body comes, after which it is given up; and that once the server is to end.
STALL_S = 60.0
_STALL_WHILE_DRAINING_S = 5.0
# Seconds between two looks whether the server is to end.
_LOOK_S = 1.0


class BodyLimit:
    """Refuses bodies that say that they are too large, and ends the reading of others when they are.

    A body that does not come on is given up: a client that has sent half of it would hold up the end of the server.

    Args:
        app: What reads the body. It answers the `ApiError` that reading raises.
        service: Whose settings say how many bytes a body has at most.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._max_bytes = service.settings.max_body_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            await self._too_large().response()(scope, receive, send)
            return
        read = 0
        is_whole = False

        async def counted() -> Message:
            nonlocal read, is_whole
            if is_whole:  # what comes now is that the client goes away
                return await receive()
            message = await self._next(receive)
            is_whole = not message.get("more_body", False)
            size = len(message.get("body", b""))
            read += size
            self._held += size
            if read > self._max_bytes:
                raise self._too_large()
            if self._held > max(read, _BODIES_AT_ONCE * self._max_bytes):
                raise ApiError(
                    429,
                    "The server holds too many large bodies now, of requests that have not been answered.",
                    code=OVERLOADED,
                    headers=retry_after(_FULL_RETRY_S),
                )
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= read

    async def _next(self, receive: Receive) -> Message:
        """Return the next piece of a body.

        Raises:
            ApiError: It does not come.
        """
        arriving = asyncio.ensure_future(receive())
        begun = time.monotonic()
        try:
            while not (await asyncio.wait((arriving,), timeout=_LOOK_S))[0]:
                seconds = time.monotonic() - begun
                if self._service.is_cut_off or (self._service.is_draining and seconds > _STALL_WHILE_DRAINING_S):
                    raise self._service.draining()
                if seconds > STALL_S:
                    raise ApiError(408, f"No more of the body has come for {STALL_S:g} s.", code="body_timeout")
            return arriving.result()
        finally:
            if not arriving.done():
                await end_tasks(arriving)

    def _too_large(self) -> ApiError:
        most = f"{self._max_bytes / (1 << 20):g} MiB"
        return ApiError(413, f"The body is larger than {most}; --max-body-mb allows more.", code="body_too_large")
