"""A frame: what one side of a channel sends to the other, and how it stands on the socket."""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Mark of a frame, number of its buffers, its number, bytes of its data; numbers of: blocks given back, given up.
HEADER = struct.Struct("<4sIQQII")
MARK = b"omni"
# Of each buffer: its length, the number of its block (0: its bytes follow the data), whether the block is new.
BUFFER = struct.Struct("<QIB")
NUMBER = struct.Struct("<I")
# Number of a frame that is no message: it only gives blocks back.
NO_MESSAGE = (1 << 64) - 1
# What one receive call takes at most, unless a larger frame is being received.
CHUNK = 1 << 17
# Most file descriptors, and most pieces of memory, in one call (the kernel's own limits are 253 and 1024).
MOST_FDS = 200
MOST_PIECES = 256
# As a plain number: each operation on the enumeration takes a microsecond.
DONTWAIT = int(socket.MSG_DONTWAIT)
# No frame of ours has more bytes, or more of anything else; a header that says so is no header.
MOST_BYTES = 1 << 40
MOST_PARTS = 1 << 20


class ChannelClosedError(ConnectionError):
    """The other side is gone, or this one was closed."""


class NoRoomError(Exception):
    """What was sent before is not on its way yet, and sending would wait for that. Nothing was sent."""


class SendTimeoutError(ChannelClosedError):
    """The other side does not take what is sent: it is stopped, or stuck. Nothing can be sent any more."""


@dataclass(slots=True)
class Frame:
    """What is sent: a number that the channel does not look at, some data, and its large parts.

    Attributes:
        number: Tells the receiver what it is; below 2^64 - 1.
        data: Any bytes.
        buffers: Further contiguous buffers. On the receiving side they may be views on shared memory.
    """

    number: int
    data: bytes | bytearray = b""
    buffers: Sequence[Any] = ()


def raw_memory(buffer: Any) -> memoryview:
    """Return the bytes of a buffer, which must be contiguous."""
    return (buffer if isinstance(buffer, pickle.PickleBuffer) else pickle.PickleBuffer(buffer)).raw()


def copy(source: memoryview, pieces: list[memoryview]) -> int:
    """Fill the pieces as far as `source` goes, drop those that are full, and return how many bytes that took."""
    taken = 0
    with source:
        while pieces and taken < len(source):
            count = min(len(pieces[0]), len(source) - taken)
            pieces[0][:count] = source[taken : taken + count]
            taken += count
            advance(pieces, count)
    return taken


def advance(pieces: list[memoryview], count: int) -> int:
    """Take `count` bytes off the front of the pieces, and return how many there were not."""
    full = 0
    while full < len(pieces) and count >= len(pieces[full]):
        count -= len(pieces[full])
        full += 1
    del pieces[:full]
    if count and pieces:
        pieces[0] = pieces[0][count:]
        return 0
    return count
