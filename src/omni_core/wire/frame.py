"""A frame: the unit that a channel sends, and its layout on the socket."""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Mark, number of buffers, number of the frame, bytes of data, number of blocks given back, number of blocks retired.
HEADER = struct.Struct("<4sIQQII")
MARK = b"omni"
# For each buffer: its length, the number of its block (0: its bytes follow the data), whether the block is new.
BUFFER = struct.Struct("<QIB")
NUMBER = struct.Struct("<I")
# Number of a frame that carries no message and only gives blocks back.
NO_MESSAGE = (1 << 64) - 1
# Maximum bytes of one receive call, unless a larger frame is being received.
CHUNK = 1 << 17
# Maximum file descriptors and memory pieces in one call (the kernel's limits are 253 and 1024).
MOST_FDS = 200
MOST_PIECES = 256
# As an int: each operation on the enum takes a microsecond.
DONTWAIT = int(socket.MSG_DONTWAIT)
# Maximum bytes and parts of a frame. A header with more is invalid.
MOST_BYTES = 1 << 40
MOST_PARTS = 1 << 20


class ChannelClosedError(ConnectionError):
    """The other side is gone, or this side was closed."""


class NoRoomError(Exception):
    """Earlier frames were not read yet, and the send would have to wait. Nothing was sent."""


class SendTimeoutError(ChannelClosedError):
    """The other side does not read: it is stopped, or stuck. Nothing can be sent any more."""


@dataclass(slots=True)
class Frame:
    """A number, which the channel does not interpret, some data, and large buffers.

    Attributes:
        number: Tells the receiver what the frame is; below 2^64 - 1.
        data: Any bytes.
        buffers: Contiguous buffers. On the receiving side they may be views of shared memory.
    """

    number: int
    data: bytes | bytearray = b""
    buffers: Sequence[Any] = ()


def raw_memory(buffer: Any) -> memoryview:
    """Return the bytes of a buffer, which must be contiguous."""
    return (buffer if isinstance(buffer, pickle.PickleBuffer) else pickle.PickleBuffer(buffer)).raw()


def copy(source: memoryview, pieces: list[memoryview]) -> int:
    """Copy `source` into the pieces, drop those that are full, and return the number of bytes copied."""
    taken = 0
    with source:
        while pieces and taken < len(source):
            count = min(len(pieces[0]), len(source) - taken)
            pieces[0][:count] = source[taken : taken + count]
            taken += count
            advance(pieces, count)
    return taken


def advance(pieces: list[memoryview], count: int) -> int:
    """Drop `count` bytes from the front of the pieces, and return by how many `count` exceeds them."""
    full = 0
    while full < len(pieces) and count >= len(pieces[full]):
        count -= len(pieces[full])
        full += 1
    del pieces[:full]
    if count and pieces:
        pieces[0] = pieces[0][count:]
        return 0
    return count
