"""What is in a body: one value, with the memory of its tensors and arrays behind its pickle."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import Any

from omni_core import serialization
from omni_core.errors import RPCError

ALIGNMENT = 64  # as torch likes its memory
Part = bytes | memoryview


def encode(value: Any, max_bytes: int) -> list[Part]:
    """Return the parts of the body that holds `value`.

    Raises:
        RPCError: A part of the value cannot be pickled, or the body would be too large.
    """
    pickle, buffers = serialization.dumps(value)
    pieces: list[Part] = [pickle, *(buffer.raw() for buffer in buffers)]
    lengths = [len(piece) for piece in pieces]
    head = struct.pack(f"<I{len(lengths)}Q", len(lengths), *lengths)
    parts: list[Part] = []
    for piece in (head, *pieces):
        parts += [piece, bytes(-len(piece) % ALIGNMENT)]
    size = num_bytes(parts)
    if size > max_bytes:
        raise RPCError(f"It would take {size:,} bytes to send, and max_body_bytes is {max_bytes:,}.")
    return parts


def decode(body: bytearray) -> Any:
    """Return the value in a body, which it then belongs to. Only for a body of a sender who has proved who it is."""
    view = memoryview(body)
    (count,) = struct.unpack_from("<I", body)
    lengths = struct.unpack_from(f"<{count}Q", body, 4)
    start, pieces = _aligned(4 + 8 * count), []
    for length in lengths:
        pieces.append(view[start : start + length])
        start += _aligned(length)
    return serialization.loads(pieces[0], pieces[1:])


def num_bytes(parts: Iterable[Part]) -> int:
    """Return how long a body is."""
    return sum(len(part) for part in parts)


def digest_of(parts: Iterable[Part | bytearray]) -> str:
    """Return the digest of a body."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _aligned(length: int) -> int:
    return length + -length % ALIGNMENT
