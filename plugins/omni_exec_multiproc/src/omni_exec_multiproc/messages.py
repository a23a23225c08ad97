"""The first message to a worker process."""

from __future__ import annotations

from dataclasses import dataclass

from omni_core.wire.worker_setup import WorkerSetup


@dataclass(frozen=True, slots=True)
class MultiprocWorkerSetup(WorkerSetup):
    """What `WorkerSetup` has, and how the ranks of the replica connect.

    Attributes:
        rendezvous: Where the ranks of the replica find each other: an init method of torch.distributed; empty for one.
    """

    rendezvous: str
