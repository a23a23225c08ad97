"""Reads frames from a socket, and their large buffers from shared memory."""

from __future__ import annotations

import array
import collections
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omni_core.wire.frame import (
    BUFFER,
    CHUNK,
    HEADER,
    MARK,
    MOST_BYTES,
    MOST_FDS,
    MOST_PARTS,
    MOST_PIECES,
    NO_MESSAGE,
    NUMBER,
    ChannelClosedError,
    Frame,
    advance,
    copy,
)
from omni_core.wire.shared_memory import BlockViews, close_files

_FDS_SPACE = socket.CMSG_SPACE(4 * MOST_FDS)
# As ints: each operation on the enum takes a microsecond.
_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_CTRUNC = int(socket.MSG_CTRUNC)


@dataclass(slots=True)
class _Incoming:
    """A frame that is not complete: `missing` are the pieces of `data` and `buffers` to be filled, in order."""

    number: int
    data: bytearray
    buffers: list[Any]
    missing: list[memoryview]


class FrameReader:
    """Reads frames from a socket. One thread at a time.

    Args:
        connection: The socket; the caller owns it.
        release: Called with the number of each received block that has no references left; at any moment.
        on_given_back: Called with the numbers of sent blocks that the other side has given back.
    """

    def __init__(
        self,
        connection: socket.socket,
        release: Callable[[int], None],
        on_given_back: Callable[[list[int]], None],
    ) -> None:
        self._socket = connection
        self._on_given_back = on_given_back
        self._views = BlockViews(release)
        self._fds: collections.deque[int] = collections.deque()
        self._chunk = memoryview(bytearray(CHUNK))
        self._rest = bytearray()
        self._incoming: _Incoming | None = None

    @property
    def has_some(self) -> bool:
        """Whether there are bytes that `parse` has not returned yet."""
        return bool(self._rest) or self._incoming is not None

    def close(self) -> None:
        """Release shared memory. Received buffers stay valid."""
        self._views.close()
        close_files(self._fds)

    def fill(self, flags: int) -> Frame | None:
        """Read from the socket. Return the frame if exactly one small frame came, which is the usual case."""
        missing: list[memoryview] = []
        into = [self._chunk]
        if self._incoming is not None:
            missing = self._incoming.missing
            into = missing[:MOST_PIECES] if len(missing) >= MOST_PIECES else [*missing, self._chunk]
        try:
            count, files, result, _ = self._socket.recvmsg_into(into, _FDS_SPACE, flags | _CLOEXEC)
        except BlockingIOError:
            raise
        except OSError as error:
            raise ChannelClosedError(f"the other side is gone: {error}") from error
        for level, kind, data in files:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds.extend(fds)
        if result & _CTRUNC:
            raise ChannelClosedError("this process may not open as many files as came: see `ulimit -n`")
        if count == 0:
            raise ChannelClosedError("the other side is gone")
        if not self._rest and self._incoming is None and count >= HEADER.size:
            mark, num_buffers, number, size, num_back, num_retired = HEADER.unpack_from(self._chunk)
            is_alone = count == HEADER.size + size and not (num_buffers or num_back or num_retired)
            if is_alone and mark == MARK and number != NO_MESSAGE:
                return Frame(number, bytes(self._chunk[HEADER.size : count]))
        beyond = advance(missing, count) if missing else count
        if beyond:
            self._rest += self._chunk[:beyond]
        return None

    def parse(self) -> Frame | None:
        """Return the next frame of what was read, if it is whole."""
        incoming = self._incoming
        if incoming is None:
            rest = self._rest
            if len(rest) < HEADER.size:
                return None
            mark, num_buffers, number, data_size, num_back, num_retired = HEADER.unpack_from(rest)
            if mark != MARK or data_size > MOST_BYTES or max(num_buffers, num_back, num_retired) > MOST_PARTS:
                raise ChannelClosedError("what comes is not a frame")
            numbers_end = HEADER.size + (num_back + num_retired) * NUMBER.size
            start = numbers_end + num_buffers * BUFFER.size
            end = start + data_size
            if len(rest) < (end if data_size < CHUNK else start):
                return None
            if start == HEADER.size and len(rest) >= end:
                frame = Frame(number, bytes(rest[start:end]))
                del rest[:end]
                return frame
            numbers = [one for (one,) in NUMBER.iter_unpack(rest[HEADER.size : numbers_end])]
            entries = list(BUFFER.iter_unpack(rest[numbers_end:start]))
            incoming = self._begin(number, data_size, entries)
            self._on_given_back(numbers[:num_back])
            for block in numbers[num_back:]:
                self._views.drop(block)
            self._incoming = incoming
            del rest[: start + copy(memoryview(rest)[start:], incoming.missing)]
        if incoming.missing:
            return None
        self._incoming = None
        return Frame(incoming.number, incoming.data, tuple(incoming.buffers))

    def _begin(self, number: int, data_size: int, entries: list[tuple[int, int, int]]) -> _Incoming:
        """Allocate a frame whose tables were read."""
        try:
            if sum(size for size, block, _ in entries if block == 0) > MOST_BYTES:
                raise ValueError("what comes is not a frame")
            data = bytearray(data_size)
            buffers: list[Any] = []
            for size, block, is_new in entries:
                if is_new:
                    self._views.add(block, self._fds.popleft())
                buffers.append(self._views.view(block, size) if block else bytearray(size))
        except (IndexError, KeyError, MemoryError, OSError, ValueError) as error:
            raise ChannelClosedError(f"a frame cannot be received: {type(error).__name__}: {error}") from error
        inline = [buffer for buffer, (_, block, _) in zip(buffers, entries, strict=True) if block == 0]
        return _Incoming(number, data, buffers, [memoryview(piece) for piece in (data, *inline) if piece])
