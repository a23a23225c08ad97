"""Making the pictures of one HTTP request: checking what was asked for, running it, encoding what came of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

from omni_core import OmniDiffusionRequest, OmniRequestOutput, RequestEvent
from omni_serve.errors import ApiError
from omni_serve.http.streams import with_ticks
from omni_serve.making.inputs import pipeline_arguments, take_urls
from omni_serve.making.progress import Progress
from omni_serve.outputs import EncodedFile
from omni_serve.requests.bodies import ImageBody
from omni_serve.requests.engine_requests import make_requests
from omni_serve.service import Service

# After which those that wait are told again when their turn will come.
_TICK_S = 1.0
# Nothing here is counted in tokens; OpenAI's client has the field.
USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}


async def prepare(
    service: Service,
    body: ImageBody,
    files: dict[str, list[bytes]],
    request_id: str,
    base_url: str,
    *,
    needs_picture: bool = False,
    without_words: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> PictureMaking:
    """Return what was asked for, checked, and not begun yet.

    Args:
        service: Which is to make it.
        body: What was asked for.
        files: Pictures that came with it, by field.
        request_id: Id of the HTTP request.
        base_url: Of this server, as the client knows it.
        needs_picture: Whether a picture must have come with it.
        without_words: Whether a pipeline that takes a prompt gets an empty one.
        metadata: For plugins.

    Raises:
        ApiError: It does not fit the pipeline or the limits.
    """
    service.check_model(body.model)
    if body.n > service.settings.max_outputs:
        most = service.settings.max_outputs
        raise ApiError(400, f"n is {body.n}, and at most {most} are made at once.", param="n", code="invalid_value")
    files = await take_urls(service, body, files)
    if needs_picture and not files.get("image"):
        raise ApiError(400, "A picture is needed: the file `image`.", param="image", code="missing_file")
    service.check_makes("image")
    arguments, sides = await pipeline_arguments(service, body, files)
    if without_words and body.prompt is None and "prompt" in service.takes:
        body.prompt = ""
    requests = make_requests(
        body,
        service.engine.engine,
        request_id,
        n=body.n,
        previews=body.partial_images if body.stream else 0,
        sides=sides,
        arguments=arguments,
        metadata=metadata,
    )
    return PictureMaking(service, body, requests, base_url)


class PictureMaking:
    """Pictures that are being made for one HTTP request.

    Args:
        service: Which makes them.
        body: What was asked for.
        requests: The engine's requests for it, one for each picture.
        base_url: Of this server, as the client knows it.
    """

    def __init__(self, service: Service, body: ImageBody, requests: list[OmniDiffusionRequest], base_url: str) -> None:
        self.body = body
        self.requests = requests
        self._service = service
        self._base_url = base_url
        self._created = int(time.time())

    async def run(self) -> list[OmniRequestOutput]:
        """Make all and return the outputs, in order."""
        return await self._service.run(self.requests)

    async def whole(self) -> dict[str, Any]:
        """Make all and return the answer of `/v1/images`."""
        outputs = await self.run()
        files: list[EncodedFile] = []
        entries: list[dict[str, Any]] = []
        for number, output in enumerate(outputs):
            for file in await self.encode(number, output):
                files.append(file)
                entries.append({**await self._content(file, number), "seed": output.seed, "revised_prompt": None})
        return {
            "created": self._created,
            "data": entries,
            **self._about(files[0]),
            "seed": [output.seed for output in outputs],
            "metrics": [metrics_of(output) for output in outputs],
            "usage": USAGE,
        }

    async def stream(
        self, events: str, running: AsyncIterator[tuple[int, RequestEvent]]
    ) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Yield OpenAI's events: partial pictures, then the picture, of each request; and progress if asked for.

        Args:
            events: What their names begin with.
            running: What becomes of the requests.
        """
        partials = [0] * len(self.requests)
        progress = Progress(self._service, self.requests, f"{events}.progress", is_wanted=self.body.progress)
        for told in progress.of_waiting():
            yield told
        async with contextlib.aclosing(with_ticks(running, _TICK_S)) as ticking:
            async for following in ticking:
                for told in progress.of_waiting() if following is None else progress.after(*following):
                    yield told
                if following is None:
                    continue
                number, event = following
                common = {"created_at": int(time.time()), "number": number}
                if event.preview is not None and event.output is None and partials[number] < self.body.partial_images:
                    file = await self._service.in_thread(
                        self._service.encoder.preview, self.requests[number], event.preview, self.body.output_format
                    )
                    kind = f"{events}.partial_image"
                    about = {"partial_image_index": partials[number], "step": event.step, "num_steps": event.num_steps}
                    content = {"b64_json": await self._service.in_thread(file.base64)}
                    yield kind, {"type": kind, **content, **about, **common, **self._about(file)}
                    partials[number] += 1
                if event.output is not None:
                    output = event.output.raise_for_error()
                    for file in await self.encode(number, output):
                        kind = f"{events}.completed"
                        content = await self._content(file, number)
                        made = {"seed": output.seed, "metrics": metrics_of(output), "usage": USAGE}
                        yield kind, {"type": kind, **content, **common, **self._about(file), **made}

    async def encode(self, number: int, output: OmniRequestOutput) -> list[EncodedFile]:
        """Return the pictures of the request of that number."""
        quality = max(1, self.body.output_compression)  # OpenAI allows 0
        return await self._service.in_thread(
            self._service.encoder.pictures, self.requests[number], output, self.body.output_format, quality
        )

    async def _content(self, file: EncodedFile, number: int) -> dict[str, Any]:
        if self.body.response_format == "b64_json":
            return {"b64_json": await self._service.in_thread(file.base64)}
        job = await self._service.jobs.keep(
            "image",
            self._service.model_name,
            {"prompt": self.body.prompt},
            {"picture": (file.media_type, file.content)},
        )
        return {"url": f"{self._base_url}v1/files/{job.id}/content"}

    def _about(self, file: EncodedFile) -> dict[str, Any]:
        width, height = file.size or (0, 0)
        return {
            "size": f"{width}x{height}",
            "quality": self.body.quality or "auto",
            "background": "opaque",
            "output_format": self.body.output_format,
        }


def metrics_of(output: OmniRequestOutput) -> dict[str, Any]:
    """Return where the time of a request went, for its answer."""
    return {**asdict(output.metrics), "total_s": output.metrics.total_s}
