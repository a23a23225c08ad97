"""What is noted of a request while it runs, for the spans that are made after its end."""

from __future__ import annotations

from dataclasses import dataclass, field

# Of one request. A long video has a thousand steps of two forwards each.
MOST_FORWARDS = 2000


@dataclass(frozen=True, slots=True)
class LostRun:
    """A run that ended with the death of a worker. Times are Unix times in nanoseconds.

    Attributes:
        ended_ns: When it was known.
        replica: Whose worker died.
        reason: Why, in the words of the worker or of who watched it.
        number: Which of the retries of the request follows, from 1.
    """

    ended_ns: int
    replica: int
    reason: str
    number: int


@dataclass(frozen=True, slots=True)
class Forward:
    """A forward pass that served a request. Times are Unix times in nanoseconds.

    Attributes:
        begun_ns: When it began.
        ended_ns: When it ended.
        replica: Where.
        rows: Of all requests that it served.
        num_requests: How many those were.
    """

    begun_ns: int
    ended_ns: int
    replica: int
    rows: int
    num_requests: int


@dataclass(slots=True)
class RequestRecord:
    """A request that runs.

    Attributes:
        begun_ns: When a worker began with it for the first time.
        replica: Whose worker that was.
        lost: The runs that were lost.
        forwards: Its forward passes, if they are wanted.
    """

    begun_ns: int
    replica: int
    lost: list[LostRun] = field(default_factory=list)
    forwards: list[Forward] = field(default_factory=list)
