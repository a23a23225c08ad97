"""Files that were kept for clients that asked for a URL."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from omni_serve.errors import ApiError
from omni_serve.service import Service


async def content(request: Request) -> Response:
    """A file. Its id cannot be guessed, so that the URL alone is enough, as with OpenAI."""
    service: Service = request.app.state.service
    job = await service.jobs.get(request.path_params["job_id"])
    if job is None or job.kind != "image" or not job.files:
        raise ApiError(404, "There is no such file; it may have expired.", code="not_found")
    file = job.files[0]
    return FileResponse(await service.jobs.path_of(job, file.name), media_type=file.media_type)
