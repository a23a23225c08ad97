"""Running requests one after the other where the model keeps state that cannot be kept apart."""

from __future__ import annotations

from collections.abc import Iterable

from omni_core.log import get_logger
from omni_core.outputs import EndReason, OmniRequestOutput
from omni_core.worker.pipeline.denoisers import SuspendablePipeline
from omni_core.worker.task.task import PipelineTask

log = get_logger(__name__)


class Turns:
    """Decides which tasks may run.

    Usually all may. If something foreign in the model may hold state (`SuspendablePipeline.shared_state`), a request
    begins when the one before has come to its end, as with the bare pipeline. One that is ended early is then run on to
    its end all the same, with nobody waiting for it: half of a run would leave the counters of a step cache where the
    next request would go wrong by them.

    Args:
        suspendable: The pipeline.
    """

    def __init__(self, suspendable: SuspendablePipeline) -> None:
        self._suspendable = suspendable
        self._told: str | None = None
        # What was found out about the model by running it.
        self._found: str | None = None
        # Ended early, and still to be run to their end.
        self.abandoned: list[PipelineTask] = []

    @property
    def _shared_state(self) -> str | None:
        return self._suspendable.shared_state or self._found

    def note_stateful(self, reason: str) -> None:
        """Take note that the model was found to keep something from one call to the next."""
        self._found = reason

    def choose(self, wave: list[PipelineTask], everyone: Iterable[PipelineTask]) -> list[PipelineTask]:
        """Return which tasks to run in place of those of a wave.

        Args:
            wave: The tasks that are to advance.
            everyone: All tasks there are, but for the abandoned ones.
        """
        if any(not task.is_started for task in wave):
            self._suspendable.refresh()
        reason = self._shared_state
        if reason is None and not self.abandoned:
            return wave
        if reason is not None and reason != self._told:
            self._told = reason
            log.warning("requests run one at a time: the model may keep state from one step to the next", reason=reason)
        begun = [task for task in (*self.abandoned, *everyone) if task.is_started and task.output is None]
        return begun or wave[:1]

    def abandon(self, task: PipelineTask, reason: EndReason) -> OmniRequestOutput | None:
        """End a request that must be run on to its end.

        Returns:
            Its output; None if it need not be run on.
        """
        if self._shared_state is None or not task.is_started or task.output is not None:
            return None
        self.abandoned.append(task)
        return task.ended_output(reason)

    def note_end(self, output: OmniRequestOutput) -> None:
        """Say so if a request failed amid its run, where the next may be wrong by what it has left."""
        if output.finish_reason == "error" and self._shared_state is not None:
            log.warning(
                "a request failed amid its run, and the model keeps what it had come to: the next may be wrong by it",
                request_id=output.request_id,
                reason=self._shared_state,
            )

    def forget_ended(self) -> None:
        """Let go of abandoned tasks that have come to their end."""
        self.abandoned = [task for task in self.abandoned if task.output is None]
