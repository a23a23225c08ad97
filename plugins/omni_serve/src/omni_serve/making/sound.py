"""Making sound: the request, and the file."""

from __future__ import annotations

from collections.abc import Mapping

from omni_core.errors import OmniError
from omni_core.media.sound import find_sampling_rate
from omni_serve.making.inputs import pipeline_arguments, take_urls
from omni_serve.outputs import EncodedFile
from omni_serve.requests.bodies import SpeechBody
from omni_serve.requests.making import make_requests
from omni_serve.service import Service

_ASK_TIMEOUT_S = 10.0


async def make_sound(
    service: Service, body: SpeechBody, request_id: str, metadata: Mapping[str, str] | None = None
) -> tuple[EncodedFile, int]:
    """Make sound, and return the file and the seed that it was made with.

    Args:
        service: Which makes it.
        body: What was asked for.
        request_id: Id of the request.
        metadata: For plugins.

    Raises:
        ApiError: It does not fit the pipeline, or is refused.
        OmniError: It failed.
    """
    arguments, sides = await pipeline_arguments(service, body, await take_urls(service, body, {}))
    if body.seconds is not None:
        service.check_takes("audio_length_in_s", "seconds")
        arguments["audio_length_in_s"] = body.seconds
    requests = make_requests(body, service.info, request_id, sides=sides, arguments=arguments, metadata=metadata)
    [output] = await service.run(requests)
    rate = await _sampling_rate(service)
    return await service.in_thread(service.encoder.sound, requests[0], output, rate), output.seed


async def _sampling_rate(service: Service) -> int | None:
    """Return how many samples a second the pipeline makes, if it says so."""
    try:
        rate: int | None = await service.engine.collective_rpc(find_sampling_rate, _ASK_TIMEOUT_S, unique_reply_rank=0)
    except OmniError:  # an executor whose workers are none of ours
        return None
    return rate
