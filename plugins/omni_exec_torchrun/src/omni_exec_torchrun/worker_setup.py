"""The first message to a rank."""

from __future__ import annotations

from dataclasses import dataclass

from omni_core.wire.worker_setup import WorkerSetup


@dataclass(frozen=True, slots=True)
class TorchrunWorkerSetup(WorkerSetup):
    """What `WorkerSetup` has, and how the ranks of the replica connect.

    Attributes:
        rendezvous: Where the ranks of the replica find each other: an init method of torch.distributed; empty for a
            launch over several nodes.
        meeting: Name under which they meet in the store of such a launch; never used twice.
        backend: What connects them: auto, gloo or nccl.
        timeout_s: Seconds to wait for another rank.
    """

    rendezvous: str
    meeting: str
    backend: str
    timeout_s: float
