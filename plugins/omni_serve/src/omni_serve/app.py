"""The ASGI application: its routes, and what each request goes through first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from omni_core.errors import OmniError
from omni_serve.api import chat, files, images, speech, status
from omni_serve.api.jobs import SOUNDS, VIDEOS
from omni_serve.errors import ApiError, answer_error
from omni_serve.http.body_limit import BodyLimit
from omni_serve.http.guard import Guard
from omni_serve.http.reports import HttpReports
from omni_serve.http.request_ids import RequestIds
from omni_serve.http.streams import CLIENT_GONE, IS_GONE, ClientGoneError
from omni_serve.openapi import openapi_document
from omni_serve.service import Service

PAGE = Path(__file__).with_name("page")
# The page loads nothing from elsewhere and runs no script but its own.
_PAGE_POLICY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
        "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

ROUTES: tuple[tuple[str, str, Callable[[Request], Any]], ...] = (
    ("POST", "/v1/images/generations", images.generations),
    ("POST", "/v1/images/edits", images.edits),
    ("POST", "/v1/images/variations", images.variations),
    *VIDEOS.routes,
    *SOUNDS.routes,
    ("POST", "/v1/audio/speech", speech.create),
    ("POST", "/v1/chat/completions", chat.completions),
    ("GET", "/v1/files/{job_id}/content", files.content),
    ("GET", "/v1/models", status.models),
    ("GET", "/v1/models/{name:path}", status.model),
    ("GET", "/live", status.live),
    ("GET", "/ready", status.ready),
    ("GET", "/health", status.ready),
    ("GET", "/v1/omni/stats", status.stats),
    ("GET", "/v1/omni/pipeline", status.pipeline),
    ("POST", "/v1/omni/sleep", status.sleep),
    ("POST", "/v1/omni/wake_up", status.wake_up),
)


def make_app(service: Service) -> Starlette:
    """Return the application of a service, whose life is the caller's to manage."""
    routes: list[Any] = [Route(path, endpoint, methods=[method]) for method, path, endpoint in ROUTES]
    routes += [
        Route("/openapi.json", _openapi),
        Route("/metrics", _metrics),
        Route("/", _page),
        Route("/favicon.ico", _icon),
        Mount("/page", _PageFiles(directory=PAGE)),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(HttpReports, observers=service.observers),
            Middleware(RequestIds),
            Middleware(Guard, settings=service.settings),
            Middleware(BodyLimit, service=service),
        ],
        exception_handlers={
            ApiError: answer_error,
            OmniError: answer_error,
            HTTPException: _answer_http_error,
            ClientDisconnect: _answer_nobody,
            ClientGoneError: _answer_nobody,
        },
    )
    app.state.service = service
    return app


class _PageFiles(StaticFiles):
    def file_response(self, *arguments: Any, **keywords: Any) -> Response:
        response = super().file_response(*arguments, **keywords)
        response.headers.update(_PAGE_POLICY)
        return response


async def _page(request: Request) -> Response:
    return FileResponse(PAGE / "index.html", headers=_PAGE_POLICY)


async def _icon(request: Request) -> Response:
    return FileResponse(PAGE / "icon.svg", media_type="image/svg+xml", headers=_PAGE_POLICY)


async def _openapi(request: Request) -> Response:
    return JSONResponse(openapi_document())


async def _metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    if (text := await service.metrics()) is not None:
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
    raise ApiError(404, "There are no metrics: pip install 'omni-metrics[prometheus]'.", code="not_installed")


async def _answer_nobody(request: Request, error: Exception) -> Response:
    setattr(request.state, IS_GONE, True)
    return Response(status_code=CLIENT_GONE)  # for the log


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return ApiError(404, f"There is no {request.url.path} here; /openapi.json lists what is.").response()
    if error.status_code == 405:
        allowed = ", ".join(_methods_of(request))
        return ApiError(
            405, f"{request.url.path} takes {allowed}, not {request.method}.", headers={"allow": allowed}
        ).response()
    return await answer_error(request, error)


def _methods_of(request: Request) -> list[str]:
    """Return the methods that a path has: several routes may have the same one."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    found = [route.methods or set() for route in routes if route.path_regex.match(request.url.path)]
    return sorted(set().union(*found) or {"GET", "HEAD"})  # files of the page are no routes
