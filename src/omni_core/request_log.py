"""The default observer: a plugin that writes what happens to requests and engines to the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omni_core.errors import EngineClosedError, RequestTimeoutError
from omni_core.hookspecs import hookimpl
from omni_core.log import get_logger

if TYPE_CHECKING:
    from omni_core.config import OmniDiffusionConfig
    from omni_core.errors import OmniError
    from omni_core.outputs import OmniRequestOutput
    from omni_core.request import OmniDiffusionRequest

log = get_logger(__name__)


@hookimpl
def omni_engine_started(config: OmniDiffusionConfig, executor: Any) -> None:
    """Log the executor and the model."""
    log.info("engine started", executor=executor.name, model=config.model, replicas=executor.num_replicas)


@hookimpl
def omni_engine_closed() -> None:
    """Log the end of the engine."""
    log.info("engine closed")


@hookimpl
def omni_request_queued(request: OmniDiffusionRequest) -> None:
    """Log what was asked for."""
    asked = request.model_dump(exclude_none=True, exclude={"request_id", "extra_args"})
    log.info("request queued", request_id=request.request_id, **asked, extra_args=sorted(request.extra_args))


@hookimpl
def omni_request_started(request_id: str, replica: int) -> None:
    """Log which replica works on it."""
    log.debug("request started", request_id=request_id, replica=replica)


@hookimpl
def omni_request_step(request_id: str, step: int, num_steps: int) -> None:
    """Log every denoising step."""
    log.debug("request step", request_id=request_id, step=step, num_steps=num_steps)


@hookimpl
def omni_request_finished(output: OmniRequestOutput) -> None:
    """Log how the request ended and where its time went."""
    metrics = output.metrics
    log.info(
        f"request {output.finish_reason}",
        request_id=output.request_id,
        steps=metrics.num_steps,
        queue_s=round(metrics.queue_s, 4),
        encode_s=round(metrics.encode_s, 4),
        denoise_s=round(metrics.denoise_s, 4),
        decode_s=round(metrics.decode_s, 4),
    )


@hookimpl
def omni_request_failed(request_id: str, error: OmniError) -> None:
    """Log why it failed; where in the worker, at level debug. What the caller did himself is no error."""
    if isinstance(error, (RequestTimeoutError, EngineClosedError)):
        log.info("request ended", request_id=request_id, reason=error.message)
        return
    log.error("request failed", request_id=request_id, error=error.message)
    if error.worker_traceback is not None:
        log.debug("request failed", request_id=request_id, worker_traceback=error.worker_traceback)


@hookimpl
def omni_worker_died(replica: int, rank: int, reason: str) -> None:
    """Log the loss of a worker."""
    log.error("worker died", replica=replica, rank=rank, reason=reason)


@hookimpl
def omni_worker_restarted(replica: int, rank: int) -> None:
    """Log that it was replaced."""
    log.info("worker restarted", replica=replica, rank=rank)
