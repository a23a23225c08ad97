"""Advancing the running requests of one worker."""

from __future__ import annotations

from collections.abc import Iterable

from omni_core.outputs import SchedulerOutput, StepOutput
from omni_core.request import OmniDiffusionRequest
from omni_core.worker.denoisers import SuspendablePipeline
from omni_core.worker.loader import LoadedPipeline
from omni_core.worker.task import PipelineTask, suspend_or_run


class ModelRunner:
    """Holds the tasks of the running requests and resumes them from one denoiser call to the next.

    The oldest task runs until it ends, then the next. All methods must be called from the same thread, as greenlets
    cannot leave theirs.

    Args:
        loaded: The pipeline that all requests share.
    """

    def __init__(self, loaded: LoadedPipeline) -> None:
        self.loaded = loaded
        self._suspendable = SuspendablePipeline(loaded.pipeline, suspend_or_run)
        self._tasks: dict[str, PipelineTask] = {}

    def add(self, requests: Iterable[OmniDiffusionRequest]) -> None:
        """Take up requests, behind those that are there."""
        for request in requests:
            self._tasks[request.request_id] = PipelineTask(
                request, self._suspendable, self.loaded.info, self.loaded.device
            )

    def execute_step(self, scheduler_output: SchedulerOutput) -> StepOutput:
        """Take up new requests, give up ended ones, and run `num_steps` denoiser calls.

        Returns:
            Which requests began, moved on and ended.
        """
        step_output = StepOutput()
        self.add(scheduler_output.new_requests)
        for request_id, reason in scheduler_output.ended_requests.items():
            # One that ended by itself in the call before is not here any more, and was reported.
            if (task := self._tasks.get(request_id)) is not None:
                task.end(reason)
                self._finish(task, step_output)
        for _ in range(scheduler_output.num_steps):
            if not self._tasks:
                break
            self._advance(next(iter(self._tasks.values())), step_output)
        step_output.progress = [
            progress for task in self._tasks.values() if (progress := task.progress()) is not None
        ] + step_output.progress
        return step_output

    def drain(self) -> list[OmniDiffusionRequest]:
        """End all tasks where they stand, and return their requests so that they can be run again."""
        requests = [task.request for task in self._tasks.values()]
        for task in self._tasks.values():
            task.end("aborted")
        self._tasks.clear()
        return requests

    def _advance(self, task: PipelineTask, step_output: StepOutput) -> None:
        if not task.is_started:
            step_output.started.append(task.request.request_id)
            task.resume()  # to its first denoiser call
        if task.output is None:
            task.resume()
        if task.output is not None:
            self._finish(task, step_output)

    def _finish(self, task: PipelineTask, step_output: StepOutput) -> None:
        assert task.output is not None
        del self._tasks[task.request.request_id]
        if (progress := task.progress()) is not None:
            step_output.progress.append(progress)
        step_output.finished.append(task.output)
