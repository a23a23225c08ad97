"""The requests of an engine that have not ended, and how each of them ends: once, counted, and told."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeGuard

from omni_core.engine.bookkeeping import Live
from omni_core.engine.estimates import Estimates
from omni_core.engine.handle import RequestHandle
from omni_core.engine.notices import Notices
from omni_core.engine.output_hooks import OutputHooks
from omni_core.errors import EngineOverloadedError, ExecutorError, OmniError, RequestError, WorkerDiedError
from omni_core.outputs import EndReason, OmniRequestOutput
from omni_core.request import OmniDiffusionRequest

# Requests that are given up in a row, after which the engine counts as unhealthy: hardly each of them kills workers.
_MOST_GIVEN_UP = 5

Ends = Iterable[tuple["Live | None", OmniRequestOutput]]


class LiveRequests:
    """Keeps requests from when they are accepted until they end.

    Args:
        notices: Tells callers and observers.
        output_hooks: What is to be done with an output before it is given out.
        estimates: Is told which requests there are.
        on_counted: Called when requests were counted as ended, before anybody is told.

    Attributes:
        lock: Guards what callers' threads and the engine's thread both touch. Re-entrant: a signal handler may
            interrupt the thread that holds it.
        given_up: Requests given up one after the other since their workers died, with none that finished between.
    """

    def __init__(
        self, notices: Notices, output_hooks: OutputHooks, estimates: Estimates, on_counted: Callable[[], None]
    ) -> None:
        self.lock = threading.RLock()
        self.given_up = 0
        self._notices = notices
        self._output_hooks = output_hooks
        self._estimates = estimates
        self._on_counted = on_counted
        # Of those there are, how many have their output, which plugins still look at.
        self._num_made = 0
        self._live: dict[str, Live] = {}
        self._ended: collections.Counter[str] = collections.Counter()

    @property
    def by_id(self) -> dict[str, Live]:
        """All of them by id. In the engine's thread."""
        return self._live

    @property
    def ended(self) -> tuple[tuple[str, int], ...]:
        """How many have ended, by `finish_reason`. In the engine's thread."""
        return tuple(self._ended.items())

    @property
    def num_made(self) -> int:
        """How many have their output, which plugins still look at. In the engine's thread."""
        return self._num_made

    def check_served(self) -> None:
        """Return if requests are served, as far as those that have ended tell.

        Raises:
            ExecutorError: One after the other was given up since workers died under it: that is no request's fault.
        """
        if self.given_up >= _MOST_GIVEN_UP:
            raise ExecutorError(
                f"The last {self.given_up} requests were given up, each since its workers died, and none has "
                "finished since. Look at the reasons in the log: the device or the model fails at whatever is asked."
            )

    def add(
        self,
        requests: list[OmniDiffusionRequest],
        make_handle: Callable[[OmniDiffusionRequest], RequestHandle],
        most_waiting: int | None,
        places: int,
    ) -> list[Live]:
        """Take up all of the requests, or none. The caller holds `lock`.

        Args:
            requests: Which.
            make_handle: Makes what the caller gets.
            most_waiting: How many may wait; None for any number.
            places: How many can run.

        Raises:
            EngineOverloadedError: As many as may wait are waiting.
            RequestError: An id is in use.
        """
        if most_waiting is not None and len(self._live) + len(requests) > most_waiting + places:
            raise EngineOverloadedError(
                f"{len(self._live)} requests are waiting or running, and no more than max_waiting = {most_waiting} may "
                f"wait besides the {places} that run. Try again when some have ended, or raise max_waiting."
            )
        now = time.monotonic()
        new: dict[str, Live] = {}
        for request in requests:
            if request.request_id in self._live or request.request_id in new:
                raise RequestError(
                    f"Request {request.request_id!r} is running already; give the second one another request_id."
                )
            new[request.request_id] = Live(make_handle(request), now)
        self._live.update(new)
        self._estimates.add(requests)
        return list(new.values())

    def get(self, request_id: str) -> Live | None:
        """Return a request by its id; None if it has ended, or was never there."""
        return self._live.get(request_id)

    def has(self, live: Live | None) -> TypeGuard[Live]:
        """Return whether this very request has not ended; another may have its id by now."""
        return live is not None and self._live.get(live.handle.request_id) is live

    def finish(self, ends: Ends) -> None:
        """End requests, those that finished after plugins have seen their output. In the engine's thread.

        Args:
            ends: Each request with its output. None, or one that has ended before, is passed over.
        """
        if not self._output_hooks.are_there:
            self.end(ends)
            return
        at_once: list[tuple[Live | None, OmniRequestOutput]] = []
        for live, output in ends:
            if output.finish_reason == "finished" and self.has(live) and live.error is None:
                with self.lock:
                    live.is_made = True
                    self._num_made += 1
                self._output_hooks.begin(live, output)
            else:
                at_once.append((live, output))
        self.end(at_once)

    def end_made(self, live: Live, reason: EndReason) -> bool:
        """End a request whose output plugins still look at; return whether it is one."""
        if live.is_made:
            self.end([(live, OmniRequestOutput.ended(live.request, reason))])
        return live.is_made

    def end(self, ends: Ends) -> None:
        """End requests with these outputs. They are counted, all together, before anybody is told."""
        told: list[tuple[Live, OmniRequestOutput]] = []
        with self.lock:
            for live, output in ends:
                if not self.has(live):
                    continue  # ended before: aborted under an executor of whole requests
                if live.error is not None:
                    output = OmniRequestOutput.failed(live.request, live.error, output.metrics)  # noqa: PLW2901
                if live.suspect:
                    output.metrics.suspect = live.suspect
                del self._live[live.handle.request_id]
                self._estimates.remove(live.handle.request_id)
                self._num_made -= live.is_made
                self._ended[output.finish_reason] += 1
                if output.finish_reason == "finished":
                    self.given_up = 0
                elif isinstance(output.error, WorkerDiedError):
                    self.given_up += 1
                told.append((live, output))
        if told:
            self._on_counted()
        fault: BaseException | None = None
        for live, output in told:
            try:
                self._notices.ended(live, output)
            except BaseException as error:  # these are counted as ended: nobody else would tell them
                live.handle._finish(output)
                fault = error
        if fault is not None:
            raise fault

    def fail_all(self, error: OmniError) -> None:
        """End all of them with an error."""
        with self.lock:
            live = list(self._live.values())
        self.end([(one, OmniRequestOutput.failed(one.request, error)) for one in live])
