"""A socket of its own for the replies that their caller reads itself.

Were these read by the reactor's thread, each would wake two threads, one after the other, and a small call would take
twice as long. From the channel on which all replies come a caller must not read: an exception that a signal handler
raises (Ctrl-C) may come after any step of the interpreter, and would lose what was read of other callers' replies. Here
each message is whole by itself, and one caller at a time has the lane: what an exception loses is its own.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading

# Set in the numbers of calls whose reply is wanted here.
LANE = 1 << 62
_NUMBER = struct.Struct("<Q")
# A reply with more bytes comes over the channel, and here a message that says so: a number without anything.
_MOST_BYTES = 1 << 15
_SPACE = _NUMBER.size + _MOST_BYTES
_DONTWAIT = int(getattr(socket, "MSG_DONTWAIT", 0))
# Seconds that closing waits for a caller that reads; it has been woken.
_READER_WAIT_S = 2.0


def make_lane() -> tuple[ReplyLane, socket.socket] | None:
    """Return the driver's end and the socket for the worker; None where the system has no such sockets."""
    if sys.platform != "linux":
        return None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ReplyLane(ours), theirs


def send_reply(lane: socket.socket, number: int, data: bytes | bytearray) -> bool:
    """Send a reply, in a worker; one without data says that it comes over the channel.

    Returns:
        Whether it was sent. False if it is too long, or nobody is there.
    """
    if len(data) > _MOST_BYTES:
        return False
    try:
        lane.send(_NUMBER.pack(number) + data, _DONTWAIT)
    except OSError:
        return False
    return True


class ReplyLane:
    """The driver's end.

    Args:
        connection: The socket, which becomes this object's.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        # Of a kind that only its owner can release: whoever is interrupted releases it if, and only if, it had it.
        self._lock = threading.RLock()
        self._reader: int | None = None
        # A call whose reply has not been seen here. Only one at a time, so that the worker never waits for room.
        self._open: int | None = None

    def take(self) -> bool:
        """Let the calling thread have the lane, if nobody has it and nothing is to come. Then `give_back` must follow.

        After an exception, of a signal handler too, `give_back` must follow as well.
        """
        # A signal handler that makes a call while this thread waits for a reply must not take that reply.
        if self._reader == threading.get_ident() or not self._lock.acquire(blocking=False):
            return False
        self._reader = threading.get_ident()
        if self._open is not None:
            self._look()
        return self._open is None

    def give_back(self) -> None:
        """Let others have the lane, if the calling thread has it."""
        with contextlib.suppress(RuntimeError):
            if self._reader == threading.get_ident():
                self._reader = None
            self._lock.release()

    def expect(self, number: int) -> None:
        """Note that a call is about to be sent, by the thread that has the lane."""
        self._open = number

    def receive(self, number: int) -> bytes | None:
        """Wait for the reply to a call.

        Returns:
            Its data, empty if it comes over the channel; None if the lane has ended.
        """
        while True:
            try:
                message = self._socket.recv(_SPACE)
            except OSError:
                return None
            if len(message) < _NUMBER.size:
                return None
            if _NUMBER.unpack_from(message)[0] == number:
                self._open = None
                return message[_NUMBER.size :]

    def all_replied(self) -> None:
        """Note that a later call has been replied to over the channel: what was open has been sent, and may be lost."""
        if self._open is not None and self._lock.acquire(blocking=False):
            try:
                if self._reader is None:
                    self._look()
                    self._open = None
            finally:
                self._lock.release()

    def close(self) -> None:
        """End the lane: whoever reads sees it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        is_mine = self._lock.acquire(timeout=_READER_WAIT_S)
        self._socket.close()
        if is_mine:
            self._lock.release()

    def _look(self) -> None:
        """Take off what is there, none of which anybody waits for."""
        with contextlib.suppress(OSError):
            while message := self._socket.recv(_SPACE, _DONTWAIT):
                if _NUMBER.unpack_from(message)[0] == self._open:
                    self._open = None
