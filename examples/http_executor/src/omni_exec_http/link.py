"""One worker as the driver sees it: the calls that are made on it, and how it was lost."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from omni_core import SchedulerOutput, StepOutput
from omni_core.calls import WorkerCall, WorkerReply
from omni_core.errors import ExecutorError, OmniError, RPCError
from omni_core.wire.sealed import open_outputs
from omni_exec_http.body import decode, encode
from omni_exec_http.client import Client, Exchange, TransportError, wait_readable
from omni_exec_http.process import ServerProcess

OK = 200
DEATH_TIMEOUT_S = 15.0
QUICK_S = 0.8


class Link:
    """Makes calls on the worker of a session. All methods may be called from any thread.

    Args:
        client: To its server.
        session: Name of the session.
        lifeline: The exchange that began it. The session lasts as long as its connection.
        process: The server's process, if it is the executor's own.
        pid: Of the server's process, on whichever machine.
        max_body_bytes: What both sides take at most.
        on_lost: Told when the worker is found to be lost; it is to call `bury`.
    """

    def __init__(
        self,
        client: Client,
        session: str,
        lifeline: Exchange,
        process: ServerProcess | None,
        *,
        pid: int,
        max_body_bytes: int,
        on_lost: Callable[[], None],
    ) -> None:
        self.lifeline = lifeline
        self.process = process
        self.pid = pid
        self.ready_at = self.heard_at = time.monotonic()
        self.was_useful = False
        self.num_in_flight = 0
        self.lost: str | None = None
        self.is_gone = False
        self._client = client
        self._path = f"/session/{session}"
        self._max_body_bytes = max_body_bytes
        self._on_lost = on_lost
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._buried = threading.Event()
        self._death: Callable[[], OmniError] | None = None

    def begin(self, method: str | Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exchange:
        """Send a call.

        Raises:
            RPCError: A part of it cannot be sent; nothing was.
            WorkerDiedError: The worker is gone.
        """
        return self._begin(next(self._numbers), "call", method, args, kwargs)

    def _begin(
        self, number: int, kind: str, method: str | Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Exchange:
        parts = encode(WorkerCall(number, method, args, kwargs), self._max_body_bytes)
        try:
            exchange = self._client.begin("POST", f"{self._path}/{kind}/{number}", parts)
        except TransportError as error:
            raise self._death_by(error) from error
        with self._lock:
            self.num_in_flight += 1
        return exchange

    def finish(self, exchange: Exchange) -> Any:
        """Wait for what a call returns.

        Raises:
            OmniError: What it raised, or how the worker was lost meanwhile.
        """
        try:
            reply = exchange.finish_when_ready()
        except TransportError as error:
            raise self._death_by(error) from error
        finally:
            with self._lock:
                self.num_in_flight -= 1
        if reply.status != OK:
            raise self._death_by(TransportError(f"The server said: {reply.body.decode(errors='replace')}."))
        self.heard_at = time.monotonic()
        self.was_useful = True
        try:
            answer: WorkerReply = decode(reply.body)
        except Exception as error:
            raise RPCError(f"The reply cannot be read here: {type(error).__name__}: {error}") from error
        if answer.error is not None:
            raise answer.error
        return open_outputs(answer.value)

    def give_up(self, exchange: Exchange) -> None:
        """Wait for a reply no longer; when it comes it is dropped."""
        exchange.drop()
        with self._lock:
            self.num_in_flight -= 1

    def step(self, scheduler_output: SchedulerOutput, limit: float | None) -> StepOutput:
        """Let the worker do a step.

        Args:
            scheduler_output: The step.
            limit: Seconds that it may take; then the worker is taken for dead. None: as many as it needs.

        Raises:
            OmniError: It could not be sent, or the worker is gone.
        """
        number = next(self._numbers)
        exchange = self._begin(number, "step", "execute_step", (scheduler_output,), {})
        patience = limit
        while limit is not None and not wait_readable([exchange], patience):
            # The step may have had to wait for a call before it. Only the server can tell.
            health = self.health(QUICK_S)
            if health is None or (health["running"] == number and health["running_s"] >= limit):
                self.lose(f"did not come back from a step in step_timeout_s = {limit:g} s")
                break
            patience = max(limit - health["running_s"], 0.0) if health["running"] == number else limit
        output: StepOutput = self.finish(exchange)
        return output

    def begin_health(self) -> Exchange | None:
        """Ask the server whether it is there; None if it can not be asked."""
        try:
            return self._client.begin("GET", "/health", timeout=QUICK_S)
        except TransportError:
            return None

    def finish_health(self, exchange: Exchange) -> dict[str, Any] | None:
        """Return what the server has said; None if nothing, or if it does not know the session any more."""
        try:
            reply = exchange.finish()
        except TransportError:
            return None
        health: dict[str, Any] = json.loads(reply.body) if reply.status == OK else {}
        if self._path != f"/session/{health.get('session')}":
            return None
        self.heard_at = time.monotonic()
        return health

    def health(self, timeout: float) -> dict[str, Any] | None:
        """Return what the server says of the session; None if it says nothing in that time."""
        exchange = self.begin_health()
        if exchange is None:
            return None
        if not wait_readable([exchange], timeout):
            exchange.drop()
            return None
        return self.finish_health(exchange)

    def interrupt(self) -> None:
        """Let a running step return early."""
        try:
            exchange = self._client.begin("POST", f"{self._path}/interrupt", timeout=QUICK_S)
            if wait_readable([exchange], QUICK_S):
                exchange.finish()
            else:
                exchange.drop()
        except TransportError:
            pass  # whatever it is, the step finds it out

    def lose(self, how: str, *, is_gone: bool = False) -> None:
        """Take the worker for dead.

        Args:
            how: What it did, to be read after "the worker".
            is_gone: Whether its process has probably ended, and can tell more.
        """
        with self._lock:
            if self.lost is not None:
                return
            self.lost, self.is_gone = how, is_gone
        self._on_lost()

    def bury(self, death: Callable[[], OmniError]) -> None:
        """Tell all callers, and let go of all connections. The server ends the session when it notices.

        Args:
            death: Makes the error that says how the worker was lost, one for each caller.
        """
        self._death = death
        self._buried.set()
        self._client.close()
        self.lifeline.drop()

    def _death_by(self, error: TransportError) -> OmniError:
        """Return how the worker was lost, once that is known."""
        self.lose(f"is out of reach: {error}", is_gone=True)
        self._buried.wait(DEATH_TIMEOUT_S)
        return self._death() if self._death else ExecutorError(f"The worker is out of reach: {error}")
