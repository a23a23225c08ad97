"""`/openapi.json`: the endpoints, with the bodies that `requests/bodies.py` checks."""

from __future__ import annotations

import functools
from typing import Any, Literal

from pydantic import BaseModel

from omni_serve import __version__
from omni_serve.outputs import VARIANTS
from omni_serve.requests.bodies import ImageBody, SoundBody, SpeechBody, VideoBody

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ANY = {"type": "object"}
_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_TIME = {"type": "integer", "description": "Unix time in seconds."}
_TIME_OR_NULL = {**_TIME, "type": ["integer", "null"]}
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON."}},
}
_SEED = {"type": "integer", "minimum": 0}


def _table(**properties: Any) -> dict[str, Any]:
    """Return the schema of an object that has all of these, and perhaps more."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _job_answers(kind: str, **more: Any) -> dict[str, Any]:
    """Return the schemas of a job, of a page of jobs, and of one that was removed."""
    name = kind.capitalize()
    return {
        name: _table(
            id=_TEXT,
            object={"const": kind},
            status={"type": "string", "enum": ["queued", "in_progress", "completed", "failed"]},
            progress={"type": "integer", "minimum": 0, "maximum": 100},
            model=_TEXT,
            prompt=_TEXT_OR_NULL,
            seconds=_TEXT,
            seed={**_SEED, "type": ["integer", "null"]},
            fields=_ANY,
            created_at=_TIME,
            completed_at=_TIME_OR_NULL,
            expires_at=_TIME_OR_NULL,
            error={"oneOf": [{"type": "null"}, _table(code=_TEXT, message=_TEXT)]},
            **{f"remixed_from_{kind}_id": _TEXT_OR_NULL},
            **more,
        ),
        f"{name}s": _table(
            object={"const": "list"},
            data=_list({"$ref": f"#/components/schemas/{name}"}),
            first_id=_TEXT_OR_NULL,
            last_id=_TEXT_OR_NULL,
            has_more={"type": "boolean"},
        ),
        f"{name}Deleted": _table(id=_TEXT, deleted={"const": True}, object={"const": f"{kind}.deleted"}),
    }


_ANSWERS = {
    "Pictures": _table(
        created=_TIME,
        data=_list(
            {
                **_table(seed=_SEED, revised_prompt=_TEXT_OR_NULL),
                "properties": {"b64_json": _TEXT, "url": _TEXT, "seed": _SEED, "revised_prompt": _TEXT_OR_NULL},
                "oneOf": [{"required": ["b64_json"]}, {"required": ["url"]}],
            }
        ),
        size=_TEXT,
        quality=_TEXT,
        background=_TEXT,
        output_format={"type": "string", "enum": ["png", "jpeg", "webp"]},
        seed=_list(_SEED),
        metrics=_list(_ANY),
        usage=_ANY,
    ),
    **_job_answers("video", size=_TEXT),
    **_job_answers("audio"),
    "Chat": _table(
        id=_TEXT,
        object={"const": "chat.completion"},
        created=_TIME,
        model=_TEXT,
        choices=_list(_table(index={"type": "integer"}, message=_ANY, finish_reason=_TEXT)),
        usage=_ANY,
    ),
    "Model": _table(
        id=_TEXT,
        object={"const": "model"},
        created=_TIME,
        owned_by=_TEXT,
        kind={"type": "string", "enum": ["image", "video", "audio"]},
        pipeline=_TEXT_OR_NULL,
        jobs_are_kept={"type": "boolean"},
    ),
    "Models": _table(object={"const": "list"}, data=_list({"$ref": "#/components/schemas/Model"})),
    "Ok": _table(status={"const": "ok"}),
    "Asleep": _table(sleep_level={"type": "integer", "enum": [0, 1, 2]}),
    "Error": _ERROR,
}
_FAILED = {"$ref": "#/components/responses/Error"}
_JOB_ID = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}
_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "Within 24 hours the same key gives the same job.",
}


@functools.cache
def openapi_document() -> dict[str, Any]:
    """Return the description of the API, as OpenAPI 3.1."""
    schemas: dict[str, Any] = {}
    image, video, sound, speech = (
        _reference(schemas, model) for model in (ImageBody, VideoBody, SoundBody, SpeechBody)
    )
    level = {"type": "object", "properties": {"level": {"type": "integer", "enum": [1, 2]}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "omni", "version": __version__, "description": "Any diffusers pipeline over HTTP."},
        "components": {
            "schemas": {**schemas, **_ANSWERS},
            "responses": {
                "Error": {
                    "description": "What is wrong, and what to do.",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                }
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
        "paths": {
            "/v1/images/generations": {
                "post": _operation("Make pictures from words.", json=image, answer="Pictures", streams=True)
            },
            "/v1/images/edits": {
                "post": _operation(
                    "Make pictures from pictures and words.",
                    json=image,
                    form=_form(image),
                    answer="Pictures",
                    streams=True,
                )
            },
            "/v1/images/variations": {
                "post": _operation(
                    "Make pictures from a picture.", json=image, form=_form(image), answer="Pictures", streams=True
                )
            },
            **_job_paths("/v1/videos", "video", video, _form(video, "input_reference")),
            **_job_paths("/v1/audio/generations", "audio", sound, _form(sound)),
            "/v1/audio/speech": {"post": _operation("Make sound at once.", json=speech, kind="audio/wav")},
            "/v1/chat/completions": {
                "post": _operation(
                    "Make pictures from a message, as vLLM-Omni's clients ask for them.",
                    json={
                        "type": "object",
                        "required": ["messages"],
                        "properties": {
                            "messages": {"type": "array", "minItems": 1, "items": _ANY},
                            "model": {"type": "string"},
                            "extra_body": _ANY,
                        },
                    },
                    answer="Chat",
                )
            },
            "/v1/files/{job_id}/content": {"get": _operation("A file.", parameters=[_JOB_ID], kind="*/*")},
            "/v1/models": {"get": _operation("The model.", answer="Models")},
            "/v1/models/{name}": {
                "get": _operation(
                    "The model of that name, which may have slashes in it.",
                    parameters=[{"name": "name", "in": "path", "required": True, "schema": _TEXT}],
                    answer="Model",
                )
            },
            "/live": {"get": _operation("Whether the process works.", answer="Ok")},
            "/ready": {"get": _operation("Whether requests are served.", answer="Ok")},
            "/health": {"get": _operation("The same.", answer="Ok")},
            "/v1/omni/stats": {"get": _operation("What the engine does and did.")},
            "/v1/omni/pipeline": {"get": _operation("What the pipeline takes.")},
            "/v1/omni/sleep": {
                "post": _operation("Free accelerator memory.", json=level, answer="Asleep", is_needed=False)
            },
            "/v1/omni/wake_up": {"post": _operation("Bring the weights back.", answer="Asleep")},
        },
    }


def _job_paths(
    path: str, kind: Literal["video", "audio"], body: dict[str, Any], form: dict[str, Any]
) -> dict[str, Any]:
    """Return the endpoints of the jobs of one kind."""
    name = kind.capitalize()
    prompt = {"type": "object", "required": ["prompt"], "properties": {"prompt": {"type": "string"}}}
    pages = [
        _query("after", {"type": "string"}),
        _query("limit", {"type": "integer", "minimum": 0, "maximum": 100}),
        _query("order", {"type": "string", "enum": ["asc", "desc"]}),
    ]
    variant = _query("variant", {"type": "string", "enum": list(VARIANTS[kind])})
    added = _operation(f"Add a job ({kind}).", json=body, form=form, parameters=[_IDEMPOTENCY], answer=name)
    return {
        path: {
            "post": added,
            "get": _operation(f"The jobs ({kind}), the newest first.", answer=f"{name}s", parameters=pages),
        },
        f"{path}/{{job_id}}": {
            "get": _operation("How far it is.", parameters=[_JOB_ID], answer=name),
            "delete": _operation(
                "Remove it; one that is being made is aborted.", parameters=[_JOB_ID], answer=f"{name}Deleted"
            ),
        },
        f"{path}/{{job_id}}/content": {"get": _operation("The file.", parameters=[_JOB_ID, variant], kind="*/*")},
        f"{path}/{{job_id}}/remix": {
            "post": _operation("Make it again with another prompt.", json=prompt, parameters=[_JOB_ID], answer=name)
        },
    }


def _reference(schemas: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    schemas[model.__name__] = model.model_json_schema()
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _form(body: dict[str, Any], picture: str = "image") -> dict[str, Any]:
    files = {
        "type": "object",
        "properties": {
            picture: {"type": "string", "format": "binary"},
            "mask": {"type": "string", "format": "binary"},
        },
    }
    return {"allOf": [body, files]}


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


def _operation(
    summary: str,
    *,
    json: dict[str, Any] | None = None,
    form: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
    answer: str = "",
    kind: str = "application/json",
    streams: bool = False,
    is_needed: bool = True,
) -> dict[str, Any]:
    bodies = {"application/json": json, "multipart/form-data": form}
    content = {kind: {"schema": schema} for kind, schema in bodies.items() if schema is not None}
    schema = {"$ref": f"#/components/schemas/{answer}"} if answer else _ANY if kind == "application/json" else {}
    answers: dict[str, Any] = {kind: {"schema": schema}}
    if streams:
        answers["text/event-stream"] = {"schema": _EVENT}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "Done.", "content": answers}, "default": _FAILED},
    }
    if content:
        operation["requestBody"] = {"required": is_needed, "content": content}
    if parameters:
        operation["parameters"] = parameters
    return operation
