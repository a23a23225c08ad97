"""A connection between the driver and one worker: frames over a socket, large buffers in shared memory if possible."""

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

# Buffers from this size on go through shared memory: smaller ones are faster through the socket.
_SHARED_FROM = 1 << 16
# Bytes that a writable socket takes without blocking: less than half of the kernel's buffer.
_AT_ONCE = 1 << 14


class Channel:
    """One end of a connection; the other end is one of these in another process.

    Any thread may send; one thread at a time receives.

    Args:
        connection: A stream socket, for shared memory a Unix one; the channel owns it from now on.
        send_timeout_s: Seconds after which a send fails if the receiver reads nothing, unless `is_other_alive` returns
            True. None: no limit.
        shared_memory_bytes: Maximum shared memory for what this end sends. Beyond it, and on systems without memfd,
            the socket carries everything.
        make: Creates shared memory; raises OSError if there is none.

    Attributes:
        is_other_alive: Returns whether a receiver that reads nothing is known to be alive. Called in sending threads.
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
        # Re-entrant: a signal handler may send during a send of the same thread, which is then refused.
        self._send_lock = threading.RLock()
        self._is_sending = False
        # After half a frame nothing can be sent: the other side would read it as the rest of the frame.
        self._is_torn = False
        self._pool = BlockPool(shared_memory_bytes, make)
        # Numbers of our blocks that were given back: from the receiving thread to the sending one.
        self._came_back: collections.deque[int] = collections.deque()
        # Numbers of their blocks to give back. Finalizers append to it in any thread, at any moment: no lock is used.
        self._to_give_back: collections.deque[int] = collections.deque()
        self._reader = FrameReader(connection, self._to_give_back.append, self._came_back.extend)
        self._closed = False

    def fileno(self) -> int:
        """File descriptor to poll; -1 after `close`."""
        return self._socket.fileno()

    def send(self, frame: Frame, sent: list[int] | None = None, *, wait: bool = True) -> None:
        """Send a frame.

        Args:
            frame: The frame.
            sent: A list that is extended with the number of bytes of each part when it was sent. It is correct at any
                moment: if a signal handler raises and the list is empty, nothing was sent.
            wait: Whether to wait until the other side reads.

        Raises:
            ChannelClosedError: The other side is gone.
            SendTimeoutError: The other side does not read.
            NoRoomError: The send would have to wait, and `wait` is false; or a signal handler has interrupted
                another send.
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
        # The fast path of small messages, which most are: a single call.
        message = HEADER.pack(MARK, 0, frame.number, len(frame.data), 0, 0) + frame.data
        with self._sending():
            self._send_pieces([memoryview(message)], [], sent)

    def flush_releases(self) -> None:
        """Give unreferenced shared memory back now, not with the next frame.

        Raises:
            ChannelClosedError: The other side is gone.
            SendTimeoutError: The other side does not read.
        """
        if self._to_give_back:
            self.send(Frame(NO_MESSAGE))

    def recv(self) -> Frame:
        """Wait for the next frame.

        Raises:
            ChannelClosedError: The other side is gone and all frames were read, or the data is not a frame.
        """
        while True:
            frame = self._next() if self._reader.has_some else None
            if frame is None:
                frame = self._reader.fill(0)
            if frame is not None:
                return frame

    def drain(self) -> list[Frame]:
        """Return the frames that have come, without waiting. To be called when the socket is readable.

        Raises:
            ChannelClosedError: The other side is gone and all frames were read, or the data is not a frame.
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
        """Tell the other side that no more frames will come."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def shutdown(self) -> None:
        """End the connection in both directions, and wake the threads that wait on it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Release the socket and the shared memory. Received buffers stay valid."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a waiting sender, which then releases the lock
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
        """Return the pieces to send, and the new blocks whose file descriptors are sent with them."""
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
                except BaseException as error:  # raised by a signal handler
                    if not sent:
                        raise
                    # Half a frame would break the stream: send the rest before raising.
                    left, interrupt = list(pieces), error
                    advance(left, sum(sent))
        except ChannelClosedError:
            self._tear()
            raise
        except OSError as error:
            self._tear()
            raise ChannelClosedError(f"the other side is gone: {error}") from error
        except BaseException:  # raised by another one before the rest was sent
            if 0 < sum(sent) < size:
                self._tear()
            raise
        if interrupt is not None:
            raise interrupt

    def _send_some(self, left: list[memoryview], fds: list[int], sent: list[int]) -> None:
        """Send the rest of the pieces as fast as the other side reads."""
        while left:
            try:
                # `extend` sends and records in one step of the interpreter, which no signal handler can interrupt.
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
        """Whether a frame can be sent without waiting."""
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
        """Return the next complete message from the read buffer; None if there is none."""
        while (frame := self._reader.parse()) is not None and frame.number == NO_MESSAGE:
            if self._send_lock.acquire(blocking=False):  # else the sending thread collects
                try:
                    self._collect()
                finally:
                    self._send_lock.release()
        return frame
