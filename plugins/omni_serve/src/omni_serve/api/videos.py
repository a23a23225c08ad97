"""`/v1/videos`: jobs, as OpenAI had them and vLLM-Omni and SGLang keep them."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from typing import Any, Literal, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omni_core.media.videos import DEFAULT_FPS
from omni_serve.errors import ApiError
from omni_serve.http.opened_file import OpenedFile
from omni_serve.http.trace_context import trace_context
from omni_serve.jobs.job import Job
from omni_serve.making.inputs import take_urls
from omni_serve.making.videos import TRACE, files_of, upload_names, video_request
from omni_serve.requests.bodies import VideoBody, parse
from omni_serve.requests.reading import read_body
from omni_serve.service import Service

# Milliseconds after which a client that polls should ask again.
_POLL_MS = "500"
_VARIANTS = ("video", "thumbnail", "spritesheet")
_LONGEST_PAGE = 100
_LONGEST_KEY = 255
# What is more is no number of frames.
_MOST_FRAMES = 10**9
# Other names of the picture that a video begins with.
_PICTURE_NAMES = ("input_reference", "image_reference")


async def create(request: Request) -> Response:
    """Add a job."""
    service: Service = request.app.state.service
    with service.admitted():
        read = await read_body(request, service.settings.max_files)
        return await _add(request, read.fields, _plain_files(read.files), None)


async def remix(request: Request) -> Response:
    """Add a job that is like another but for its prompt."""
    service: Service = request.app.state.service
    with service.admitted():
        read = await read_body(request, 0)
        old = await _job(request)
        if not isinstance(read.fields, dict) or not isinstance(read.fields.get("prompt"), str):
            raise ApiError(400, "prompt is needed.", param="prompt", code="invalid_value")
        files = files_of({name: await service.jobs.upload(old, name) for name in old.uploads})
        fields = {name: value for name, value in old.request.items() if name != TRACE}
        return await _add(request, {**fields, "prompt": read.fields["prompt"]}, files, old.id)


async def _add(request: Request, fields: Any, files: dict[str, list[bytes]], remixed_from: str | None) -> Response:
    service: Service = request.app.state.service
    if service.kind == "audio":
        raise ApiError(400, "The model makes sound: use /v1/audio/speech.", code="wrong_kind")
    if service.kind == "image" and "num_images_per_prompt" in service.takes:
        raise ApiError(400, "The model makes pictures: use /v1/images/generations.", code="wrong_kind")
    key = _idempotency_key(request)
    body = parse(VideoBody, _with_plain_names(fields))
    service.check_model(body.model)
    files = await take_urls(service, body, files)
    uploads = upload_names(files)
    await video_request(service, body, files, request.state.request_id)  # what is wrong with it is told now
    digest = await service.in_thread(_digest, fields, uploads)
    if body.seed is None:
        body.seed = secrets.randbelow(2**32)
    asked = body.model_dump(mode="json", exclude_none=True)
    if context := trace_context(request.headers):
        asked[TRACE] = context
    job, _ = await service.jobs.add(
        "video",
        service.model_name,
        asked,
        uploads=uploads,
        idempotency=None if key is None else (key, digest),
        remixed_from=remixed_from,
    )
    return _answer(job)


async def retrieve(request: Request) -> Response:
    """One job."""
    return _answer(await _job(request))


async def listing(request: Request) -> Response:
    """Jobs, the newest first."""
    service: Service = request.app.state.service
    query = request.query_params
    text, order = query.get("limit", "20"), query.get("order", "desc")
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) > _LONGEST_PAGE:
        raise ApiError(400, f"limit is a number from 0 to {_LONGEST_PAGE}.", param="limit", code="invalid_value")
    if order not in ("asc", "desc"):
        raise ApiError(400, "order is asc or desc.", param="order", code="invalid_value")
    jobs, has_more = await service.jobs.list(
        "video", query.get("after"), int(text), cast(Literal["asc", "desc"], order)
    )
    data = [_shown(job) for job in jobs]
    ids = [entry["id"] for entry in data]
    return JSONResponse(
        {
            "object": "list",
            "data": data,
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
            "has_more": has_more,
        }
    )


async def delete(request: Request) -> Response:
    """Remove a job; one that runs is aborted."""
    service: Service = request.app.state.service
    job = await _job(request)
    await service.jobs.delete(job.id)
    return JSONResponse({"id": job.id, "deleted": True, "object": "video.deleted"})


async def content(request: Request) -> Response:
    """The video, or a picture of it."""
    service: Service = request.app.state.service
    variant = request.query_params.get("variant", "video")
    if variant not in _VARIANTS:
        raise ApiError(400, f"variant is one of {', '.join(_VARIANTS)}.", param="variant", code="invalid_value")
    job = await _job(request)
    if job.status == "failed":
        raise ApiError(404, f"The video {job.id} failed: {job.error.message if job.error else ''}", code="failed")
    if job.status != "completed":
        # 409 would make OpenAI's client ask again at once, twice.
        raise ApiError(404, f"The video {job.id} is not ready: it is {job.status}.", code="not_ready")
    return OpenedFile(*await service.jobs.open(job, variant), name=job.id)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= _LONGEST_KEY:
        raise ApiError(400, f"An Idempotency-Key has 1 to {_LONGEST_KEY} characters.", code="invalid_value")
    return key


def _digest(fields: Any, uploads: dict[str, bytes]) -> str:
    """Return what is equal if and only if two requests are."""
    head = json.dumps(fields, sort_keys=True, default=str).encode()
    parts = [head, *(name.encode() + b"\0" + content for name, content in sorted(uploads.items()))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


async def _job(request: Request) -> Job:
    service: Service = request.app.state.service
    job_id = request.path_params["job_id"]
    job = await service.jobs.get(job_id)
    if job is None or job.kind != "video":
        raise ApiError(404, f"There is no video {job_id!r}; it may have expired.", param="video_id", code="not_found")
    return job


def _answer(job: Job) -> Response:
    return JSONResponse(_shown(job), headers={"openai-poll-after-ms": _POLL_MS})


def _shown(job: Job) -> dict[str, Any]:
    asked = job.request
    sides = asked.get("size") or "x".join(str(asked[name]) for name in ("width", "height") if name in asked)
    seconds, frames = asked.get("seconds"), asked.get("num_frames")
    if seconds is None and isinstance(frames, int) and 0 < frames < _MOST_FRAMES:
        seconds = frames / (asked.get("fps") or DEFAULT_FPS)
    return {
        "id": job.id,
        "object": "video",
        "status": job.status,
        "progress": job.progress,
        "model": job.model,
        "prompt": asked.get("prompt"),
        "seconds": "" if seconds is None else f"{seconds:g}",
        "size": sides,
        "seed": asked.get("seed"),
        "created_at": job.created_at,
        "completed_at": job.completed_at,
        "expires_at": job.expires_at,
        "error": None if job.error is None else {"code": job.error.code, "message": job.error.message},
        "remixed_from_video_id": job.remixed_from,
    }


def _plain_files(files: dict[str, list[bytes]]) -> dict[str, list[bytes]]:
    """Return the files of a form with the picture that a video begins with as `image`."""
    plain: dict[str, list[bytes]] = {}
    for name, contents in files.items():
        plain.setdefault("image" if name in _PICTURE_NAMES else name, []).extend(contents)
    return plain


def _with_plain_names(fields: Any) -> Any:
    if not isinstance(fields, dict):
        return fields
    plain = dict(fields)
    for name in _PICTURE_NAMES:
        value = plain.pop(name, None)
        if isinstance(value, dict):
            value = value.get("image_url")
        if value is not None:
            plain["image"] = value
    return plain
