"""`/v1/audio/speech`: sound, at once."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from omni_serve.api.inputs import take_urls
from omni_serve.api.status import kind_of
from omni_serve.errors import ApiError
from omni_serve.http.streams import unless_gone
from omni_serve.jobs_of_pipeline import job_arguments, sampling_rate, upload_names
from omni_serve.outputs import EncodedFile, Encoder
from omni_serve.requests.bodies import SpeechBody, parse
from omni_serve.requests.making import make_requests
from omni_serve.requests.reading import read_body
from omni_serve.service import Service


async def create(request: Request) -> Response:
    """Make sound from words, as a WAV file."""
    service: Service = request.app.state.service
    with service.admitted():
        read = await read_body(request, 0)
        body = parse(SpeechBody, read.fields)
        service.check_model(body.model)
        if kind_of(service) != "audio":
            raise ApiError(400, f"The model makes no sound: {service.model_name}.", code="wrong_kind")
        if body.prompt is None:
            body.prompt = body.input
        file, seed = await unless_gone(request, _make(service, body, request.state.request_id))
        return Response(file.content, media_type=file.media_type, headers={"x-omni-seed": str(seed)})


async def _make(service: Service, body: SpeechBody, request_id: str) -> tuple[EncodedFile, int]:
    files = await take_urls(service, body, {})
    arguments, sides = await job_arguments(service, body, upload_names(files))
    requests = make_requests(body, service.info, request_id, sides=sides, arguments=arguments)
    [output] = await service.run(requests)
    rate = await sampling_rate(service)
    info = service.info
    encoder = Encoder(service.model_name, info.class_name if info is not None else None)
    return await service.in_thread(encoder.sound, requests[0], output, rate), output.seed
