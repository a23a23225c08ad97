"""Making sound: how long it is to be, the request, and the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omni_core import OmniDiffusionRequest, OmniRequestOutput
from omni_core.errors import RPCError, RPCTimeoutError, WorkerDiedError
from omni_core.media.sound import find_sampling_rate
from omni_serve.errors import ApiError
from omni_serve.making.inputs import pipeline_arguments, take_urls
from omni_serve.outputs import EncodedFile
from omni_serve.requests.bodies import MOST_SECONDS, SoundBody, SpeechBody
from omni_serve.requests.engine_requests import LENGTHS_OF_SOUND, make_requests
from omni_serve.service import Service

# A call waits for the end of a step.
_ASK_TIMEOUT_S = 120.0


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
    arguments |= sound_length(service, body)
    requests = make_requests(
        body, service.engine.engine, request_id, sides=sides, arguments=arguments, metadata=metadata
    )
    [output] = await service.run(requests)
    return await encoded_sound(service, requests[0], output), output.seed


def sound_length(service: Service, body: SoundBody) -> dict[str, Any]:
    """Return the keyword of the pipeline that the length in seconds stands for.

    Raises:
        ApiError: The pipeline has none.
    """
    if body.seconds is None:
        return {}
    name = next((one for one in LENGTHS_OF_SOUND if one in service.takes), "")
    if name in body.keywords():
        return {}
    service.check_takes(name, "seconds")
    start = body.keywords().get("audio_start_in_s") if name == "audio_end_in_s" else None
    if isinstance(start, (int, float)) and not 0 <= start <= MOST_SECONDS:
        raise ApiError(400, f"audio_start_in_s is from 0 to {MOST_SECONDS}.", param="audio_start_in_s")
    return {name: body.seconds + (start if isinstance(start, (int, float)) else 0)}


async def encoded_sound(service: Service, request: OmniDiffusionRequest, output: OmniRequestOutput) -> EncodedFile:
    """Return the file of a sound: see `Encoder.sound`."""
    rate = await _sampling_rate(service)
    return await service.in_thread(service.encoder.sound, request, output, rate)


async def _sampling_rate(service: Service) -> int | None:
    """Return how many samples a second the pipeline makes, if it says so. It is asked once.

    Raises:
        OmniError: It cannot be asked now. A usual rate could be another, and the sound too fast or too slow.
    """
    if service.sampling_rate is None:
        try:
            rate = await service.engine.collective_rpc(find_sampling_rate, _ASK_TIMEOUT_S, unique_reply_rank=0)
        except (RPCTimeoutError, WorkerDiedError):
            raise
        except RPCError:  # an executor whose workers are none of ours
            rate = None
        service.sampling_rate = (rate,)
    return service.sampling_rate[0]
