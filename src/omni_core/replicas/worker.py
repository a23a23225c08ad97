"""The driver's side of one worker: calls and replies, heartbeats, and its end."""

from __future__ import annotations

import itertools
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from omni_core.calls import call_name
from omni_core.errors import OmniError, WorkerDiedError
from omni_core.replicas.loop import Loop

# Number of the first call. Smaller numbers mark messages that are not calls.
FIRST_CALL = 3


@dataclass(frozen=True, slots=True)
class WorkerEvents:
    """Callbacks for what happens to a worker, in the loop's thread.

    Attributes:
        on_ready: Called once, when the worker has loaded its pipeline.
        on_dead: Called once, when the worker has ended or could not be started, with the worker, what happened, and
            the worker's error if it could not load its pipeline.
        on_heard: Called when the worker has replied to a ping.
    """

    on_ready: Callable[[], None]
    on_dead: Callable[[Worker, str, OmniError | None], None]
    on_heard: Callable[[], None]


class Worker(ABC):
    """Sends calls to one worker, matches its replies, and handles its end.

    It belongs to the loop's thread; `call`, `interrupt` and `ping` may be called from any. A subclass knows how the
    worker is started, reached and killed: it implements `_send`, `_send_ping` and `_send_interrupt`, calls `settle`,
    `loaded` and `heard` for the messages of the worker, and `declare_dead` when the worker has ended.

    Args:
        loop: The loop in whose thread the worker is watched.
        events: Callbacks for what happens to it.
        replica: Index of its replica.
        rank: Its rank in the replica.

    Attributes:
        pid: Process id; None while it is not known, or if there is no process.
        ready_at: When its pipeline was loaded, on the loop's clock; None before.
        heard_at: When its last message came; None before the first.
        is_closed: Whether everything that belongs to it was released.
    """

    def __init__(self, loop: Loop, events: WorkerEvents, *, replica: int, rank: int) -> None:
        self.replica = replica
        self.rank = rank
        self.pid: int | None = None
        self.ready_at: float | None = None
        self.heard_at: float | None = None
        self.is_closed = False
        self._loop = loop
        self._events = events
        self._asked_at: float | None = None
        self._is_interrupted = False
        self._load_error: OmniError | None = None
        # Guards the pending calls: none may be added once the worker is known to be dead.
        self._lock = threading.RLock()  # a signal handler may call in the middle of a call
        self._pending: dict[int, Future[Any]] = {}
        self._numbers = itertools.count(FIRST_CALL)  # one step of it is atomic
        self._dead: str | None = None

    # What a subclass writes.

    @property
    @abstractmethod
    def has_exited(self) -> bool:
        """Whether the process has exited or was never started."""

    @abstractmethod
    def kill(self, with_signal: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process, if it runs; without a process, end the worker in another way."""

    @abstractmethod
    def _send(self, number: int, packed: Any, sent: list[int]) -> None:
        """Send a packed call, without waiting until the worker reads it. From any thread.

        Args:
            number: The number of the call, with which `settle` gets the reply.
            packed: The result of `pack`.
            sent: A list that is extended when bytes were sent: see `omni_core.wire.channel.Channel.send`.
        """

    @abstractmethod
    def _send_ping(self) -> None:
        """Send a ping. The worker replies also while it runs a call; `heard` takes the reply."""

    @abstractmethod
    def _send_interrupt(self) -> None:
        """Ask the worker to return early from a long `execute_step`."""

    @abstractmethod
    def finish(self) -> None:
        """Ask the worker to end after the running call."""

    @staticmethod
    def pack(method: str | Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Pack a call for sending: once, for all ranks of a replica.

        Raises:
            RPCError: An argument cannot be sent.
        """
        return method, args, kwargs

    def last_output(self) -> str:
        """Return the last lines that the worker wrote, for messages."""
        return ""

    def _release(self) -> None:  # noqa: B027  # to be overridden where there is something
        """Release what the subclass holds. Called once."""

    # For the replica and the executor.

    @property
    def name(self) -> str:
        """The name of the worker in messages."""
        process = "" if self.pid is None else f", pid {self.pid}"
        return f"worker {self.rank} of replica {self.replica}{process}"

    @property
    def is_alive(self) -> bool:
        """Whether the worker was not declared dead."""
        return self._dead is None

    @property
    def num_pending(self) -> int:
        """Number of calls that wait for a reply."""
        return len(self._pending)

    def call(
        self, method: str | Callable[..., Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Future[Any]:
        """Send a call.

        Args:
            method: Name of a method of the worker, or a callable that gets the worker as its first argument.
            args: Further positional arguments.
            kwargs: Keyword arguments.

        Returns:
            A future of its result; it fails with the worker's error, or with `WorkerDiedError`.

        Raises:
            RPCError: An argument cannot be sent; nothing was sent.
        """
        return self.post(self.pack(method, args, kwargs), call_name(method), [])

    def post(self, packed: Any, name: str, sent: list[int]) -> Future[Any]:
        """Send a packed call.

        Args:
            packed: The call.
            name: Name of the call in messages.
            sent: As for `_send`.
        """
        future: Future[Any] = Future()
        number = next(self._numbers)
        try:
            with self._lock:
                if self._dead is not None:
                    future.set_exception(self.death(f"before it was asked to do {name!r}"))
                    return future
                self._pending[number] = future
            self._send(number, packed, sent)
        except BaseException:  # raised by a signal handler: no caller waits for the reply
            with self._lock:
                self._pending.pop(number, None)
            raise
        return future

    def interrupt(self) -> None:
        """Interrupt a long `execute_step`. Sent at most once in a step, see `begin_step`."""
        if not self._is_interrupted:
            self._is_interrupted = True
            try:
                self._send_interrupt()
            except BaseException:  # raised by a signal handler
                self._is_interrupted = False
                raise

    def begin_step(self) -> None:
        """Record that a step begins, so that it can be interrupted."""
        self._is_interrupted = False

    def ping(self, *, again: bool = False) -> None:
        """Send a ping; `heard_at` says when the reply came.

        Args:
            again: Send one even if an earlier ping has no reply yet.
        """
        is_first = self._asked_at is None
        if not is_first and not again:
            return
        if is_first:
            self._asked_at = self._loop.time()
        try:
            self._send_ping()
        except BaseException:  # raised by a signal handler: the ping was not sent, so no reply is due
            if is_first:
                self._asked_at = None
            raise

    def forgive(self, seconds: float) -> None:
        """Do not count seconds in which this process itself was stopped as silence of the worker."""
        asked_at, now = self._asked_at, self._loop.time()
        if asked_at is not None and asked_at + seconds <= now:  # the ping was sent before that
            self._asked_at = asked_at + seconds

    def silent_for(self, now: float) -> float:
        """Return the seconds since the ping that has no reply yet; 0 if there is none."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else now - asked_at

    def death(self, when: str = "") -> WorkerDiedError:
        """Return the error for calls of the dead worker."""
        text = f"The {self.name}, {self._dead}{' ' if when else ''}{when}."
        return WorkerDiedError(text, replica=self.replica, rank=self.rank, worker_traceback=self.last_output() or None)

    # Called by the subclass.

    def heard(self) -> None:
        """Handle the reply to a ping. In the loop's thread."""
        self._note_life()
        self._events.on_heard()

    def loaded(self, error: OmniError | None) -> None:
        """Handle that the worker has loaded its pipeline, or could not. In the loop's thread."""
        self._note_life()
        if error is not None:
            self._load_error = error
            self.declare_dead("could not load the pipeline")
            return
        self.ready_at = self._loop.time()
        self._events.on_ready()

    def settle(self, number: int, value: Any, error: OmniError | None) -> None:
        """Handle the reply to a call.

        Args:
            number: The number of the call.
            value: The result.
            error: The error, if the call raised.
        """
        self._note_life()
        with self._lock:
            waiting = self._pending.pop(number, None)
        if waiting is None:
            return  # no caller waits for it any more
        if error is not None:
            _fail(waiting, error)
        elif waiting.set_running_or_notify_cancel():
            waiting.set_result(value)

    def declare_dead(self, what: str, cause: OmniError | None = None) -> None:
        """Fail all pending calls of the worker, then kill its process. In the loop's thread.

        Args:
            what: What happened, as text that follows the worker's name.
            cause: The error for its callers, if the worker is killed because of another rank's death.
        """
        if self._dead is not None:
            return
        with self._lock:
            self._dead = what
            pending, self._pending = self._pending, {}
        for future in pending.values():
            _fail(future, cause or self.death())
        self.kill()
        self._events.on_dead(self, what, self._load_error)
        if self.has_exited:
            self._close()

    def abandon(self, why: str) -> None:
        """Declare the worker dead and release it, even if its process has not exited. In the loop's thread."""
        self.declare_dead(why)
        self._close()

    def _close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._release()

    def _note_life(self) -> None:
        self.heard_at, self._asked_at = self._loop.time(), None


def _fail(future: Future[Any], error: OmniError) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
