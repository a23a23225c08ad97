"""Requests under which a worker has died, and that run alone until it is known which of them it died of.

A death in company is nobody's fault yet. Its requests are run again one by one, each until it is further than it was
when the worker died; then it is cleared, and the next one joins it. If the worker dies again, it has died of the one
that was not cleared, and the others of the first death are free again: what it died of is found. One that has lost its
worker in company twice runs alone to its end, so that two that are harmless apart cannot kill one worker after the
other together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from omni_core.request import OmniDiffusionRequest

# Deaths in company after which a request has no company any more.
_MOST_IN_COMPANY = 2


@dataclass(slots=True)
class Queued:
    """A request with its place in the order of arrival.

    Attributes:
        request: Which.
        arrival: Its place.
        deaths_in_company: How often its worker has died while others were at work there too.
    """

    request: OmniDiffusionRequest
    arrival: int
    deaths_in_company: int = 0

    @property
    def urgency(self) -> tuple[int, int]:
        """Sorts by priority, then by arrival."""
        return (-self.request.priority, self.arrival)


@dataclass(slots=True, kw_only=True)
class Suspect(Queued):
    """A request that is to be run alone.

    Attributes:
        incident: Number of the death that it was part of.
        calls: Denoiser calls with which it is no suspect any more; infinity: it is one to its end.
    """

    incident: int
    calls: float


class Suspects:
    """Those that wait for their turn alone."""

    def __init__(self) -> None:
        self._waiting: dict[str, Suspect] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Suspect]:
        return iter(self._waiting.values())

    def add(self, suspect: Suspect) -> None:
        """Let one wait."""
        self._waiting[suspect.request.request_id] = suspect

    def remove(self, request_id: str) -> bool:
        """Forget one, and return whether it was there."""
        return self._waiting.pop(request_id, None) is not None

    @property
    def most_urgent(self) -> Suspect:
        """The one whose turn it is. There must be one."""
        return min(self._waiting.values(), key=lambda one: one.urgency)

    def take_most_urgent(self) -> Suspect:
        """Return the one whose turn it is. There must be one."""
        suspect = self.most_urgent
        del self._waiting[suspect.request.request_id]
        return suspect

    def take_cleared(self, incident: int) -> list[Suspect]:
        """Return those that are free since another of the same death was found to be the one."""
        cleared = [one for one in self if one.incident == incident and one.calls < math.inf]
        for one in cleared:
            del self._waiting[one.request.request_id]
        return cleared

    def clear(self) -> None:
        """Forget all."""
        self._waiting.clear()


def alone_for(is_it: bool, calls: int, deaths_in_company: int) -> float:
    """Return with how many denoiser calls a request is no suspect any more.

    Args:
        is_it: Whether its worker can have died of no other.
        calls: Calls that it may have been in when the worker died.
        deaths_in_company: How often its worker has died in company, this time included.
    """
    return math.inf if is_it or deaths_in_company >= _MOST_IN_COMPANY else calls + 1
