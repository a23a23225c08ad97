"""How large a body may be. Starlette's own limit answers in plain text, which OpenAI's clients do not read."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omni_serve.errors import ApiError


class BodyLimit:
    """Refuses bodies that say that they are too large, and ends the reading of others when they are.

    Args:
        app: What reads the body. It answers the `ApiError` that reading raises.
        max_bytes: Most bytes of a body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

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

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> ApiError:
        most = f"{self._max_bytes / (1 << 20):g} MiB"
        return ApiError(413, f"The body is larger than {most}; --max-body-mb allows more.", code="body_too_large")
