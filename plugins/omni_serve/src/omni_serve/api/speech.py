"""`/v1/audio/speech`: sound, at once."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from omni_serve.http.streams import unless_gone
from omni_serve.http.trace_context import trace_context
from omni_serve.making.sound import make_sound
from omni_serve.requests.bodies import SpeechBody, parse
from omni_serve.requests.reading import read_body
from omni_serve.service import Service


async def create(request: Request) -> Response:
    """Make sound from words, as a WAV file."""
    service: Service = request.app.state.service
    with service.admitted():
        read = await read_body(request, 0)
        body = parse(SpeechBody, read.fields)
        service.check_model(body.model)
        service.check_makes("audio")
        if body.prompt is None:
            body.prompt = body.input
        making = make_sound(service, body, request.state.request_id, trace_context(request.headers))
        file, seed = await unless_gone(request, making)
        return Response(file.content, media_type=file.media_type, headers={"x-omni-seed": str(seed)})
