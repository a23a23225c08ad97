"""Doing a job, a video or sound: from its row to the engine's request, and from the output to its files."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from omni_core import OmniDiffusionRequest, OmniRequestOutput, RequestEvent
from omni_core.errors import OmniError
from omni_serve.errors import OVERLOADED, ApiError, api_error
from omni_serve.http.trace_context import trace_context
from omni_serve.jobs.errors import JobFailed
from omni_serve.jobs.job import Job
from omni_serve.making.inputs import pipeline_arguments
from omni_serve.making.sound import encoded_sound, sound_length
from omni_serve.making.videos import encoded_video, video_length
from omni_serve.outputs import EncodedFile
from omni_serve.requests.bodies import SoundBody, VideoBody, parse
from omni_serve.requests.engine_requests import make_requests
from omni_serve.service import Service

T = TypeVar("T")

# Of a form's files; which field each is, is in its name.
_SEPARATOR = "."
# Where a job's request has the context of the client's trace: no keyword of a pipeline has such a name.
TRACE = "omni.trace"
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
        service = self.service
        fields = dict(job.request)
        kept = fields.pop(TRACE, None)
        metadata = trace_context(kept if isinstance(kept, dict) else {})
        body: VideoBody | SoundBody
        body = parse(VideoBody, fields) if job.kind == "video" else parse(SoundBody, fields)
        uploads = {name: await service.jobs.upload(job, name) for name in job.uploads}

        def note(_: int, event: RequestEvent) -> None:
            if event.num_steps:
                note_progress(min(99, event.step * 100 // event.num_steps))

        async def run() -> tuple[OmniDiffusionRequest, OmniRequestOutput]:
            requests = await job_request(service, body, files_of(uploads), job.id, metadata)
            [output] = await service.run(requests, note, of_job=True)
            return requests[0], output

        found = await _encoded(service, body, *await _when_there_is_room(run))
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


async def _encoded(
    service: Service, body: VideoBody | SoundBody, request: OmniDiffusionRequest, output: OmniRequestOutput
) -> dict[str, EncodedFile]:
    if isinstance(body, VideoBody):
        return await encoded_video(service, body, request, output)
    return {"audio": await encoded_sound(service, request, output)}


async def job_request(
    service: Service,
    body: VideoBody | SoundBody,
    files: dict[str, list[bytes]],
    request_id: str,
    metadata: Mapping[str, str] | None = None,
) -> list[OmniDiffusionRequest]:
    """Return the engine's request for a video or for sound, as the only one of a list.

    Args:
        service: Which is to make it.
        body: What was asked for.
        files: The pictures that came with it, by field.
        request_id: Id of the request.
        metadata: For plugins.

    Raises:
        ApiError: It does not fit the pipeline or the limits.
    """
    arguments, sides = await pipeline_arguments(service, body, files)
    arguments |= video_length(service, body) if isinstance(body, VideoBody) else sound_length(service, body)
    return make_requests(body, service.engine.engine, request_id, sides=sides, arguments=arguments, metadata=metadata)


def files_of(uploads: dict[str, bytes]) -> dict[str, list[bytes]]:
    """Return a job's files by field, in order."""
    files: dict[str, list[bytes]] = {}
    for name in sorted(uploads):
        field = name.partition(_SEPARATOR)[0]
        files.setdefault(field, []).append(uploads[name])
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
