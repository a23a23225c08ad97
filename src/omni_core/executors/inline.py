"""The embedded default: one worker in this process, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, ClassVar

from omni_core.calls import call_error, call_name
from omni_core.engine_place import wait_for_load
from omni_core.errors import ExecutorError, RPCError, RPCTimeoutError
from omni_core.executor import WORKER_OPTIONS, DiffusionExecutor
from omni_core.outputs import OmniRequestOutput, SchedulerOutput, StepOutput
from omni_core.own_threads import begin_own_thread
from omni_core.request import OmniDiffusionRequest
from omni_core.serial_thread import SerialThread, ThreadClosedError
from omni_core.timeouts import MOST_SECONDS, is_done_within, wait_seconds

# Seconds that closing waits for the denoiser call that is running; the thread is a daemon and holds nothing up.
_CLOSE_TIMEOUT_S = 30.0


class InlineExecutor(DiffusionExecutor):
    """Runs one `DiffusionWorker` in this process.

    Steps and calls take their turns in the worker's thread, so a call waits at most for the step that is running.
    """

    supported_options: ClassVar[frozenset[str]] = WORKER_OPTIONS
    runs_diffusion_worker: ClassVar[bool] = True
    can_interrupt: ClassVar[bool] = True
    accepts_pipeline: ClassVar[bool] = True

    def _init_executor(self) -> None:
        self._worker: Any = None
        self._thread = SerialThread("omni-inline-worker")
        loading = self._thread.submit(self._make_worker)
        wait_for_load(loading, min(self.config.startup_timeout_s, MOST_SECONDS), self._thread.ident)

    def _make_worker(self) -> None:
        # Here pipelines run, and call what their requests bring: `callback_on_step_end`, say.
        begin_own_thread("runs the pipelines", self, runs_requests=True)
        from omni_core.worker.worker import worker_class

        self._worker = worker_class(self.config)(self.config, hooks=self.plugins, pipeline=self._pipeline)

    def execute_step(self, replica: int, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        """Advance the running requests, wave by wave."""
        return self._submit(self._execute_step, scheduler_output)

    def _execute_step(self, scheduler_output: SchedulerOutput) -> StepOutput:
        output: StepOutput = self._worker.execute_step(scheduler_output)
        return output

    def interrupt(self, replica: int) -> None:
        """Let the running `execute_step` return after the wave that is running."""
        worker = self._worker
        if worker is not None:
            worker.interrupt()

    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        """Run whole requests to their end; the engine's own requests wait meanwhile."""
        future = self._submit(lambda: self._worker.execute_model(list(requests)))
        outputs: list[OmniRequestOutput] = self._wait(future, "execute_model", None)
        return outputs

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Any:
        """Call a method of the one worker, between two steps."""
        seconds = wait_seconds(timeout)
        return self._wait(self.begin_rpc(method, args, kwargs, unique_reply_rank), call_name(method), seconds)

    def begin_rpc(
        self,
        method: str | Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Future[Any]:
        """Begin a call of a method of the one worker, after those before it, and return at once."""
        if unique_reply_rank not in (None, 0):
            raise RPCError(f"There is no rank {unique_reply_rank}: the inline executor has one worker, rank 0.")

        def call() -> Any:
            result = self._call(call_name(method), method, args, kwargs)
            return [result] if unique_reply_rank is None else result

        future = self._submit(call)
        self.interrupt(0)
        return future

    def _wait(self, future: Future[Any], name: str, seconds: float | None) -> Any:
        """Wait for a call to the worker; closing the executor ends the wait."""
        if not is_done_within(future, seconds):
            future.cancel()
            waited = round(seconds or 0.0, 3)
            raise RPCTimeoutError(
                f"The call {name!r} did not return within {waited:g} s. If it has begun, it runs on in this process "
                "and its result is dropped."
            )
        try:
            return future.result()
        except CancelledError:
            raise ExecutorError(f"The executor was shut down before the call {name!r} began.") from None
        except ThreadClosedError:
            raise ExecutorError(
                f"The executor was shut down, and the call {name!r} had not ended by then. It runs on in this process "
                "and its result is dropped."
            ) from None

    def _call(
        self, name: str, method: str | Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> Any:
        try:
            return self._worker.call(method, args, kwargs)
        except Exception as error:
            told = call_error(name, error)
            raise told from (None if told is error else error)

    def check_health(self) -> None:
        """Return if the worker's thread is there to take work."""
        if self._worker is None or not self._thread.is_alive:
            raise ExecutorError("The inline worker is gone: the executor was shut down, or never started.")

    def shutdown(self) -> None:
        """End running requests where they stand, then the thread."""
        # A pipeline that is still loading cannot be stopped: it is let go of once it has loaded.
        self._thread.close(_CLOSE_TIMEOUT_S if self._worker is not None else 0.0, last=self._close_worker)

    def _close_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        try:
            return self._thread.submit(function, *args)
        except ThreadClosedError as error:
            raise ExecutorError("The inline worker is gone: the executor was shut down.") from error
