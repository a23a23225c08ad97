"""Making a video: how long it is to be, and its files."""

from __future__ import annotations

from typing import Any

from omni_core import OmniDiffusionRequest, OmniRequestOutput
from omni_core.media.videos import DEFAULT_FPS
from omni_serve.outputs import EncodedFile
from omni_serve.requests.bodies import VideoBody
from omni_serve.service import Service


async def encoded_video(
    service: Service, body: VideoBody, request: OmniDiffusionRequest, output: OmniRequestOutput
) -> dict[str, EncodedFile]:
    """Return the files of a video: see `Encoder.video`."""
    return await service.in_thread(service.encoder.video, request, output, body.fps)


def video_length(service: Service, body: VideoBody) -> dict[str, Any]:
    """Return the keywords of the pipeline that the length in seconds and the frames a second stand for.

    Raises:
        ApiError: The pipeline has none for the length.
    """
    found: dict[str, Any] = {}
    if body.fps is not None and (name := next((one for one in ("frame_rate", "fps") if one in service.takes), None)):
        found[name] = body.fps
    if body.seconds is not None and "num_frames" not in body.keywords():
        service.check_takes("num_frames", "seconds")
        found["num_frames"] = max(1, round(body.seconds * (body.fps or DEFAULT_FPS)))
    return found
