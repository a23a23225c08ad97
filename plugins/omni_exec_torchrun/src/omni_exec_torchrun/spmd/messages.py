"""What the ranks of an SPMD engine tell each other over their `RankConnections`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from omni_core.calls import WorkerReply
from omni_core.errors import OmniError
from omni_core.outputs import EndReason
from omni_exec_torchrun.spmd.ledger import Fields

Kind = Literal["request", "call"]


@dataclass(slots=True)
class Announcement:
    """The sender has asked for the next request or call, and this is what must be the same on all ranks."""

    kind: Kind
    fields: Fields


@dataclass(slots=True)
class Identity:
    """What rank 0 calls a request, and the seed it runs with."""

    request_id: str
    seed: int


@dataclass(slots=True)
class Step:
    """Rank 0 begins this step: its `SchedulerOutput`, with the numbers of new requests in their place."""

    new: dict[int, Identity]
    ended: dict[str, EndReason]
    waves: list[tuple[str, ...]]


@dataclass(slots=True)
class Ended:
    """A request has ended on rank 0 before it was begun."""

    number: int
    error: OmniError


@dataclass(slots=True)
class Call:
    """Rank 0 begins this call. `identities` are those of the requests that it runs, if it does."""

    number: int
    identities: list[Identity] = field(default_factory=list)


@dataclass(slots=True)
class Reply:
    """What a call came to on the sender."""

    reply: WorkerReply


@dataclass(slots=True)
class Results:
    """What a call came to on all ranks."""

    number: int
    replies: list[WorkerReply]


@dataclass(slots=True)
class Broken:
    """The ranks cannot go on together."""

    message: str
    worker_traceback: str | None


@dataclass(slots=True)
class Alive:
    """Rank 0's process runs, though there may be nothing else to say."""


@dataclass(slots=True)
class Leaving:
    """The sender closes its engine, having asked for so many requests and calls. A follower waits for `Stop`."""

    requests: int
    calls: int


@dataclass(slots=True)
class Stop:
    """Rank 0 will ask for nothing more of the receiver. It has asked for so many requests and calls."""

    requests: int
    calls: int
