"""One running request: the stock pipeline's own `__call__` in a greenlet that stops at every denoiser call."""

from __future__ import annotations

import contextvars
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import greenlet
import torch

from omni_core.error_text import is_ctrl_c
from omni_core.errors import OmniError
from omni_core.outputs import EndReason, OmniRequestOutput, RequestMetrics, StepProgress
from omni_core.request import OmniDiffusionRequest
from omni_core.worker.pipeline.denoisers import SuspendablePipeline
from omni_core.worker.pipeline.error import pipeline_error
from omni_core.worker.pipeline.loader import LoadedPipeline
from omni_core.worker.pipeline.output import output_fields
from omni_core.worker.pipeline.progress import TaskProgress
from omni_core.worker.pipeline.prompt import with_encoded_prompt
from omni_core.worker.pipeline.stand_ins import running_task
from omni_core.worker.stacking.call import DenoiserCall
from omni_core.worker.task.nan_watch import NanWatch
from omni_core.worker.task.side_thread import SideThread, take_over
from omni_core.worker.task.state import StateSwitch, TaskState

# A pipeline that swallows what ends it gets it again at its next denoiser call; after so many it is dropped.
_MAX_THROWS = 100
# Handed to a task in place of a result: run the call yourself.
RUN_ALONE = object()
# What a task stops at: a denoiser call, an autoencoder call under way, its end.
Stop = DenoiserCall | Future[Any] | OmniRequestOutput


class TaskEnded(BaseException):
    """Thrown into a pipeline to end it early. Not an `Exception`, so that no handler for errors swallows it."""


class PipelineTask:
    """A request on its way through the pipeline.

    Args:
        request: What to run.
        suspendable: Where the request's own copy of the pipeline comes from.
        loaded: The pipeline that all requests share.
        side: Where calls of autoencoders run; None runs them in the task.
        switch: What puts the task's state in place while it runs.

    Attributes:
        request: What is run.
        stopped_at: What it stopped at: a denoiser call, an autoencoder call, or its end. None before it has begun, and
            where it stands still.
        pipeline: The request's own copy of the pipeline, once it runs.
    """

    def __init__(
        self,
        request: OmniDiffusionRequest,
        suspendable: SuspendablePipeline,
        loaded: LoadedPipeline,
        side: SideThread | None,
        switch: StateSwitch,
    ) -> None:
        self.request = request
        self.stopped_at: Stop | None = None
        self.pipeline: Any = None
        self.suspendable = suspendable
        self.steps = TaskProgress(request.preview_every, request.previews)
        self._loaded = loaded
        self._side = side
        self._reported = (0, 0)
        self._metrics = RequestMetrics()
        self._calls = 0
        self._rows = 0
        self._started_at = 0.0
        self._first_call_at: float | None = None
        self._last_call_at: float | None = None
        self._nan = NanWatch()
        self._switch = switch
        self._state: TaskState | None = None
        self._greenlet = _TaskGreenlet(self)
        self._greenlet.gr_context = contextvars.copy_context()

    @property
    def is_started(self) -> bool:
        """Whether the pipeline was called yet."""
        return self._state is not None

    @property
    def call(self) -> DenoiserCall | None:
        """The denoiser call that it waits for, if it does."""
        return self.stopped_at if isinstance(self.stopped_at, DenoiserCall) else None

    @property
    def side_call(self) -> Future[Any] | None:
        """The autoencoder call that it waits for, if it does."""
        return self.stopped_at if isinstance(self.stopped_at, Future) else None

    @property
    def output(self) -> OmniRequestOutput | None:
        """The end of the request, if it has ended."""
        return self.stopped_at if isinstance(self.stopped_at, OmniRequestOutput) else None

    @property
    def stands_still(self) -> bool:
        """Whether it has begun and not ended, and waits for nothing that this worker knows of."""
        return self.is_started and self.stopped_at is None

    @property
    def state(self) -> TaskState:
        """The state in which the task waits; up to date once it is not in place."""
        assert self._state is not None
        return self._state

    def resume(self, result: Any = RUN_ALONE, rows: int = 0) -> Stop | None:
        """Run on to the next denoiser call, autoencoder call, or to the end.

        Args:
            result: What the call that the task waits for gives. `RUN_ALONE`: the task runs it itself.
            rows: Rows of the forward pass that gave the result.

        Returns:
            What it stopped at; None if it gave control away in a way that this worker does not know of.
        """
        if not self.is_started:
            self._started_at = time.monotonic()
            self._switch.leave()  # it begins in the worker's own state, not in that of another task
            self.suspendable.refresh()
            self._state = TaskState(
                self._loaded.device,
                self.request.seed,
                self.suspendable.cached_modules,
                self.suspendable.editable_parts,
            )
            return self._enter(self._greenlet.switch)
        if self.call is not None:
            self._calls += 1
            self._rows += rows or self.call.rows
            self._last_call_at = time.monotonic()
        return self._enter(lambda: self._greenlet.switch(result))

    def resume_with_error(self, error: BaseException) -> Stop | None:
        """Run on with what the call that the task waits for raised; return as `resume` does."""
        return self._enter(lambda: self._greenlet.throw(error))

    def resume_side(self) -> Stop | None:
        """Run on with what the side thread gave, which is there: result or error; return as `resume` does."""
        side_call = self.side_call
        assert side_call is not None
        error = side_call.exception()
        if error is not None:
            return self._enter(lambda: self._greenlet.throw(error))
        result = side_call.result()
        return self._enter(lambda: self._greenlet.switch(result))

    def end(self, reason: EndReason) -> None:
        """End the request where it stands; `finally` blocks of the pipeline run."""
        self._stop()
        self.stopped_at = self.ended_output(reason)

    def ended_output(self, reason: EndReason) -> OmniRequestOutput:
        """Return the output of a request that ends where it stands."""
        return OmniRequestOutput.ended(self.request, reason, self._final_metrics())

    def fail(self, error: OmniError) -> None:
        """End the request where it stands, as one that failed, whatever it came to here."""
        self._stop()
        self.stopped_at = OmniRequestOutput.failed(self.request, error, self._final_metrics())

    def _stop(self) -> None:
        for _ in range(_MAX_THROWS):
            if not self.is_started or self._greenlet.dead:
                break
            self._enter(lambda: self._greenlet.throw(TaskEnded))

    def progress(self) -> StepProgress | None:
        """Return how far the request is, or None if nothing has changed since it was last asked for."""
        now = self.steps.position
        if now == self._reported:
            return None
        self._reported = now
        return StepProgress(self.request.request_id, *now, preview=self.steps.take_preview())

    def _enter(self, switch: Callable[[], Any]) -> Stop | None:
        self.stopped_at = None
        self._switch.enter(self.state)
        switch()
        return self.stopped_at

    def _run(self) -> None:
        request = self.request
        try:
            arguments = self._loaded.info.arguments(request)
            if self._loaded.info.takes_generator:
                arguments["generator"] = torch.Generator().manual_seed(request.seed)
            if "return_dict" in self._loaded.info.parameters:
                arguments["return_dict"] = True
            pipeline = self.pipeline = self.suspendable.copy()
            arguments = with_encoded_prompt(self._loaded.hooks, self._loaded.info, pipeline, request, arguments)
            self.steps.watch(pipeline, arguments)
            with self._nan.watching():
                returned = pipeline(**arguments)
            fields = output_fields(returned)
            self._nan.judge(fields, self.steps.sample)
        except TaskEnded:
            return  # `end` says how
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            self.stopped_at = OmniRequestOutput.failed(request, pipeline_error(request, error), self._final_metrics())
            return
        self.stopped_at = OmniRequestOutput(
            request.request_id, request.seed, "finished", output=fields, metrics=self._final_metrics()
        )

    def _final_metrics(self) -> RequestMetrics:
        metrics = self._metrics
        if self.is_started:
            now = time.monotonic()
            first = self._first_call_at or now
            last = self._last_call_at or now
            metrics.encode_s = first - self._started_at
            metrics.denoise_s = last - first
            metrics.decode_s = now - last
            metrics.num_steps = self.steps.position[0]
            metrics.num_calls = self._calls
            metrics.mean_rows = self._rows / self._calls if self._calls else 0.0
        return metrics

    def call_denoiser(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Suspend until somebody gives the result, or lets the task run the module. Called inside the task."""
        if self._first_call_at is None:
            self._first_call_at = time.monotonic()
        self._nan.forget()
        self.stopped_at = DenoiserCall.unexamined(module, args, kwargs)
        result = self._suspend()
        if result is RUN_ALONE:
            result = module(*args, **kwargs)
            self._last_call_at = time.monotonic()
        self._nan.note_denoised(result)
        return result

    def call_autoencoder(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Suspend until the side thread has run a method of an autoencoder. Called inside the task."""
        if self._side is None or torch.is_grad_enabled() or self.state.process.is_changed:
            result = method(*args, **kwargs)
        else:
            # With the task's context variables, such as numpy's error handling.
            context = contextvars.copy_context()
            self.stopped_at = self._side.submit(context.run, (method, *args), kwargs)
            try:
                result = self._suspend()
            finally:
                take_over(context)
        if method.__name__ == "decode":
            self._nan.note_decoded(result)
        return result

    def _suspend(self) -> Any:
        hub = self._greenlet.parent
        assert hub is not None
        return hub.switch()


class _TaskGreenlet(greenlet.greenlet):
    def __init__(self, task: PipelineTask) -> None:
        super().__init__(task._run)
        # No cycle: what an ended task holds, such as its pictures, is freed at once and not when Python looks for it.
        self._task = weakref.ref(task)

    @property
    def task(self) -> PipelineTask | None:
        return self._task()  # which lives as long as its code runs in this greenlet


def suspend_denoiser_call(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a denoiser call of the current task at its turn; outside of a task (a pipeline's own threads), at once."""
    task = running_task()
    return module(*args, **kwargs) if task is None else task.call_denoiser(module, args, kwargs)


def suspend_autoencoder_call(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an autoencoder's method for the current task beside the others; outside of a task, at once."""
    task = running_task()
    return method(*args, **kwargs) if task is None else task.call_autoencoder(method, args, kwargs)
