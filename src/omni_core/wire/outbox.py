"""The send queue of a worker. A worker in a long step reads nothing, and callers must not wait for it."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

from omni_core.wire.channel import Channel
from omni_core.wire.frame import ChannelClosedError, Frame, NoRoomError, raw_memory


class Outbox:
    """Sends frames over a channel in order, without blocking the caller.

    Frames that cannot be sent at once are queued. A thread sends them, and ends when the queue is empty.

    Args:
        channel: The channel.
        name: Suffix of the thread's name.
        on_error: Called with the error when nothing can be sent any more, in any thread.
    """

    def __init__(self, channel: Channel, name: str, on_error: Callable[[ChannelClosedError], None]) -> None:
        self._channel = channel
        self._name = name
        self._on_error = on_error
        # Re-entrant: a signal handler may call `send` during a send. It finds `_is_direct` set, and queues its frame.
        self._lock = threading.RLock()
        self._queue: collections.deque[Frame] = collections.deque()
        self._is_direct = False
        self._sender: threading.Thread | None = None

    @property
    def is_empty(self) -> bool:
        """Whether everything was sent."""
        return self._sender is None and not self._queue

    def send(self, frame: Frame, sent: list[int] | None = None) -> None:
        """Send a frame, now or after the queued ones.

        Args:
            frame: The frame.
            sent: As in `Channel.send`; a queued frame counts as sent.
        """
        with self._lock:
            if self.is_empty and not self._is_direct and self._send_now(frame, sent):
                return
            # Copied, since the caller may change the buffers later.
            own = Frame(frame.number, bytes(frame.data), tuple(bytes(raw_memory(buffer)) for buffer in frame.buffers))
            self._queue.append(own)
            if sent is not None:
                sent.append(len(own.data))
            if not self._is_direct:
                self._start()

    def _send_now(self, frame: Frame, sent: list[int] | None) -> bool:
        """Try to send a frame now. Return False if it must be queued."""
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
        """Start the sending thread, unless it runs. If it cannot be started, the next `send` tries again."""
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
        except BaseException as error:  # if a frame were lost here, its caller would wait forever
            with self._lock:
                self._queue.clear()
                self._sender = None
            if not isinstance(error, ChannelClosedError):
                self._channel.shutdown()
                error = ChannelClosedError(f"a message could not be sent: {error}")
            self._on_error(error)
