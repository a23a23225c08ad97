"""Errors in the form that OpenAI's clients read, and which of them the client should try again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omni_core.errors import (
    EngineClosedError,
    EngineDeadError,
    EngineOverloadedError,
    ExecutorError,
    OmniError,
    PipelineError,
    RequestAbortedError,
    RequestTimeoutError,
    ValidationError,
    WorkerDiedError,
)
from omni_core.log import get_logger
from omni_serve.jobs.errors import IdempotencyError, JobNotFoundError, JobStoreError, QueueFullError, StoreFullError

log = get_logger(__name__)

# Code of the answer where there is no room now.
OVERLOADED = "engine_overloaded"
# OpenAI's client retries 408, 409, 429 and 5xx twice unless this says otherwise.
_DO_NOT_RETRY = {"x-should-retry": "false"}
# Status and code of the answer, and the seconds after which a client may try again: None where that would be of no use.
_ANSWERS: tuple[tuple[type[OmniError] | tuple[type[OmniError], ...], tuple[int, str, float | str | None]], ...] = (
    (JobNotFoundError, (404, "not_found", None)),
    (IdempotencyError, (422, "idempotency_error", None)),
    (QueueFullError, (429, OVERLOADED, 30.0)),
    (StoreFullError, (429, "storage_full", "measured")),
    (JobStoreError, (503, "storage_failed", 5.0)),
    (ValidationError, (400, "invalid_value", None)),
    (EngineOverloadedError, (429, OVERLOADED, "measured")),
    (RequestTimeoutError, (504, "timeout", None)),
    (RequestAbortedError, (503, "aborted", 1.0)),
    (PipelineError, (500, "pipeline_error", None)),  # the same request would fail again
    (WorkerDiedError, (500, "worker_died", None)),
    ((EngineClosedError, EngineDeadError, ExecutorError), (503, "unavailable", 5.0)),
)
# Of a message, in characters: it may quote what a client has sent.
_LONGEST = 2000
# The client gives up instead of waiting longer than this.
LONGEST_RETRY_S = 120


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: The HTTP status.
        message: What is wrong and what to do.
        param: The field of the body that is wrong, if one is.
        code: For programs.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(self.status)
        if kind is None:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Return the answer."""
        return JSONResponse(self.body, self.status, self.headers)


def retry_after(seconds: float) -> dict[str, str]:
    """Return the headers that tell a client when to try again.

    Args:
        seconds: From now.
    """
    whole = max(1, min(LONGEST_RETRY_S, math.ceil(seconds)))
    return {"retry-after": str(whole), "retry-after-ms": str(whole * 1000)}


def api_error(error: BaseException, retry_s: float = 1.0) -> ApiError:
    """Return the answer that tells of an error.

    Args:
        error: What was raised.
        retry_s: Seconds after which there may be room, where that is what lacks.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if not isinstance(error, OmniError):
        return ApiError(500, "The server failed; its log says how.", code="server_error", headers=_DO_NOT_RETRY)
    found = (answer for kinds, answer in _ANSWERS if isinstance(error, kinds))
    status, code, retry = next(found, (500, "server_error", None))
    if retry is None:
        headers = _DO_NOT_RETRY if status >= 500 else {}
    else:
        headers = retry_after(retry if isinstance(retry, float) else retry_s)
    return ApiError(status, error.message, code=code, headers=headers)


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer what an endpoint has raised. For Starlette's `exception_handlers`."""
    answer = api_error(error)
    if answer.status >= 500:
        log.warning("a request failed", path=request.url.path, status=answer.status, reason=answer.message)
    return answer.response()
