"""Objects as bytes on their way between the ranks of a replica."""

from __future__ import annotations

import pickle
from typing import Any

import torch


class NotSent:
    """Travels in place of a value that does not pickle, so that nobody waits for it in vain."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def pickled(value: Any) -> bytes:
    """Return a value as bytes; of one that does not pickle, a `NotSent`."""
    try:
        return pickle.dumps(value, protocol=5)
    except Exception as error:
        reason = f"an object cannot be sent to the other ranks: {type(error).__name__}: {error}"
        return pickle.dumps(NotSent(reason), protocol=5)


def bytes_tensor(data: bytes) -> torch.Tensor:
    """Return bytes as what collectives take."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
