"""Notifies callers, observers and the executor of what happens to requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from omni_core.engine.bookkeeping import Live
from omni_core.engine.checked_executor import CheckedExecutor
from omni_core.engine.handle import RequestEvent
from omni_core.error_text import is_ctrl_c
from omni_core.errors import OmniError
from omni_core.hookspecs import Hooks
from omni_core.log import get_logger
from omni_core.outputs import OmniRequestOutput, StepOutput, StepProgress

log = get_logger(__name__)


class Notices:
    """Puts events into the handles of requests, and calls observers and the callbacks of callers.

    Args:
        hooks: The hooks of the engine; observers are notified.
        executor: Is notified when a request ends.
        in_engine_thread: Returns whether the current thread is the engine's, which no observer may end.
    """

    def __init__(self, hooks: Hooks, executor: CheckedExecutor, in_engine_thread: Callable[[], bool]) -> None:
        self._hooks = hooks
        self._executor = executor
        self._in_engine_thread = in_engine_thread

    def queued(self, live: Live) -> None:
        """The request waits in the backlog."""
        live.handle._add_event(RequestEvent("queued", live.handle.request_id))
        self.notify("omni_request_queued", request=live.request)

    def started(self, live: Live, replica: int) -> None:
        """A worker has started the request, perhaps as a retry."""
        live.step = 0
        if live.started_at is None:
            live.started_at = time.monotonic()
            live.handle._add_event(RequestEvent("started", live.handle.request_id))
            self.notify(
                "omni_request_started", request_id=live.handle.request_id, request=live.request, replica=replica
            )

    def progressed(self, live: Live, progress: StepProgress) -> None:
        """The request has advanced by a step."""
        # Pipelines with nested loops may count backwards. Only a retry starts again from step 1.
        if progress.step < live.step:
            return
        live.step = progress.step
        live.handle._add_event(
            RequestEvent("step", progress.request_id, progress.step, progress.num_steps, progress.preview)
        )
        self.notify(
            "omni_request_step",
            request_id=progress.request_id,
            step=progress.step,
            num_steps=progress.num_steps,
        )

    def retrying(self, live: Live, replica: int, error: OmniError) -> None:
        """The request is retried from its seed, because a worker of its replica died."""
        live.step = 0
        live.handle._add_event(RequestEvent("retrying", live.handle.request_id))
        # Without the reason: the death of the worker is logged once, not for each of its requests.
        log.info("request is run again", request_id=live.handle.request_id, retry=live.num_retries)
        self.notify(
            "omni_request_retried",
            request_id=live.handle.request_id,
            request=live.request,
            replica=replica,
            reason=error.message,
            num_retries=live.num_retries,
        )

    def step_done(self, replica: int, seconds: float, output: StepOutput) -> None:
        """A replica has finished a step."""
        self.notify("omni_step_done", replica=replica, seconds=seconds, forwards=tuple(output.forwards))
        if output.stacking is not None:
            self.notify("omni_stacking_changed", replica=replica, stacking=output.stacking)

    def suspected(self, request_id: str, reason: str) -> None:
        """An output that was returned may be wrong."""
        log.warning("an output that was given out may be wrong", request_id=request_id, reason=reason)
        self.notify("omni_output_suspect", request_id=request_id, reason=reason)

    def ended(self, live: Live, output: OmniRequestOutput) -> None:
        """The request has ended and was counted."""
        metrics = output.metrics
        worked_s = metrics.encode_s + metrics.denoise_s + metrics.decode_s + metrics.output_s
        metrics.num_retries = live.num_retries
        metrics.queue_s = max(0.0, time.monotonic() - live.submitted_at - worked_s)
        callbacks = live.handle._finish(output)
        try:
            self._executor.request_ended(output.request_id, output.error)
        except OmniError:
            log.warning(
                "the executor raised when it was told of the end of a request",
                request_id=output.request_id,
                exc_info=True,
            )
        if output.finish_reason in ("finished", "aborted"):
            self.notify("omni_request_finished", request=live.request, output=output)
        else:
            self.notify(
                "omni_request_failed",
                request_id=output.request_id,
                request=live.request,
                output=output,
                error=output.error,
            )
        for callback in callbacks:
            try:
                callback(live.handle)
            except BaseException as error:  # SystemExit would end this thread, and with it every request
                if is_ctrl_c(error):
                    raise
                log.warning("a done callback raised", request_id=output.request_id, exc_info=True)

    def notify(self, hook_name: str, **arguments: Any) -> None:
        """Call an observers' hook."""
        try:
            self._hooks.notify(hook_name, **arguments)
        except BaseException:
            if not self._in_engine_thread():
                raise
            # Also a KeyboardInterrupt, which an observer must have raised: Ctrl-C raises it in the main thread only.
            log.warning(f"an observer of {hook_name} raised", exc_info=True)
