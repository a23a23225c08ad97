"""Reports each HTTP request to observers: which endpoint, how it was answered, how long it took."""

from __future__ import annotations

import time
from typing import Any

from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omni_serve.http.streams import CLIENT_GONE, IS_GONE
from omni_serve.observers import Observers

# What a label may be is for the server to say and not for clients, who may send any method and any path.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"


class HttpReports:
    """The outermost middleware.

    Args:
        app: What answers.
        observers: Who is told.
    """

    def __init__(self, app: ASGIApp, observers: Observers) -> None:
        self._app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_GONE

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        asked = dict(scope)  # a mount changes it
        begun = time.monotonic()
        try:
            await self._app(scope, receive, send_noted)
        finally:
            route = _template(scope.get("route"), asked)
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            self._observers.http_request(route, method, status, time.monotonic() - begun)
            if scope.get("state", {}).get(IS_GONE):
                self._observers.http_disconnect(route)


def _template(route: Any, scope: Scope) -> str:
    """Return the template of the route that a path has, also if the request never came so far; or `OTHER`."""
    if route is None:
        found = (one for one in scope["app"].routes if one.matches(scope)[0] is not Match.NONE)
        route = next(found, None)
    return getattr(route, "path", OTHER) or "/"
