"""A second connection to a worker, for replies that their caller reads itself.

A reply on the channel is read by the reactor's thread, which then wakes the caller: twice the time of a small call. A
caller must not read the channel itself. An exception that a signal handler raises (Ctrl-C) can come after any step of
the interpreter, and would lose what was read of other callers' replies. On the lane each message is whole by itself,
and there is one call at a time: an exception loses only the reply to the call that it interrupts.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys

# Set in the numbers of calls whose reply is wanted here.
LANE = 1 << 62
_NUMBER = struct.Struct("<Q")
# A longer reply comes over the channel, and here a message without data says so.
_MOST_BYTES = 1 << 15
_SPACE = _NUMBER.size + _MOST_BYTES
_DONTWAIT = int(getattr(socket, "MSG_DONTWAIT", 0))


def make_lane() -> tuple[ReplyLane, socket.socket] | None:
    """Return the driver's end and the socket for the worker; None where the system has no such sockets."""
    if sys.platform != "linux":
        return None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ReplyLane(ours), theirs


def send_reply(lane: socket.socket, number: int, data: bytes | bytearray = b"") -> bool:
    """Send a reply, in a worker; one without data says that it comes over the channel.

    Returns:
        Whether it was sent. False if it is too long, or nobody is there.
    """
    if len(data) > _MOST_BYTES:
        return False
    try:
        # There is room: of one call at a time a reply is expected here.
        lane.send(_NUMBER.pack(number) + data, _DONTWAIT)
    except OSError:
        return False
    return True


class ReplyLane:
    """The driver's end. One holder at a time may use it: a caller that waits for its reply, or the reactor.

    Args:
        connection: The socket, which becomes this object's.

    Attributes:
        expected: Number of the call whose reply has not come. The holder's to set.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.expected: int | None = None
        self._socket = connection
        # Of one entry at most, since `setdefault` is one step that no exception of a signal handler can divide: a lock
        # might be taken by a caller that is interrupted before it knows.
        self._holder: dict[str, object] = {}
        self._received: list[bytes] = []
        self._is_closed = False

    def fileno(self) -> int:
        """File descriptor to poll."""
        return self._socket.fileno()

    def take(self, holder: object) -> bool:
        """Make `holder` the holder, if there is none. Then `give_back` must follow, after an exception too."""
        return self._holder.setdefault("holder", holder) is holder

    def is_held_by(self, holder: object) -> bool:
        """Whether `holder` has it."""
        return self._holder.get("holder") is holder

    def hand_over(self, holder: object, to: object) -> None:
        """Make another the holder."""
        if self.is_held_by(holder):
            self._holder["holder"] = to

    def give_back(self, holder: object) -> None:
        """Let others have it, if `holder` has it.

        An exception of a signal handler amid this leaves it taken: later replies come over the channel.
        """
        if self.is_held_by(holder):
            self._holder.clear()
            if self._is_closed and self.take(self):
                self._socket.close()

    def receive(self, wait: bool = True) -> tuple[int, bytes] | None:
        """Return the number and the data of the next reply; the same again until `drop` is called.

        Args:
            wait: Until there is one, or `end` is called.

        Returns:
            None if the lane has ended. Without data, the reply comes over the channel.

        Raises:
            BlockingIOError: There is none, and `wait` is false.
        """
        if not self._received:
            try:
                # In one step of the interpreter: what a caller that is interrupted has received is left for the next.
                self._received.extend(map(self._socket.recv, (_SPACE,), (0 if wait else _DONTWAIT,)))
            except BlockingIOError:
                raise
            except OSError:
                return None
        message = self._received[0]
        if len(message) < _NUMBER.size:
            return None
        return _NUMBER.unpack_from(message)[0], message[_NUMBER.size :]

    def drop(self) -> None:
        """Forget the reply that was received, once its caller has it."""
        self.expected = None
        self._received.clear()

    def end(self) -> None:
        """Say that no more comes: a holder that waits wakes up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the socket, once its holder has given it back."""
        self.end()
        self._is_closed = True
        if self.take(self):
            self._socket.close()
