"""`RequestHandle`: how a caller waits for, follows and aborts a submitted request."""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from omni_core.error_text import is_ctrl_c
from omni_core.errors import EngineClosedError
from omni_core.log import get_logger
from omni_core.outputs import OmniRequestOutput
from omni_core.own_threads import refuse_to_wait
from omni_core.request import OmniDiffusionRequest
from omni_core.timeouts import Deadline, wait_seconds

log = get_logger(__name__)

# A handle keeps the newest previews only. A caller that reads the events as they come gets all of them.
_MOST_PREVIEWS = 8

EventKind = Literal["queued", "started", "step", "retrying", "finished"]


@dataclass(frozen=True, slots=True)
class RequestEvent:
    """Something that happened to a request.

    Attributes:
        kind: `"queued"`, `"started"`, `"step"`, `"retrying"` or `"finished"`. `"finished"` comes exactly once, also
            after an error or an abort. `"retrying"`: the worker died, and the request starts again from its seed, at
            step 1.
        request_id: Id of the request.
        step: Denoising steps done.
        num_steps: Total number of steps; 0 while it is not known.
        preview: A small picture of the state so far, if the request asks for previews. Past events keep only the last
            eight previews.
        output: The output of the request; set on `"finished"`.
    """

    kind: EventKind
    request_id: str
    step: int = 0
    num_steps: int = 0
    preview: Any = None
    output: OmniRequestOutput | None = None


class RequestHandle:
    """A submitted request: wait for it, follow it, abort it. Every method may be called from any thread.

    Attributes:
        request: The request that was submitted.
    """

    def __init__(
        self, request: OmniDiffusionRequest, abort: Callable[[str], None], thread_owners: Collection[object] = ()
    ) -> None:
        self.request = request
        self._abort = abort
        self._thread_owners = thread_owners
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._events: list[RequestEvent] = []
        self._output: OmniRequestOutput | None = None
        # Indices of the events whose preview is kept.
        self._previews: collections.deque[int] = collections.deque()
        self._listeners: list[_Listener] = []
        self._callbacks: list[Callable[[RequestHandle], None]] = []

    def __repr__(self) -> str:
        state = self._output.finish_reason if self._output else (self._events[-1].kind if self._events else "new")
        return f"<RequestHandle {self.request_id} {state}>"

    @property
    def request_id(self) -> str:
        """Id of the request."""
        return self.request.request_id

    def done(self) -> bool:
        """Whether the request has ended."""
        return self._output is not None

    def result(self, timeout: float | None = None) -> OmniRequestOutput:
        """Wait for the end of the request.

        Args:
            timeout: Seconds to wait; None waits until the request ends. Every request ends, if need be with an error.

        Returns:
            The output, also if the request failed or was aborted: see `finish_reason` and `raise_for_error()`.

        Raises:
            TimeoutError: The request has not ended yet. It continues; abort it or call this again.
            ValidationError: `timeout` is not a number of seconds.
            EngineClosedError: This process is a forked child of the engine's process, and gets no events.
            EngineError: The request has not ended, and the caller is a thread of omni, as in an observer or a callback.
        """
        self._refuse_forked()
        seconds = wait_seconds(timeout)
        if seconds != 0 and not self.done():
            refuse_to_wait(
                "handle.result()",
                self._thread_owners,
                "Use add_done_callback, or wait in a thread of your own",
                for_request=True,
            )
        with self._changed:
            if not self._changed.wait_for(self.done, seconds):
                raise TimeoutError(f"Request {self.request_id!r} has not ended within {seconds:g} s; it goes on.")
            assert self._output is not None
            return self._output

    def events(self, timeout: float | None = None) -> Iterator[RequestEvent]:
        """Yield every event of the request, from the first to `"finished"`. Waits for events that have not come yet.

        Each call starts with the first event.

        Args:
            timeout: Most seconds to wait for the next event.

        Raises:
            TimeoutError: The next event did not come in time.
            ValidationError: `timeout` is not a number of seconds.
        """
        self._refuse_forked()
        seconds = wait_seconds(timeout)
        position = 0
        while True:
            self._refuse_forked()  # the iterator may have been inherited by a forked child
            if seconds != 0 and len(self._events) <= position:
                refuse_to_wait(
                    "handle.events()",
                    self._thread_owners,
                    "Use subscribe, or follow it in a thread of your own",
                    for_request=True,
                )
            with self._changed:
                if not self._changed.wait_for(lambda: len(self._events) > position, seconds):  # noqa: B023
                    raise TimeoutError(f"Request {self.request_id!r}: no event within {seconds:g} s; it goes on.")
                event = self._events[position]
            position += 1
            yield event
            if event.kind == "finished":
                return

    def past_events(self) -> list[RequestEvent]:
        """Return the events so far, without waiting."""
        with self._changed:
            return list(self._events)

    def abort(self) -> None:
        """End the request at its next denoiser call, or before it starts. Does nothing once it has ended."""
        self._abort(self.request_id)

    def add_done_callback(self, callback: Callable[[RequestHandle], None]) -> None:
        """Call `callback(handle)` when the request ends: in the engine's thread, or at once if it has ended.

        The callback must be quick: the engine waits for it.
        """
        with self._changed:
            if self._output is None:
                self._callbacks.append(callback)
                return
        callback(self)

    def subscribe(self, listener: Callable[[RequestEvent], None]) -> None:
        """Call `listener(event)` for every past event now, and for every further event when it comes.

        The listener runs in the engine's thread and must return quickly. It is called with one event at a time, in
        order. An exception that it raises is logged.
        """
        subscribed = _Listener(listener, self._events, self.request_id)
        with self._changed:
            self._listeners.append(subscribed)
        subscribed.catch_up()

    def _refuse_forked(self) -> None:
        if os.getpid() != self._pid:
            raise EngineClosedError(f"Request {self.request_id!r} runs in the process that this one was forked from.")

    def _add_event(self, event: RequestEvent) -> None:
        with self._changed:
            if self._output is not None:
                return
            self._events.append(event)
            if event.preview is not None:
                self._previews.append(len(self._events) - 1)
                if len(self._previews) > _MOST_PREVIEWS:
                    oldest = self._previews.popleft()
                    self._events[oldest] = dataclasses.replace(self._events[oldest], preview=None)
            self._changed.notify_all()
        self._notify()

    def _finish(self, output: OmniRequestOutput) -> list[Callable[[RequestHandle], None]]:
        """Set the output, and return the callbacks to call. Only the first call has an effect."""
        with self._changed:
            if self._output is not None:
                return []
            last = self._events[-1] if self._events else None
            event = RequestEvent(
                "finished",
                self.request_id,
                step=last.step if last else 0,
                num_steps=last.num_steps if last else 0,
                output=output,
            )
            self._events.append(event)
            self._output = output
            self._changed.notify_all()
            callbacks, self._callbacks = self._callbacks, []
        self._notify()
        return callbacks

    def _notify(self) -> None:
        # Without the lock: a listener that never returns must not block callers that wait for the result.
        for listener in list(self._listeners):
            listener.catch_up()


class _Listener:
    """Calls one listener with every event, in order. Any thread may make it catch up.

    Args:
        listener: The listener.
        events: The events so far; later ones are appended to this list.
        request_id: Id of the request, for the log.
    """

    def __init__(
        self, listener: Callable[[RequestEvent], None], events: Sequence[RequestEvent], request_id: str
    ) -> None:
        self._listener = listener
        self._events = events
        self._request_id = request_id
        self._position = 0
        self._calling = threading.Lock()

    def catch_up(self) -> None:
        """Call the listener with the new events. If another thread is doing so, that thread also takes these."""
        while self._position < len(self._events):
            if not self._calling.acquire(blocking=False):
                return
            try:
                while self._position < len(self._events):
                    event = self._events[self._position]
                    self._position += 1
                    self._call(event)
            finally:
                self._calling.release()

    def _call(self, event: RequestEvent) -> None:
        try:
            self._listener(event)
        except BaseException as error:  # SystemExit would end the engine's thread
            if is_ctrl_c(error):
                raise
            log.warning("an event listener raised", request_id=self._request_id, exc_info=True)


def wait_all(handles: list[RequestHandle], timeout: float | None) -> list[OmniRequestOutput]:
    """Wait for several requests and return their outputs in order.

    Raises:
        TimeoutError: A request has not ended within `timeout` seconds from now.
        ValidationError: `timeout` is not a number of seconds.
    """
    deadline = Deadline(timeout)
    return [handle.result(deadline.left()) for handle in handles]
