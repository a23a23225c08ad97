"""The requests of an engine that have not ended. Each ends once: it is counted, and then its caller is notified."""

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

# After so many requests in a row that failed because their workers died, the engine counts as unhealthy.
_MOST_GIVEN_UP = 5

Ends = Iterable[tuple["Live | None", OmniRequestOutput]]


class LiveRequests:
    """Keeps requests from when they are accepted until they end.

    Args:
        notices: Notifies callers and observers.
        output_hooks: Calls the output hooks of plugins before an output is returned.
        estimates: Is told which requests there are.
        on_counted: Called when requests were counted as ended, before callers and observers are notified.

    Attributes:
        lock: Guards the state that callers' threads and the engine's thread share. Re-entrant: a signal handler may
            interrupt the thread that holds it.
        given_up: Number of requests in a row that failed because their workers died.
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
        # How many of them have an output whose hooks are running.
        self._num_made = 0
        self._live: dict[str, Live] = {}
        self._ended: collections.Counter[str] = collections.Counter()

    @property
    def by_id(self) -> dict[str, Live]:
        """All of them by id. In the engine's thread."""
        return self._live

    @property
    def ended(self) -> tuple[tuple[str, int], ...]:
        """The number of ended requests, by `finish_reason`. In the engine's thread."""
        return tuple(self._ended.items())

    @property
    def num_made(self) -> int:
        """How many have an output whose hooks are running. In the engine's thread."""
        return self._num_made

    def check_served(self) -> None:
        """Return if requests are served, judging by those that have ended.

        Raises:
            ExecutorError: Too many requests in a row failed because their workers died.
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
        """Accept all of the requests, or none. The caller holds `lock`.

        Args:
            requests: The requests.
            make_handle: Makes the handle of a request.
            most_waiting: Maximum number of waiting requests; None for no limit.
            places: How many requests can run at a time.

        Raises:
            EngineOverloadedError: The maximum number of requests is waiting.
            RequestError: An id is in use, or there are more requests than can wait and run together.
        """
        if most_waiting is not None and len(requests) > most_waiting + places:
            raise RequestError(
                f"{len(requests)} requests were submitted at once, and no more than max_waiting = {most_waiting} may "
                f"wait besides the {places} that run: submit fewer at a time, or raise max_waiting."
            )
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
        """Return a request by its id; None if it has ended or does not exist."""
        return self._live.get(request_id)

    def has(self, live: Live | None) -> TypeGuard[Live]:
        """Return whether this request has not ended. A later request may have the same id."""
        return live is not None and self._live.get(live.handle.request_id) is live

    def finish(self, ends: Ends) -> None:
        """End requests. Finished ones end after the output hooks have run. In the engine's thread.

        Args:
            ends: Each request with its output. None and requests that have ended are ignored.
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
        """End a request while its output hooks run. Return whether they do."""
        if live.is_made:
            self.end([(live, OmniRequestOutput.ended(live.request, reason))])
        return live.is_made

    def end(self, ends: Ends) -> None:
        """End requests with these outputs. All are counted before callers and observers are notified."""
        ended: list[tuple[Live, OmniRequestOutput]] = []
        with self.lock:
            for live, output in ends:
                if not self.has(live):
                    continue  # it was aborted while an executor of whole requests ran it
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
                ended.append((live, output))
        if ended:
            self._on_counted()
        fault: BaseException | None = None
        for live, output in ended:
            try:
                self._notices.ended(live, output)
            except BaseException as error:  # the others are counted as ended, and must be notified too
                live.handle._finish(output)
                fault = error
        if fault is not None:
            raise fault

    def fail_all(self, error: OmniError) -> None:
        """End all of them with an error."""
        with self.lock:
            live = list(self._live.values())
        self.end([(one, OmniRequestOutput.failed(one.request, error)) for one in live])
