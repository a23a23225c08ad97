"""Who may ask: the key, the name under which a browser has found the server, and the page that asks."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from omni_serve.errors import ApiError
from omni_serve.settings import LOOPBACK_NAMES, ServeSettings

# Without a key: probes, the page, which asks for the key, and files, whose names cannot be guessed.
_OPEN_PATHS = frozenset({"/", "/live", "/ready", "/health", "/favicon.ico"})
_OPEN_PREFIXES = ("/page/", "/v1/files/")


class Guard:
    """Refuses requests that have no key, or that another site's page has made a browser send.

    Without a key, whatever reaches the port is let in. Browsers reach it for any page that they show: a page's form
    needs no permission to be sent here (`Origin` tells), and a page can give its own name this machine's address
    (`Host` tells).

    Args:
        app: What is guarded.
        settings: With the keys and the names of the server.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._keys = [key.encode() for key in settings.api_keys]
        self._hosts = LOOPBACK_NAMES | {_plain(settings.host), *(_plain(_name_of(it)) for it in settings.allowed_hosts)}
        self._checks_host = not self._keys and settings.is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "http":
            refusal = self._refusal(Headers(scope=scope), scope["path"])
            if refusal is not None:
                await refusal.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers, path: str) -> ApiError | None:
        host = headers.get("host", "")
        if self._checks_host and _plain(_name_of(host)) not in self._hosts:
            return ApiError(
                421,
                f"This server is not {host!r}. Name it with --allowed-host if it is meant to be.",
                code="wrong_host",
            )
        origin = headers.get("origin")
        if origin is not None and not _is_of(origin, host):
            return ApiError(403, f"Pages of {origin} may not use this server.", code="wrong_origin")
        if not self._keys or path in _OPEN_PATHS or path.startswith(_OPEN_PREFIXES):
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode()
        # Every key is compared, so that the time tells nothing.
        is_known = [hmac.compare_digest(given, known) for known in self._keys]
        if scheme.lower() == "bearer" and any(is_known):
            return None
        return ApiError(
            401,
            "An API key is needed: Authorization: Bearer KEY." if not given else "The API key is not valid.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )


def _is_of(origin: str, host: str) -> bool:
    """Return whether an Origin header means the server that a Host header names."""
    scheme, _, address = origin.partition("://")
    return scheme in ("http", "https") and address.lower() == host.lower()


def _plain(name: str) -> str:
    """Return the name of a host as it is compared: names have no case, and may end with the dot of the root."""
    return name.lower().removesuffix(".")


def _name_of(host: str) -> str:
    """Return a Host header without its port."""
    return host if host.endswith("]") else host.rpartition(":")[0] or host
