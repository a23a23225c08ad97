"""One running request: the stock pipeline's own `__call__` in a greenlet that stops at every denoiser call."""

from __future__ import annotations

import contextvars
import time
import traceback
from typing import Any

import greenlet
import numpy as np
import torch

from omni_core.errors import PipelineError
from omni_core.outputs import EndReason, OmniRequestOutput, RequestMetrics, StepProgress
from omni_core.pipeline_info import PipelineInfo
from omni_core.request import OmniDiffusionRequest
from omni_core.worker.denoisers import SuspendablePipeline
from omni_core.worker.pipeline_output import NAN_MESSAGE, output_fields, refuse_nan
from omni_core.worker.progress import TaskProgress
from omni_core.worker.torch_state import TorchState

# A pipeline that swallows what ends it gets it again at its next denoiser call; after so many it is dropped.
_MAX_THROWS = 100


class TaskEnded(BaseException):
    """Thrown into a pipeline to end it early. Not an `Exception`, so that no handler for errors swallows it."""


class PipelineTask:
    """A request on its way through the pipeline.

    Args:
        request: What to run.
        suspendable: Where the request's own copy of the pipeline comes from.
        info: What the pipeline takes.
        device: Where it computes.

    Attributes:
        output: The end of the request, once it has ended.
    """

    def __init__(
        self, request: OmniDiffusionRequest, suspendable: SuspendablePipeline, info: PipelineInfo, device: torch.device
    ) -> None:
        self.request = request
        self.output: OmniRequestOutput | None = None
        self._suspendable = suspendable
        self._info = info
        self._device = device
        self._progress = TaskProgress()
        self._reported = (0, 0)
        self._metrics = RequestMetrics()
        self._started_at = 0.0
        self._first_call_at: float | None = None
        self._last_call_at: float | None = None
        self._is_decoding = False
        self._state: TorchState | None = None
        self._greenlet = _TaskGreenlet(self)
        self._greenlet.gr_context = contextvars.copy_context()

    @property
    def is_started(self) -> bool:
        """Whether the pipeline was called yet."""
        return self._state is not None

    def resume(self) -> None:
        """Run on to the next denoiser call, or to the end: then `output` is set."""
        if not self.is_started:
            self._started_at = time.monotonic()
            self._state = TorchState(self._device)
            self._state.seed(self.request.seed)
        self._enter()

    def end(self, reason: EndReason) -> None:
        """End the request at the denoiser call where it stands; `finally` blocks of the pipeline run. Sets `output`."""
        for _ in range(_MAX_THROWS):
            if not self.is_started or self._greenlet.dead:
                break
            self._enter(TaskEnded)
        self.output = OmniRequestOutput.ended(self.request, reason, self._final_metrics())

    def progress(self) -> StepProgress | None:
        """Return how far the request is, or None if nothing has changed since it was last asked for."""
        now = self._progress.position
        if now == self._reported:
            return None
        self._reported = now
        return StepProgress(self.request.request_id, *now)

    def _enter(self, *thrown: Any) -> None:
        assert self._state is not None
        outside = TorchState(self._device)
        self._state.restore()
        try:
            if thrown:
                self._greenlet.throw(*thrown)
            else:
                self._greenlet.switch()
        finally:
            self._state = TorchState(self._device)
            outside.restore()

    def _run(self) -> None:
        request = self.request
        try:
            arguments = self._info.arguments(request)
            if self._info.takes_generator:
                arguments["generator"] = torch.Generator().manual_seed(request.seed)
            if "return_dict" in self._info.parameters:
                arguments["return_dict"] = True
            pipeline = self._suspendable.copy(progress_bar=self._progress.bar)
            self._progress.watch_schedulers(pipeline)
            with np.errstate(invalid="call", call=self._refuse_nan):
                fields = output_fields(pipeline(**arguments))
            refuse_nan(fields)
        except TaskEnded:
            return  # `end` sets the output
        except Exception as error:
            self.output = OmniRequestOutput.failed(request, _pipeline_error(request, error), self._final_metrics())
            return
        self.output = OmniRequestOutput(
            request.request_id, request.seed, "finished", output=fields, metrics=self._final_metrics()
        )

    def _refuse_nan(self, kind: str, _flag: int) -> None:
        # After the last denoiser call, invalid arithmetic means that NaN is being made into a black picture.
        if self._is_decoding:
            raise FloatingPointError(NAN_MESSAGE)

    def _final_metrics(self) -> RequestMetrics:
        metrics = self._metrics
        if self.is_started:
            now = time.monotonic()
            first = self._first_call_at or now
            last = self._last_call_at or now
            metrics.encode_s = first - self._started_at
            metrics.denoise_s = last - first
            metrics.decode_s = now - last
            metrics.num_steps = self._progress.position[0]
        return metrics

    def call_denoiser(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Suspend, and run the module once resumed. Called by the stand-ins, inside the task."""
        if self._first_call_at is None:
            self._first_call_at = time.monotonic()
        hub = self._greenlet.parent
        assert hub is not None
        hub.switch()
        self._is_decoding = False
        result = module(*args, **kwargs)
        self._last_call_at = time.monotonic()
        self._is_decoding = True
        return result


class _TaskGreenlet(greenlet.greenlet):
    def __init__(self, task: PipelineTask) -> None:
        super().__init__(task._run)
        self.task = task


def suspend_or_run(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a denoiser call of the current task at its turn; outside of a task (a pipeline's own threads), at once."""
    current = greenlet.getcurrent()
    if isinstance(current, _TaskGreenlet):
        return current.task.call_denoiser(module, args, kwargs)
    return module(*args, **kwargs)


def _pipeline_error(request: OmniDiffusionRequest, error: Exception) -> PipelineError:
    text = "".join(traceback.format_exception(error))
    # The frames hold the latents and the pipeline copy: let go of them, the text says where it was.
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    hint = ""
    if isinstance(error, torch.OutOfMemoryError):
        hint = " Ask for a smaller picture or fewer outputs, lower max_num_seqs, or set offload."
    return PipelineError(
        f"Request {request.request_id!r}: the pipeline raised {type(error).__name__}: {str(error).rstrip('.')}.{hint}",
        worker_traceback=text,
    )
