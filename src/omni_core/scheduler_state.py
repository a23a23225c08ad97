"""What the scheduler keeps of the requests that run, and of replicas."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from omni_core.outputs import EndReason
from omni_core.request import OmniDiffusionRequest
from omni_core.suspects import Queued, Suspect

Blame = Literal["none", "in company", "newest", "alone"]


@dataclass(slots=True, kw_only=True)
class RunningRequest(Queued):
    """A request that a replica has taken up, or is about to.

    Attributes:
        charged: Seconds of forward passes that it was charged.
        cost: What its last pass charged it.
        kind: Number of the kind of call that it waits for; None if it waits for none, or was not started.
        is_started: Whether the replica was told to start it.
        is_parked: Whether it gave its place to one of higher priority.
        leaving: Why the replica was told to give it up, if it was.
        suspect: Why it runs alone, while it does.
        was_cleared: Whether it was a suspect and is none any more.
        calls: Denoiser calls of it that were reported.
    """

    charged: float = 0.0
    cost: float = 0.0
    kind: int | None = None
    is_started: bool = False
    is_parked: bool = False
    leaving: EndReason | None = None
    suspect: Suspect | None = None
    was_cleared: bool = False
    calls: int = 0


@dataclass(frozen=True, slots=True)
class LostRequest:
    """A request that a replica had taken up when it failed.

    Attributes:
        request: Which.
        arrival: Its place in the order of arrival.
        was_started: Whether it was at work there, so that it may be what the replica failed of.
        end_reason: Why it was to be ended, if it was.
        blame: Whether it may be what the replica failed of: `"newest"` if the others there had been cleared, and
            `"alone"` if there were none.
        incident: Number of the failure.
        calls: Denoiser calls that it may have been in.
        deaths_in_company: How often a replica has failed under it and others, this time included.
    """

    request: OmniDiffusionRequest
    arrival: int
    was_started: bool
    end_reason: EndReason | None
    blame: Blame
    incident: int
    calls: int
    deaths_in_company: int


@dataclass(slots=True)
class ScheduledReplica:
    """A replica: the requests that it has, and what they were seen to cost."""

    running: dict[str, RunningRequest] = field(default_factory=dict)
    ended: dict[str, EndReason] = field(default_factory=dict)
    wave_seconds: float = 0.0
    start_seconds: float = 0.0
    # Waves of the call that runs, or ran last.
    num_waves: int = 0

    @property
    def has_suspect(self) -> bool:
        """Whether it has one that must have no company."""
        return any(one.suspect is not None for one in self.running.values())

    @property
    def active(self) -> list[RunningRequest]:
        """Those that have a place. One that is to be ended has given it up."""
        return [one for name, one in self.running.items() if not one.is_parked and not self._is_ending(name)]

    @property
    def parked(self) -> list[RunningRequest]:
        """Those that wait for a place to be free again."""
        return [one for name, one in self.running.items() if one.is_parked and not self._is_ending(name)]

    def _is_ending(self, name: str) -> bool:
        return name in self.ended or self.running[name].leaving is not None

    def take_ended(self) -> dict[str, EndReason]:
        """Return the requests to give up, each once."""
        ended, self.ended = self.ended, {}
        for name, reason in ended.items():
            self.running[name].leaving = reason
        return ended
