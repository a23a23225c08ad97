"""From a checked body to requests of the engine."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

from omni_core import DiffusionEngine, OmniDiffusionRequest
from omni_core.errors import RequestError
from omni_core.pipeline_info import PipelineInfo
from omni_core.request import FIELD_OF_ARGUMENT
from omni_serve.errors import ApiError
from omni_serve.requests.bodies import MOST_SECONDS, Body
from omni_serve.requests.places import refuse_places

# Fields of a body that a request of the engine has under the same name.
_SAME = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "priority", "timeout_s")
# What pipelines call the length of sound in seconds.
LENGTHS_OF_SOUND = ("audio_length_in_s", "audio_end_in_s", "audio_duration", "audio_duration_s")
# What the server sets by itself, and under what name a body has it.
_SERVERS_OWN = {
    "output_type": "output_format",
    "request_id": "the header x-request-id",
    "num_outputs_per_prompt": "n",
    "metadata": "user",
    "extra_args": "extra_params",
    "preview_every": "partial_images",
    "previews": "partial_images",
    "return_dict": "nothing: it is always on",
}


def make_requests(
    body: Body,
    engine: DiffusionEngine,
    request_id: str,
    *,
    n: int = 1,
    previews: int = 0,
    sides: Mapping[str, int] | None = None,
    arguments: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[OmniDiffusionRequest]:
    """Return the engine's requests for a body: one for each output, with seeds that follow one another.

    So each output can be made again alone, and they run together like those of several clients.

    Args:
        body: What was asked for.
        engine: Which is to get them.
        request_id: Id of the HTTP request. Of several requests, each gets a number besides.
        n: How many outputs.
        previews: Previews of each.
        sides: Height and width in pixels; None is what the body says.
        arguments: Further keywords of the pipeline, such as decoded pictures.
        metadata: For plugins.

    Raises:
        ApiError: A field does not fit the pipeline or the engine's limits; `param` names it.
    """
    info = engine.pipeline_info
    keywords = {**body.keywords(), **(arguments or {})}
    refuse_places(body.keywords())
    for name in keywords:
        if name.startswith("callback"):
            raise ApiError(400, f"{name!r} is a function, which cannot be sent.", param=name, code="invalid_value")
        own = _SERVERS_OWN.get(name) or _own_name(FIELD_OF_ARGUMENT.get(name))
        if own == "n" and own not in type(body).model_fields:
            raise ApiError(400, f"{name!r}: a job makes one; ask several times.", param=name, code="invalid_value")
        if own is not None:
            raise ApiError(400, f"{name!r} is not set by clients; use {own}.", param=name, code="invalid_value")
    _check_numbers(keywords, info)
    if body.prompt is None and _needs_words(keywords, info):
        raise ApiError(400, "prompt is needed.", param="prompt", code="invalid_value")
    sides = body.sides() if sides is None else sides
    seed = secrets.randbelow(2**32) if body.seed is None else body.seed
    fields: dict[str, Any] = {name: getattr(body, name) for name in _SAME}
    fields = {name: value for name, value in fields.items() if value is not None}
    fields |= {"metadata": {**(metadata or {}), **({"user": body.user} if body.user else {})}}
    if previews:
        fields["previews"] = previews
    try:
        requests = [
            OmniDiffusionRequest(
                request_id=request_id if n == 1 else f"{request_id}-{number}",
                seed=(seed + number) % 2**63,
                extra_args=keywords,
                **sides,
                **fields,
            )
            for number in range(n)
        ]
        engine.check_request(requests[0])
    except RequestError as error:
        message = _without_id(error.message)
        blamed = _blamed(message, [*keywords, *sides, *fields], body)
        raise ApiError(400, message, param=blamed, code="invalid_value") from None
    return requests


def _needs_words(keywords: Mapping[str, Any], info: PipelineInfo | None) -> bool:
    """Return whether a pipeline will ask for a prompt: its signature does not say so.

    Those that take words as numbers too want one of both. Some make do with a picture, and UniDiffuser, which alone has
    a `data_type`, with nothing.
    """
    takes = set(info.parameters) if info is not None else set()
    goes_without = {"prompt_embeds", "image"} & keywords.keys()
    return {"prompt", "prompt_embeds"} <= takes and not goes_without and "data_type" not in takes


def _check_numbers(keywords: Mapping[str, Any], info: PipelineInfo | None) -> None:
    """Refuse what is no number where the pipeline's own default is one; and sound that is too long for any memory.

    Without this a worker would find out, as an error of the pipeline.

    Raises:
        ApiError: One is.
    """
    for name, default in ({} if info is None else info.own_defaults).items():
        value = keywords.get(name)
        if isinstance(value, (str, dict, bool)):
            raise ApiError(
                400,
                f"{name} is a number, such as {default}, not {str(value)[:40]!r}.",
                param=name,
                code="invalid_value",
            )
    for name in LENGTHS_OF_SOUND:
        value = keywords.get(name)
        if isinstance(value, (int, float)) and value > MOST_SECONDS:
            raise ApiError(400, f"{name} is more than {MOST_SECONDS}.", param=name, code="invalid_value")


def _own_name(field: str | None) -> str | None:
    return {"num_outputs_per_prompt": "n", "seed": "seed"}.get(field or "")


def _blamed(message: str, given: list[str], body: Body) -> str | None:
    """Return which field of the body an error is about."""
    names = set(given)
    name = next((word for word in re.findall(r"\w+", message) if word in names), None)
    if name is None:
        missing = re.search(r"needs '(\w+)'", message)
        return missing[1] if missing else None
    return "size" if name in ("height", "width") and getattr(body, name) is None else name


def _without_id(message: str) -> str:
    """Return an error's message without the id, which the client has in a header."""
    return re.sub(
        r"^(Invalid request: |Request '[^']*'(: | is ))", lambda m: "It is " if m[2] == " is " else "", message
    )
