"""Each request has an id, the client's or a new one, which the answer, the engine and the log have too."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omni_core.log import get_logger
from omni_serve.errors import api_error

log = get_logger(__name__)
access_log = get_logger("omni_serve.access")

HEADER = "x-request-id"
# As the engine allows them, less what a request that is divided appends.
_VALID = re.compile(r"[\w.:-]{1,100}", re.ASCII)
# Probes, of which there is one each second; the page asks for the numbers as often.
_QUIET_PATHS = frozenset({"/live", "/ready", "/health", "/metrics", "/v1/omni/stats"})


class RequestIds:
    """Gives each request its id, and turns what nobody has caught into an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _VALID.fullmatch(given) else uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = request_id
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        begun = time.monotonic()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                log.exception("a request failed in a way that was not foreseen", path=scope["path"])
                if status is None:
                    await api_error(error).response()(scope, receive, send_with_id)
            finally:
                write = access_log.debug if scope["path"] in _QUIET_PATHS else access_log.info
                write(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    seconds=round(time.monotonic() - begun, 4),
                    client=(scope.get("client") or ("",))[0],
                )
