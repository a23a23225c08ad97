"""A worker without a model, and without torch: for trying an executor's processes and messages in no time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from omni_core.errors import RPCError, did_you_mean
from omni_core.outputs import (
    OmniRequestOutput,
    RequestMetrics,
    SchedulerOutput,
    StackingStats,
    StepOutput,
    StepProgress,
)
from omni_core.pipeline_info import PipelineInfo
from omni_core.request import OmniDiffusionRequest, refuse_used_ids

# Steps of a request that says nothing.
_NUM_STEPS = 4


class FakeWorker:
    """Answers like `DiffusionWorker`, with the same methods; it makes nothing, but counts.

    A request takes `num_inference_steps` waves and ends with the output `{"images": [seed]}`: whichever worker got it
    and however often it was run again, the right output is known. As with the real one, all methods but `interrupt`
    belong to one thread.

    Args:
        config: Taken, and kept, because an executor gives it.
        replica: Which replica it belongs to.
        rank: Its rank within the replica.
        more: Whatever else the real one is given.
    """

    def __init__(self, config: Any = None, *, replica: int = 0, rank: int = 0, **more: Any) -> None:
        self.config = config
        self.replica = replica
        self.rank = rank
        self.more = more
        self.sleep_level = 0
        self._steps_done: dict[str, int] = {}
        self._requests: dict[str, OmniDiffusionRequest] = {}
        self._interrupted = threading.Event()

    def execute_step(self, scheduler_output: SchedulerOutput) -> StepOutput:
        """Advance the requests that are named in each wave by one step.

        Raises:
            RequestError: A new request has the id of one that runs. Nothing was done.
        """
        refuse_used_ids(scheduler_output.new_requests, self._requests)
        output = StepOutput()
        for request in scheduler_output.new_requests:
            self._requests[request.request_id] = request
            self._steps_done[request.request_id] = 0
        for request_id, reason in scheduler_output.ended_requests.items():
            if request_id in self._requests:
                metrics = RequestMetrics(num_steps=self._steps_done.pop(request_id))
                output.finished.append(OmniRequestOutput.ended(self._requests.pop(request_id), reason, metrics))
        self._interrupted.clear()
        for wave in scheduler_output.waves if self.sleep_level == 0 else ():
            for request_id in wave:
                if request_id in self._requests:
                    self._advance(request_id, output)
            if output.finished or self._interrupted.is_set():
                break
        return output

    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        """Run whole requests to their end."""
        return [_finished(request, _num_steps(request)) for request in requests]

    def interrupt(self) -> None:
        """Let a running `execute_step` return after the wave that is running. From any thread."""
        self._interrupted.set()

    def call(
        self, method: str | Callable[..., Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a public method by name, or a callable that gets this worker as its first argument.

        Raises:
            RPCError: There is no such method.
        """
        if callable(method):
            return method(self, *args, **(kwargs or {}))
        target = None if method.startswith("_") else getattr(self, method, None)
        if not callable(target):
            names = [name for name in dir(self) if not name.startswith("_") and callable(getattr(self, name))]
            raise RPCError(f"The worker has no method {method!r}.{did_you_mean(method, names)}")
        return target(*args, **(kwargs or {}))

    def describe_pipeline(self) -> PipelineInfo:
        """Return what it takes: anything."""
        return PipelineInfo(
            "FakePipeline", "fake", (), (), accepts_any=True, defaults={}, device="cpu", dtype="float32"
        )

    def stats(self) -> StackingStats:
        """Return what stacking did: nothing."""
        return StackingStats()

    def check_health(self) -> None:
        """Return: it is well."""

    def sleep(self, level: int = 1) -> None:
        """Advance no request until `wake_up`."""
        self.sleep_level = max(self.sleep_level, level)

    def wake_up(self) -> None:
        """Go on."""
        self.sleep_level = 0

    def close(self) -> None:
        """Forget all requests."""
        self._requests.clear()
        self._steps_done.clear()

    def _advance(self, request_id: str, output: StepOutput) -> None:
        request, done = self._requests[request_id], self._steps_done[request_id] + 1
        if done == 1:
            output.started.append(request_id)
            output.start_seconds.append(0.0)
        self._steps_done[request_id] = done
        output.progress = [one for one in output.progress if one.request_id != request_id]
        output.progress.append(StepProgress(request_id, done, _num_steps(request)))
        if done >= _num_steps(request):
            output.finished.append(_finished(request, done))
            del self._requests[request_id], self._steps_done[request_id]


def _num_steps(request: OmniDiffusionRequest) -> int:
    return request.num_inference_steps or _NUM_STEPS


def _finished(request: OmniDiffusionRequest, num_steps: int) -> OmniRequestOutput:
    metrics = RequestMetrics(num_steps=num_steps, num_calls=num_steps, mean_rows=1.0)
    return OmniRequestOutput(request.request_id, request.seed, "finished", {"images": [request.seed]}, metrics=metrics)
