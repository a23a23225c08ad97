"""`/openapi.json`: the endpoints, with the bodies that `requests/bodies.py` checks."""

from __future__ import annotations

import functools
from typing import Any

from pydantic import BaseModel

from omni_serve import __version__
from omni_serve.requests.bodies import ImageBody, SpeechBody, VideoBody

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
_FAILED = {"$ref": "#/components/responses/Error"}
_JOB_ID = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}
_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string"},
    "description": "Within 24 hours the same key gives the same job.",
}


@functools.cache
def openapi_document() -> dict[str, Any]:
    """Return the description of the API, as OpenAPI 3.1."""
    schemas: dict[str, Any] = {}
    image, video, speech = (_reference(schemas, model) for model in (ImageBody, VideoBody, SpeechBody))
    level = {"type": "object", "properties": {"level": {"type": "integer", "enum": [1, 2]}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "omni", "version": __version__, "description": "Any diffusers pipeline over HTTP."},
        "components": {
            "schemas": {**schemas, "Error": _ERROR},
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
            "/v1/images/generations": {"post": _operation("Make pictures from words.", json=image, streams=True)},
            "/v1/images/edits": {
                "post": _operation("Make pictures from pictures and words.", form=_form(image), streams=True)
            },
            "/v1/images/variations": {
                "post": _operation("Make pictures from a picture.", form=_form(image), streams=True)
            },
            "/v1/videos": {
                "post": _operation(
                    "Add a video to make.", json=video, form=_form(video, "input_reference"), parameters=[_IDEMPOTENCY]
                ),
                "get": _operation(
                    "The videos, the newest first.",
                    parameters=[
                        _query("after", {"type": "string"}),
                        _query("limit", {"type": "integer", "minimum": 0, "maximum": 100}),
                        _query("order", {"type": "string", "enum": ["asc", "desc"]}),
                    ],
                ),
            },
            "/v1/videos/{job_id}": {
                "get": _operation("How far a video is.", parameters=[_JOB_ID]),
                "delete": _operation("Remove a video; one that is being made is aborted.", parameters=[_JOB_ID]),
            },
            "/v1/videos/{job_id}/content": {
                "get": _operation(
                    "The file.",
                    parameters=[
                        _JOB_ID,
                        _query("variant", {"type": "string", "enum": ["video", "thumbnail", "spritesheet"]}),
                    ],
                    answer="*/*",
                )
            },
            "/v1/videos/{job_id}/remix": {
                "post": _operation(
                    "Make a video again with another prompt.",
                    json={"type": "object", "required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
                    parameters=[_JOB_ID],
                )
            },
            "/v1/audio/speech": {"post": _operation("Make sound.", json=speech, answer="audio/wav")},
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
                )
            },
            "/v1/files/{job_id}/content": {"get": _operation("A file.", parameters=[_JOB_ID], answer="*/*")},
            "/v1/models": {"get": _operation("The model.")},
            "/live": {"get": _operation("Whether the process works.")},
            "/ready": {"get": _operation("Whether requests are served.")},
            "/health": {"get": _operation("The same.")},
            "/v1/omni/stats": {"get": _operation("What the engine does and did.")},
            "/v1/omni/pipeline": {"get": _operation("What the pipeline takes.")},
            "/v1/omni/sleep": {"post": _operation("Free accelerator memory.", json=level)},
            "/v1/omni/wake_up": {"post": _operation("Bring the weights back.")},
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
    answer: str = "application/json",
    streams: bool = False,
) -> dict[str, Any]:
    bodies = {"application/json": json, "multipart/form-data": form}
    content = {kind: {"schema": schema} for kind, schema in bodies.items() if schema is not None}
    answers: dict[str, Any] = {answer: {"schema": _ANY if answer == "application/json" else {}}}
    if streams:
        answers["text/event-stream"] = {"schema": {"type": "string"}}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "Done.", "content": answers}, "default": _FAILED},
    }
    if content:
        operation["requestBody"] = {"required": True, "content": content}
    if parameters:
        operation["parameters"] = parameters
    return operation
