"""The first message from the driver to a rank."""

from __future__ import annotations

from dataclasses import dataclass

from omni_core.wire.worker_setup import WorkerSetup


@dataclass(frozen=True, slots=True)
class TorchrunWorkerSetup(WorkerSetup):
    """What `WorkerSetup` has, and how the ranks of the replica connect.

    Attributes:
        rendezvous: The init method of torch.distributed for the ranks of the replica; empty for a launch over several
            nodes.
        meeting: Unique prefix for their rendezvous in the store of such a launch.
        backend: The backend of torch.distributed: auto, gloo or nccl.
        timeout_s: Seconds to wait for another rank.
    """

    rendezvous: str
    meeting: str
    backend: str
    timeout_s: float
