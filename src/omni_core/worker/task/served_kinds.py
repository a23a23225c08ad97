"""Which requests a kind of call has served stacked, so that they can be told if it is found wrong later."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

from omni_core.outputs import OmniRequestOutput, StepOutput
from omni_core.worker.stacking.call import DenoiserCall
from omni_core.worker.stacking.verify import VerifiedStacking
from omni_core.worker.task.task import PipelineTask
from omni_core.worker.task.turns import Turns

# Requests that have ended and are remembered.
_MOST_ENDED = 1000


class ServedKinds:
    """Marks the outputs of requests that a kind has served which was found wrong.

    Args:
        stacking: What tells of kinds. This becomes its listener.
        turns: What is told of models that keep something from one call to the next.
    """

    def __init__(self, stacking: VerifiedStacking, turns: Turns) -> None:
        stacking.on_stacked = self._note_stacked
        stacking.on_mismatch = self._note_mismatch
        stacking.on_stateful = self._note_stateful
        self._turns = turns
        self._tasks: Mapping[str, PipelineTask] = {}
        self._step_output = StepOutput()
        # By the identity of the call that each waits for.
        self._group: dict[int, str] = {}
        self._kinds: dict[str, set[int]] = {}
        self._ended: collections.OrderedDict[str, set[int]] = collections.OrderedDict()
        self._reasons: dict[str, str] = {}

    def begin(self, tasks: Mapping[str, PipelineTask], step_output: StepOutput) -> None:
        """Take note of the tasks that there are, and of where to put what must be told of ended ones."""
        self._tasks, self._step_output = tasks, step_output

    def note_group(self, tasks: Sequence[PipelineTask]) -> None:
        """Take note of tasks whose calls are about to be run together."""
        self._group = {id(task.call): task.request.request_id for task in tasks}

    def note_end(self, output: OmniRequestOutput) -> None:
        """Take note of the end of a request, and mark its output if a kind that has served it is wrong."""
        output.metrics.suspect = self._reasons.pop(output.request_id, "")
        if (kinds := self._kinds.pop(output.request_id, None)) is not None:
            self._ended[output.request_id] = kinds
            if len(self._ended) > _MOST_ENDED:
                self._ended.popitem(last=False)

    def forget_running(self) -> None:
        """Forget the requests that have not ended: they are gone from here."""
        self._kinds.clear()
        self._reasons.clear()

    def _note_stacked(self, kind: int, calls: Sequence[DenoiserCall]) -> None:
        for call in calls:
            if (request_id := self._group.get(id(call))) is not None:
                self._kinds.setdefault(request_id, set()).add(kind)

    def _note_mismatch(self, kind: int, reason: str) -> None:
        for request_id, kinds in self._kinds.items():
            if kind in kinds and request_id in self._tasks:
                self._reasons[request_id] = reason
        for request_id, kinds in self._ended.items():
            if kind in kinds:
                self._step_output.suspects[request_id] = reason

    def _note_stateful(self, reason: str) -> None:
        self._turns.note_stateful(reason)
        begun = [request_id for request_id, task in self._tasks.items() if task.is_started]
        if len(begun) > 1:
            self._reasons.update(dict.fromkeys(begun, reason))
