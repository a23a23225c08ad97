"""`/v1/chat/completions` for pictures, as the clients and the benchmark of vLLM-Omni send it."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omni_core import OmniRequestOutput
from omni_serve.errors import ApiError
from omni_serve.http.streams import unless_gone
from omni_serve.http.trace_context import trace_context
from omni_serve.making.pictures import metrics_of, prepare
from omni_serve.requests.bodies import ImageBody, parse
from omni_serve.requests.pictures import bytes_of_url
from omni_serve.requests.reading import read_body
from omni_serve.service import Service

# Fields of chats that say nothing about pictures.
_NO_EFFECT = frozenset(
    {
        "audio", "frequency_penalty", "logprobs", "max_completion_tokens", "max_tokens", "metadata",
        "modalities", "presence_penalty", "response_format", "stop", "store", "stream_options", "temperature",
        "top_logprobs", "top_p",
    }
)  # fmt: skip


async def completions(request: Request) -> Response:
    """Make pictures from the last message of the user."""
    service: Service = request.app.state.service
    with service.admitted():
        read = await read_body(request, 0)
        fields = read.fields
        if not isinstance(fields, dict):
            raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
        if fields.get("stream"):
            raise ApiError(
                400, "Pictures are streamed by /v1/images/generations.", param="stream", code="unsupported_value"
            )
        prompt, urls = _last_message(fields.get("messages"))
        more = fields.get("extra_body") or {}
        if not isinstance(more, dict):
            raise ApiError(400, "extra_body must be an object.", param="extra_body", code="invalid_value")
        left_out = {"messages", "extra_body", "stream", *_NO_EFFECT}
        plain = {name: value for name, value in {**fields, **more}.items() if name not in left_out}
        if "num_outputs_per_prompt" in plain:
            plain["n"] = plain.pop("num_outputs_per_prompt")
        body = parse(ImageBody, {**plain, "prompt": prompt})
        outputs, content = await unless_gone(request, _make(request, body, urls))
        message = {"role": "assistant", "content": content}
        return JSONResponse(
            {
                "id": f"chatcmpl-{request.state.request_id}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": service.model_name,
                "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, "message": message}],
                "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
                "seed": [output.seed for output in outputs],
                "metrics": {"requests": [metrics_of(output) for output in outputs]},
            }
        )


async def _make(
    request: Request, body: ImageBody, urls: list[str]
) -> tuple[list[OmniRequestOutput], list[dict[str, Any]]]:
    """Make the pictures; return the outputs, and the parts of the answer."""
    service: Service = request.app.state.service
    files = {"image": await service.in_thread(lambda: [bytes_of_url(url, "messages") for url in urls])} if urls else {}
    making = await prepare(
        service,
        body,
        files,
        request.state.request_id,
        str(request.base_url),
        needs_picture=bool(urls),
        metadata=trace_context(request.headers),
    )
    outputs = await making.run()
    content: list[dict[str, Any]] = []
    for number, output in enumerate(outputs):
        for file in await making.encode(number, output):
            url = f"data:{file.media_type};base64,{await service.in_thread(file.base64)}"
            content.append({"type": "image_url", "image_url": {"url": url}})
    return outputs, content


def _last_message(messages: Any) -> tuple[str, list[str]]:
    """Return the words of the user's last message, and its pictures' URLs."""
    users = (
        [one for one in messages if isinstance(one, dict) and one.get("role") == "user"]
        if isinstance(messages, list)
        else []
    )
    if not users:
        raise ApiError(400, "A message of the user is needed.", param="messages", code="invalid_value")
    content = users[-1].get("content")
    if isinstance(content, str):
        return content, []
    words: list[str] = []
    urls: list[str] = []
    for one in content if isinstance(content, list) else [content]:
        part = one if isinstance(one, dict) else {}
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            words.append(part["text"])
        elif kind == "image_url":
            url = part.get("image_url")
            url = url.get("url") if isinstance(url, dict) else url
            if not isinstance(url, str):
                raise ApiError(400, "image_url has no url.", param="messages", code="invalid_value")
            urls.append(url)
        else:
            raise ApiError(
                400, "Parts of a message are of the type text or image_url.", param="messages", code="invalid_value"
            )
    return "\n".join(words), urls
