"""How far the requests of a stream are, for clients that ask for it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from omni_core import OmniDiffusionRequest, RequestEvent
from omni_serve.service import Service

# Of one request: small models take a thousand steps a second.
_SHORTEST_GAP_S = 0.05


class Progress:
    """Makes the events that tell of progress.

    Args:
        service: Which runs the requests.
        requests: Which.
        kind: Name of the events.
        is_wanted: Whether the client has asked for them; without, there are none.
    """

    def __init__(
        self, service: Service, requests: Sequence[OmniDiffusionRequest], kind: str, *, is_wanted: bool
    ) -> None:
        self._service = service
        self._requests = requests
        self._kind = kind
        self._is_wanted = is_wanted
        self._last = [RequestEvent("queued", request.request_id) for request in requests]
        self._told_at = [0.0] * len(requests)

    def of_waiting(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield what to tell of each request that has not begun."""
        for number, event in enumerate(self._last):
            if self._is_wanted and event.kind == "queued":
                yield self._told(number)

    def after(self, number: int, event: RequestEvent) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield what to tell after an event of the request of that number, if anything."""
        has_begun = self._last[number].kind != "queued"
        self._last[number] = event
        is_early = has_begun and time.monotonic() - self._told_at[number] < _SHORTEST_GAP_S
        if self._is_wanted and event.output is None and not (is_early and event.kind == "step"):
            yield self._told(number)

    def _told(self, number: int) -> tuple[str, dict[str, Any]]:
        self._told_at[number] = time.monotonic()
        event = self._last[number]
        estimate = self._service.estimate(self._requests[number])
        return self._kind, {
            "type": self._kind,
            "number": number,
            "status": "queued" if event.kind in ("queued", "retrying") else "in_progress",
            "step": event.step,
            "num_steps": event.num_steps,
            "position": None if estimate is None else estimate.position,
            "estimated_s": None if estimate is None else round(estimate.seconds, 2),
        }
