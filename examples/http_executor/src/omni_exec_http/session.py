"""What one driver has in a server: a worker, made for it, and the calls that wait for it."""

from __future__ import annotations

import os
import queue
import threading
import time
from concurrent.futures import Future, InvalidStateError
from typing import Any

from omni_core import PluginRegistry
from omni_core.calls import WorkerCall, WorkerReply, call_error, serve
from omni_core.errors import RPCError
from omni_core.wire.sealed import StepOpener, seal_outputs
from omni_exec_http.body import Part, decode, encode


class SessionOverError(Exception):
    """The session has ended before the call was answered."""


class Session:
    """Makes a worker and its calls in the main thread. It is the transport of `serve`.

    Args:
        name: By which its calls name it.
        setup: The body with what the worker is made of. Its sender has proved who it is.
        max_body_bytes: Size of the largest reply.
    """

    def __init__(self, name: str, setup: bytearray, max_body_bytes: int) -> None:
        self.name = name
        self.loaded: Future[list[Part]] = Future()
        self.hung_up = threading.Event()
        self._setup = setup
        self._max_body_bytes = max_body_bytes
        self._calls: queue.SimpleQueue[tuple[int, bytearray, Future[list[Part]]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unanswered: dict[int, Future[list[Part]]] = {}
        self._worker: Any = None
        self._running: tuple[int, float] | None = None
        self._opener = StepOpener()

    def run(self) -> None:
        """Make the worker and serve its driver, until that has hung up. In the main thread."""
        try:
            setup = decode(self._setup)
            from omni_core.worker.worker import worker_class  # imports torch

            config = setup["config"]
            self._worker = worker_class(config)(config, replica=setup["replica"], hooks=PluginRegistry())
            if setup["sleep_level"]:  # it takes the place of one that slept
                self._worker.sleep(setup["sleep_level"])
        except Exception as error:
            self.loaded.set_result(encode(WorkerReply(0, error=call_error("make the worker", error)), 2**30))
            return
        facts = {"pid": os.getpid(), "max_body_bytes": self._max_body_bytes}
        self.loaded.set_result(encode(WorkerReply(0, facts), 2**30))
        try:
            serve(self._worker, self)
        finally:
            worker, self._worker = self._worker, None
            worker.close()

    def call(self, number: int, body: bytearray, *, is_step: bool) -> list[Part]:
        """Make a call when those before it are done, and return the body of its reply. In the thread of a connection.

        Raises:
            SessionOverError: The session has ended, or ends meanwhile.
        """
        answer: Future[list[Part]] = Future()
        with self._lock:
            if self.hung_up.is_set():
                raise SessionOverError
            self._unanswered[number] = answer
            self._calls.put((number, body, answer))
        if not is_step:
            self.interrupt()  # a call waits for one wave and not for a step of many
        return answer.result()

    def interrupt(self) -> None:
        """Let a running step return after the wave that is running. From any thread."""
        worker = self._worker
        if worker is not None:
            worker.interrupt()

    def end(self) -> None:
        """Give up the calls that wait; the worker is closed when the one that it makes is done. From any thread."""
        with self._lock:
            self.hung_up.set()
            unanswered, self._unanswered = self._unanswered, {}
        for answer in unanswered.values():
            _settle(answer, SessionOverError())
        self._calls.put(None)
        self.interrupt()

    def health(self) -> dict[str, Any]:
        """Return what can be told without asking the worker."""
        running = self._running
        if running is None:
            return {"running": None}
        number, since = running
        return {"running": number, "running_s": time.monotonic() - since}

    # What `serve` asks for.

    def receive(self) -> WorkerCall | WorkerReply | None:
        """Wait for the next call."""
        item = self._calls.get()
        if item is None or self.hung_up.is_set():
            return None
        number, body, _ = item
        self._running = number, time.monotonic()
        try:
            call: WorkerCall = decode(body)
        except Exception as error:  # it may need a module that is not here
            return WorkerReply(number, error=call_error("read the call", error))
        return self._opener.open(call)

    def reply(self, reply: WorkerReply) -> None:
        """Hand a reply to the connection that waits for it."""
        try:
            reply = self._opener.complete(reply)
            reply.value = seal_outputs(reply.value)
            parts = encode(reply, self._max_body_bytes)
        except RPCError as error:
            raise RPCError(f"The result cannot be sent. {error.message}") from error
        self._running = None
        with self._lock:
            answer = self._unanswered.pop(reply.call_id, None)
        if answer is not None:
            _settle(answer, parts)


def _settle(answer: Future[list[Part]], outcome: list[Part] | Exception) -> None:
    try:
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)
    except InvalidStateError:
        pass  # the session ended in the same moment
