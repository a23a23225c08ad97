"""Jobs: `/v1/videos`, as OpenAI had it and vLLM-Omni and SGLang keep it, and `/v1/audio/generations` likewise."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omni_core.media.videos import DEFAULT_FPS
from omni_serve.errors import ApiError
from omni_serve.http.opened_file import OpenedFile
from omni_serve.http.trace_context import trace_context
from omni_serve.jobs.job import Job
from omni_serve.making.inputs import take_urls
from omni_serve.making.jobs import TRACE, files_of, job_request, upload_names
from omni_serve.outputs import VARIANTS
from omni_serve.requests.bodies import SoundBody, VideoBody, parse
from omni_serve.requests.reading import read_body
from omni_serve.service import Service

# Milliseconds after which a client that polls should ask again.
_POLL_MS = "500"
_LONGEST_PAGE = 100
# Of its fields as JSON, without files: they are kept, and read for each list.
_MOST_JOB_BYTES = 256 << 10
_LONGEST_KEY = 255
# Of the fields that a job was asked for with: what is not for other clients, or stands elsewhere in the answer.
_NOT_SHOWN = frozenset({TRACE, "user", "model", "prompt", "priority", "seed", "size"})
# What is more is no number of frames.
_MOST_FRAMES = 10**9
# Other names of the picture that a video begins with.
_PICTURE_NAMES = ("input_reference", "image_reference")


@dataclass(frozen=True)
class JobEndpoints:
    """The endpoints of the jobs of one kind.

    Attributes:
        kind: What they make.
        path: Of the first endpoint.
        body: What a request for one may hold.
    """

    kind: Literal["video", "audio"]
    path: str
    body: type[VideoBody | SoundBody]

    @property
    def routes(self) -> tuple[tuple[str, str, Callable[[Request], Any]], ...]:
        """Method, path and function of each."""
        one = f"{self.path}/{{job_id}}"
        return (
            ("POST", self.path, self.create),
            ("GET", self.path, self.listing),
            ("GET", one, self.retrieve),
            ("DELETE", one, self.delete),
            ("GET", f"{one}/content", self.content),
            ("POST", f"{one}/remix", self.remix),
        )

    async def create(self, request: Request) -> Response:
        """Add a job."""
        service: Service = request.app.state.service
        with service.admitted():
            read = await read_body(request, service.settings.max_files)
            return await self._add(request, read.fields, _plain_files(read.files), None)

    async def remix(self, request: Request) -> Response:
        """Add a job that is like another but for its prompt."""
        service: Service = request.app.state.service
        with service.admitted():
            read = await read_body(request, 0)
            old = await self._job(request)
            if not isinstance(read.fields, dict) or not isinstance(read.fields.get("prompt"), str):
                raise ApiError(400, "prompt is needed.", param="prompt", code="invalid_value")
            files = files_of({name: await service.jobs.upload(old, name) for name in old.uploads})
            fields = {name: value for name, value in old.request.items() if name != TRACE}
            return await self._add(request, {**fields, "prompt": read.fields["prompt"]}, files, old.id)

    async def retrieve(self, request: Request) -> Response:
        """One job."""
        return self._answer(await self._job(request))

    async def listing(self, request: Request) -> Response:
        """Jobs, the newest first."""
        service: Service = request.app.state.service
        query = request.query_params
        text, order = query.get("limit", "20"), query.get("order", "desc")
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) > _LONGEST_PAGE:
            raise ApiError(400, f"limit is a number from 0 to {_LONGEST_PAGE}.", param="limit", code="invalid_value")
        if order not in ("asc", "desc"):
            raise ApiError(400, "order is asc or desc.", param="order", code="invalid_value")
        jobs, has_more = await service.jobs.list(
            self.kind, query.get("after"), int(text), cast(Literal["asc", "desc"], order)
        )
        data = [self._shown(job) for job in jobs]
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

    async def delete(self, request: Request) -> Response:
        """Remove a job; one that runs is aborted."""
        service: Service = request.app.state.service
        job = await self._job(request)
        await service.jobs.delete(job.id)
        return JSONResponse({"id": job.id, "deleted": True, "object": f"{self.kind}.deleted"})

    async def content(self, request: Request) -> Response:
        """A file that was made."""
        service: Service = request.app.state.service
        variants = VARIANTS[self.kind]
        variant = request.query_params.get("variant", variants[0])
        if variant not in variants:
            raise ApiError(400, f"variant is one of {', '.join(variants)}.", param="variant", code="invalid_value")
        job = await self._job(request)
        if job.status == "failed":
            raise ApiError(404, f"{job.id} failed: {job.error.message if job.error else ''}", code="failed")
        if job.status != "completed":
            # 409 would make OpenAI's client ask again at once, twice.
            raise ApiError(404, f"{job.id} is not ready: it is {job.status}.", code="not_ready")
        return OpenedFile(*await service.jobs.open(job, variant), name=job.id)

    async def _add(
        self, request: Request, fields: Any, files: dict[str, list[bytes]], remixed_from: str | None
    ) -> Response:
        service: Service = request.app.state.service
        service.check_makes(self.kind)
        key = _idempotency_key(request)
        body = parse(self.body, _with_plain_names(fields))
        service.check_model(body.model)
        files = await take_urls(service, body, files)
        uploads = upload_names(files)
        await job_request(service, body, files, request.state.request_id)  # what is wrong with it is told now
        digest = await service.in_thread(_digest, fields, uploads)
        if body.seed is None:
            body.seed = secrets.randbelow(2**32)
        asked = body.model_dump(mode="json", exclude_none=True)
        if await service.in_thread(lambda: len(json.dumps(asked))) > _MOST_JOB_BYTES:
            raise ApiError(400, f"The fields of a job have at most {_MOST_JOB_BYTES} bytes.", code="invalid_value")
        if context := trace_context(request.headers):
            asked[TRACE] = context
        job, _ = await service.jobs.add(
            self.kind,
            service.model_name,
            asked,
            uploads=uploads,
            idempotency=None if key is None else (key, digest),
            remixed_from=remixed_from,
        )
        return self._answer(job)

    async def _job(self, request: Request) -> Job:
        service: Service = request.app.state.service
        job_id = request.path_params["job_id"]
        job = await service.jobs.get(job_id)
        if job is None or job.kind != self.kind:
            raise ApiError(
                404,
                f"There is no {self.kind} {job_id!r}; it may have expired.",
                param=f"{self.kind}_id",
                code="not_found",
            )
        return job

    def _answer(self, job: Job) -> Response:
        return JSONResponse(self._shown(job), headers={"openai-poll-after-ms": _POLL_MS})

    def _shown(self, job: Job) -> dict[str, Any]:
        asked = job.request
        shown = {
            "id": job.id,
            "object": self.kind,
            "status": job.status,
            "progress": job.progress,
            "model": job.model,
            "prompt": asked.get("prompt"),
            "seconds": _seconds_of(asked),
            "seed": asked.get("seed"),
            "fields": {name: value for name, value in asked.items() if name not in _NOT_SHOWN},
            "created_at": job.created_at,
            "completed_at": job.completed_at,
            "expires_at": job.expires_at,
            "error": None if job.error is None else {"code": job.error.code, "message": job.error.message},
            f"remixed_from_{self.kind}_id": job.remixed_from,
        }
        if self.kind == "video":
            shown["size"] = asked.get("size") or "x".join(
                str(asked[name]) for name in ("width", "height") if name in asked
            )
        return shown


VIDEOS = JobEndpoints("video", "/v1/videos", VideoBody)
SOUNDS = JobEndpoints("audio", "/v1/audio/generations", SoundBody)


def _seconds_of(asked: dict[str, Any]) -> str:
    seconds, frames = asked.get("seconds", asked.get("audio_length_in_s")), asked.get("num_frames")
    if not isinstance(seconds, (int, float)):
        seconds = None
    if seconds is None and isinstance(frames, int) and 0 < frames < _MOST_FRAMES:
        seconds = frames / (asked.get("fps") or DEFAULT_FPS)
    try:
        return "" if seconds is None else f"{seconds:g}"
    except OverflowError:  # more digits than a float holds: one job must not spoil the list
        return ""


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
