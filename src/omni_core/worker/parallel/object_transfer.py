"""Objects as bytes on their way between the ranks of a replica."""

from __future__ import annotations

import hashlib
import hmac
import pickle
from typing import Any

import torch


class NotSent:
    """Travels in place of a value that does not pickle, so that nobody waits for it in vain."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def pickled(value: Any) -> tuple[bytes, NotSent | None]:
    """Return a value as bytes, and None; of one that does not pickle, a `NotSent` as bytes, and as it is."""
    try:
        return pickle.dumps(value, protocol=5), None
    except Exception as error:
        instead = NotSent(f"an object cannot be sent to the other ranks: {type(error).__name__}: {error}")
        return pickle.dumps(instead, protocol=5), instead


def bytes_tensor(data: bytes) -> torch.Tensor:
    """Return bytes as what collectives take."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


class ForgedError(Exception):
    """Bytes were not sealed by a rank that has the key, or were sealed for another place."""


class Seal:
    """Proves to a rank that bytes are from another one that has the same key, before they are unpickled.

    Gloo takes a connection from any process of the machine or the network. The code is HMAC-SHA256 over who sends, the
    number of the message and its bytes, so that nothing recorded is of any use later or elsewhere.

    Args:
        key: What the ranks share and nobody else knows. Empty: nothing is proved, and nothing is added.
        members: The group, told apart from others that have the same key.
    """

    def __init__(self, key: bytes, members: str = "") -> None:
        self._key = hmac.digest(key, members.encode(), hashlib.sha256) if key else b""
        self._number = 0

    def next_message(self) -> None:
        """Count a message, on all ranks alike."""
        self._number += 1

    def close(self, data: bytes, sender: int) -> bytes:
        """Return the bytes with their code before them."""
        return self._code(data, sender) + data

    def open(self, data: bytes, sender: int) -> bytes:
        """Return the bytes without their code.

        Raises:
            ForgedError: It is not theirs.
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
