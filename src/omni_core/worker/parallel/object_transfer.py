"""Pickles objects that the ranks of a replica send each other, and authenticates them."""

from __future__ import annotations

import hashlib
import hmac
import pickle
from typing import Any

import torch


class NotSent:
    """Sent in place of a value that cannot be pickled, so that no rank waits for it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def pickled(value: Any) -> tuple[bytes, NotSent | None]:
    """Pickle a value. If that fails, return the pickle of a `NotSent`, and the `NotSent` itself instead of None."""
    try:
        return pickle.dumps(value, protocol=5), None
    except Exception as error:
        instead = NotSent(f"an object cannot be sent to the other ranks: {type(error).__name__}: {error}")
        return pickle.dumps(instead, protocol=5), instead


def bytes_tensor(data: bytes) -> torch.Tensor:
    """Return bytes as a tensor, `[len(data)]` of uint8, for collectives."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


class ForgedError(Exception):
    """Bytes were not sealed by a rank with the key, or were sealed for another message."""


class Seal:
    """Authenticates bytes between ranks with the same key, before they are unpickled.

    Gloo accepts connections from any process of the machine or the network. The code is HMAC-SHA256 over the sender,
    the number of the message and its bytes, so that a recorded message cannot be used again.

    Args:
        key: The shared key of the ranks. Empty: no authentication, and no code is added.
        members: The ranks of the group, which distinguish it from other groups with the same key.
    """

    def __init__(self, key: bytes, members: str = "") -> None:
        self._key = hmac.digest(key, members.encode(), hashlib.sha256) if key else b""
        self._number = 0

    def next_message(self) -> None:
        """Count a message. All ranks must count the same messages."""
        self._number += 1

    def close(self, data: bytes, sender: int) -> bytes:
        """Return the bytes with their code as a prefix."""
        return self._code(data, sender) + data

    def open(self, data: bytes, sender: int) -> bytes:
        """Return the bytes without the code.

        Raises:
            ForgedError: The code is wrong.
        """
        if not self._key:
            return data
        size = hashlib.sha256().digest_size
        if not hmac.compare_digest(data[:size], self._code(data[size:], sender)):
            raise ForgedError
        return data[size:]

    def _code(self, data: bytes, sender: int) -> bytes:
        if not self._key:
            return b""
        return hmac.digest(self._key, b"%d %d\0" % (sender, self._number) + data, hashlib.sha256)
