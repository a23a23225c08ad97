"""Files that were kept for clients that asked for a URL."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from omni_serve.errors import ApiError
from omni_serve.http.opened_file import OpenedFile
from omni_serve.service import Service


async def content(request: Request) -> Response:
    """A file. Its id cannot be guessed, so that the URL alone is enough, as with OpenAI."""
    service: Service = request.app.state.service
    job = await service.jobs.get(request.path_params["job_id"])
    if job is None or job.kind != "image" or not job.files:
        raise ApiError(404, "There is no such file; it may have expired.", code="not_found")
    return OpenedFile(*await service.jobs.open(job, job.files[0].name), name=job.id)
