"""From what was measured of a request to the times of its stages."""

from __future__ import annotations

from dataclasses import dataclass

from omni_core.errors import WorkerDiedError
from omni_core.outputs import OmniRequestOutput
from omni_metrics.tracing.record import RequestRecord

_NS = 1_000_000_000
LOST = "lost run"
QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the time of a request. Times are Unix times in nanoseconds.

    Attributes:
        name: Which.
        begun_ns: When it began.
        ended_ns: When it ended.
        replica: Where it ran, if that is known.
        reason: Why it was lost; empty if it was not.
    """

    name: str
    begun_ns: int
    ended_ns: int
    replica: int | None = None
    reason: str = ""


def begun_ns(output: OmniRequestOutput, ended_ns: int) -> int:
    """Return when a request was submitted.

    Args:
        output: Its end.
        ended_ns: When that was.
    """
    return ended_ns - int(output.metrics.total_s * _NS)


def stages(output: OmniRequestOutput, record: RequestRecord | None, ended_ns: int) -> list[Stage]:
    """Return what a request has spent its time with, in order and without gaps.

    The last run is laid back from the end, by the seconds that its worker has measured.

    Args:
        output: Its end.
        record: What was noted while it ran; None if no worker began with it.
        ended_ns: When it ended.
    """
    metrics = output.metrics
    submitted = begun_ns(output, ended_ns)
    parts = [
        ("encode", metrics.encode_s),
        ("denoise", metrics.denoise_s),
        ("decode", metrics.decode_s),
        ("output", metrics.output_s),
    ]
    if record is None:
        return [Stage(QUEUE, submitted, ended_ns)]
    last_run = ended_ns - sum(int(seconds * _NS) for _, seconds in parts)
    found: list[Stage] = []
    at = submitted
    if record.lost or isinstance(output.error, WorkerDiedError):
        at = max(submitted, record.begun_ns)
        found.append(Stage(QUEUE, submitted, at, record.replica))
        for lost in record.lost:
            found.append(Stage(LOST, at, max(at, lost.ended_ns), lost.replica, lost.reason))
            at = max(at, lost.ended_ns)
    if isinstance(output.error, WorkerDiedError):
        return [*found, Stage(LOST, at, ended_ns, output.error.replica, output.error.message)]
    found.append(Stage(QUEUE, at, max(at, last_run)))
    at = max(at, last_run)
    for name, seconds in parts:
        if seconds > 0:
            found.append(Stage(name, at, min(ended_ns, at + int(seconds * _NS))))
            at = found[-1].ended_ns
    return found
