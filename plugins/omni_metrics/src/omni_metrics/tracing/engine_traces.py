"""What is noted of the requests of one engine, until they end and their spans are made."""

from __future__ import annotations

import time
from collections.abc import Sequence

from omni_core import OmniDiffusionRequest
from omni_core.outputs import ForwardReport, OmniRequestOutput
from omni_metrics.tracing.record import MOST_FORWARDS, Forward, LostRun, RequestRecord
from omni_metrics.tracing.spans import RequestSpans

_NS = 1_000_000_000


class EngineTraces:
    """The requests of one engine that run. Its methods are called in the engine's thread.

    Args:
        spans: Makes their spans.
        forwards: Whether forward passes are noted.
    """

    def __init__(self, spans: RequestSpans, *, forwards: bool) -> None:
        self._spans = spans
        self._notes_forwards = forwards
        self._running: dict[str, RequestRecord] = {}

    @property
    def num_running(self) -> int:
        """Of how many requests something is kept."""
        return len(self._running)

    def begun(self, request_id: str, replica: int) -> None:
        """A worker has begun with a request."""
        self._running[request_id] = RequestRecord(time.time_ns(), replica)

    def retried(self, request_id: str, replica: int, reason: str, number: int) -> None:
        """A worker died, and a request waits to be run again."""
        if (record := self._running.get(request_id)) is not None:
            record.lost.append(LostRun(time.time_ns(), replica, reason, number))

    def step_done(self, replica: int, forwards: Sequence[ForwardReport]) -> None:
        """A replica has done a step. Its forward passes are laid back from now, by the seconds that each has taken."""
        if not self._notes_forwards:
            return
        ended_ns = time.time_ns()
        for forward in reversed(forwards):
            begun_ns = ended_ns - int(forward.seconds * _NS)
            made = Forward(begun_ns, ended_ns, replica, forward.rows, len(forward.request_ids))
            for request_id in forward.request_ids:
                record = self._running.get(request_id)
                if record is not None and len(record.forwards) < MOST_FORWARDS:
                    record.forwards.append(made)
            ended_ns = begun_ns

    def ended(self, request: OmniDiffusionRequest, output: OmniRequestOutput) -> None:
        """A request has ended, in whatever way."""
        record = self._running.pop(output.request_id, None)
        self._spans.make(request, output, record, time.time_ns())
