"""One worker as the driver sees it: the calls that it makes, its signs of life, and its end."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from omni_core.errors import OmniError, WorkerDiedError
from omni_core.wire.channel import Channel, ChannelClosedError, Frame, NoRoomError, SendTimeoutError
from omni_core.wire.messages import INTERRUPT, PING, STARTED, open_reply, seal, seal_call
from omni_core.wire.outbox import Outbox
from omni_core.wire.reactor import Reactor
from omni_core.remote.reply_lane import LANE, ReplyLane
from omni_core.calls import call_name


@dataclass(frozen=True, slots=True)
class LinkEvents:
    """Who is told of what happens to a worker, in the reactor's thread.

    Attributes:
        on_ready: Told once, when it has loaded its pipeline.
        on_dead: Told once, when it has ended or could not be started: what happened, and the worker's own error if
            it could not load its pipeline.
        on_heard: Told when it has given a sign of life that was asked for.
    """

    on_ready: Callable[[], None]
    on_dead: Callable[[WorkerLink, str, OmniError | None], None]
    on_heard: Callable[[], None]


class WorkerLink(ABC):
    """Sends calls to one worker, matches its replies, and sees it end.

    Made and changed in the reactor's thread; calls, `interrupt` and `ping` may come from any. A subclass knows
    how the worker was started and how it is killed.

    Args:
        reactor: Where the worker is watched.
        work: The channel for calls. The link owns both.
        control: The channel for what cannot wait.
        events: Who is told of what happens to it.
        replica: Index of its replica.
        rank: Its rank in the replica.
        send_timeout_s: That of the channels, for messages.
        lane: For replies that callers read themselves, which becomes the link's; None if the worker has none.
    """

    def __init__(
        self,
        reactor: Reactor,
        work: Channel,
        control: Channel,
        events: LinkEvents,
        *,
        replica: int,
        rank: int,
        send_timeout_s: float,
        lane: ReplyLane | None = None,
    ) -> None:
        self.replica = replica
        self.rank = rank
        self.pid: int | None = None
        self.ready_at: float | None = None
        self.heard_at: float | None = None
        self.is_closed = False
        self._reactor = reactor
        self._work = work
        self._control = control
        self._lane = lane
        self._events = events
        self._send_timeout_s = send_timeout_s
        self._outbox = Outbox(work, f"{replica}.{rank}", self._send_failed)
        work.is_other_alive = control.is_other_alive = self._answers
        self._asked_at: float | None = None
        self._is_interrupted = False
        self._load_error: OmniError | None = None
        # Guards what callers' threads touch: no call may be added once the worker is known to be dead.
        self._lock = threading.RLock()  # a signal handler may call in the middle of a call
        self._pending: dict[int, Future[Any]] = {}
        self._numbers = itertools.count(STARTED + 1)  # one step of it is atomic
        self._dead: str | None = None

    # What a subclass writes.

    @property
    @abstractmethod
    def has_exited(self) -> bool:
        """Whether the process is gone, or never was."""

    @abstractmethod
    def kill(self, with_signal: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process, if it is there."""

    def last_output(self) -> str:
        """Return the last lines that the worker wrote, for messages."""
        return ""

    def _end_seen(self) -> None:
        """The connection has ended, and the worker is not known to be dead."""
        self.declare_dead("ended its connection")

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

    def listen(self) -> None:
        """Begin to listen to the worker. In the reactor's thread."""
        self._reactor.watch(self._work.fileno(), self._receive_replies)
        self._reactor.watch(self._control.fileno(), self._receive_control)

    def set_up(self, setup: Any) -> None:
        """Send the worker its first message. In the reactor's thread."""
        self._outbox.send(seal(STARTED, setup))

    def call(
        self,
        method: str | Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        reader: object | None = None,
    ) -> Future[Any]:
        """Send a call.

        Args:
            method: Name of a method of the worker, or a callable that gets the worker as its first argument.
            args: Further positional arguments.
            kwargs: Keyword arguments.
            reader: Who will `read` the reply, after `begin_reading`; None is the reactor's thread.

        Returns:
            A future of its result; it fails with the worker's error, or with `WorkerDiedError`.

        Raises:
            RPCError: An argument cannot be pickled; nothing was sent.
        """
        return self.post(seal_call(0, method, args, kwargs), call_name(method), [], reader=reader)

    def post(self, packed: Frame, name: str, sent: list[int], *, reader: object | None = None) -> Future[Any]:
        """Send a call that was packed, perhaps for several workers.

        Args:
            packed: The call; its number does not count.
            name: What the call is called in messages.
            sent: As for `Channel.send`.
            reader: As for `call`.
        """
        future: Future[Any] = Future()
        number = next(self._numbers)
        lane = self._lane
        is_read_here = reader is not None and lane is not None and lane.is_held_by(reader) and self._outbox.is_empty
        frame = Frame(number | LANE if is_read_here else number, packed.data, packed.buffers)
        try:
            with self._lock:
                if self._dead is not None:
                    future.set_exception(self.death(f"before it was asked to do {name!r}"))
                    return future
                self._pending[number] = future
            if is_read_here:
                assert lane is not None
                lane.expected = number
            self._outbox.send(frame, sent)
        except BaseException:  # of a signal handler: nobody waits for the reply
            with self._lock:
                self._pending.pop(number, None)
            if is_read_here and not sent:
                assert lane is not None
                lane.expected = None
            raise
        return future

    def begin_reading(self, reader: object) -> bool:
        """Let a caller read the reply to its next call itself: no other thread has to wake up for that, and wake it.

        Args:
            reader: Any object that nobody else gives.

        Returns:
            Whether it may. False if somebody else does, or the worker is reached in another way. `end_reading` must
            follow in any case.
        """
        return self._lane is not None and self._dead is None and self._lane.take(reader)

    def end_reading(self, reader: object) -> None:
        """End a `begin_reading`. A reply that has not come is left to the reactor's thread."""
        lane = self._lane
        if lane is None or not lane.is_held_by(reader):
            return
        if lane.expected is None or self.is_closed:
            lane.give_back(reader)
        else:
            lane.hand_over(reader, self)
            self._reactor.call_soon(self._collect_late_reply)

    def read(self) -> bool:
        """Wait for the reply to the call, between `begin_reading` and `end_reading`.

        Returns:
            Whether it has come. False if the future is to be waited for: the reply is a long one, or the worker ends.
        """
        lane = self._lane
        assert lane is not None
        return lane.expected is None or self._settle_from(lane, wait=True)

    def lane_fileno(self) -> int:
        """The file on which the reply comes, for polling between `begin_reading` and `end_reading`."""
        assert self._lane is not None
        return self._lane.fileno()

    def interrupt(self) -> None:
        """Let a long `execute_step` return early. Asked for once in a step: `begin_step`."""
        if not self._is_interrupted:
            self._is_interrupted = True
            try:
                self._send_control(Frame(INTERRUPT))
            except BaseException:  # of a signal handler
                self._is_interrupted = False
                raise

    def begin_step(self) -> None:
        """Take note that a step begins, which no interrupt has reached yet."""
        self._is_interrupted = False

    def ping(self, *, again: bool = False) -> None:
        """Ask the process for a sign of life; `heard_at` says when it came.

        Args:
            again: Ask though it was asked before and has not answered yet.
        """
        is_first = self._asked_at is None
        if not is_first and not again:
            return
        if is_first:
            self._asked_at = time.monotonic()
        try:
            self._send_control(Frame(PING))
        except BaseException:  # of a signal handler: else what nobody has asked for would be missed
            if is_first:
                self._asked_at = None
            raise

    def forgive(self, seconds: float) -> None:
        """Do not count some seconds, in which this process itself has stood still, as the worker's silence."""
        asked_at, now = self._asked_at, time.monotonic()
        if asked_at is not None and asked_at + seconds <= now:  # not one that was asked after that
            self._asked_at = asked_at + seconds

    def silent_for(self, now: float) -> float:
        """Return for how many seconds the process has left a question for a sign of life unanswered."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else now - asked_at

    def death(self, when: str = "") -> WorkerDiedError:
        """Return the error that says how the worker ended."""
        text = f"The {self.name}, {self._dead}{' ' if when else ''}{when}."
        return WorkerDiedError(text, replica=self.replica, rank=self.rank, worker_traceback=self.last_output() or None)

    def finish(self) -> None:
        """Ask the worker to end when the call that it makes is done: there will be no more."""
        with contextlib.suppress(OSError):
            self._work.shutdown_send()

    def declare_dead(self, what: str, cause: OmniError | None = None) -> None:
        """Give the worker up: callers are told first, then the process is killed. In the reactor's thread.

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
        if self._lane is not None:
            self._lane.end()  # a caller that reads wakes up, also where a child of the worker holds the other end
        self.kill()
        self._events.on_dead(self, what, self._load_error)
        if self.has_exited:
            self._close()

    def abandon(self, why: str) -> None:
        """Give the worker up and let go of it, whatever becomes of its process. In the reactor's thread."""
        self.declare_dead(why)
        self._close()

    def _close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self._reactor.unwatch(self._work.fileno())
        self._reactor.unwatch(self._control.fileno())
        self._work.close()
        if self._lane is not None:
            self._reactor.unwatch(self._lane.fileno())
            self._lane.give_back(self)
            self._lane.close()
        self._control.close()
        self._release()

    def _send_control(self, frame: Frame) -> None:
        try:
            self._control.send(frame)
        except NoRoomError:  # this is a signal handler, in the middle of another of these
            self._reactor.call_soon(lambda: self._send_control(frame))
        except ChannelClosedError as error:
            self._send_failed(error)

    def _send_failed(self, error: ChannelClosedError) -> None:
        if isinstance(error, SendTimeoutError):
            self._reactor.call_soon(
                lambda: self.declare_dead(
                    f"did not take a message for {self._send_timeout_s:g} s (send_timeout_s), gave no sign of life, "
                    "and was killed"
                )
            )
        # Else the reactor sees its end.

    def _answers(self) -> bool:
        """Whether the process has answered lately, though it takes no messages: it is busy."""
        if self.silent_for(time.monotonic()) >= self._send_timeout_s:
            return False
        self.ping()
        return True

    def _receive_replies(self) -> None:
        try:
            frames = self._work.drain()
        except ChannelClosedError:
            self._reactor.unwatch(self._work.fileno())
            self._end_seen()
            return
        for frame in frames:
            self._settle(frame)

    def _collect_late_reply(self) -> None:
        """Take over the lane from a caller that waits no longer. In the reactor's thread."""
        assert self._lane is not None
        if self.is_closed:
            self._lane.give_back(self)
        elif not self._receive_late_reply():
            self._reactor.watch(self._lane.fileno(), self._receive_late_reply)

    def _receive_late_reply(self) -> bool:
        lane = self._lane
        assert lane is not None
        try:
            self._settle_from(lane, wait=False)
        except BlockingIOError:
            return False
        self._reactor.unwatch(lane.fileno())
        lane.give_back(self)
        return True

    def _settle_from(self, lane: ReplyLane, wait: bool) -> bool:
        """Settle the call whose reply comes over the lane, and return whether that was it.

        Raises:
            BlockingIOError: There is none, and `wait` is false.
        """
        reply = lane.receive(wait)
        if reply is not None and reply[1]:
            self._settle(Frame(*reply))
        lane.drop()
        return reply is not None and bool(reply[1])

    def _settle(self, frame: Frame) -> None:
        self.heard_at, self._asked_at = time.monotonic(), None
        value, error = open_reply(frame)
        if frame.number == STARTED:
            self._loaded(error)
            return
        with self._lock:
            waiting = self._pending.pop(frame.number & ~LANE, None)
        if waiting is None:
            return  # nobody waits for it any more
        if error is not None:
            _fail(waiting, error)
        elif waiting.set_running_or_notify_cancel():
            waiting.set_result(value)

    def _loaded(self, error: OmniError | None) -> None:
        if error is not None:
            self._load_error = error
            self.declare_dead("could not load the pipeline")
            return
        self.ready_at = time.monotonic()
        self._events.on_ready()

    def _receive_control(self) -> None:
        try:
            self._control.drain()
        except ChannelClosedError:
            self._reactor.unwatch(self._control.fileno())
            self._end_seen()
            return
        self.heard_at, self._asked_at = time.monotonic(), None
        self._events.on_heard()


def _fail(future: Future[Any], error: OmniError) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
