"""A worker that is reached over two connections: one for calls, one for urgent messages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from omni_core.errors import OmniError
from omni_core.replicas.worker import Worker, WorkerEvents
from omni_core.wire.channel import Channel
from omni_core.wire.frame import ChannelClosedError, Frame, NoRoomError, SendTimeoutError
from omni_core.wire.messages import INTERRUPT, PING, STARTED, open_reply, seal, seal_call
from omni_core.wire.outbox import Outbox
from omni_core.wire.reactor import Reactor


class WireWorker(Worker):
    """Sends calls over a channel, and reads replies from it.

    A subclass knows how the worker is started and killed.

    Args:
        reactor: The reactor that watches the worker.
        work: The channel for calls. This object owns both channels.
        control: The channel for urgent messages.
        events: Callbacks for what happens to the worker.
        replica: Index of its replica.
        rank: Its rank in the replica.
        send_timeout_s: The send timeout of the channels, for messages.
    """

    _loop: Reactor

    def __init__(
        self,
        reactor: Reactor,
        work: Channel,
        control: Channel,
        events: WorkerEvents,
        *,
        replica: int,
        rank: int,
        send_timeout_s: float,
    ) -> None:
        super().__init__(reactor, events, replica=replica, rank=rank)
        self._work = work
        self._control = control
        self._send_timeout_s = send_timeout_s
        self._outbox = Outbox(work, f"{replica}.{rank}", self._send_failed)
        work.is_other_alive = control.is_other_alive = self._is_busy

    def listen(self) -> None:
        """Start to read from the worker. In the reactor's thread."""
        self._loop.watch(self._work.fileno(), self._receive_replies)
        self._loop.watch(self._control.fileno(), self._receive_control)

    def set_up(self, worker_setup: Any) -> None:
        """Send the worker its first message, the `WorkerSetup`. In the reactor's thread."""
        self._outbox.send(seal(STARTED, worker_setup))

    @staticmethod
    def pack(method: str | Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Frame:
        """Pack a call for sending.

        Raises:
            RPCError: An argument cannot be pickled.
        """
        return seal_call(0, method, args, kwargs)

    def finish(self) -> None:
        """Ask the worker to end after the running call."""
        with contextlib.suppress(OSError):
            self._work.shutdown_send()

    def _end_seen(self) -> None:
        """Handle the end of a connection of a worker that was not declared dead."""
        self.declare_dead("ended its connection")

    def _send(self, number: int, packed: Frame, sent: list[int]) -> None:
        self._outbox.send(Frame(number, packed.data, packed.buffers), sent)

    def _send_ping(self) -> None:
        self._send_control(Frame(PING))

    def _send_interrupt(self) -> None:
        self._send_control(Frame(INTERRUPT))

    def _send_control(self, frame: Frame) -> None:
        try:
            self._control.send(frame)
        except NoRoomError:  # a signal handler has interrupted another send
            self._loop.call_soon(lambda: self._send_control(frame))
        except ChannelClosedError as error:
            self._send_failed(error)

    def _send_failed(self, error: ChannelClosedError) -> None:
        if isinstance(error, SendTimeoutError):
            self._loop.call_soon(
                lambda: self.declare_dead(
                    f"did not take a message for {self._send_timeout_s:g} s (send_timeout_s), gave no sign of life, "
                    "and was killed"
                )
            )
        # Otherwise the reactor sees the end of the connection.

    def _is_busy(self) -> bool:
        """Whether the process has replied to pings lately, although it reads no calls: then it is busy."""
        if self.silent_for(self._loop.time()) >= self._send_timeout_s:
            return False
        self.ping()
        return True

    def _receive_replies(self) -> None:
        try:
            frames = self._work.drain()
        except ChannelClosedError:
            self._loop.unwatch(self._work.fileno())
            self._end_seen()
            return
        for frame in frames:
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        value: Any
        error: OmniError | None
        value, error = open_reply(frame)
        if frame.number == STARTED:
            self.loaded(error)
        else:
            self.settle(frame.number, value, error)

    def _receive_control(self) -> None:
        try:
            self._control.drain()
        except ChannelClosedError:
            self._loop.unwatch(self._control.fileno())
            self._end_seen()
            return
        self.heard()

    def _release(self) -> None:
        """Release the connections. A subclass also releases what else it holds."""
        self._loop.unwatch(self._work.fileno())
        self._loop.unwatch(self._control.fileno())
        self._work.close()
        self._control.close()
