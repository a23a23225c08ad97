"""The messages between the ranks of an SPMD engine, sent over `RankConnections`."""

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
    """The sender has submitted its next request or call. `fields` must be the same on all ranks."""

    kind: Kind
    fields: Fields


@dataclass(slots=True)
class Identity:
    """Id and seed of a request on rank 0."""

    request_id: str
    seed: int


@dataclass(slots=True)
class Step:
    """Rank 0 starts a step: its `SchedulerOutput`, with numbers in place of the new requests."""

    new: dict[int, Identity]
    ended: dict[str, EndReason]
    waves: list[tuple[str, ...]]


@dataclass(slots=True)
class Ended:
    """A request has ended on rank 0 before it was started."""

    number: int
    error: OmniError


@dataclass(slots=True)
class Call:
    """Rank 0 starts a call. `identities`: those of the requests that the call runs, if any."""

    number: int
    identities: list[Identity] = field(default_factory=list)


@dataclass(slots=True)
class Reply:
    """The reply to a call from the sender's worker."""

    reply: WorkerReply


@dataclass(slots=True)
class Results:
    """The replies to a call from all ranks."""

    number: int
    replies: list[WorkerReply]


@dataclass(slots=True)
class Broken:
    """The ranks cannot continue together."""

    message: str
    worker_traceback: str | None


@dataclass(slots=True)
class Alive:
    """The heartbeat of rank 0."""


@dataclass(slots=True)
class Leaving:
    """The sender closes its engine after so many requests and calls. It waits for `Stop`."""

    requests: int
    calls: int


@dataclass(slots=True)
class Stop:
    """Rank 0 will send nothing more to the receiver. It has submitted so many requests and calls."""

    requests: int
    calls: int
