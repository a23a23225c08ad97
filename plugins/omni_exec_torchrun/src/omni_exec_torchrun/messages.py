"""The first message to a rank."""

from __future__ import annotations

from dataclasses import dataclass

from omni_core.remote.setup import WorkerSetup


@dataclass(frozen=True, slots=True)
class Setup(WorkerSetup):
    """Who a rank is.

    Attributes:
        meeting: Name under which the ranks of the replica meet in torch's store; never used twice.
        backend: What connects them: auto, gloo or nccl.
        timeout_s: Seconds to wait for another rank.
    """

    meeting: str
    backend: str
    timeout_s: float
