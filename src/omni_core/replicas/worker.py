"""One worker as the driver sees it: the calls that it makes, its signs of life, and its end."""

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

# Numbers of calls begin above these, which are free for what is no call.
FIRST_CALL = 3


@dataclass(frozen=True, slots=True)
class WorkerEvents:
    """Who is told of what happens to a worker, in the loop's thread.

    Attributes:
        on_ready: Called once, when it has loaded its pipeline.
        on_dead: Called once, when it has ended or could not be started: the worker, what happened, and the worker's own
            error if it could not load its pipeline.
        on_heard: Called when it has given a sign of life that was asked for.
    """

    on_ready: Callable[[], None]
    on_dead: Callable[[Worker, str, OmniError | None], None]
    on_heard: Callable[[], None]


class Worker(ABC):
    """Sends calls to one worker, matches its replies, and notes its end.

    Made and changed in the loop's thread; calls, `interrupt` and `ping` may come from any. A subclass knows how the
    worker is started, reached and killed: it sends what `_send`, `_send_ping` and `_send_interrupt` are given, and
    calls `settle`, `loaded` and `heard` with what comes back, and `declare_dead` when the worker has ended.

    Args:
        loop: In whose thread the worker is watched.
        events: Who is told of what happens to it.
        replica: Index of its replica.
        rank: Its rank in the replica.

    Attributes:
        pid: Process id; None before the process is known, or where there is none.
        ready_at: When it had loaded its pipeline, on the loop's clock; None before.
        heard_at: When it gave a sign of life last; None before the first.
        is_closed: Whether everything that belongs to it was let go of.
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
        # Guards what callers' threads touch: no call may be added once the worker is known to be dead.
        self._lock = threading.RLock()  # a signal handler may call in the middle of a call
        self._pending: dict[int, Future[Any]] = {}
        self._numbers = itertools.count(FIRST_CALL)  # one step of it is atomic
        self._dead: str | None = None

    # What a subclass writes.

    @property
    @abstractmethod
    def has_exited(self) -> bool:
        """Whether the process is gone, or never was."""

    @abstractmethod
    def kill(self, with_signal: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process, if it is there; or end the worker in whatever way there is."""

    @abstractmethod
    def _send(self, number: int, packed: Any, sent: list[int]) -> None:
        """Send a call that was packed, without waiting until the worker takes it. From any thread.

        Args:
            number: By which `settle` is told of the reply.
            packed: What `pack` returned.
            sent: A list to be extended once anything has gone: see `omni_core.wire.channel.Channel.send`.
        """

    @abstractmethod
    def _send_ping(self) -> None:
        """Ask for a sign of life, to be told by `heard`; the worker gives it while it makes a call, too."""

    @abstractmethod
    def _send_interrupt(self) -> None:
        """Let a long `execute_step` of the worker return early."""

    @abstractmethod
    def finish(self) -> None:
        """Ask the worker to end when the call that it makes is done: there will be no more."""

    @staticmethod
    def pack(method: str | Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Return a call as it is sent: once, for all ranks of a replica.

        Raises:
            RPCError: An argument cannot be sent.
        """
        return method, args, kwargs

    def last_output(self) -> str:
        """Return the last lines that the worker wrote, for messages."""
        return ""

    def _release(self) -> None:  # noqa: B027  # to be overridden where there is something
        """Let go of what the subclass holds. Called once."""

    # What is the same for all.

    @property
    def name(self) -> str:
        """What to call the worker in messages."""
        process = "" if self.pid is None else f", pid {self.pid}"
        return f"worker {self.rank} of replica {self.replica}{process}"

    @property
    def is_alive(self) -> bool:
        """Whether the worker is not known to have ended."""
        return self._dead is None

    @property
    def num_pending(self) -> int:
        """Calls that wait for a reply."""
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
            RPCError: An argument cannot be sent; nothing was.
        """
        return self.post(self.pack(method, args, kwargs), call_name(method), [])

    def post(self, packed: Any, name: str, sent: list[int]) -> Future[Any]:
        """Send a call that was packed, perhaps for several workers.

        Args:
            packed: The call.
            name: What the call is called in messages.
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
        except BaseException:  # of a signal handler: nobody waits for the reply
            with self._lock:
                self._pending.pop(number, None)
            raise
        return future

    def interrupt(self) -> None:
        """Let a long `execute_step` return early. Asked for once in a step: `begin_step`."""
        if not self._is_interrupted:
            self._is_interrupted = True
            try:
                self._send_interrupt()
            except BaseException:  # of a signal handler
                self._is_interrupted = False
                raise

    def begin_step(self) -> None:
        """Take note that a step begins, which no interrupt has reached yet."""
        self._is_interrupted = False

    def ping(self, *, again: bool = False) -> None:
        """Ask the worker for a sign of life; `heard_at` says when it came.

        Args:
            again: Ask though it was asked before and has not answered yet.
        """
        is_first = self._asked_at is None
        if not is_first and not again:
            return
        if is_first:
            self._asked_at = self._loop.time()
        try:
            self._send_ping()
        except BaseException:  # of a signal handler: else what nobody has asked for would be missed
            if is_first:
                self._asked_at = None
            raise

    def forgive(self, seconds: float) -> None:
        """Do not count some seconds, in which this process itself has stood still, as the worker's silence."""
        asked_at, now = self._asked_at, self._loop.time()
        if asked_at is not None and asked_at + seconds <= now:  # not one that was asked after that
            self._asked_at = asked_at + seconds

    def silent_for(self, now: float) -> float:
        """Return for how many seconds the worker has left a question for a sign of life unanswered."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else now - asked_at

    def death(self, when: str = "") -> WorkerDiedError:
        """Return the error that says how the worker ended."""
        text = f"The {self.name}, {self._dead}{' ' if when else ''}{when}."
        return WorkerDiedError(text, replica=self.replica, rank=self.rank, worker_traceback=self.last_output() or None)

    # What a subclass tells.

    def heard(self) -> None:
        """Take note of a sign of life. In the loop's thread."""
        self._note_life()
        self._events.on_heard()

    def loaded(self, error: OmniError | None) -> None:
        """Take note that the worker has loaded its pipeline, or of why it could not. In the loop's thread."""
        self._note_life()
        if error is not None:
            self._load_error = error
            self.declare_dead("could not load the pipeline")
            return
        self.ready_at = self._loop.time()
        self._events.on_ready()

    def settle(self, number: int, value: Any, error: OmniError | None) -> None:
        """Take a reply.

        Args:
            number: Of the call.
            value: What it returned.
            error: What it raised instead.
        """
        self._note_life()
        with self._lock:
            waiting = self._pending.pop(number, None)
        if waiting is None:
            return  # nobody waits for it any more
        if error is not None:
            _fail(waiting, error)
        elif waiting.set_running_or_notify_cancel():
            waiting.set_result(value)

    def declare_dead(self, what: str, cause: OmniError | None = None) -> None:
        """Give the worker up: callers are told first, then the process is killed. In the loop's thread.

        Args:
            what: What happened, to be read after the worker's name.
            cause: What its callers are told, if it is ended because of something else, as of another rank's death.
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
        """Give the worker up and let go of it, whatever becomes of its process. In the loop's thread."""
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
