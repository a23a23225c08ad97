"""What the server is and does: models, probes, numbers, sleep."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omni_core import __version__
from omni_core.errors import OmniError
from omni_serve.errors import ApiError, api_error, retry_after
from omni_serve.requests.reading import read_body
from omni_serve.service import Service

# Within which a probe is answered, whatever the workers do.
_HEALTH_S = 1.0
_SLEEP_TIMEOUT_S = 300.0


async def models(request: Request) -> Response:
    """The one model."""
    service: Service = request.app.state.service
    return JSONResponse({"object": "list", "data": [_model(service)]})


async def model(request: Request) -> Response:
    """One model."""
    service: Service = request.app.state.service
    service.check_model(request.path_params["name"])
    return JSONResponse(_model(service))


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "omni",
        "kind": service.kind,
        "pipeline": service.info.class_name if service.info is not None else None,
        "jobs_are_kept": service.settings.data_dir is not None,
    }


async def live(request: Request) -> Response:
    """Whether the process works; no worker is asked."""
    service: Service = request.app.state.service
    service.engine.engine.stats(ask_workers=False)
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """Whether requests are served: 503 with the reason if not."""
    service: Service = request.app.state.service
    if service.is_draining:
        raise ApiError(503, "The server is shutting down.", code="draining", headers=retry_after(5))
    try:
        await asyncio.wait_for(service.engine.check_health(), _HEALTH_S)
    except OmniError as error:
        raise ApiError(503, error.message, code="unhealthy", headers=retry_after(5)) from error
    except (TimeoutError, asyncio.TimeoutError):
        raise ApiError(
            503, f"The engine has not answered within {_HEALTH_S:g} s.", code="unhealthy", headers=retry_after(5)
        ) from None
    return JSONResponse({"status": "ok"})


async def stats(request: Request) -> Response:
    """The engine's numbers."""
    service: Service = request.app.state.service
    numbers = asdict(await service.engine.stats(ask_workers=False))
    return JSONResponse(
        {**numbers, "sleep_level": service.engine.engine.sleep_level, "is_draining": service.is_draining}
    )


async def pipeline(request: Request) -> Response:
    """What the pipeline takes: the page makes its form of it."""
    service: Service = request.app.state.service
    info, config = service.info, service.engine.engine.config
    if info is None:
        raise ApiError(404, "The executor does not say what the pipeline takes.", code="unknown")
    return JSONResponse(
        {
            "model": service.model_name,
            "version": __version__,
            "kind": service.kind,
            "class_name": info.class_name,
            "parameters": [name for name in info.parameters if name not in info.ignored],
            "required": list(info.required),
            "accepts_any": info.accepts_any,
            "defaults": {name: value for name, value in info.defaults.items() if _is_json(value)},
            "own_defaults": dict(info.own_defaults),
            "size_multiple": info.size_multiple,
            "device": info.device,
            "dtype": info.dtype,
            "executor": config.executor_class if isinstance(config.executor_class, str) else "custom",
            "jobs_are_kept": service.settings.data_dir is not None,
            "limits": {
                "max_outputs": service.settings.max_outputs,
                "max_pixels": config.max_pixels,
                "max_steps": config.max_steps,
                "max_prompt_length": config.max_prompt_length,
                "max_body_bytes": service.settings.max_body_bytes,
            },
        }
    )


async def sleep(request: Request) -> Response:
    """Free accelerator memory; requests wait meanwhile."""
    service: Service = request.app.state.service
    fields = (await read_body(request, 0)).fields if await request.body() else {}
    level = fields.get("level", 1) if isinstance(fields, dict) else None
    if level not in (1, 2) or isinstance(level, bool):
        raise ApiError(400, "level is 1 or 2.", param="level", code="invalid_value")
    return await _told(service, service.engine.sleep(level, _SLEEP_TIMEOUT_S))


async def wake_up(request: Request) -> Response:
    """Bring the weights back."""
    service: Service = request.app.state.service
    return await _told(service, service.engine.wake_up(_SLEEP_TIMEOUT_S))


async def _told(service: Service, change: Any) -> Response:
    try:
        await change
    except OmniError as error:
        raise api_error(error) from error
    return JSONResponse({"sleep_level": service.engine.engine.sleep_level})


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))
