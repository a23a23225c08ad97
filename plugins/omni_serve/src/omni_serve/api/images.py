"""`/v1/images`: generations, edits and variations, whole or as streams with partial pictures."""

from __future__ import annotations

import contextlib

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omni_serve.http.streams import EventStream, unless_gone
from omni_serve.http.trace_context import trace_context
from omni_serve.making.pictures import prepare
from omni_serve.requests.bodies import ImageBody, parse
from omni_serve.requests.reading import read_body
from omni_serve.service import Service


async def generations(request: Request) -> Response:
    """Make pictures from words."""
    return await _answer(request, "image_generation")


async def edits(request: Request) -> Response:
    """Make pictures from pictures and words."""
    return await _answer(request, "image_edit", needs_picture=True)


async def variations(request: Request) -> Response:
    """Make pictures from a picture alone."""
    return await _answer(request, "image_edit", needs_picture=True, without_words=True)


async def _answer(
    request: Request, events: str, *, needs_picture: bool = False, without_words: bool = False
) -> Response:
    service: Service = request.app.state.service
    async with contextlib.AsyncExitStack() as resources:
        resources.enter_context(service.admitted())
        read = await read_body(request, service.settings.max_files)
        body = parse(ImageBody, read.fields)
        preparing = prepare(
            service,
            body,
            read.files,
            request.state.request_id,
            str(request.base_url),
            needs_picture=needs_picture,
            without_words=without_words,
            metadata=trace_context(request.headers),
        )
        making = await unless_gone(request, preparing)
        if making.body.stream:
            running = await resources.enter_async_context(contextlib.aclosing(service.events(making.requests)))
            await anext(running)  # what is refused is told by the status, before the stream begins
            stream = await resources.enter_async_context(contextlib.aclosing(making.stream(events, running)))
            return EventStream(stream, resources.pop_all())
        return JSONResponse(await unless_gone(request, making.whole()))
