"""What a worker does not take yet waits here, so that no caller does: a worker in a long step reads nothing."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

from omni_core.remote.channel import Channel, ChannelClosedError, Frame, NoRoomError, raw_memory


class Outbox:
    """Sends frames over a channel in their order, without waiting.

    What does not fit goes into a queue, and a thread that lives as long as there is something in it sends that.

    Args:
        channel: Where to.
        name: For the name of the thread.
        on_error: Told, in whatever thread, when the channel raises: with the error.
    """

    def __init__(self, channel: Channel, name: str, on_error: Callable[[ChannelClosedError], None]) -> None:
        self._channel = channel
        self._name = name
        self._on_error = on_error
        # Re-entrant, as a signal handler may send in the middle of this.
        self._lock = threading.RLock()
        self._queue: collections.deque[Frame] = collections.deque()
        self._is_sending = False

    @property
    def is_empty(self) -> bool:
        """Whether everything was sent."""
        return not self._is_sending

    def send(self, frame: Frame, sent: list[int] | None = None) -> None:
        """Send a frame, now or when those before it have gone.

        Args:
            frame: The frame.
            sent: As for `Channel.send`; a frame in the queue counts as sent.
        """
        with self._lock:
            if not self._is_sending:
                try:
                    self._channel.send(frame, sent, wait=False)
                    return
                except NoRoomError:
                    pass
                except ChannelClosedError as error:
                    self._on_error(error)
                    return
            # Of its own, since the caller may change what it has handed over.
            own = Frame(frame.number, bytes(frame.data), tuple(bytes(raw_memory(buffer)) for buffer in frame.buffers))
            if sent is not None:
                sent.append(len(own.data))
            self._queue.append(own)
            if not self._is_sending:
                self._is_sending = True
                threading.Thread(target=self._run, name=f"omni-send-{self._name}", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._is_sending = False
                    return
                frame = self._queue.popleft()
            try:
                self._channel.send(frame)
            except ChannelClosedError as error:
                with self._lock:
                    self._queue.clear()
                    self._is_sending = False
                self._on_error(error)
                return
