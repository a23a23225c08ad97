"""A connection between the driver and one worker: frames over a socket, large parts in shared memory where it can."""

from __future__ import annotations

import array
import collections
import contextlib
import itertools
import select
import socket
import threading
from collections.abc import Callable, Iterator

import numpy as np

from omni_core.wire.frame import (
    BUFFER,
    CHUNK,
    DONTWAIT,
    HEADER,
    MARK,
    MOST_FDS,
    MOST_PARTS,
    MOST_PIECES,
    NO_MESSAGE,
    NUMBER,
    ChannelClosedError,
    Frame,
    NoRoomError,
    SendTimeoutError,
    advance,
    raw_memory,
)
from omni_core.wire.frame_reader import FrameReader
from omni_core.wire.shared_memory import Block, BlockPool, Bytes, make_memory

# Buffers from this size on go through shared memory: below, copying through the socket costs less than the bookkeeping.
_SHARED_FROM = 1 << 16
# Bytes that a socket takes at once when it says that it takes any: less than half of what the kernel gives to one.
_AT_ONCE = 1 << 14


class Channel:
    """One end of a connection; the other end is one of these in another process.

    Any thread may send; one thread at a time receives.

    Args:
        connection: A stream socket, a Unix one if there is to be shared memory; the channel owns it from now on.
        send_timeout_s: Seconds after which a receiver that takes nothing is given up, unless `is_other_alive` says that
            it lives. None: as long as the connection lasts.
        shared_memory_bytes: Most shared memory for what this end sends. Beyond it, and where there is none, the
            socket carries everything.
        make: Makes shared memory; raises OSError if there is none.

    Attributes:
        is_other_alive: Whether a receiver that takes nothing gives other signs of life. Asked in threads that send.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        send_timeout_s: float | None = 10.0,
        shared_memory_bytes: int = 1 << 30,
        make: Callable[[int], tuple[int, Bytes]] = make_memory,
    ) -> None:
        self._socket = connection
        self._socket.setblocking(True)
        self._send_timeout_s = send_timeout_s
        self.is_other_alive: Callable[[], bool] = lambda: False
        # Re-entrant: a signal handler may send in the middle of a send of its own thread. It is refused then.
        self._send_lock = threading.RLock()
        self._is_sending = False
        # After half a frame nothing can follow: the other side would take it for the other half.
        self._is_torn = False
        self._pool = BlockPool(shared_memory_bytes, make)
        # Blocks of ours that came back, noted by the receiving thread for the sending one.
        self._came_back: collections.deque[int] = collections.deque()
        # Blocks of theirs to give back. Filled by finalizers, in any thread and at any moment: no lock here.
        self._to_give_back: collections.deque[int] = collections.deque()
        self._reader = FrameReader(connection, self._to_give_back.append, self._came_back.extend)
        self._closed = False

    def fileno(self) -> int:
        """File descriptor to poll; -1 once closed."""
        return self._socket.fileno()

    def send(self, frame: Frame, sent: list[int] | None = None, *, wait: bool = True) -> None:
        """Send a frame.

        Args:
            frame: The frame.
            sent: A list to be extended with the number of bytes of each part that has gone. It is right at any moment:
                if a caller is interrupted by an exception of a signal handler and it is empty, nothing was sent.
            wait: Whether to wait until the other side takes the frame.

        Raises:
            ChannelClosedError: The other side is gone.
            SendTimeoutError: It does not take the frame.
            NoRoomError: It would have to be waited for, and `wait` is false; or this is a signal handler that has
                interrupted another send.
        """
        if not wait and not self._has_room(frame):
            raise NoRoomError
        sent = [] if sent is None else sent
        if frame.buffers or len(frame.data) >= CHUNK or self._to_give_back or self._came_back or self._pool.retired:
            raws = [raw_memory(buffer) for buffer in frame.buffers]
            if len(raws) > MOST_PARTS:
                raise ValueError(f"a frame has at most {MOST_PARTS} buffers, not {len(raws)}")
            with self._sending():
                pieces, new_blocks = self._encode(frame, raws)
                try:
                    self._send_pieces(pieces, [block.fd for block in new_blocks if block.fd is not None], sent)
                finally:
                    for block in new_blocks:
                        block.close_fd()
            return
        # What most messages are, some bytes alone: in one call, and with no more ado than that takes.
        message = HEADER.pack(MARK, 0, frame.number, len(frame.data), 0, 0) + frame.data
        with self._sending():
            self._send_pieces([memoryview(message)], [], sent)

    def flush_releases(self) -> None:
        """Give shared memory back that nobody here refers to any more, without waiting for the next frame.

        Raises:
            ChannelClosedError: The other side is gone.
            SendTimeoutError: It takes nothing.
        """
        if self._to_give_back:
            self.send(Frame(NO_MESSAGE))

    def recv(self) -> Frame:
        """Wait for the next frame.

        Raises:
            ChannelClosedError: The other side is gone, and there are no more; or what came is not a frame.
        """
        while True:
            frame = self._next() if self._reader.has_some else None
            if frame is None:
                frame = self._reader.fill(0)
            if frame is not None:
                return frame

    def drain(self) -> list[Frame]:
        """Return the frames that are there, without waiting: after a poll has said that there is something.

        Raises:
            ChannelClosedError: The other side is gone, and there are no more; or what came is not a frame.
        """
        frames = []
        with contextlib.suppress(BlockingIOError):
            frame = self._reader.fill(DONTWAIT)
            if frame is not None:
                frames.append(frame)
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def shutdown_send(self) -> None:
        """Tell the other side that there will be no more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def shutdown(self) -> None:
        """End the connection in both directions: all that wait on it wake up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the socket and the shared memory. What was received stays valid."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a sender that waits, and then the lock is free
        with self._send_lock:
            self._socket.close()
            self._pool.close()
        self._reader.close()

    # Sending.

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        with self._send_lock:
            if self._is_sending:
                raise NoRoomError
            self._is_sending = True
            try:
                yield
            finally:
                self._is_sending = False

    def _encode(self, frame: Frame, raws: list[memoryview]) -> tuple[list[memoryview], list[Block]]:
        """Return what to send, and the blocks whose files go along."""
        pool = self._pool
        self._collect()
        table: list[bytes] = []
        new: list[Block] = []
        inline: list[memoryview] = []
        for raw in raws:
            block = pool.take(raw.nbytes) if raw.nbytes >= _SHARED_FROM and len(new) < MOST_FDS else None
            if block is None:
                table.append(BUFFER.pack(raw.nbytes, 0, 0))
                inline.append(raw)
                continue
            np.copyto(block.memory[: raw.nbytes], np.frombuffer(raw, dtype=np.uint8))
            table.append(BUFFER.pack(raw.nbytes, block.number, block.fd is not None))
            if block.fd is not None:
                new.append(block)
        given_back = [self._to_give_back.popleft() for _ in range(min(len(self._to_give_back), MOST_PARTS))]
        retired, pool.retired = pool.retired[:MOST_PARTS], pool.retired[MOST_PARTS:]
        header = HEADER.pack(MARK, len(table), frame.number, len(frame.data), len(given_back), len(retired))
        numbers = map(NUMBER.pack, itertools.chain(given_back, retired))
        head = b"".join([header, *numbers, *table])
        return [memoryview(head), *(piece for piece in (memoryview(frame.data), *inline) if piece.nbytes)], new

    def _collect(self) -> None:
        while self._came_back:
            self._pool.give_back(self._came_back.popleft())

    def _send_pieces(self, pieces: list[memoryview], fds: list[int], sent: list[int]) -> None:
        if self._is_torn:
            raise ChannelClosedError("an earlier message was not taken to its end")
        size = sum(len(piece) for piece in pieces)
        left, interrupt = list(pieces), None
        try:
            while left:
                try:
                    self._send_some(left, [] if sent else fds, sent)
                except OSError:
                    raise
                except BaseException as error:  # of a signal handler
                    if not sent:
                        raise
                    # Half a message would be taken for a whole one: what is left goes before the exception does.
                    left, interrupt = list(pieces), error
                    advance(left, sum(sent))
        except ChannelClosedError:
            self._tear()
            raise
        except OSError as error:
            self._tear()
            raise ChannelClosedError(f"the other side is gone: {error}") from error
        except BaseException:  # of another, before that was done
            if 0 < sum(sent) < size:
                self._tear()
            raise
        if interrupt is not None:
            raise interrupt

    def _send_some(self, left: list[memoryview], fds: list[int], sent: list[int]) -> None:
        """Send what is left, as the other side takes it."""
        while left:
            try:
                # `extend` sends and takes note in one step of the interpreter, which no signal handler can divide.
                if fds:
                    files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                    sent.extend(map(self._socket.sendmsg, (left[:MOST_PIECES],), (files,), (DONTWAIT,)))
                elif len(left) == 1:
                    sent.extend(map(self._socket.send, left, (DONTWAIT,)))
                else:
                    sent.extend(map(self._socket.sendmsg, (left[:MOST_PIECES],), ((),), (DONTWAIT,)))
            except BlockingIOError:
                self._wait_for_room()
                continue
            fds = []
            advance(left, sent[-1])

    def _tear(self) -> None:
        self._is_torn = True
        self.shutdown_send()

    def _has_room(self, frame: Frame) -> bool:
        """Whether the socket takes a frame at once."""
        inline, shared = len(frame.data), 0
        for buffer in frame.buffers:
            length = raw_memory(buffer).nbytes
            if length >= _SHARED_FROM:
                shared += length
            else:
                inline += length
        if inline > _AT_ONCE or (shared and not self._pool.has_room(shared, len(frame.buffers))):
            return False
        poll = select.poll()
        try:
            poll.register(self._socket.fileno(), select.POLLOUT)
        except ValueError as error:
            raise ChannelClosedError("this side was closed") from error
        return bool(poll.poll(0))

    def _wait_for_room(self) -> None:
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLOUT)
        limit_s = self._send_timeout_s
        while not poll.poll(None if limit_s is None else limit_s * 1e3):
            if not self.is_other_alive():
                raise SendTimeoutError(f"the other side took nothing for {limit_s:g} s")

    def _next(self) -> Frame | None:
        """Take the next whole message off what was read."""
        while (frame := self._reader.parse()) is not None and frame.number == NO_MESSAGE:
            if self._send_lock.acquire(blocking=False):  # else the sending thread collects
                try:
                    self._collect()
                finally:
                    self._send_lock.release()
        return frame
