"""What a worker does not take yet waits here, so that no caller does: a worker in a long step reads nothing."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

from omni_core.wire.channel import Channel
from omni_core.wire.frame import ChannelClosedError, Frame, NoRoomError, raw_memory


class Outbox:
    """Sends frames over a channel in their order, without waiting.

    What does not fit goes into a queue, and a thread that lives as long as there is something in it sends that.

    Args:
        channel: Where to.
        name: For the name of the thread.
        on_error: Told, in whatever thread, when nothing can be sent any more: with the error.
    """

    def __init__(self, channel: Channel, name: str, on_error: Callable[[ChannelClosedError], None]) -> None:
        self._channel = channel
        self._name = name
        self._on_error = on_error
        # Re-entrant, as a signal handler may send in the middle of this; it finds `_is_direct` set, and queues.
        self._lock = threading.RLock()
        self._queue: collections.deque[Frame] = collections.deque()
        self._is_direct = False
        self._sender: threading.Thread | None = None

    @property
    def is_empty(self) -> bool:
        """Whether everything was sent."""
        return self._sender is None and not self._queue

    def send(self, frame: Frame, sent: list[int] | None = None) -> None:
        """Send a frame, now or when those before it have gone.

        Args:
            frame: The frame.
            sent: As for `Channel.send`; a frame in the queue counts as sent.
        """
        with self._lock:
            if self.is_empty and not self._is_direct and self._send_now(frame, sent):
                return
            # Of its own, since the caller may change what it has handed over.
            own = Frame(frame.number, bytes(frame.data), tuple(bytes(raw_memory(buffer)) for buffer in frame.buffers))
            self._queue.append(own)
            if sent is not None:
                sent.append(len(own.data))
            if not self._is_direct:
                self._start()

    def _send_now(self, frame: Frame, sent: list[int] | None) -> bool:
        """Send a frame, and return whether that is done with; what a signal handler has queued meanwhile follows."""
        self._is_direct = True
        try:
            self._channel.send(frame, sent, wait=False)
        except NoRoomError:
            return False
        except ChannelClosedError as error:
            self._on_error(error)
        finally:
            self._is_direct = False
            if self._queue:
                self._start()
        return True

    def _start(self) -> None:
        """Let a thread send what is queued, unless one does. What cannot be started now is by the next that sends."""
        if self._sender is None:
            sender = threading.Thread(target=self._run, name=f"omni-send-{self._name}", daemon=True)
            sender.start()
            self._sender = sender

    def _run(self) -> None:
        try:
            while True:
                with self._lock:
                    if not self._queue:
                        self._sender = None
                        return
                    frame = self._queue.popleft()
                self._channel.send(frame)
        except BaseException as error:  # a frame that is lost here would leave its caller waiting for ever
            with self._lock:
                self._queue.clear()
                self._sender = None
            if not isinstance(error, ChannelClosedError):
                self._channel.shutdown()
                error = ChannelClosedError(f"a message could not be sent: {error}")
            self._on_error(error)
