"""Doing a job: from its row to the engine's request, and from the output to its files."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from omni_core import OmniDiffusionRequest, OmniRequestOutput, RequestEvent
from omni_core.errors import OmniError
from omni_core.media.sound import find_sampling_rate
from omni_core.media.videos import DEFAULT_FPS
from omni_serve.api import inputs
from omni_serve.errors import ApiError, api_error
from omni_serve.jobs.errors import JobFailed
from omni_serve.jobs.job import Job
from omni_serve.outputs import Encoder
from omni_serve.requests.bodies import SpeechBody, VideoBody, parse
from omni_serve.requests.making import make_requests
from omni_serve.requests.pictures import OVERLOADED
from omni_serve.service import Service

T = TypeVar("T")

_ASK_TIMEOUT_S = 10.0
# Of a form's files; which field each is, is in its name.
_SEPARATOR = "."
_FIELD = re.compile(r"[A-Za-z_]\w{0,99}", re.ASCII)


class JobMaker:
    """Makes the files of jobs. `service` is set before the first."""

    service: Service

    async def make(self, job: Job, note_progress: Callable[[int], None]) -> dict[str, tuple[str, bytes]]:
        """Make the files of a job.

        Args:
            job: Which.
            note_progress: Called with the percent of its steps that are done.

        Returns:
            Media type and content of each file by its name.

        Raises:
            JobFailed: It cannot be made.
        """
        try:
            return await self._make(job, note_progress)
        except (ApiError, OmniError) as error:
            answer = api_error(error)
            raise JobFailed(answer.code or "server_error", answer.message) from error

    async def _make(self, job: Job, note_progress: Callable[[int], None]) -> dict[str, tuple[str, bytes]]:
        service, info = self.service, self.service.info
        body = parse(VideoBody, job.request)
        uploads = {name: await service.jobs.upload(job, name) for name in job.uploads}

        def note(_: int, event: RequestEvent) -> None:
            if event.num_steps:
                note_progress(min(99, event.step * 100 // event.num_steps))

        async def run() -> tuple[OmniDiffusionRequest, OmniRequestOutput]:
            arguments, sides = await job_arguments(service, body, uploads)
            requests = make_requests(body, info, job.id, sides=sides, arguments=arguments)
            [output] = await service.run(requests, note)
            return requests[0], output

        request, output = await _when_there_is_room(run)
        encoder = Encoder(service.model_name, info.class_name if info is not None else None)
        found = await service.in_thread(encoder.video, request, output, body.fps)
        return {name: (file.media_type, file.content) for name, file in found.items()}


async def _when_there_is_room(run: Callable[[], Awaitable[T]]) -> T:
    """Await what is made; while clients that wait take all the room, try again: the job was accepted."""
    while True:
        try:
            return await run()
        except ApiError as error:
            if error.code != OVERLOADED:
                raise
            seconds = float(error.headers["retry-after"])
        await asyncio.sleep(seconds)  # when nothing of the attempt is left


async def job_arguments(
    service: Service, body: VideoBody | SpeechBody, uploads: dict[str, bytes]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the keywords of the pipeline that a job's body and files stand for, and its height and width.

    Args:
        service: With the pipeline.
        body: What was asked for.
        uploads: Contents of files by their names: the field, and a number.

    Raises:
        ApiError: They do not fit the pipeline.
    """
    pictures = await inputs.decode_all(service, files_of(uploads))
    arguments: dict[str, Any] = {}
    sides = body.sides()
    if pictures:
        arguments, sides = await service.in_thread(inputs.picture_arguments, service, pictures, sides)
    return {**arguments, **_length(service, body)}, sides


def files_of(uploads: dict[str, bytes]) -> dict[str, list[bytes]]:
    """Return a job's files by field, in order."""
    files: dict[str, list[bytes]] = {}
    for name in sorted(uploads):
        field = name.partition(_SEPARATOR)[0]
        files.setdefault("image" if field == "input_reference" else field, []).append(uploads[name])
    return files


def upload_names(files: dict[str, list[bytes]]) -> dict[str, bytes]:
    """Return the files of a form by the names under which a job keeps them.

    Raises:
        ApiError: One came in a field that is none.
    """
    for field in files:
        if not _FIELD.fullmatch(field):
            raise ApiError(400, f"{field!r} is not the name of a field.", param=field, code="invalid_form")
    return {
        f"{field}{_SEPARATOR}{number:03}": content
        for field, contents in files.items()
        for number, content in enumerate(contents)
    }


def digest_source(fields: Any, uploads: dict[str, bytes]) -> bytes:
    """Return what makes two requests the same, as bytes."""
    head = json.dumps(fields, sort_keys=True, default=str).encode()
    return b"\0".join([head, *(name.encode() + b"\0" + content for name, content in sorted(uploads.items()))])


async def sampling_rate(service: Service) -> int | None:
    """Return how many samples a second the pipeline makes, if it says so."""
    try:
        rate: int | None = await service.engine.collective_rpc(find_sampling_rate, _ASK_TIMEOUT_S, unique_reply_rank=0)
    except OmniError:  # an executor whose workers are none of ours
        return None
    return rate


def _length(service: Service, body: VideoBody | SpeechBody) -> dict[str, Any]:
    """Return the keywords that the length in seconds and the frames a second become."""
    takes = set(service.info.parameters) if service.info is not None else set()
    if isinstance(body, SpeechBody):
        if body.seconds is None:
            return {}
        if "audio_length_in_s" not in takes:
            raise ApiError(400, "The model does not let the length be chosen.", param="seconds", code="invalid_value")
        return {"audio_length_in_s": body.seconds}
    found: dict[str, Any] = {}
    if body.fps is not None and (name := next((one for one in ("frame_rate", "fps") if one in takes), None)):
        found[name] = body.fps
    if body.seconds is not None and "num_frames" not in body.keywords():
        if "num_frames" not in takes:
            raise ApiError(400, "The model does not let the length be chosen.", param="seconds", code="invalid_value")
        found["num_frames"] = max(1, round(body.seconds * (body.fps or DEFAULT_FPS)))
    return found
