"""The reference of the configuration, of requests and of executor options, made from their pydantic models.

Not by autodoc-pydantic: what a reader looks for (the variable, the flag, which executor honours a field) is not in the
models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from omni_core import OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.config import ENV_PREFIX
from omni_core.executor import OPTIONS_TO_DECLARE
from omni_core.plugins import default_registry
from omni_core.plugins.selection import ResolvedExecutor


def config_reference() -> str:
    """Return a section for each field of `OmniDiffusionConfig`."""
    executors = _executors()

    def facts(name: str) -> Iterator[str]:
        yield f"variable `{ENV_PREFIX}{name.upper()}`"
        if name not in OPTIONS_TO_DECLARE:
            yield "honoured by every executor"
        else:
            honouring = [f"`{executor}`" for executor, one in executors if name in one.cls.supported_options]
            yield f"honoured by {', '.join(honouring) or 'none of the installed executors'}"

    return "\n".join(
        _section(name, field, _schema(OmniDiffusionConfig)[name], *facts(name))
        for name, field in OmniDiffusionConfig.model_fields.items()
    )


def request_reference() -> str:
    """Return a section for each field of `OmniDiffusionRequest`."""
    schema = _schema(OmniDiffusionRequest)
    return "\n".join(_section(name, field, schema[name]) for name, field in OmniDiffusionRequest.model_fields.items())


def options_reference() -> str:
    """Return, for each executor that is installed and has options, a section for each of them."""
    parts = []
    for executor, resolved in _executors():
        parts.append(f"### Options of `{executor}`\n")
        model = resolved.options
        if model is None:
            parts.append("None.\n")
            continue
        schema = _schema(model)
        for name, field in model.model_fields.items():
            variable = f"variable `{ENV_PREFIX}EXECUTOR_OPTIONS__{name.upper()}`"
            parts.append(_section(name, field, schema[name], variable, level=4))
    return "\n".join(parts)


def _executors() -> list[tuple[str, ResolvedExecutor]]:
    registry = default_registry()
    return [(spec.name, registry.resolve_executor(spec.name)) for _, spec in registry.executors]


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    properties: dict[str, Any] = model.model_json_schema()["properties"]
    return properties


def _section(name: str, field: FieldInfo, schema: dict[str, Any], *facts: str, level: int = 3) -> str:
    line = " · ".join([_type_text(schema), _default_text(field), *facts])
    return f"{'#' * level} `{name}`\n\n{field.description}\n\n{line}\n"


def _default_text(field: FieldInfo) -> str:
    if field.default_factory is dict:
        return "default: empty"
    if field.default_factory is not None:
        return "default: a new one each time"
    if field.default is None:
        return "default: unset"
    return f"default `{json.dumps(field.default)}`"


def _type_text(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type_text(one) for one in schema["anyOf"] if one != {"type": "null"})
    if "enum" in schema:
        return "one of " + ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    match schema.get("type"):
        case "integer" | "number" as kind:
            return f"{'whole number' if kind == 'integer' else 'number'}{_bounds_text(schema)}"
        case "string":
            return {"path": "path"}.get(schema.get("format", ""), "text")
        case "boolean":
            return "`true` or `false`"
        case "object":
            return "table"
        case None:
            return "text or a Python class"
        case other:
            raise ValueError(f"nobody says how to show the type {other!r}")


def _bounds_text(schema: dict[str, Any]) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = [f"{word} {schema[key]:,}".replace(",", " ") for key, word in words.items() if key in schema]
    return f" {' and '.join(bounds)}" if bounds else ""
